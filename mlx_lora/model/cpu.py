"""What a Linux CPU computes slowly and need not. Knows nothing of files or adapters; nothing here runs on a GPU.

MLX's exp takes 13 ns an element on x86-64 and its power 5; a polynomial takes 3 where `mx.compile` can fuse it.
`mx.compile` fuses at most eleven operations in a row, and none whose result another pass needs too: what is written
twice below, in two ways, is computed twice within a pass so that no pass more is made.
"""

import ctypes
import math
import shutil
import sys
from functools import cache, lru_cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.base import scaled_dot_product_attention

# 2^r for r in [-0.5, 0.5], constant term first: Chebyshev fit of degree 6 to the relative error, below 1e-7.
_POWER_OF_TWO = (
    1.0, 0.6931471824645996, 0.24022646248340607, 0.05550329014658928, 0.009618519805371761, 0.0013399859890341759,
    0.00015337577497120947,
)  # fmt: skip
_ROUNDING = 1.5 * 2.0**23  # added and taken away again it rounds to the next whole number
_LEAST = -127.0  # the exponent of a float32 with no bit set, which is 0
_MOST = 60.0  # 2^60 is infinity enough for a sigmoid
_LOG2_E = math.log2(math.e)

_fused = mx.compile


def use_fast_cpu(model: nn.Module) -> None:
    """Let the model's family compute SwiGLU and attention by `exp2`, rotate faster, and keep freed memory.

    Families call `swiglu` and `scaled_dot_product_attention` of their own module, for which this puts equal ones (to
    float32 rounding) in their place.
    """
    for module in model.modules():
        if type(module) is nn.RoPE and isinstance(module.base, int | float) and module.base > 0:  # else MLX says so
            module.__class__ = Rotation
    family = vars(sys.modules[type(model).__module__])
    for name, fast in (("swiglu", swiglu), ("scaled_dot_product_attention", attention)):
        if name in family:
            family[name] = fast
    _keep_freed_memory()


def exp2(x: mx.array) -> mx.array:
    """2^x of `x` up to 127, in float32 within 2e-7 relative; 0 below −126.5, NaN where x is NaN.

    Source: range reduction and polynomial as in Cephes' exp2f, with the exponent put together from the bits, and the
    polynomial's terms in pairs (Estrin's scheme).
    """
    if x.dtype != mx.float32 or not _fuses():  # unfused, a pass over memory for each term costs more than it saves
        return mx.power(2.0, x)
    whole = ((mx.maximum(x, _LEAST) + _ROUNDING) - _ROUNDING).astype(mx.int32)
    scale = ((whole + 127) << 23).view(mx.float32)
    held = mx.maximum(x, _LEAST + 0.125)  # as above for all that matters; an equal expression would be shared
    rest = held - ((held + _ROUNDING) - _ROUNDING)
    squared = rest * rest
    c = _POWER_OF_TWO
    low = (c[0] + c[1] * rest) + squared * (c[2] + c[3] * rest)
    high = (c[4] + c[5] * rest) + c[6] * squared
    return (low + (squared * squared) * high) * scale


@cache
def _fuses() -> bool:
    """Whether `mx.compile` makes one pass of many operations: on a CPU it needs a compiler to do so."""
    return shutil.which("g++") is not None


@mx.custom_function
def swiglu(gate: mx.array, x: mx.array) -> mx.array:
    """x · gate · sigmoid(gate), of any one shape. Source: Shazeer, arXiv 2002.05202."""
    return _swiglu(gate, x)


@swiglu.vjp
def _swiglu_vjp(primals: Any, cotangent: Any, _: Any) -> Any:
    gate, x = primals
    return _swiglu_gradients(gate, x, cotangent)


@_fused
def _swiglu(gate: mx.array, x: mx.array) -> mx.array:
    return _sigmoid(gate) * x * gate


@_fused
def _swiglu_gradients(gate: mx.array, x: mx.array, cotangent: mx.array) -> tuple[mx.array, mx.array]:
    share = _sigmoid(gate)  # the forward's in a compiled step, and all that is kept of it
    return (cotangent * x) * (share * (1.0 + gate * (1.0 - share))), (cotangent * gate) * share


def _sigmoid(x: mx.array) -> mx.array:
    return 1.0 / (1.0 + exp2(mx.minimum(x * -_LOG2_E, _MOST)))


def attention(
    queries: mx.array, keys: mx.array, values: mx.array, cache: Any, scale: float, mask: Any, sinks: Any = None
) -> mx.array:
    """Attention as mlx-lm's families call it; other than float32 or a single query goes to mlx-lm's own.

    queries: (B, H, T, D), keys and values: (B, K, S, D) with K dividing H; mask: "causal", None, or an array that
    broadcasts to (B, H, T, S), bool or added → (B, H, T, D). The backward pass computes the scores again from what the
    forward left for each query, one logarithm. Source: FlashAttention, arXiv 2205.14135, section 3.1, in one block.
    """
    kinds = {array.dtype for array in (queries, keys, values)}
    odd = isinstance(mask, mx.array) and mask.ndim not in (2, 4)
    if queries.shape[2] == 1 or kinds != {mx.float32} or odd or sinks is not None or hasattr(cache, "bits"):
        answer: mx.array = scaled_dot_product_attention(queries, keys, values, cache, scale, mask, sinks)
        return answer
    rows, heads, length, _ = queries.shape
    groups, total = keys.shape[1], keys.shape[2]
    if isinstance(mask, str):
        mask = mx.arange(total - length, total)[:, None] >= mx.arange(total)[None]
    if mask is not None and mask.ndim == 4 and mask.shape[1] == heads:
        mask = mask.reshape(-1, groups, heads // groups, length, total)
    elif mask is not None and mask.ndim == 4:
        mask = mask[:, None]

    def masked(found: mx.array) -> mx.array:
        """Scores (B, K, H/K · T, S), in powers of two."""
        if mask is None:
            return found
        apart = found.reshape(rows, groups, heads // groups, length, total)
        apart = mx.where(mask, apart, -1e30) if mask.dtype == mx.bool_ else apart + mask * _LOG2_E
        return apart.reshape(found.shape)

    @mx.custom_function
    def attend(queries: mx.array, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        found = masked((queries * (scale * _LOG2_E)) @ keys.swapaxes(-1, -2))
        largest = found.max(axis=-1, keepdims=True)
        powers = _shifted_powers(found, largest)
        sums = powers.sum(axis=-1, keepdims=True)
        return (powers @ values) / sums, largest + mx.log2(sums)

    @attend.vjp
    def attend_vjp(primals: Any, cotangents: Any, outputs: Any) -> Any:
        queries, keys, values = primals
        (answers, logarithms), cotangent = outputs, cotangents[0]
        # Scaled on the other side: `mx.compile` would find equal expressions and keep the forward's scores until now.
        shares = _shifted_powers(masked(queries @ (keys * (scale * _LOG2_E)).swapaxes(-1, -2)), logarithms)
        mean = (cotangent * answers).sum(axis=-1, keepdims=True)
        change = shares * ((cotangent @ values.swapaxes(-1, -2)) - mean)
        return (change @ keys) * scale, (change.swapaxes(-1, -2) @ queries) * scale, shares.swapaxes(-1, -2) @ cotangent

    both: tuple[mx.array, mx.array] = attend(queries.reshape(rows, groups, -1, queries.shape[-1]), keys, values)  # type: ignore[assignment]
    return both[0].reshape(rows, heads, length, values.shape[-1])


@_fused
def _shifted_powers(x: mx.array, largest: mx.array) -> mx.array:
    return exp2(mx.minimum(x - largest, 0.0))  # no share is above 1; rounding of huge scores would make it infinite


class Rotation(nn.RoPE):
    """nn.RoPE to the bit. MLX composes it of slices, whose gradients are laid into zeros and added.

    Here the gradient is rotated back, and all layers of a compiled step share one sine and one cosine.
    """

    def __call__(self, x: mx.array, offset: Any = 0) -> mx.array:
        """x: (B, H, T, D), offset: int or (B,) → (B, H, T, D). Source: arXiv 2104.09864, equation 34."""
        if x.dtype != mx.float32 or x.ndim != 4 or x.shape[2] == 1 or self.traditional:
            answer: mx.array = super().__call__(x, offset)
            return answer
        if isinstance(offset, mx.array) and offset.size > 1:
            offset = offset.reshape(-1, 1, 1)
        angles = ((_places(x.shape[2]) + offset) * self.scale)[..., None] * _frequencies(self.dims, self.base)
        cosines, sines = mx.cos(angles), mx.sin(angles)

        @mx.custom_function
        def rotate(x: mx.array) -> mx.array:
            return _rotated(x, cosines, sines)

        @rotate.vjp
        def rotate_vjp(_: Any, cotangent: Any, __: Any) -> Any:
            return _rotated(cotangent, cosines, -sines)

        rotated: mx.array = rotate(x)  # type: ignore[assignment]  # mx.custom_function says object
        return rotated


def _rotated(x: mx.array, cosines: mx.array, sines: mx.array) -> mx.array:
    half = cosines.shape[-1]
    one, two, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    parts = [one * cosines - two * sines, one * sines + two * cosines]
    return mx.concatenate([*parts, rest] if rest.shape[-1] else parts, axis=-1)


@lru_cache(maxsize=256)
def _places(length: int) -> mx.array:
    return mx.array(list(range(length)), mx.float32)  # one array: `mx.compile` sees that two sums with it are equal


@lru_cache(maxsize=16)
def _frequencies(dims: int, base: float) -> mx.array:
    """Radians a position (dims / 2,), rounded as MLX rounds them."""
    half = dims // 2
    found = mx.exp(mx.array(list(range(0, -half, -1)), mx.float32) * (math.log(base) / half))
    mx.eval(found)
    return found


def _keep_freed_memory() -> None:
    """Let glibc keep what is freed: by default large arrays go back to the kernel, which clears each page again.

    MLX's own cache is bounded by the session. The process's peak stays what it was; it is not given back in between.
    """
    libc = ctypes.CDLL(None)
    if sys.platform == "linux" and hasattr(libc, "mallopt"):  # musl has none
        trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # from malloc.h
        for option, value in ((mmap_threshold, 2**30), (trim_threshold, 2**31 - 1), (top_pad, 2**26)):
            libc.mallopt(option, value)
