"""`mlx-lora adapters merge`: several adapters to one, and what that lost."""

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_lora.chat.places import find_adapter
from mlx_lora.console import talk
from mlx_lora.errors import AdapterError
from mlx_lora.files import refuse_unwritable, typed_path, whole_folder
from mlx_lora.screen import RowsBar, format_bytes

if TYPE_CHECKING:
    from mlx_lora.lora.adapter import AdapterFolder
    from mlx_lora.lora.combine import Combined, Recipe


def run_adapters_merge(
    names: Sequence[str],
    output: Path,
    *,
    method: str = "linear",
    weights: str | None = None,
    rank: int | None = None,
    density: float | None = None,
    seed: int = 0,
    json_output: bool = False,
) -> int:
    """Merge adapters of one base into the adapter folder `output`; return exit code 0.

    weights: such as "0.7,0.3", equal shares of 1 by default. rank: of the result, the largest of the adapters' by
    default; linear adds the ranks. density: of ties and dare. json_output: one JSON object on stdout.
    Raises: AdapterError for what cannot be merged, MlxLoraError when `output` exists; nothing is then written.
    """
    output = typed_path(output)
    refuse_unwritable(output)
    folders = [find_adapter(name) for name in names]
    from mlx_lora.lora.adapter import read_adapter
    from mlx_lora.lora.adapter_config import WEIGHTS_FILE
    from mlx_lora.lora.combine import DENSITIES, Recipe
    from mlx_lora.lora.combined_adapter import combine_adapters, save_combined

    adapters = [read_adapter(folder) for folder in folders]
    chosen = DENSITIES.get(method, 1.0) if density is None else density
    recipe = Recipe(method, parse_weights(weights, len(folders)), rank, chosen, seed)  # type: ignore[arg-type]
    if density is not None and method not in DENSITIES:
        raise AdapterError(f"--density: --method {method} keeps all entries", f"it goes with {' and '.join(DENSITIES)}")
    with whole_folder(output) as temporary:
        with RowsBar("merging") as bar:
            combined = combine_adapters(adapters, recipe, bar.show)
        save_combined(temporary, adapters, recipe, combined)
    size = (output / WEIGHTS_FILE).stat().st_size
    say_differing(adapters)
    talk.print(f"{as_mix(names, recipe.weights)}: {_lost(recipe, combined)}", markup=False, soft_wrap=True)
    talk.print(
        f"{output}: rank {combined.rank}, {len(combined.factors)} modules, {format_bytes(size)}; "
        f"whether it still knows what each one did: mlx-lora eval {shlex.quote(str(output))} --data FILE --base",
        markup=False,
        soft_wrap=True,
    )
    if json_output:
        facts = {"rank": combined.rank, "modules": len(combined.factors), "weight_bytes": size}
        value = {"output": str(output), **facts, **asdict(recipe), "rank": combined.rank, "loss": asdict(combined.loss)}
        sys.stdout.write(json.dumps(value) + "\n")
    return 0


def say_differing(adapters: "Sequence[AdapterFolder]") -> None:
    """A note for each part of how prompts are written that is not the same in all, with whose is kept."""
    from mlx_lora.lora.combined_adapter import different_prompts, kept_from

    for name in different_prompts([one.facts for one in adapters]):
        kept = kept_from(adapters, name).folder
        talk.print(f"note: {name} differs between them: that of {kept} is kept", markup=False, soft_wrap=True)


def parse_weights(text: str | None, count: int) -> tuple[float, ...]:
    """The weights of "0.7,0.3"; equal shares of 1 for None. Raises: AdapterError for what is no list of numbers."""
    if text is None:
        return (1 / count,) * count
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise AdapterError(f"--weights {text}: not numbers with commas between them", "such as 0.7,0.3") from error


def as_mix(names: Sequence[object], weights: Sequence[float]) -> str:
    """Adapters and their weights as chat takes them: "first:0.5+second:0.5"; a linear merge answers as this mix."""
    return "+".join(f"{name}:{weight:.6g}" for name, weight in zip(names, weights, strict=True))


def _lost(recipe: "Recipe", combined: "Combined") -> str:
    loss = combined.loss
    if recipe.method == "linear":
        return "nothing is lost: it answers as this mix, with the ranks added"
    parts = []
    if loss.dropped:
        shares = ", ".join(f"{share:.1%}" for share in loss.dropped)
        verb = "trimmed" if recipe.method == "ties" else "dropped at random"
        parts.append(f"{verb}: {1 - recipe.density:.0%} of the entries, with {shares} of the updates' squared norm")
    if loss.conflicts is not None:
        parts.append(f"opposite signs in {loss.conflicts:.1%} of the entries that several change")
    parts.append(f"rank {combined.rank} keeps {1 - loss.cut:.2%} of the squared norm")
    parts.append(f"the result is {loss.moved:.1%} of the plain weighted sum's norm away from it")
    return "; ".join(parts)
