"""Adapter folders to one adapter folder: what must agree between them, and what the result says of its origin.

The arithmetic is combine.py's. Loads no model.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_lora.errors import AdapterError
from mlx_lora.files import sha256_file
from mlx_lora.lora.adapter import AdapterFolder, write_adapter
from mlx_lora.lora.adapter_config import FORMAT_VERSION, WEIGHTS_FILE, AdapterParameters
from mlx_lora.lora.combine import METHODS, Combined, Recipe, combine
from mlx_lora.lora.factors import read_factors, write_factors

_BASE = ("config_sha256", "weights_sha256")
_PROMPTS = ("system_prompt", "chat_template", "chat_template_sha256", "chat_template_args", "row_formats")
_ORIGIN = ("model", "revision", "identity", "versions", *_PROMPTS)


def check_recipe(recipe: Recipe, adapters: int) -> None:
    """Raises: AdapterError for a method, weights, a rank or a density that cannot be."""
    if recipe.method not in METHODS:
        raise AdapterError(f"--method {recipe.method}: unknown", f"one of {', '.join(METHODS)}")
    if len(recipe.weights) != adapters:
        raise AdapterError(
            f"--weights: {len(recipe.weights)} numbers for {adapters} adapters", "give one for each, such as 0.7,0.3"
        )
    if not all(0 < abs(weight) < float("inf") for weight in recipe.weights):
        raise AdapterError("--weights: a weight is 0 or not finite", "leave that adapter out")
    if recipe.rank is not None and recipe.rank < 1:
        raise AdapterError(f"--rank {recipe.rank}: must be at least 1", "such as 16")
    if recipe.rank is not None and recipe.method == "linear":
        raise AdapterError("--rank: the linear sum has the ranks added", "use --method svd to cut it to a rank")
    if not 0 < recipe.density <= 1:
        raise AdapterError(f"--density {recipe.density:g}: must be more than 0, at most 1", "such as 0.5")


def combine_adapters(
    adapters: Sequence[AdapterFolder], recipe: Recipe, progress: Callable[[int, int], None] | None = None
) -> Combined:
    """The combined update of adapters for one base.

    Raises: AdapterError for different bases or shapes, for DoRA, and for what check_recipe refuses.
    """
    check_recipe(recipe, len(adapters))
    for adapter in adapters:
        if adapter.parameters.method == "dora":
            raise AdapterError(
                f"{adapter.folder}: is a DoRA adapter: it rescales the base's rows, and two such changes do not add up",
                "merge LoRA adapters, or fuse this one into its base",
            )
    refuse_other_bases(adapters)
    factors = [read_factors(adapter) for adapter in adapters]
    for adapter, found in zip(adapters[1:], factors[1:], strict=True):
        for path in factors[0].keys() & found.keys():
            first, other = factors[0][path], found[path]
            if (first.shape, first.of_experts) != (other.shape, other.of_experts):
                raise AdapterError(
                    f"{adapter.folder}: {path} changes a weight of shape {other.shape[1:]}, "
                    f"in {adapters[0].folder} of {first.shape[1:]}",
                    "adapters of different bases cannot be merged",
                )
    return combine(factors, recipe, progress)


def refuse_other_bases(adapters: Sequence[AdapterFolder]) -> None:
    """Raises: AdapterError where two adapters name different bases; one that names none is not judged."""
    named = [(adapter, adapter.facts.get("identity")) for adapter in adapters]
    known = [(adapter, identity) for adapter, identity in named if isinstance(identity, Mapping)]
    for adapter, identity in known[1:]:
        first, expected = known[0]
        if any(identity.get(key) != expected.get(key) for key in _BASE if identity.get(key) and expected.get(key)):
            raise AdapterError(
                f"{adapter.folder}: trained on {identity.get('name')}, {first.folder} on {expected.get('name')}: "
                "their bases differ",
                "an update means something on its own base alone: train both on one",
            )


def different_prompts(facts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which parts of how prompts are written differ between adapters with these `facts`."""
    return [name for name in _PROMPTS if any(one.get(name) != facts[0].get(name) for one in facts[1:])]


def kept_from(adapters: Sequence[AdapterFolder], name: str) -> AdapterFolder:
    """The adapter whose fact `name` the result keeps: of how prompts are written the first one's, where it tells.

    Of the base, and of what the first does not tell, that of the first one that knows its base.
    """
    if name in _PROMPTS and name in adapters[0].facts:
        return adapters[0]
    return next((one for one in adapters if one.facts.get("identity")), adapters[0])


def save_combined(folder: Path, adapters: Sequence[AdapterFolder], recipe: Recipe, combined: Combined) -> None:
    """Write the result as an adapter of its own into `folder`. Raises: MlxLoraError."""
    found = as_adapter(adapters, recipe, combined)
    write_adapter(folder, found.tensors, found.config)


def as_adapter(adapters: Sequence[AdapterFolder], recipe: Recipe, combined: Combined) -> AdapterFolder:
    """The result as if it had been read from a folder, called by that of the first adapter."""
    tensors: dict[str, mx.array] = {}
    for path, factors in combined.factors.items():
        tensors |= write_factors(path, factors)
    shape = {"rank": combined.rank, "scale": 1.0, "dropout": 0.0}
    num_layers, keys = _places(adapters, combined)
    found = ((name, kept_from(adapters, name).facts) for name in _ORIGIN)
    facts = {name: own[name] for name, own in found if name in own}
    lora = {"method": "lora", "rank": combined.rank, "alpha": float(combined.rank), "use_rslora": False, "dropout": 0.0}
    merged = {
        "method": recipe.method,
        "density": recipe.density,
        "seed": recipe.seed,
        "loss": asdict(combined.loss),
        "adapters": [_ancestor(*pair) for pair in zip(adapters, recipe.weights, strict=True)],
    }
    config = {
        "fine_tune_type": "lora",
        "num_layers": num_layers,
        "lora_parameters": {**shape, "keys": keys},
        "mlx_lora": {"format_version": FORMAT_VERSION, "lora": lora, **facts, "merged_from": merged},
    }
    parameters = AdapterParameters("lora", combined.rank, 1.0, 0.0, num_layers, None if keys is None else tuple(keys))
    return AdapterFolder(adapters[0].folder, config, parameters, tensors)


def _places(adapters: Sequence[AdapterFolder], combined: Combined) -> tuple[int, list[str] | None]:
    """num_layers and keys that name exactly the modules of the result, as mlx-lm reads them.

    Where the adapters do not sit in the same places, whole paths: layers times names would name modules of none.
    """
    first = adapters[0].parameters
    if all(
        (one.parameters.num_layers, set(one.modules)) == (first.num_layers, set(combined.factors)) for one in adapters
    ):
        return first.num_layers, None if first.keys is None else list(first.keys)
    return 0, list(combined.factors)  # 0: all layers, in which no key is a relative path


def _ancestor(adapter: AdapterFolder, weight: float) -> dict[str, Any]:
    return {
        "name": adapter.folder.resolve().name,
        "weight": weight,
        "weights_sha256": sha256_file(adapter.folder / WEIGHTS_FILE),
        "rank": adapter.parameters.rank,
        "data_sha256": adapter.facts.get("data_sha256"),
    }
