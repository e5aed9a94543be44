"""Bits for each layer of a fused model: what requantizing costs each, and mixtures that cost less. Runs no model.

A base's weights lie on the grid of their packing; merged ones do not, so packing them again adds noise that the base
never had. One more bit quarters it. Where to spend bits is decided by the noise that goes for each byte that comes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from mlx_lora.lora.inject import iter_lora_modules
from mlx_lora.lora.merge import merged_weight
from mlx_lora.lora.storage import Attempt, Storage, packed_form, restore, store, stored_form

_FINER = (4, 5, 6, 8)
_TARGETS = (1 / 4, 1 / 16, 1 / 1024)  # of the noise at the base's own bits: about one bit more, two, and five


@dataclass(frozen=True)
class Step:
    """One form of one layer: its size, and ‖stored - W'‖² / ‖W'‖² of the merged weight W'."""

    storage: Storage
    stored_bytes: int
    noise: float


def measure_steps(model: nn.Module) -> dict[str, list[Step]]:
    """Path → the forms that a touched layer may take, coarsest first: as the base, finer ones that MLX packs, plain.

    model: the base as stored, with the adapters on it.
    """
    found: dict[str, list[Step]] = {}
    for path, adapter in iter_lora_modules(model):
        merged, stored = merged_weight(adapter), stored_form(adapter.linear)
        bits = [finer for finer in _FINER if stored.bits is not None and finer > stored.bits]
        forms = [stored, *(packed_form(path, adapter.linear, stored, finer) for finer in bits)]
        forms += [] if stored.bits is None else [Storage(stored.dtype)]
        found[path] = [_step(merged, form) for form in forms]
    return found


def mixed_attempts(steps: Mapping[str, list[Step]]) -> Iterator[Attempt]:
    """Mixtures of bits with less and less noise, each with about the fewest bytes for it; none plain throughout.

    Raising the layer whose noise falls most for each byte, again and again, is the best for this sum of parts but for
    the last layer raised.
    """
    level = dict.fromkeys(steps, 0)
    first = noise = sum(forms[0].noise for forms in steps.values())
    for target in _TARGETS:
        while noise > target * first:
            gains = {path: _gain(steps[path], place) for path, place in level.items() if place + 1 < len(steps[path])}
            if not gains:
                return
            path = max(gains, key=lambda each: gains[each])
            noise -= steps[path][level[path]].noise - steps[path][level[path] + 1].noise
            level[path] += 1
        if any(place + 1 < len(steps[path]) for path, place in level.items()):
            yield Attempt.named({path: steps[path][place].storage for path, place in level.items()})


def _gain(forms: list[Step], place: int) -> float:
    """Noise that goes for each byte that comes with the next finer form."""
    coarse, fine = forms[place], forms[place + 1]
    return (coarse.noise - fine.noise) / max(fine.stored_bytes - coarse.stored_bytes, 1)


def _step(merged: mx.array, form: Storage) -> Step:
    tensors = store(merged, form)
    noise = mx.square(restore(tensors, form) - merged).sum() / mx.maximum(mx.square(merged).sum(), 1e-30)
    return Step(form, form.bytes_of(int(merged.size)), float(noise))
