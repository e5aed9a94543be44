"""`mlx-lora fuse`: an adapter merged into a plain model folder, kept only when it still answers as the adapter did."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_lora.console import talk
from mlx_lora.errors import AdapterError, MlxLoraError
from mlx_lora.files import refuse_unwritable, typed_path, whole_folder
from mlx_lora.lora.rendering import Rendering, model_of, rendering_of
from mlx_lora.screen import format_bytes

if TYPE_CHECKING:
    import mlx.core as mx

    from mlx_lora.dataset.record import Record
    from mlx_lora.lora.adapter import AdapterFolder
    from mlx_lora.lora.fidelity import Distance, Row
    from mlx_lora.lora.storage import Attempt
    from mlx_lora.model.load import LoadedModel
    from mlx_lora.model.tokenizer import Tokenizer

MOST_PROMPTS = 32
MOST_POSITIONS = 512  # answer tokens: the adapter's logits at all of them stay in memory
LONGEST_PROMPT = 1024  # tokens; longer rows are left out of the comparison
ANSWER_TOKENS = 24
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


@dataclass(frozen=True)
class Base:
    """How to load the base again: each attempt needs it as stored, after the one before has left memory."""

    name: str
    revision: str | None


@dataclass(frozen=True)
class Reference:
    """What the adapter answers, how far the base is from it, and on which prompts."""

    rows: list["Row"]
    logits: list["mx.array"]
    base: "Distance"
    origin: str


@dataclass(frozen=True)
class Outcome:
    """One form tried: its size, its distance from the adapter, and why it was refused (None: it passed)."""

    form: str
    weight_bytes: int
    update_kept: float
    distance: "Distance"
    refused: str | None


def run_fuse(
    adapter: Path,
    output: Path,
    *,
    model: str | None = None,
    revision: str | None = None,
    bits: int | None = None,
    dequantize: bool = False,
    json_output: bool = False,
) -> int:
    """Merge `adapter` into its base and write the model folder `output`; return exit code 0.

    Every form is written, loaded again and compared with base plus adapter on real prompts; the first to pass stays.
    model, revision: the base, by default the one that the adapter names. bits: that many bits for the touched layers.
    dequantize: no quantized layers at all. json_output: one JSON object on stdout.
    Raises: MlxLoraError when `output` exists or no form keeps the fine-tune; nothing is then left.
    """
    from mlx_lora.chat.places import find_adapter
    from mlx_lora.lora.adapter import read_adapter

    adapter, output = find_adapter(str(adapter)), typed_path(output)
    refuse_unwritable(output)
    folder = read_adapter(adapter)
    rendering = rendering_of(folder.config, adapter)
    base = Base(*model_of(folder.config, adapter)) if model is None else Base(model, revision)
    with whole_folder(output) as temporary:
        attempts = _plan(base, folder, bits=bits, dequantize=dequantize)
        reference = _measure_reference(base, folder, rendering)
        outcomes: list[Outcome] = []
        for attempt in attempts:
            _empty(temporary)
            outcomes.append(_try(attempt, temporary, base, folder, rendering, reference))
            _print_outcome(outcomes[-1])
            if outcomes[-1].refused is None:
                break
        else:
            raise _lost(adapter, outcomes)
    chosen = outcomes[-1]
    talk.print(f"{output}: {chosen.form}, {format_bytes(chosen.weight_bytes)}", markup=False, soft_wrap=True)
    if rendering.system_prompt is not None:
        talk.print("note: a model folder holds no system prompt: give the adapter's own in conversations", markup=False)
    if json_output:
        sys.stdout.write(json.dumps(_as_json(adapter, output, base, reference, outcomes)) + "\n")
    return 0


def _measure_reference(base: Base, folder: "AdapterFolder", rendering: Rendering) -> Reference:
    """Load base and adapter, let the adapter answer, and measure the base's distance from it."""
    from mlx_lora.lora.adapter import apply_adapter
    from mlx_lora.lora.fidelity import answer_logits, measure_distance
    from mlx_lora.lora.inject import set_adapter_enabled
    from mlx_lora.model.load import load_base

    loaded = load_base(base.name, revision=base.revision)
    applied = apply_adapter(loaded.model, folder, asdict(loaded.identity))
    for note in applied.notes:
        talk.print(f"note: {note}", markup=False, soft_wrap=True)
    talk.print(f"{applied.line}; base {loaded.identity.name}, {loaded.compute}", markup=False, soft_wrap=True)
    tokenizer = loaded.tokenizer.with_chat_template(rendering.chat_template, rendering.place)
    prompts, origin = _prompts(folder.folder, tokenizer, rendering)
    rows = _answer(loaded, tokenizer, prompts)
    logits = list(answer_logits(loaded.model, rows))
    set_adapter_enabled(loaded.model, False)
    distance = measure_distance(logits, answer_logits(loaded.model, rows))
    talk.print(
        f"compared on {distance.positions} tokens that the adapter answers to {origin}; "
        f"the base itself: {_fidelity(distance)}",
        markup=False,
        soft_wrap=True,
    )
    return Reference(rows, logits, distance, origin)


def _answer(loaded: "LoadedModel", tokenizer: "Tokenizer", prompts: list[list[int]]) -> list["Row"]:
    """Each prompt with the adapter's greedy answer, its end token included where it stopped by itself."""
    from mlx_lora.lora.fidelity import Row
    from mlx_lora.model.generate import generate_answers

    rows: list[Row] = []
    answers = generate_answers(loaded.model, tokenizer, prompts, max_tokens=ANSWER_TOKENS)
    for prompt, answer in zip(prompts, answers, strict=True):
        end = [tokenizer.eos_id] if answer.stopped else []
        rows.append(Row((*prompt, *answer.tokens, *end), len(prompt)))
        if sum(len(row.tokens) - row.prompt_length for row in rows) >= MOST_POSITIONS:
            break
    return rows


def _plan(base: Base, folder: "AdapterFolder", *, bits: int | None, dequantize: bool) -> list["Attempt"]:
    from mlx_lora.lora.inject import iter_lora_modules
    from mlx_lora.lora.storage import plan_attempts

    model = _load_stored(base, folder).model
    linears = {path: layer.linear for path, layer in iter_lora_modules(model)}
    return plan_attempts(linears, bits=bits, dequantize=dequantize)


def _try(
    attempt: "Attempt",
    temporary: Path,
    base: Base,
    folder: "AdapterFolder",
    rendering: Rendering,
    reference: Reference,
) -> Outcome:
    """Write this form into `temporary`, load it again as any reader would, and compare it with the adapter."""
    import mlx.core as mx

    from mlx_lora.lora.fidelity import answer_logits, explain_loss, measure_distance
    from mlx_lora.lora.fused_folder import write_fused_folder
    from mlx_lora.model.load import load_base

    stored = _load_stored(base, folder)
    written = write_fused_folder(temporary, stored.model, stored.path, stored.config, attempt, rendering.chat_template)
    del stored  # the base leaves memory before its successor comes
    mx.clear_cache()
    fused = load_base(str(temporary))
    distance = measure_distance(reference.logits, answer_logits(fused.model, reference.rows))
    refused = explain_loss(distance, reference.base, written.update_kept)
    return Outcome(attempt.name, written.weight_bytes, written.update_kept, distance, refused)


def _load_stored(base: Base, folder: "AdapterFolder") -> "LoadedModel":
    """The base in the form that its files have, with the adapter on it: to merge, not to compute with."""
    from mlx_lora.lora.adapter import apply_adapter
    from mlx_lora.model.load import load_base

    loaded = load_base(base.name, revision=base.revision, compute="quantized")
    apply_adapter(loaded.model, folder, asdict(loaded.identity))
    return loaded


def _prompts(adapter: Path, tokenizer: "Tokenizer", rendering: Rendering) -> tuple[list[list[int]], str]:
    """Prompts as in training, from the run's own rows where they are still there, and where they come from."""
    from mlx_lora.dataset.record import Record

    records, origin = _run_records(adapter)
    prompts = _rendered(records, tokenizer, rendering)
    if prompts:
        return prompts, origin
    plain = [Record(({"role": "user", "content": text},), format="question/answer") for text in PLAIN_PROMPTS]
    talk.print("note: no rows of the run to compare on: plain prompts are used", markup=False)
    return _rendered(plain, tokenizer, rendering), "plain prompts"


def _run_records(adapter: Path) -> tuple[Sequence["Record"], str]:
    """Rows that the run did not train on, if it had any, spread evenly; and their source."""
    from dataclasses import replace

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
                spread = spread_rows(records, MOST_PROMPTS)
                return [replace(record, messages=record.messages[:-1]) for record in spread], source
    except MlxLoraError as error:
        talk.print(f"note: {error.message}", markup=False, soft_wrap=True)
    return [], ""


def _rendered(records: Sequence["Record"], tokenizer: "Tokenizer", rendering: Rendering) -> list[list[int]]:
    from mlx_lora.dataset.rendering import render_prompt

    settings = rendering.settings()
    prompts = [
        render_prompt(
            record.messages, tokenizer, settings, record.tools, row_format=rendering.row_format(record.format)
        )
        for record in records
    ]
    return [prompt for prompt in prompts if 0 < len(prompt) <= LONGEST_PROMPT]


def _empty(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def _lost(adapter: Path, outcomes: Sequence[Outcome]) -> AdapterError:
    tried = "; ".join(f"{outcome.form}: {outcome.refused}" for outcome in outcomes)
    hint = "leave --bits out, so that more bits are tried" if len(outcomes) == 1 else "keep base and adapter apart"
    return AdapterError(f"{adapter}: fusing lost the fine-tune ({tried}); nothing was kept", hint)


def _print_outcome(outcome: Outcome) -> None:
    verdict = "kept" if outcome.refused is None else f"refused: {outcome.refused}"
    talk.print(
        f"{outcome.form}, {format_bytes(outcome.weight_bytes)}: {_fidelity(outcome.distance)} — {verdict}",
        markup=False,
        soft_wrap=True,
    )


def _fidelity(distance: "Distance") -> str:
    return (
        f"{distance.agreement:.2%} same tokens, KL {distance.kl:.3g} nats, "
        f"largest logit difference {distance.largest_logit_difference:.3g}"
    )


def _as_json(
    adapter: Path, output: Path, base: Base, reference: Reference, outcomes: Sequence[Outcome]
) -> dict[str, Any]:
    attempts = [{**asdict(outcome), "distance": outcome.distance.as_json()} for outcome in outcomes]
    return {
        "adapter": str(adapter),
        "output": str(output),
        "model": base.name,
        "revision": base.revision,
        "prompts": reference.origin,
        "base": reference.base.as_json(),
        "attempts": attempts,
        "chosen": attempts[-1]["form"],
        "weight_bytes": attempts[-1]["weight_bytes"],
    }
