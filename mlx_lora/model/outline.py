"""A base's modules with the shapes and types that it is stored in, and no weight read."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_lora.errors import ModelError
from mlx_lora.model.load import check_config, check_size, read_model
from mlx_lora.model.sources import Source, find_source
from mlx_lora.model.weights import read_headers, weight_files

if TYPE_CHECKING:
    import mlx.nn as nn


def outline_base(name: str, *, revision: str | None = None) -> tuple["nn.Module", str]:
    """Model `name` before load_base computes anything, and where its shapes come from.

    Its arrays are not there yet: exchange those that are to be used. The weights of a Hugging Face model are not
    fetched for it. Raises: ModelError.
    """
    source = find_source(name, revision=revision, weights=False)
    check_config(source.path)
    files = _files(source)
    if not files:
        return _from_config(source.path), "config.json (the weights are not on this disk yet)"
    check_size(source.path, read_headers(files))
    told = f"the header of {files[0].name}" if len(files) == 1 else f"the headers of {len(files)} weight files"
    return read_model(source.path)[0], told


def _files(source: Source) -> list[Path]:
    """The weight files; none where a model of Hugging Face has not been fetched whole."""
    try:
        return weight_files(source.path)
    except ModelError:
        if source.revision is None:
            raise
        return []


def _from_config(folder: Path) -> "nn.Module":
    """The model that config.json describes; quantized where it says so and the shapes allow it."""
    import mlx.core as mx
    import mlx.nn as nn
    from mlx_lm.utils import load_model

    loaded: tuple[nn.Module, dict[str, Any]] = load_model(folder, lazy=True, strict=False)
    model, config = loaded
    text_config = config.get("text_config") or {}
    dtype = getattr(mx, str(config.get("torch_dtype") or config.get("dtype") or text_config.get("dtype")), mx.bfloat16)
    model.set_dtype(dtype)
    quantization = config.get("quantization")
    if quantization:
        group = quantization["group_size"]

        def wanted(path: str, module: nn.Module) -> Any:
            if path in quantization:
                return quantization[path]
            return hasattr(module, "to_quantized") and module.weight.shape[-1] % group == 0

        nn.quantize(model, group, quantization["bits"], mode=quantization.get("mode", "affine"), class_predicate=wanted)
    return model
