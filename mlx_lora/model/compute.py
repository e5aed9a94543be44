"""The type in which a loaded base computes: as stored, or dequantized. Knows nothing of files, names or tokenizers."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from mlx_lora.errors import ModelError
from mlx_lora.model.cpu import use_fast_cpu

COMPUTE_TYPES = ("auto", "quantized", "float32", "float16", "bfloat16")
_DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


def quantization_of(model: nn.Module) -> dict[str, dict[str, Any]] | None:
    """How each quantized module is stored: path → {"group_size", "bits", "mode"}; None when none is quantized."""
    found = {
        path: {"group_size": module.group_size, "bits": module.bits, "mode": getattr(module, "mode", "affine")}
        for path, module in model.named_modules()
        if "scales" in module and hasattr(module, "group_size")
    }
    return found or None


def apply_compute(model: nn.Module, compute: str) -> str:
    """Bring `model` (in place, just loaded) to the type that `compute` asks for; return one line that says so.

    "auto" keeps the stored weights on a GPU and takes float32 on a CPU, where a quantized matmul in float16 is several
    hundred times slower than a float32 one (docs/ARCHITECTURE.md §7).
    Raises: ModelError for a kind of quantization that cannot be undone.
    """
    stored = _stored_type(model)
    on_cpu = _on_cpu()
    device = "CPU" if on_cpu else "GPU"
    target = target_type(compute)
    if target == "quantized":
        mx.eval(model.parameters())
        return f"{stored}, as stored ({device} device)"
    dtype = _DTYPES[target]
    quantized = quantization_of(model)
    for path, module in list(model.named_modules()):
        if quantized and path in quantized:
            plain = _dequantized(path, module, dtype)
            mx.eval(plain.parameters())  # one module at a time: the packed weights leave memory as the plain ones come
            model.update_modules(tree_unflatten([(path, plain)]))
    model.set_dtype(dtype)
    mx.eval(model.parameters())
    if on_cpu:
        use_fast_cpu(model)
    mx.clear_cache()  # the buffers of the packed weights are of no more use
    if quantized:
        return f"{target}, dequantized from {stored} ({device} device)"
    return f"{target} ({device} device)" if stored == target else f"{target}, stored as {stored} ({device} device)"


def target_type(compute: str) -> str:
    """What `compute` comes to on this device: "quantized" (as stored) or the name of a dtype."""
    return compute if compute != "auto" else "float32" if _on_cpu() else "quantized"


def computed_bytes(model: nn.Module, compute: str) -> int:
    """Size of the weights once `apply_compute` is done; `model` is just loaded, and nothing is computed."""
    target = target_type(compute)
    if target == "quantized":
        parameters: Any = tree_flatten(model.parameters())
        return sum(array.nbytes for _, array in parameters)
    plain = 0
    for module in model.modules():
        own = {name: value for name, value in module.items() if isinstance(value, mx.array)}
        packed = "scales" in own and hasattr(module, "group_size")
        plain += sum(array.size for name, array in own.items() if not packed or name == "bias")
        plain += own["weight"].size * 32 // module.bits if packed else 0
    return plain * _DTYPES[target].size


def _on_cpu() -> bool:
    return mx.default_device().type == mx.DeviceType.cpu


def _stored_type(model: nn.Module) -> str:
    """Such as "4-bit", "4 to 8-bit" or "bfloat16"."""
    quantized = quantization_of(model)
    if quantized:
        bits = sorted({facts["bits"] for facts in quantized.values()})
        return f"{bits[0]}-bit" if len(bits) == 1 else f"{bits[0]} to {bits[-1]}-bit"
    sizes: dict[str, int] = {}
    parameters: Any = tree_flatten(model.parameters())
    for _, parameter in parameters:
        name = str(parameter.dtype).removeprefix("mlx.core.")
        sizes[name] = sizes.get(name, 0) + parameter.size
    return max(sizes, key=lambda name: sizes[name])


def _dequantized(path: str, module: Any, dtype: mx.Dtype) -> nn.Module:
    """The plain module that computes as quantized `module` does, its weight worked out in float32."""
    from mlx_lm.models.mla import MultiLinear, QuantizedMultiLinear
    from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

    kinds: list[tuple[Any, Any]] = [
        (nn.QuantizedLinear, nn.Linear),
        (nn.QuantizedEmbedding, nn.Embedding),
        (QuantizedSwitchLinear, SwitchLinear),
        (QuantizedMultiLinear, MultiLinear),
    ]
    plain_class = next((plain for quantized, plain in kinds if type(module) is quantized), None)
    if plain_class is None:
        raise ModelError(
            f"module {path}: {type(module).__name__} cannot be dequantized",
            "set `compute: quantized` on a machine with a GPU, or take a model with MLX's own quantization",
        )
    plain: nn.Module = plain_class.__new__(plain_class)  # its __init__ would draw random weights only to drop them
    nn.Module.__init__(plain)
    plain.weight = _plain_weight(module).astype(dtype)
    if "bias" in module:
        plain.bias = module.bias.astype(dtype)
    plain.train(module.training)
    return plain


def _plain_weight(module: Any) -> mx.array:
    """The weight that quantized `module` stands for, (..., rows, width) float32."""
    form = {"group_size": module.group_size, "bits": module.bits, "mode": module.mode, "dtype": mx.float32}
    if module.mode != "affine":
        return mx.dequantize(module.weight, module.scales, None, global_scale=module.get("global_scale"), **form)
    # Affine scales are float16 or bfloat16: in float32 nothing of their product with an integer is rounded.
    scales, biases = module.scales.astype(mx.float32), module.biases.astype(mx.float32)
    if module.bits in (2, 4, 8) and _on_cpu():
        return _unpacked(module.weight, scales, biases, module.bits)
    return mx.dequantize(module.weight, scales, biases, **form)


def _unpacked(weight: mx.array, scales: mx.array, biases: mx.array, bits: int) -> mx.array:
    """What mx.dequantize gives, bit for bit, in a quarter of its time on a CPU: (..., rows, width) float32."""
    octets = mx.view(weight, mx.uint8)[..., None]
    values = (octets >> mx.arange(0, 8, bits, dtype=mx.uint8)) & (2**bits - 1)
    groups = values.reshape(*scales.shape, -1).astype(mx.float32)  # (..., rows, groups, group size)
    plain: mx.array = groups * scales[..., None] + biases[..., None]
    return plain.reshape(*weight.shape[:-1], -1)
