"""Trying forms of a fused model: what base and adapter answer, and how far a written folder is from that."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_lora.commands.fuseprompts import choose_prompts
from mlx_lora.console import talk
from mlx_lora.files import write_json

if TYPE_CHECKING:
    import mlx.core as mx

    from mlx_lora.lora.adapter import AdapterFolder
    from mlx_lora.lora.fidelity import Distance, Row
    from mlx_lora.lora.rendering import Rendering
    from mlx_lora.lora.storage import Attempt
    from mlx_lora.model.load import LoadedModel
    from mlx_lora.model.tokenizer import Tokenizer

MOST_POSITIONS = 512  # answer tokens: the adapter's logits at all of them stay in memory
ANSWER_TOKENS = 24


@dataclass(frozen=True)
class Fusion:
    """What is fused: a base (by the name that loads it again: an attempt needs it as stored, after the one before has
    left memory), one adapter, or the sum of several, and how their prompts are written; `sources` are their folders."""

    model: str
    revision: str | None
    adapter: "AdapterFolder"
    rendering: "Rendering"
    sources: tuple[Path, ...]

    def load_stored(self) -> "LoadedModel":
        """The base in the form that its files have, with the adapter on it: to merge, not to compute with."""
        from mlx_lora.lora.adapter import apply_adapter
        from mlx_lora.model.load import load_base

        loaded = load_base(self.model, revision=self.revision, compute="quantized")
        apply_adapter(loaded.model, self.adapter, asdict(loaded.identity))
        return loaded


@dataclass(frozen=True)
class Reference:
    """What the adapter answers, how far the base is from it, on which prompts, and the base's size and identity."""

    rows: list["Row"]
    logits: list["mx.array"]
    base: "Distance"
    origin: str
    identity: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """One form tried: its size, its distance from the adapter, and why it was refused (None: it passed).

    layers: how many touched layers are stored in which form.
    """

    form: str
    weight_bytes: int
    update_kept: float
    distance: "Distance"
    refused: str | None
    layers: dict[str, int]


def measure_reference(fusion: Fusion) -> Reference:
    """Load base and adapter, let the adapter answer, and measure the base's distance from it."""
    from mlx_lora.lora.adapter import apply_adapter
    from mlx_lora.lora.fidelity import answer_logits, measure_distance
    from mlx_lora.lora.inject import set_adapter_enabled
    from mlx_lora.model.load import load_base

    loaded = load_base(fusion.model, revision=fusion.revision)
    applied = apply_adapter(loaded.model, fusion.adapter, asdict(loaded.identity))
    for note in applied.notes:
        talk.print(f"note: {note}", markup=False, soft_wrap=True)
    talk.print(f"{applied.line}; base {loaded.identity.name}, {loaded.compute}", markup=False, soft_wrap=True)
    rendering = fusion.rendering
    tokenizer = loaded.tokenizer.with_chat_template(rendering.chat_template, rendering.place)
    prompts, origin = choose_prompts(fusion.sources, tokenizer, rendering)
    rows = answer_rows(loaded, tokenizer, prompts)
    logits = list(answer_logits(loaded.model, rows))
    set_adapter_enabled(loaded.model, False)
    distance = measure_distance(logits, answer_logits(loaded.model, rows))
    talk.print(f"compared on {len(rows)} answers of the adapter to {origin}", markup=False, soft_wrap=True)
    return Reference(rows, logits, distance, origin, asdict(loaded.identity))


def answer_rows(loaded: "LoadedModel", tokenizer: "Tokenizer", prompts: list[list[int]]) -> list["Row"]:
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


def iter_attempts(fusion: Fusion, fixed: list["Attempt"], growth: Callable[["Attempt"], float]) -> Iterator["Attempt"]:
    """The forms to try, smallest first: as the base; where that was refused, mixtures of bits and the other forms."""
    from mlx_lora.lora.precision import measure_steps, mixed_attempts

    yield fixed[0]
    mixed: list[Attempt] = []
    if len(fixed) > 1 and any(form.bits is not None for form in fixed[0].storages.values()):
        mixed = list(mixed_attempts(measure_steps(fusion.load_stored().model)))
        mixed = [one for one in mixed if all(one.storages != other.storages for other in fixed)]
    yield from sorted([*mixed, *fixed[1:]], key=growth)


def try_form(attempt: "Attempt", temporary: Path, fusion: Fusion, reference: Reference) -> Outcome:
    """Write this form into `temporary`, load it again as any reader would, and compare it with the adapter."""
    import mlx.core as mx

    from mlx_lora.lora.fidelity import answer_logits, explain_loss, measure_distance
    from mlx_lora.lora.fused_folder import write_fused_folder
    from mlx_lora.model.load import load_base

    stored, template = fusion.load_stored(), fusion.rendering.chat_template
    written = write_fused_folder(temporary, stored.model, stored.path, stored.config, attempt, template)
    del stored  # the base leaves memory before its successor comes
    mx.clear_cache()
    fused = load_base(str(temporary))
    distance = measure_distance(reference.logits, answer_logits(fused.model, reference.rows))
    refused = explain_loss(distance, reference.base, written.update_kept)
    forms = [str(form) for form in attempt.storages.values()]
    layers = {form: forms.count(form) for form in sorted(set(forms))}
    return Outcome(attempt.name, written.weight_bytes, written.update_kept, distance, refused, layers)


def name_end_token(folder: Path) -> str | None:
    """Let generation_config.json name the token that the chat template writes after an answer, where no file does.

    Other programs go by the files alone, and would never end an answer. Returns its text, None where it was named.
    """
    from mlx_lora.model.identity import read_json_object
    from mlx_lora.model.load import load_tokenizer

    tokenizer, place = load_tokenizer(str(folder)), folder / "generation_config.json"
    content = read_json_object(place) if place.is_file() else {}
    named = content.get("eos_token_id") or read_json_object(folder / "config.json").get("eos_token_id")
    tokens = {*(named if isinstance(named, list) else [named]), tokenizer.wrapper.eos_token_id}
    if tokenizer.eos_id in tokens:
        return None
    others = sorted(tokenizer.eos_ids - {tokenizer.eos_id})
    write_json(place, {**content, "eos_token_id": [tokenizer.eos_id, *others]})
    return tokenizer.decode([tokenizer.eos_id])
