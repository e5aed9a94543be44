"""Several adapters at once, by weight: `a:0.7+b:0.3`. Knows nothing of files or of what is in a model."""

import copy
import difflib
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import mlx.core as mx

from mlx_lora.errors import AdapterError
from mlx_lora.lora.layer import AdapterLayer, DoRALinear, LoRASwitchLinear

LARGEST_WEIGHT = 100.0  # beyond it float32 loses the base beside the update
_EXAMPLE = "such as a:0.7+b:0.3"


@dataclass(frozen=True)
class Mix:
    """Who answers: names of adapters, each with the weight of its update. One name of weight 1 is that adapter."""

    parts: tuple[tuple[str, float], ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters, in the order in which they were named."""
        return tuple(name for name, _ in self.parts)

    @property
    def is_plain(self) -> bool:
        """Whether it is one adapter as it was trained."""
        return len(self.parts) == 1 and self.parts[0][1] == 1

    def __str__(self) -> str:
        return "+".join(name if weight == 1 else f"{name}:{weight!r}" for name, weight in self.parts)


def parse_mix(text: str, is_name: Callable[[str], bool]) -> Mix:
    """Read `a`, `a:0.5` or `a:0.7+b:0.3`; what `is_name` says is a name is one, whatever signs it holds.

    Whether there are adapters of these names is for the caller to see.
    Raises: AdapterError for a weight that cannot be, or a name that stands twice.
    """
    if is_name(text):
        return Mix(((text, 1.0),))
    parts = tuple(_read_part(part.strip(), is_name) for part in text.split("+"))
    found = [name for name, _ in parts]
    if len(set(found)) < len(found):
        twice = next(name for name in found if found.count(name) > 1)
        raise AdapterError(f"{text}: {twice} stands in it twice", "give it one weight")
    return Mix(parts)


def mix_layers(path: str, parts: Sequence[tuple[str, AdapterLayer, float]]) -> AdapterLayer:
    """The layer whose update is the sum of weight · scale · A B over `parts` (adapter, its layer at `path`, weight).

    Ranks are concatenated, so the sum is exact: [A₁ A₂] and [w₁s₁B₁; w₂s₂B₂]. A single part of weight 1 is returned as
    it is. Raises: AdapterError where DoRA takes part: it brings rows to a norm, and such changes do not add up.
    """
    (name, first, weight), *others = parts
    if not others and weight == 1:
        return first
    for name, layer, _ in parts:
        if isinstance(layer, DoRALinear):
            raise AdapterError(
                f"{name} is DoRA, which brings each row of {path} to a norm of its own: no weighted sum is exact",
                f"use {name} alone, or mix LoRA adapters",
            )
    axis = 2 if isinstance(first, LoRASwitchLinear) else 0  # of the rank in B; in A it is axis 1 for both kinds
    mixed = copy.copy(first)  # its __init__ takes several times as long, and draws an A only to drop it
    mixed.scale = 1.0
    mixed.lora_a = mx.concatenate([layer.lora_a for _, layer, _ in parts], axis=1)
    mixed.lora_b = mx.concatenate([weight * layer.scale * layer.lora_b for _, layer, weight in parts], axis=axis)
    return mixed


def unknown_adapter(name: str, names: Collection[str]) -> AdapterError:
    """The error for a name that nobody has, with the near names or all there are."""
    near = difflib.get_close_matches(name, names, n=2, cutoff=0.5)
    there_is = f"there are {', '.join(names)}" if names else "add one first"
    return AdapterError(
        f"no adapter is called {name or 'nothing'}", f"did you mean {' or '.join(near)}?" if near else there_is
    )


def _read_part(part: str, is_name: Callable[[str], bool]) -> tuple[str, float]:
    name, colon, text = (piece.strip() for piece in part.rpartition(":"))
    if not colon or is_name(part):
        return part, 1.0
    try:
        weight = float(text)
    except ValueError as error:
        raise AdapterError(f"{part}: {text or 'nothing'} is no weight", _EXAMPLE) from error
    if not math.isfinite(weight) or abs(weight) > LARGEST_WEIGHT:
        limits = f"-{LARGEST_WEIGHT:g} to {LARGEST_WEIGHT:g}"
        raise AdapterError(f"{name}: its weight is {text}, expected {limits}", _EXAMPLE)
    return name, weight
