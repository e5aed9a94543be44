"""Update rules and learning rates. Knows nothing of models or batches."""

import math

import mlx.core as mx
import mlx.optimizers as optimizers

from mlx_lora.config import OptimizerSettings

_STABLE = 0.6  # of all steps, with schedule "wsd"


def build_optimizer(settings: OptimizerSettings) -> optimizers.Optimizer:
    """The update rule that `settings` names, as MLX has it; Adam and AdamW with bias correction (arXiv 1412.6980)."""
    rate, decay = settings.learning_rate, settings.weight_decay
    match settings.name:
        case "adamw":
            return optimizers.AdamW(rate, weight_decay=decay, bias_correction=True)
        case "adam":
            return optimizers.Adam(rate, bias_correction=True)
        case "sgd":
            return optimizers.SGD(rate, momentum=settings.momentum, weight_decay=decay)
        case "adafactor":
            return optimizers.Adafactor(rate, scale_parameter=False, relative_step=False)
        case "muon":
            return optimizers.Muon(rate, momentum=settings.momentum, weight_decay=decay)
        case "lion":
            return optimizers.Lion(rate, weight_decay=decay)


def learning_rate_at(step: int, total_steps: int, settings: OptimizerSettings) -> float:
    """Learning rate of optimizer update `step` (1 … total_steps).

    The warm-up climbs linearly and reaches the peak at its last step; the first step after it still has the peak.
    """
    peak = settings.learning_rate
    warmup_steps = round(settings.warmup_ratio * total_steps)
    if step <= warmup_steps:
        return peak * step / warmup_steps
    progress = (step - 1 - warmup_steps) / max(1, total_steps - warmup_steps)
    last = peak * settings.final_ratio
    match settings.schedule:
        case "constant":
            return peak
        case "linear":
            return peak + (last - peak) * progress
        case "cosine":
            return last + (peak - last) * 0.5 * (1 + math.cos(math.pi * progress))
        case "wsd":  # MiniCPM, arXiv 2404.06395, section 4.2, with the linear decay of arXiv 2405.18392
            falling = max(0.0, ((step - 1) / total_steps - _STABLE) / (1 - _STABLE))
            return peak + (last - peak) * falling


def clipped(gradients: dict[str, mx.array], max_norm: float | None) -> tuple[dict[str, mx.array], mx.array]:
    """Gradients scaled down to a global L2 norm of at most `max_norm`, and the norm before that."""
    norm = mx.sqrt(sum((mx.square(gradient).sum() for gradient in gradients.values()), mx.array(0.0)))
    if max_norm is None:
        return gradients, norm
    factor = mx.minimum(max_norm / (norm + 1e-6), 1.0)
    return {name: gradient * factor for name, gradient in gradients.items()}, norm
