"""A GGUF file written tensor after tensor, so that one dense tensor is in memory. Knows nothing of models."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mlx_lora.errors import ModelError
from mlx_lora.files import named_errors

Kind = Literal["F32", "F16", "Q8_0"]
_BLOCK = 32  # values that share a scale in Q8_0


@dataclass(frozen=True)
class Tensor:
    """A tensor to write: GGUF's name, its shape, how it is stored, and what makes its values (float32, that shape).

    written: told the values as they read back from the file, in float32; None where nobody asks.
    """

    name: str
    shape: tuple[int, ...]
    kind: Kind
    values: Callable[[], np.ndarray]
    written: Callable[[np.ndarray], None] | None = None


def kind_for(shape: tuple[int, ...], wanted: Kind) -> Kind:
    """How a tensor of that shape is stored: vectors in float32, rows that no Q8_0 block fits in float16."""
    if len(shape) < 2:
        return "F32"
    return "F16" if wanted == "Q8_0" and shape[-1] % _BLOCK else wanted


def write_gguf(path: Path, architecture: str, fill: Callable[[Any], None], tensors: list[Tensor]) -> None:
    """Write `tensors` in their order, and the metadata that `fill` gives to gguf's GGUFWriter, to `path`.

    Raises: ModelError for a value that is not finite as stored, MlxLoraError when the file cannot be written.
    """
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import dequantize, quant_shape_to_byte_shape, quantize

    with named_errors(path), _closing(GGUFWriter(path, architecture)) as writer:
        fill(writer)
        for tensor in tensors:
            kind = GGMLQuantizationType[tensor.kind]
            stored = quant_shape_to_byte_shape(tensor.shape, kind) if tensor.kind == "Q8_0" else tensor.shape
            dtype = np.dtype({"F32": np.float32, "F16": np.float16, "Q8_0": np.uint8}[tensor.kind])
            size = int(np.prod(stored)) * dtype.itemsize
            writer.add_tensor_info(tensor.name, stored, dtype, size, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors:
            kind = GGMLQuantizationType[tensor.kind]
            with np.errstate(over="ignore"):  # looked for below
                data = quantize(np.ascontiguousarray(tensor.values(), dtype=np.float32), kind)
            if tensor.kind == "Q8_0" or tensor.written is not None:
                back = dequantize(data, kind)
            else:
                back = data
            if not np.isfinite(back).all():
                raise ModelError(
                    f"{tensor.name}: holds a value that {tensor.kind} cannot hold",
                    "take --to gguf-lora: an adapter is written in float32",
                )
            if tensor.written is not None:
                tensor.written(back)
            writer.write_tensor_data(data)


@contextmanager
def _closing(writer: Any) -> Iterator[Any]:
    try:
        yield writer
    finally:
        writer.close()
