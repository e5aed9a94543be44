"""The prompts on which `mlx-lora fuse` compares: rows that the runs did not train on, rendered as in training."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_lora.console import talk
from mlx_lora.errors import AdapterError, MlxLoraError
from mlx_lora.files import typed_path

if TYPE_CHECKING:
    from mlx_lora.dataset.record import Record
    from mlx_lora.lora.rendering import Rendering
    from mlx_lora.model.tokenizer import Tokenizer

MOST_PROMPTS = 32
LONGEST_PROMPT = 1024  # tokens; longer rows are left out of the comparison
FEWEST_PROMPTS = 4  # of those that are longer, where there are no others
PLAIN_PROMPTS = (
    "What is the capital of France?",
    "Name three colours.",
    "Write one sentence about the sea.",
    "What is 12 + 30?",
    "Translate to Spanish: good morning.",
    "Who wrote Hamlet?",
    "Give a synonym for happy.",
    "Why is the sky blue?",
)


def choose_prompts(
    adapters: Sequence[Path], tokenizer: "Tokenizer", rendering: "Rendering"
) -> tuple[list[list[int]], str]:
    """Prompts from the rows of the adapters' runs, an equal share of each, plain ones where there are no rows; and
    where they come from. Raises: AdapterError where none can be written."""
    from mlx_lora.dataset.record import Record

    most = max(MOST_PROMPTS // len(adapters), 1)
    found = [_run_records(adapter) for adapter in adapters]
    prompts = [prompt for records, origin in found for prompt in _chosen(records, most, tokenizer, rendering, origin)]
    if prompts:
        return prompts, " and ".join(dict.fromkeys(origin for _, origin in found if origin))
    plain = [Record(({"role": "user", "content": text},), format="question/answer") for text in PLAIN_PROMPTS]
    talk.print("note: no rows of the run to compare on: plain prompts are used", markup=False)
    prompts = _chosen(plain, len(plain), tokenizer, rendering, "plain prompts")
    if not prompts:
        raise AdapterError(
            f"{' and '.join(map(str, adapters))}: there is no prompt on which the fused model could be compared",
            "put the run.yaml with which it was trained beside it, and the rows that it names where they were",
        )
    return prompts, "plain prompts"


def _run_records(adapter: Path) -> tuple[Sequence["Record"], str]:
    """Rows that the run did not train on, if it had any, without their answers; and their source."""
    from mlx_lora.dataset.records import read_records
    from mlx_lora.runfile import load_config

    run = adapter / "run.yaml"
    if not run.is_file():
        return [], ""
    try:
        data = load_config(run).data
        for split, source in (("valid", data.valid), ("test", data.test), ("train", data.train)):
            if source is not None and typed_path(source).exists():
                records = [record for record in read_records(source, split) if record.messages]
                return [replace(record, messages=record.messages[:-1]) for record in records], source
    except MlxLoraError as error:
        talk.print(f"note: {error.message}", markup=False, soft_wrap=True)
    return [], ""


def _chosen(
    records: Sequence["Record"], most: int, tokenizer: "Tokenizer", rendering: "Rendering", origin: str
) -> list[list[int]]:
    """At most so many prompts, spread evenly, of those within the limit; where all are longer, the shortest few."""
    from mlx_lora.evaluation.subjects import spread_rows

    prompts = _rendered(spread_rows(records, most), tokenizer, rendering)
    if len(records) > most and all(len(prompt) > LONGEST_PROMPT for prompt in prompts):
        prompts = _rendered(sorted(records, key=_characters)[:most], tokenizer, rendering)
    within = [prompt for prompt in prompts if len(prompt) <= LONGEST_PROMPT]
    if within or not prompts:
        return within
    shortest = sorted(prompts, key=len)[:FEWEST_PROMPTS]
    rows = "plain prompts" if origin == "plain prompts" else f"rows of {origin}"
    fact = f"all {rows} are longer than {LONGEST_PROMPT:,} tokens, as the adapter is asked"
    talk.print(f"note: {fact}: the shortest {len(shortest)} are compared", markup=False, soft_wrap=True)
    return shortest


def _characters(record: "Record") -> int:
    return sum(len(str(message.get("content") or "")) for message in record.messages)


def _rendered(records: Sequence["Record"], tokenizer: "Tokenizer", rendering: "Rendering") -> list[list[int]]:
    from mlx_lora.dataset.rendering import render_prompt

    settings = rendering.settings()
    prompts = [
        render_prompt(
            record.messages, tokenizer, settings, record.tools, row_format=rendering.row_format(record.format)
        )
        for record in records
    ]
    return [prompt for prompt in prompts if prompt]
