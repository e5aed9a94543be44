"""What a Linux CPU computes slowly and need not. Knows nothing of files or adapters; nothing here runs on a GPU."""

import math
import sys
from typing import Any

import mlx.core as mx
import mlx.nn as nn

_MOST = 60.0  # 2^60 is infinity enough for a sigmoid


def use_fast_activations(model: nn.Module) -> None:
    """Let the model's family compute SwiGLU by powers of two: MLX's exp on x86-64 takes more than twice their time.

    Families call `swiglu` of their own module, for which this puts an equal one (to float32 rounding) in its place.
    """
    family = sys.modules[type(model).__module__]
    if hasattr(family, "swiglu"):
        vars(family)["swiglu"] = swiglu


def _swiglu(gate: mx.array, x: mx.array) -> mx.array:
    """x · gate · sigmoid(gate), of any one shape. Source: Shazeer, arXiv 2002.05202."""
    return gate * _sigmoid(gate) * x


swiglu: Any = mx.custom_function(_swiglu)


@swiglu.vjp  # type: ignore[untyped-decorator]
def _swiglu_vjp(primals: Any, cotangent: Any, _: Any) -> Any:
    gate, x = primals
    share = _sigmoid(gate)  # computed again: keeping it would cost as much memory as the activations themselves
    along = gate * share
    return cotangent * x * (share + along * (1.0 - share)), cotangent * along


def _sigmoid(x: mx.array) -> mx.array:
    return 1.0 / (1.0 + mx.power(2.0, mx.minimum(x * -math.log2(math.e), _MOST)))
