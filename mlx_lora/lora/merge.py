"""Adapter and base as one weight: merged weights, and how large the change is. Knows nothing of files."""

import mlx.core as mx
import mlx.nn as nn

from mlx_lora.lora.inject import iter_lora_modules
from mlx_lora.lora.layer import SMALLEST_NORM, AdapterLayer, DoRALinear, LoRASwitchLinear, dense_weight


def merged_weight(adapter: AdapterLayer) -> mx.array:
    """W + ΔW in float32, (D_out, D_in), or (E, D_out, D_in) for experts; for DoRA each row brought to the norm m."""
    weight = dense_weight(adapter.linear)
    if isinstance(adapter, LoRASwitchLinear):
        return weight + adapter.scale * (adapter.lora_b @ adapter.lora_a)
    weight = weight + adapter.scale * (adapter.lora_a @ adapter.lora_b).T
    if isinstance(adapter, DoRALinear):
        norms = mx.maximum(mx.linalg.norm(weight, axis=1), SMALLEST_NORM)
        weight = (adapter.m / norms)[:, None] * weight
    return weight


def squared_norms(adapter: AdapterLayer) -> tuple[float, float]:
    """(‖ΔW‖², ‖W‖²) of one module (Frobenius). ΔW is never made: ‖A B‖² = Σ (AᵀA) ∘ (B Bᵀ)."""
    lora_a, lora_b = adapter.lora_a, adapter.lora_b
    if isinstance(adapter, DoRALinear):
        return _squared_norms_dora(adapter)
    if isinstance(adapter, LoRASwitchLinear):
        lora_a, lora_b = lora_a.swapaxes(-1, -2), lora_b.swapaxes(-1, -2)
    # Brought to 1 at most, and back in double precision: the square of a large factor overflows float32.
    largest = [mx.maximum(mx.abs(factor).max(), SMALLEST_NORM) for factor in (lora_a, lora_b)]
    lora_a, lora_b = lora_a / largest[0], lora_b / largest[1]
    product = ((lora_a.swapaxes(-1, -2) @ lora_a) * (lora_b @ lora_b.swapaxes(-1, -2))).sum()  # (..., R, R) before
    base = mx.square(dense_weight(adapter.linear)).sum()
    mx.eval(product, base, *largest)
    return (adapter.scale * float(largest[0]) * float(largest[1])) ** 2 * float(product), float(base)


def delta_ratio(model: nn.Module) -> float:
    """‖ΔW‖ / ‖W‖ over all adapted modules together; module after module, so that one dense weight exists at a time."""
    delta = base = 0.0
    for _, adapter in iter_lora_modules(model):
        squared_delta, squared_base = squared_norms(adapter)
        delta += squared_delta
        base += squared_base
    return float((delta / base) ** 0.5) if base else 0.0


def _squared_norms_dora(adapter: DoRALinear) -> tuple[float, float]:
    # ΔW = (g - 1) W + g·s·(A B)ᵀ by row, expanded so that a small change does not drown in ‖W‖.
    gains = adapter.gains()
    cross, squared = adapter.row_products()
    scale = adapter.scale
    rows = (gains - 1) ** 2 * adapter.squared_base_norms + 2 * (gains - 1) * gains * scale * cross
    delta, base = (rows + (gains * scale) ** 2 * squared).sum(), adapter.squared_base_norms.sum()
    mx.eval(delta, base)
    return float(delta), float(base)
