"""Layers that add a low-rank update to a frozen linear layer: LoRA, LoRA on MoE experts, DoRA.

Attribute and parameter names are those of mlx_lm.tuner, so that either side reads the other's files.
Knows nothing of models, files or settings; imports MLX only.
"""

from typing import Any

import mlx.core as mx
import mlx.nn as nn

SMALLEST_NORM = 1e-12  # a row of zeros stays zero instead of becoming NaN


class AdapterLayer(nn.Module):
    """What every kind shares: the frozen `linear`, factors `lora_a` and `lora_b`, `scale`, `dropout` and a switch.

    `enabled = False` takes the base path exactly. A graph compiled before the switch is flipped keeps the old state.
    """

    parameter_names: tuple[str, ...] = ("lora_a", "lora_b")
    linear: Any
    lora_a: mx.array
    lora_b: mx.array
    dropout: Any

    def __init__(self, linear: Any, lora_a: mx.array, lora_b: mx.array, scale: float, dropout: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.linear = linear
        self.lora_a = lora_a
        self.lora_b = lora_b
        self.scale = scale
        self.dropout = nn.Dropout(p=dropout)
        self.enabled = True
        self.train(linear.training)  # a new nn.Dropout is in training mode, whatever the model is in

    @property
    def rank(self) -> int:
        """Rank R of the update."""
        raise NotImplementedError

    @property
    def adapter_parameters(self) -> dict[str, mx.array]:
        """The parameters that an adapter file holds, by name."""
        return {name: self[name] for name in self.parameter_names}

    def unfreeze_adapter(self) -> None:
        """Make the adapter's parameters trainable, and nothing else."""
        self.unfreeze(keys=list(self.parameter_names), recurse=False)


class LoRALinear(AdapterLayer):
    """h = W x + scale · (x A) B, with A random and B zero. Source: arXiv 2106.09685, section 4.1.

    lora_a: (D_in, R) float32, lora_b: (R, D_out) float32.
    """

    def __init__(self, linear: Any, rank: int, scale: float, dropout: float, key: mx.array) -> None:
        inputs, outputs = linear_dims(linear)
        # B starts at zero: the injected model answers exactly as the base.
        super().__init__(linear, _uniform(key, (inputs, rank), inputs), mx.zeros((rank, outputs)), scale, dropout)

    @property
    def rank(self) -> int:
        return int(self.lora_a.shape[1])

    def __call__(self, x: mx.array) -> mx.array:
        """x: (..., D_in) → (..., D_out), in the dtype of the base's answer."""
        y: mx.array = self.linear(x)
        if not self.enabled:
            return y
        update: mx.array = (self.dropout(x) @ self.lora_a) @ self.lora_b
        return y + (self.scale * update).astype(y.dtype)


class LoRASwitchLinear(AdapterLayer):
    """LoRA on the E experts of a switch layer, each with factors of its own.

    lora_a: (E, R, D_in) float32, lora_b: (E, D_out, R) float32: the transposes of LoRALinear's, as mlx-lm stores them.
    """

    def __init__(self, linear: Any, rank: int, scale: float, dropout: float, key: mx.array) -> None:
        inputs, outputs = linear_dims(linear)
        experts = int(linear.num_experts)
        lora_a = _uniform(key, (experts, rank, inputs), inputs)
        super().__init__(linear, lora_a, mx.zeros((experts, outputs, rank)), scale, dropout)
        self.num_experts = experts

    @property
    def rank(self) -> int:
        return int(self.lora_a.shape[1])

    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        """x: (..., 1, D_in), indices: experts of the rows → (..., 1, D_out), as the switch layer itself."""
        y: mx.array = self.linear(x, indices, sorted_indices=sorted_indices)
        if not self.enabled:
            return y
        update: mx.array = self.dropout(x)
        for factor in (self.lora_a, self.lora_b):
            update = mx.gather_mm(update, factor.swapaxes(-1, -2), rhs_indices=indices, sorted_indices=sorted_indices)
        return y + (self.scale * update).astype(y.dtype)


class DoRALinear(AdapterLayer):
    """h = m · (W + ΔW) x / ‖W + ΔW‖ by row, with ΔW = scale · (A B)ᵀ and m = ‖W‖ at first. Source: arXiv 2402.09353.

    lora_a: (D_in, R), lora_b: (R, D_out), m: (D_out,), all float32. The norm is a constant for the gradient (its
    section 4.3). No dense ΔW is made: ‖w + δ‖² = ‖w‖² + 2 w·δ + ‖δ‖², where w·δ needs only W A.
    """

    parameter_names = ("lora_a", "lora_b", "m")
    m: mx.array
    _squared_norms: mx.array
    _kept_gains: mx.array | None

    def __init__(self, linear: Any, rank: int, scale: float, dropout: float, key: mx.array) -> None:
        inputs, outputs = linear_dims(linear)
        super().__init__(linear, _uniform(key, (inputs, rank), inputs), mx.zeros((rank, outputs)), scale, dropout)
        # An underscore keeps it out of the parameters: it follows from the base.
        self._squared_norms = mx.square(dense_weight(linear)).sum(axis=1)
        self.m = self.row_norms()
        self._kept_gains = None

    @property
    def rank(self) -> int:
        return int(self.lora_a.shape[1])

    @property
    def squared_base_norms(self) -> mx.array:
        """‖w‖² of each row of the base, (D_out,) float32."""
        return self._squared_norms

    def row_products(self) -> tuple[mx.array, mx.array]:
        """w·(A B)ᵀ and ‖(A B)ᵀ‖² of each output row, without scale: two (D_out,) float32."""
        lora_a, lora_b = self.lora_a, self.lora_b  # (D_in, R), (R, D_out)
        products = _without_bias(self.linear, lora_a.T)  # (W A)ᵀ: (R, D_out)
        return (products * lora_b).sum(axis=0), (((lora_a.T @ lora_a) @ lora_b) * lora_b).sum(axis=0)

    def row_norms(self) -> mx.array:
        """‖W + ΔW‖ of each output row, (D_out,) float32."""
        cross, squared = self.row_products()
        return mx.sqrt(mx.maximum(self._squared_norms + 2 * self.scale * cross + self.scale**2 * squared, 0.0))

    def gains(self) -> mx.array:
        """m / ‖W + ΔW‖ of each output row, (D_out,) float32: exactly 1 before training."""
        return self.m / mx.stop_gradient(mx.maximum(self.row_norms(), SMALLEST_NORM))

    def keep_gains(self) -> None:
        """Compute the gains once and for all: for parameters that no longer change. Answers stay the same bits."""
        self._kept_gains = self.gains()
        mx.eval(self._kept_gains)

    def __call__(self, x: mx.array) -> mx.array:
        """x: (..., D_in) → (..., D_out), in the dtype of the base's answer."""
        y: mx.array = self.linear(x)
        if not self.enabled:
            return y
        base: mx.array = y - self.linear.bias if "bias" in self.linear else y
        update: mx.array = self.scale * ((self.dropout(x) @ self.lora_a) @ self.lora_b)
        gains = self.gains() if self._kept_gains is None else self._kept_gains
        # gains · (base + update) + bias, written as a change of y so that gains = 1 and B = 0 give y bit for bit.
        return y + ((gains - 1) * base + gains * update).astype(y.dtype)


def is_switch(module: Any) -> bool:
    """Whether `module` is a layer of experts: one 3-D weight, called with the experts' indices."""
    return (
        isinstance(module, nn.Module)
        and all(hasattr(module, name) for name in ("num_experts", "input_dims", "output_dims"))
        and module.weight.ndim == 3
        and not isinstance(module, AdapterLayer)
    )


def can_adapt(module: Any) -> bool:
    """Whether there is an adapter layer for `module`."""
    return isinstance(module, (nn.Linear, nn.QuantizedLinear)) or is_switch(module)


def linear_dims(linear: Any) -> tuple[int, int]:
    """(D_in, D_out) of a linear or switch layer, however its weight is packed."""
    outputs, inputs = linear.weight.shape[-2:]
    if is_quantized(linear):
        inputs = linear.scales.shape[-1] * linear.group_size
    return int(inputs), int(outputs)


def is_quantized(linear: Any) -> bool:
    """Whether the layer's weight is packed integers with `scales`."""
    return "scales" in linear


def dense_weight(linear: Any) -> mx.array:
    """The layer's weight as float32, dequantized where it is packed: (..., D_out, D_in)."""
    weight: mx.array = linear.weight
    if not is_quantized(linear):
        return weight.astype(mx.float32)
    biases = linear.get("biases")
    affine = linear.mode == "affine"  # scales in half precision: in float32 nothing of their product is rounded
    return mx.dequantize(
        weight,
        linear.scales.astype(mx.float32) if affine else linear.scales,
        biases.astype(mx.float32) if affine and biases is not None else biases,
        group_size=linear.group_size,
        bits=linear.bits,
        mode=linear.mode,
        global_scale=linear.get("global_scale"),
        dtype=mx.float32,
    )


def _without_bias(linear: Any, x: mx.array) -> mx.array:
    weight: mx.array = linear.weight
    if not is_quantized(linear):
        return x @ weight.T
    return mx.quantized_matmul(
        x,
        weight,
        scales=linear.scales,
        biases=linear.get("biases"),
        transpose=True,
        group_size=linear.group_size,
        bits=linear.bits,
        mode=linear.mode,
    )


def _uniform(key: mx.array, shape: tuple[int, ...], inputs: int) -> mx.array:
    bound = inputs**-0.5
    return mx.random.uniform(-bound, bound, shape, dtype=mx.float32, key=key)
