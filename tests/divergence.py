"""Divergence of two models' next tokens, computed row by row: what the batched one is held against."""

import mlx_lora  # noqa: F401  (loads OpenBLAS before MLX)

import mlx.core as mx  # isort: skip
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

from mlx_lora.model.generate import Answer


def plain_divergence(model: nn.Module, prompt: list[int], answer: Answer) -> float:
    """KL(who answered‖model) in nats over all places of an answer; all tokens that it does not list count as one."""
    assert answer.likeliest is not None
    listed, shares = answer.likeliest.tokens, answer.likeliest.shares.astype(np.float64)
    tokens = [*prompt, *answer.tokens][: len(prompt) + len(listed) - 1]
    logits = model(mx.array([tokens]), cache=make_prompt_cache(model))[0, len(prompt) - 1 :]
    found = np.exp(np.array(nn.log_softmax(logits.astype(mx.float32))).astype(np.float64))
    total = 0.0
    for place, line in enumerate(listed):
        here = found[place][line]
        total += float((shares[place] * np.log(shares[place] / here)).sum())
        rest, others = 1 - shares[place].sum(), 1 - here.sum()
        total += rest * np.log(rest / others) if rest > 1e-6 else 0.0
    return total
