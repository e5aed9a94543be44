"""How a merged weight is stored, and the order in which forms are tried. Knows nothing of files or models."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from mlx_lora.errors import AdapterError
from mlx_lora.lora.layer import is_quantized

RAISED_BITS = 8
MLX_BITS = (2, 3, 4, 5, 6, 8)
_GROUPS = (64, 32)  # what mx.quantize takes in affine mode, the smaller file first


@dataclass(frozen=True)
class Storage:
    """The form of one weight: packed (`bits`, `group_size`, `mode`, with scales of `dtype`) or plain in `dtype`."""

    dtype: mx.Dtype
    bits: int | None = None
    group_size: int = 0
    mode: str = "affine"

    @property
    def config(self) -> dict[str, Any] | bool:
        """The module's entry under "quantization" in config.json; False for a plain weight."""
        if self.bits is None:
            return False
        return {"group_size": self.group_size, "bits": self.bits, "mode": self.mode}

    def bytes_of(self, weights: int) -> int:
        """The size of that many weights, scales and biases included."""
        if self.bits is None:
            return weights * self.dtype.size
        extra = 2 * self.dtype.size if self.mode == "affine" else 1  # scale and bias, or a scale of 8 bits
        return weights * self.bits // 8 + weights // self.group_size * extra

    def __str__(self) -> str:
        return str(self.dtype).removeprefix("mlx.core.") if self.bits is None else f"{self.bits}-bit"


@dataclass(frozen=True)
class Attempt:
    """One form of the whole model: a storage for each touched module, and what becomes of the others."""

    name: str
    storages: dict[str, Storage]
    dequantize_others: bool = False

    @classmethod
    def named(cls, storages: dict[str, Storage], dequantize_others: bool = False) -> "Attempt":
        """An attempt called by its forms, such as "4-bit", "4- to 6-bit", or "8-bit and bfloat16"."""
        bits = sorted({form.bits for form in storages.values() if form.bits is not None})
        packed = [f"{bits[0]}- to {bits[-1]}-bit" if len(bits) > 1 else f"{bits[0]}-bit"] if bits else []
        plain = sorted({str(form) for form in storages.values() if form.bits is None})
        return cls(" and ".join([*packed, *plain]), storages, dequantize_others)


def stored_form(linear: Any) -> Storage:
    """How the layer's weight is stored."""
    if not is_quantized(linear):
        return Storage(linear.weight.dtype)
    affine = linear.mode == "affine"
    return Storage(linear.scales.dtype if affine else mx.bfloat16, linear.bits, linear.group_size, linear.mode)


def plan_attempts(linears: dict[str, Any], *, bits: int | None = None, dequantize: bool = False) -> list[Attempt]:
    """The forms to try, smallest first; `linears`: path → the base's layer as stored.

    By default: as the base is stored, then 8-bit, then plain in the type of the scales, then plain float32, each for
    the touched modules only. `bits` allows that one form; `dequantize` plain forms of the whole model.
    Raises: AdapterError for both at once, bits that MLX does not have, or widths that groups do not divide.
    """
    stored = {path: stored_form(linear) for path, linear in linears.items()}
    plain = {path: Storage(form.dtype) for path, form in stored.items()}
    exact = {path: Storage(mx.float32) for path in stored}
    if bits is not None and dequantize:
        raise AdapterError("--bits and --dequantize exclude each other", "give one of them")
    if dequantize:
        return _distinct([Attempt.named(forms, True) for forms in (plain, exact)])
    if bits is not None:
        if bits not in MLX_BITS:
            raise AdapterError(f"--bits {bits}: MLX packs {', '.join(map(str, MLX_BITS))} bits", "give one of these")
        forms = {path: packed_form(path, linears[path], form, bits) for path, form in stored.items()}
        return [Attempt.named(forms)]
    low = {path for path, form in stored.items() if form.bits is not None and form.bits < RAISED_BITS}
    raised = {**stored, **{path: packed_form(path, linears[path], stored[path], RAISED_BITS) for path in low}}
    return _distinct([Attempt.named(forms) for forms in (stored, raised, plain, exact)])


def store(weight: mx.array, storage: Storage) -> dict[str, mx.array]:
    """The tensors of a float32 weight in this form: weight, and for packed ones scales and (affine) biases."""
    if storage.bits is None:
        return {"weight": weight.astype(storage.dtype)}
    packed = mx.quantize(weight, storage.group_size, storage.bits, mode=storage.mode)
    tensors = dict(zip(("weight", "scales", "biases"), packed, strict=False))
    if storage.mode != "affine":
        return tensors
    return {name: value if name == "weight" else value.astype(storage.dtype) for name, value in tensors.items()}


def restore(tensors: dict[str, mx.array], storage: Storage) -> mx.array:
    """The float32 weight that `store`'s tensors stand for."""
    if storage.bits is None:
        return tensors["weight"].astype(mx.float32)
    affine = storage.mode == "affine"
    scales, biases = tensors["scales"], tensors.get("biases")
    return mx.dequantize(
        tensors["weight"],
        scales.astype(mx.float32) if affine else scales,
        biases.astype(mx.float32) if biases is not None else None,
        group_size=storage.group_size,
        bits=storage.bits,
        mode=storage.mode,
        dtype=mx.float32,
    )


def packed_form(path: str, linear: Any, form: Storage, bits: int) -> Storage:
    """The layer's form with so many bits, in groups as the base has them where it can. Raises: AdapterError."""
    if bits == form.bits:
        return form
    width = linear.scales.shape[-1] * linear.group_size if is_quantized(linear) else linear.weight.shape[-1]
    own = [form.group_size] if form.bits is not None and form.mode == "affine" else []
    for group_size in [*own, *_GROUPS]:
        if width % group_size == 0:
            return Storage(form.dtype, bits, group_size)
    raise AdapterError(
        f"{path}: a width of {width} is not divisible into groups of {_GROUPS[-1]}",
        "use --dequantize, or leave --bits out",
    )


def _distinct(attempts: Iterable[Attempt]) -> list[Attempt]:
    kept: list[Attempt] = []
    for attempt in attempts:
        if all(attempt.storages != other.storages for other in kept):
            kept.append(attempt)
    return kept
