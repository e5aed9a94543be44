"""A LoRA adapter as the GGUF file that llama.cpp takes with --lora. Knows nothing of bases' weights.

Source: convert_lora_to_gguf.py and src/llama-adapter.cpp of llama.cpp.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_lora.errors import AdapterError
from mlx_lora.exchange.gguf_file import Tensor, write_gguf
from mlx_lora.exchange.gguf_model import Layout
from mlx_lora.lora.adapter_config import AdapterParameters
from mlx_lora.model.gguf_layout import gguf_name


def write_gguf_adapter(
    path: Path, tensors: Mapping[str, mx.array], parameters: AdapterParameters, layout: Layout, *, name: str
) -> None:
    """Write our LoRA tensors (by name, lora_a (D_in, R), lora_b (R, D_out)) to `path`, all in float32.

    Raises: AdapterError for what llama.cpp has no equal for, MlxLoraError when the file cannot be written.
    """
    written: list[Tensor] = []
    for key, value in sorted(tensors.items(), key=lambda item: item[0]):
        module, _, part = key.rpartition(".")
        target = gguf_name(f"{module}.weight")
        if part not in ("lora_a", "lora_b") or target is None:
            raise AdapterError(
                f"{key}: llama.cpp's adapters have no place for it",
                "DoRA and other kinds can be written merged: --to gguf",
            )
        array = np.array(value.astype(mx.float32)).T  # lora_a (R, D_in), lora_b (D_out, R)
        if part == "lora_b":
            array = layout.in_order(f"{module}.weight", array)
        written.append(Tensor(f"{target}.{part}", array.shape, "F32", _given(array)))

    def fill(writer: Any) -> None:
        writer.add_type("adapter")
        writer.add_name(name)
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", parameters.scale * parameters.rank)  # llama.cpp scales by alpha / rank

    write_gguf(path, layout.architecture, fill, written)


def _given(array: np.ndarray) -> Callable[[], np.ndarray]:
    return lambda: array
