"""The prompts on which `mlx-lora fuse` compares: rows that the runs did not train on, rendered as in training."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_lora.console import talk
from mlx_lora.errors import MlxLoraError
from mlx_lora.files import typed_path

if TYPE_CHECKING:
    from mlx_lora.dataset.record import Record
    from mlx_lora.lora.rendering import Rendering
    from mlx_lora.model.tokenizer import Tokenizer

MOST_PROMPTS = 32
LONGEST_PROMPT = 1024  # tokens; longer rows are left out of the comparison
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
    where they come from."""
    from mlx_lora.dataset.record import Record

    found = [_run_records(adapter, MOST_PROMPTS // len(adapters)) for adapter in adapters]
    prompts = [prompt for records, _ in found for prompt in _rendered(records, tokenizer, rendering)]
    if prompts:
        return prompts, " and ".join(dict.fromkeys(origin for _, origin in found if origin))
    plain = [Record(({"role": "user", "content": text},), format="question/answer") for text in PLAIN_PROMPTS]
    talk.print("note: no rows of the run to compare on: plain prompts are used", markup=False)
    return _rendered(plain, tokenizer, rendering), "plain prompts"


def _run_records(adapter: Path, most: int) -> tuple[Sequence["Record"], str]:
    """Rows that the run did not train on, if it had any, spread evenly; and their source."""
    from mlx_lora.dataset.records import read_records
    from mlx_lora.evaluation.subjects import spread_rows
    from mlx_lora.runfile import load_config

    run = adapter / "run.yaml"
    if not run.is_file():
        return [], ""
    try:
        data = load_config(run).data
        for split, source in (("valid", data.valid), ("test", data.test), ("train", data.train)):
            if source is not None and typed_path(source).exists():
                records = [record for record in read_records(source, split) if record.messages]
                spread = spread_rows(records, max(most, 1))
                return [replace(record, messages=record.messages[:-1]) for record in spread], source
    except MlxLoraError as error:
        talk.print(f"note: {error.message}", markup=False, soft_wrap=True)
    return [], ""


def _rendered(records: Sequence["Record"], tokenizer: "Tokenizer", rendering: "Rendering") -> list[list[int]]:
    from mlx_lora.dataset.rendering import render_prompt

    settings = rendering.settings()
    prompts = [
        render_prompt(
            record.messages, tokenizer, settings, record.tools, row_format=rendering.row_format(record.format)
        )
        for record in records
    ]
    return [prompt for prompt in prompts if 0 < len(prompt) <= LONGEST_PROMPT]
