"""A tiny base and an adapter on it, trained as far as tests need: every number has a value of its own."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_lora.config import LoraSettings
from mlx_lora.lora.adapter import save_adapter
from mlx_lora.lora.inject import inject_lora, iter_lora_modules
from mlx_lora.model.load import load_base
from tests.tiny import save_tiny_folder

TOKENS = mx.array([[1, 7, 30, 31, 200, 9, 12, 300]])


def make_adapter(
    root: Path,
    family: str = "llama",
    *,
    bits: int | None = None,
    facts: dict[str, Any] | None = None,
    size: float = 0.1,
    **lora: Any,
) -> mx.array:
    """Write a base to root/base and an adapter of it to root/run; return the adapted model's logits of TOKENS."""
    base = root / "base"
    if not base.exists():
        save_tiny_folder(base, family, bits=bits)
    loaded = load_base(str(base), compute="float32")
    settings = LoraSettings(**{"rank": 4, "alpha": 6.0, **lora})
    inject_lora(loaded.model, settings, seed=0)
    for index, (_, layer) in enumerate(iter_lora_modules(loaded.model)):
        layer.lora_b = size * mx.random.normal(layer.lora_b.shape, key=mx.random.key(index))
        if "m" in layer:
            layer.m = layer.m * (1 + 0.1 * mx.random.normal(layer.m.shape, key=mx.random.key(1000 + index)))
    metadata = {"model": str(base), "revision": None, "identity": asdict(loaded.identity), "step": 3, **(facts or {})}
    dtype = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}[settings.save_dtype]
    save_adapter(root / "run", loaded.model, settings=settings, metadata=metadata, dtype=dtype)
    logits: mx.array = loaded.model(TOKENS)
    return logits
