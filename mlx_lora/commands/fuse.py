"""`mlx-lora fuse`: adapters merged into a plain model folder, kept only when it still answers as they did."""

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_lora.commands.fusetrial import (
    Fusion,
    Outcome,
    Reference,
    iter_attempts,
    measure_reference,
    name_end_token,
    try_form,
)
from mlx_lora.commands.plaintable import print_table
from mlx_lora.commands.promptnotes import prompt_notes
from mlx_lora.console import talk
from mlx_lora.errors import AdapterError
from mlx_lora.files import refuse_unwritable, typed_path, whole_folder, write_whole
from mlx_lora.screen import format_bytes

if TYPE_CHECKING:
    from mlx_lora.lora.fidelity import Distance
    from mlx_lora.lora.storage import Attempt

LARGEST_GROWTH = 5.0  # times the base's size: 16-bit layers in place of 4-bit ones stay below


def run_fuse(
    adapters: Sequence[Path],
    output: Path,
    *,
    weights: str | None = None,
    model: str | None = None,
    revision: str | None = None,
    bits: int | None = None,
    dequantize: bool = False,
    max_growth: float = LARGEST_GROWTH,
    json_output: bool = False,
) -> int:
    """Merge adapters into their base and write the model folder `output`; return exit code 0.

    Every form is written, loaded again and compared with base plus adapter on real prompts; the first to pass stays.
    weights: one an adapter, such as "0.7,0.3". model, revision: the base, by default the one that they name. bits:
    that many bits for the touched layers. dequantize: no quantized layers at all. max_growth: how many times as large
    as the base the result may be, where neither is asked for. json_output: one JSON object on stdout.
    Raises: MlxLoraError when `output` exists or no form keeps the fine-tune; nothing is then left.
    """
    output = typed_path(output)
    refuse_unwritable(output)
    if not max_growth >= 1:
        raise AdapterError(f"--max-growth {max_growth:g}: must be at least 1", "such as 2")
    fusion = _read(adapters, weights, model, revision)
    with whole_folder(output) as temporary:
        fixed, growth = _plan(fusion, bits=bits, dequantize=dequantize)
        largest = None if bits is not None or dequantize else max_growth
        reference = measure_reference(fusion)
        outcomes: list[Outcome] = []
        for attempt in _within(iter_attempts(fusion, fixed, growth), growth, largest):
            _empty(temporary)
            outcomes.append(try_form(attempt, temporary, fusion, reference))
            _say(outcomes[-1])
            if outcomes[-1].refused is None:
                break
        else:
            raise _lost(fusion, outcomes, largest, bits)
        if (end := name_end_token(temporary)) is not None:
            fact = f"answers end with {end}, which no file of the base names: generation_config.json does now"
            talk.print(f"note: {fact}", markup=False, soft_wrap=True)
        write_whole(temporary / "README.md", _card(fusion, reference, outcomes))
    chosen = outcomes[-1]
    talk.print(f"{output}: {chosen.form}, {format_bytes(chosen.weight_bytes)}", markup=False, soft_wrap=True)
    for note in prompt_notes(fusion.rendering, "a model folder", template=True):
        talk.print(f"note: {note}", markup=False, soft_wrap=True)
    if json_output:
        sys.stdout.write(json.dumps(_as_json(fusion, output, reference, outcomes)) + "\n")
    else:
        columns, rows = fidelity_table(reference, outcomes)
        print_table(columns, rows, right=columns[1:-1])
    return 0


def fidelity_table(reference: Reference, outcomes: Sequence[Outcome]) -> tuple[list[str], list[list[str]]]:
    """How near to base and adapter the base alone and every form tried come: columns, and rows of texts."""
    columns = ["", "size", "same answers", "same tokens", "KL, nats", "largest logit difference", ""]
    rows = [["base alone", "", *_figures(reference.base), ""]]
    for outcome in outcomes:
        verdict = "kept" if outcome.refused is None else "refused"
        rows.append([outcome.form, format_bytes(outcome.weight_bytes), *_figures(outcome.distance), verdict])
    return columns, rows


def _read(adapters: Sequence[Path], weights: str | None, model: str | None, revision: str | None) -> Fusion:
    """The adapters as one, their exact sum where there are several, and the base."""
    from mlx_lora.chat.places import find_adapter
    from mlx_lora.commands.adaptermerge import as_mix, parse_weights, say_differing
    from mlx_lora.lora.adapter import read_adapter
    from mlx_lora.lora.combine import Recipe
    from mlx_lora.lora.combined_adapter import as_adapter, combine_adapters
    from mlx_lora.lora.rendering import choose_base, model_of, rendering_of

    folders = tuple(find_adapter(str(adapter)) for adapter in adapters)
    read = [read_adapter(folder) for folder in folders]
    adapter = read[0]
    if len(read) > 1 or weights is not None:
        recipe = Recipe("linear", parse_weights(weights, len(read)))
        adapter = as_adapter(read, recipe, combine_adapters(read, recipe))
        talk.print(f"the weighted sum {as_mix(adapters, recipe.weights)}", markup=False, soft_wrap=True)
        say_differing(read)
    rendering = rendering_of(adapter.config, adapter.folder)
    name, chosen = choose_base(model, revision, lambda: model_of(adapter.config, adapter.folder))
    return Fusion(name, chosen, adapter, rendering, folders)


def _plan(
    fusion: Fusion, *, bits: int | None, dequantize: bool
) -> tuple[list["Attempt"], Callable[["Attempt"], float]]:
    """The forms that need no measuring, and a function for how many times the base's size an attempt makes it."""
    from mlx.utils import tree_flatten

    from mlx_lora.lora.inject import iter_lora_modules
    from mlx_lora.lora.layer import linear_dims
    from mlx_lora.lora.storage import plan_attempts, stored_form

    model = fusion.load_stored().model
    layers = dict(iter_lora_modules(model))
    attempts = plan_attempts({path: layer.linear for path, layer in layers.items()}, bits=bits, dequantize=dequantize)
    stored = {path: stored_form(layer.linear) for path, layer in layers.items()}
    counts = {path: math.prod(linear_dims(layer.linear)) for path, layer in layers.items()}
    counts = {path: count * getattr(layers[path], "num_experts", 1) for path, count in counts.items()}
    base = sum(value.nbytes for value in dict(tree_flatten(model.parameters())).values())
    base -= sum(value.nbytes for layer in layers.values() for value in layer.adapter_parameters.values())

    def growth(attempt: "Attempt") -> float:
        added = (
            form.bytes_of(counts[path]) - stored[path].bytes_of(counts[path]) for path, form in attempt.storages.items()
        )
        return float((base + sum(added)) / base)

    return attempts, growth


def _within(
    attempts: Iterator["Attempt"], growth: Callable[["Attempt"], float], largest: float | None
) -> Iterator["Attempt"]:
    """The attempts that make the model at most `largest` times the base's size; the others are named and left out."""
    for attempt in attempts:
        if largest is None or growth(attempt) <= largest:
            yield attempt
        else:
            fact = f"{attempt.name}: left out: {growth(attempt):.1f} times the base's size, {largest:g} allowed"
            talk.print(f"{fact} (--max-growth)", markup=False, soft_wrap=True)


def _card(fusion: Fusion, reference: Reference, outcomes: Sequence[Outcome]) -> str:
    from mlx_lora.model.licence import base_licence
    from mlx_lora.report.card import fused_card
    from mlx_lora.report.runs import read_run

    weights = [1.0]  # one adapter may be a merged one: what it was merged from is its own part of the card
    if len(fusion.sources) > 1:
        weights = [one["weight"] for one in fusion.adapter.facts["merged_from"]["adapters"]]
    runs = [read_run(folder) for folder in fusion.sources]
    licence = base_licence(fusion.model, fusion.revision)
    columns, rows = fidelity_table(reference, outcomes)
    layers = ", ".join(f"{count} in {form}" for form, count in outcomes[-1].layers.items())
    return fused_card(
        runs,
        weights,
        model=fusion.model,
        licence=licence,
        layers=layers,
        prompts=reference.origin,
        table=(columns, rows),
    )


def _empty(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def _lost(fusion: Fusion, outcomes: Sequence[Outcome], largest: float | None, bits: int | None) -> AdapterError:
    tried = "; ".join(f"{outcome.form}: {outcome.refused}" for outcome in outcomes)
    hint = "keep base and adapter apart" + ("" if largest is None else ", or allow a larger model (--max-growth)")
    hint = hint if bits is None else "leave --bits out, so that more bits are tried"
    names = " and ".join(str(folder) for folder in fusion.sources)
    return AdapterError(f"{names}: fusing lost the fine-tune ({tried}); nothing was kept", hint)


def _say(outcome: Outcome) -> None:
    distance = outcome.distance
    verdict = "kept" if outcome.refused is None else f"refused: {outcome.refused}"
    talk.print(
        f"{outcome.form}, {format_bytes(outcome.weight_bytes)}: {distance.agreement:.2%} same tokens — {verdict}",
        markup=False,
        soft_wrap=True,
    )


def _figures(distance: "Distance") -> list[str]:
    return [
        f"{distance.same_answers} of {distance.answers}",
        f"{distance.agreement:.2%}",
        f"{distance.kl:.3g}",
        f"{distance.largest_logit_difference:.3g}",
    ]


def _as_json(fusion: Fusion, output: Path, reference: Reference, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    attempts = [{**asdict(outcome), "distance": outcome.distance.as_json()} for outcome in outcomes]
    return {
        "adapters": [str(folder) for folder in fusion.sources],
        "output": str(output),
        "model": fusion.model,
        "revision": fusion.revision,
        "prompts": reference.origin,
        "base": reference.base.as_json(),
        "attempts": attempts,
        "chosen": attempts[-1]["form"],
        "weight_bytes": attempts[-1]["weight_bytes"],
    }
