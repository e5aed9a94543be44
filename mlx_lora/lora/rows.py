"""Several adapters in one batch: a linear layer whose rows use an adapter each. Knows nothing of files or prompts.

The base's product is computed once for all rows; the low-rank part of a row is gathered from the stacked factors of
all adapters. Imports MLX only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_lora.errors import AdapterError
from mlx_lora.lora.layer import AdapterLayer, DoRALinear, LoRASwitchLinear

_PLANS = 8  # a prompt batch and the running batch alternate, and each changes when a row joins or leaves


class Rows:
    """Who answers each row of the forward pass under way: an adapter's number, None for the base. Layers share it."""

    def __init__(self) -> None:
        self.adapters: tuple[int | None, ...] = ()

    def use(self, adapters: tuple[int | None, ...]) -> None:
        """Say whose rows the next forward passes hold, in the batch's order."""
        self.adapters = adapters


@dataclass(frozen=True)
class Factors:
    """What one adapter adds to one linear layer y = W x + b: gain · (y - b) + (x A) B.

    lora_a: (D_in, R) float32. lora_b: (R, D_out) float32, with the scale and DoRA's gains in it. gain: (D_out,)
    float32, DoRA's m / ‖W + ΔW‖ - 1; None for LoRA, where it is zero.
    """

    lora_a: mx.array
    lora_b: mx.array
    gain: mx.array | None


def factors_of(path: str, layer: AdapterLayer) -> Factors:
    """The factors of a trained layer. Raises: AdapterError for a kind whose rows cannot have an adapter each."""
    if isinstance(layer, LoRASwitchLinear):
        raise AdapterError(
            f"{path}: adapts a mixture's experts: these regroup the rows, which then cannot have an adapter each",
            "eval and chat take this adapter, and fuse makes a model of it that any server takes",
        )
    if isinstance(layer, DoRALinear):
        gains = layer.gains()
        return Factors(layer.lora_a, layer.scale * layer.lora_b * gains, gains - 1)
    return Factors(layer.lora_a, layer.scale * layer.lora_b, None)


class RowLoRA(nn.Module):
    """A linear layer that adds to each row what its adapter adds; a row without one gets the base's answer bit for bit.

    Smaller ranks are filled up with zeros. Adapters that leave this layer alone take no room in it.
    """

    def __init__(self, linear: Any, rows: Rows, adapters: Mapping[int, Factors]) -> None:
        """adapters: number of the adapter → its factors; at least one."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.linear = linear
        self.choice = _Choice(rows, tuple(adapters))
        rank = max(each.lora_a.shape[1] for each in adapters.values())
        # An underscore keeps them out of the parameters: they are no part of the model.
        self._lora_a = mx.stack([_padded(each.lora_a, rank, axis=1) for each in adapters.values()])  # (n, D_in, R)
        self._lora_b = mx.stack([_padded(each.lora_b, rank, axis=0) for each in adapters.values()])  # (n, R, D_out)
        self._gain: mx.array | None = None
        if any(each.gain is not None for each in adapters.values()):
            zeros = mx.zeros(self._lora_b.shape[-1])
            self._gain = mx.stack([zeros if each.gain is None else each.gain for each in adapters.values()])[:, None]

    @property
    def stacked(self) -> list[mx.array]:
        """The arrays that this layer holds beside the base's."""
        return [self._lora_a, self._lora_b, *([] if self._gain is None else [self._gain])]

    def __call__(self, x: mx.array) -> mx.array:
        """x: (B, …, D_in), a row for each of Rows.adapters → (B, …, D_out), in the dtype of the base's answer.

        Raises: ValueError where the model gives this layer something else than the batch's rows.
        """
        y: mx.array = self.linear(x)
        rows, slots, adapted = self.choice.now()
        if slots is None:
            return y
        if x.ndim < 2 or x.shape[0] != rows:
            raise ValueError(f"a layer was given {x.shape} for {rows} rows: it cannot tell them apart")
        wide = x.astype(mx.float32).reshape(rows, -1, x.shape[-1])
        update = mx.gather_mm(wide, self._lora_a, rhs_indices=slots)
        update = mx.gather_mm(update, self._lora_b, rhs_indices=slots)
        if self._gain is not None:
            base = y - self.linear.bias if "bias" in self.linear else y
            update = update + self._gain[slots] * base.reshape(rows, -1, y.shape[-1])
        changed = y + update.astype(y.dtype).reshape(y.shape)
        if adapted is None:
            return changed
        # Not left to factors of zero: -0 + 0 is not -0, and a row must not depend on who shares its batch.
        return mx.where(adapted.reshape(rows, *[1] * (y.ndim - 1)), changed, y)


class _Choice:
    """Which of a layer's stacked factors each row of the forward pass under way uses."""

    def __init__(self, rows: Rows, adapters: tuple[int, ...]) -> None:
        self._rows = rows
        self._slots = {number: slot for slot, number in enumerate(adapters)}
        self._known: dict[tuple[int | None, ...], tuple[int, mx.array | None, mx.array | None]] = {}

    def now(self) -> tuple[int, mx.array | None, mx.array | None]:
        """Number of rows B; (B,) slots, None where no row has any; (B,) whether a row has one, None where all have."""
        adapters = self._rows.adapters
        if adapters not in self._known:
            if len(self._known) >= _PLANS:
                self._known.clear()
            self._known[adapters] = self._find(adapters)
        return self._known[adapters]

    def _find(self, adapters: tuple[int | None, ...]) -> tuple[int, mx.array | None, mx.array | None]:
        adapted = [number in self._slots for number in adapters]
        if not any(adapted):
            return len(adapters), None, None
        slots = mx.array([0 if number is None else self._slots.get(number, 0) for number in adapters], dtype=mx.uint32)
        return len(adapters), slots, None if all(adapted) else mx.array(adapted)


def _padded(factor: mx.array, rank: int, *, axis: int) -> mx.array:
    missing = rank - factor.shape[axis]
    widths = [(0, missing) if place == axis else (0, 0) for place in range(factor.ndim)]
    return mx.pad(factor, widths) if missing else factor
