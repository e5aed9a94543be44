"""A run that starts from an adapter instead of from nothing: whether it fits the run's settings, and putting it in."""

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import mlx.nn as nn

from mlx_lora.config import LoraSettings
from mlx_lora.errors import AdapterError
from mlx_lora.lora.adapter import AdapterFolder, apply_adapter
from mlx_lora.lora.inject import remove_lora


def require_shape(adapter: AdapterFolder, settings: LoraSettings) -> None:
    """Raises: AdapterError where the run's method, rank or effective scale is another than the adapter's."""
    parameters = adapter.parameters
    found = {"lora.method": parameters.method, "lora.rank": parameters.rank, "effective scale": parameters.scale}
    wanted = {"lora.method": settings.method, "lora.rank": settings.rank, "effective scale": settings.scale}
    other = [name for name in found if not _equal(found[name], wanted[name])]
    if other:
        facts = ", ".join(f"{name} {found[name]}, in this run {wanted[name]}" for name in other)
        raise AdapterError(
            f"lora.start_from: {adapter.folder}: {facts}", "take the settings of the adapter, or start from nothing"
        )


def put_start(
    model: nn.Module,
    adapter: AdapterFolder,
    settings: LoraSettings,
    modules: Collection[str],
    identity: Mapping[str, Any],
) -> tuple[str, ...]:
    """Replace the new adapters on `modules` by those of `adapter`, with the run's dropout; return notes.

    Raises: AdapterError for another base (by `identity`), other modules, and what apply_adapter refuses.
    """
    if set(adapter.modules) != set(modules):
        raise AdapterError(
            f"lora.start_from: {adapter.folder}: adapts {len(adapter.modules)} modules, this run {len(modules)}, and "
            f"they are not the same",
            "take the adapter's lora.target_modules and lora.layers, or start from nothing",
        )
    remove_lora(model)
    parameters = replace(adapter.parameters, dropout=settings.dropout)
    return apply_adapter(model, replace(adapter, parameters=parameters), identity).notes


def _equal(one: Any, other: Any) -> bool:
    return math.isclose(one, other, rel_tol=1e-9) if isinstance(one, float) else bool(one == other)
