"""The adapter folder: adapters.safetensors and adapter_config.json as mlx-lm reads them, our facts under "mlx_lora".

Loading is strict both ways and checked before the model is touched. Knows nothing of training; imports MLX only.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import mlx.core as mx
import mlx.nn as nn

from mlx_lora.config import LoraSettings
from mlx_lora.errors import AdapterError
from mlx_lora.files import write_json, write_whole
from mlx_lora.lora.adapter_config import (
    CONFIG_FILE,
    FORMAT_VERSION,
    WEIGHTS_FILE,
    AdapterParameters,
    read_adapter_config,
)
from mlx_lora.lora.inject import (
    adaptable_modules,
    iter_layers,
    iter_lora_modules,
    iter_modules,
    put_adapters,
    refuse_adapted,
    remove_lora,
)
from mlx_lora.lora.layer import can_adapt, is_switch, linear_dims
from mlx_lora.lora.merge import delta_ratio
from mlx_lora.lora.tensor_file import encode_tensors, read_tensors

_TENSORS = {"lora": ("lora_a", "lora_b"), "dora": ("lora_a", "lora_b", "m")}
_IDENTITY = ("config_sha256", "weights_sha256")
_LARGEST = 3.4e38  # float32 holds no more


@dataclass(frozen=True)
class AdapterFolder:
    """An adapter as read from disk: its whole config, what the config says of its shape, its tensors in float32."""

    folder: Path
    config: dict[str, Any]
    parameters: AdapterParameters
    tensors: dict[str, mx.array]
    weights: str = WEIGHTS_FILE  # the name of the tensors' file; an imported one has another

    @property
    def facts(self) -> dict[str, Any]:
        """Our own part of the config; empty for an adapter that mlx-lm wrote."""
        return dict(self.config.get("mlx_lora") or {})

    @property
    def modules(self) -> tuple[str, ...]:
        """Full paths of the adapted modules, in the order of the file's names."""
        return tuple(dict.fromkeys(name.rpartition(".")[0] for name in self.tensors))


@dataclass(frozen=True)
class AppliedAdapter:
    """What apply_adapter did: modules that change the base's answer, of those adapted, and by how much.

    delta_ratio: ‖ΔW‖ / ‖W‖ over the adapted modules together (Frobenius norms).
    """

    modules: tuple[str, ...]
    active: int
    delta_ratio: float
    notes: tuple[str, ...]

    @property
    def active_modules(self) -> str:
        """Such as "210/210"."""
        return f"{self.active}/{len(self.modules)}"

    @property
    def line(self) -> str:
        """What every command says when it has put an adapter on."""
        return f"adapter active: {self.active_modules} modules, ‖ΔW‖/‖W‖ = {self.delta_ratio:.3g}"


def save_adapter(
    folder: Path,
    model: nn.Module,
    *,
    settings: LoraSettings,
    num_layers: int | None = None,
    metadata: Mapping[str, Any] | None = None,
    dtype: mx.Dtype = mx.float32,
) -> None:
    """Write the model's adapter into `folder` (made if missing), each file whole or not at all.

    num_layers: how many of the last layers are adapted, None to count. metadata: our facts, kept under "mlx_lora".
    dtype: float16 or bfloat16 halve the file; only float32 reads back bit for bit.
    Raises: MlxLoraError when the files cannot be written, AdapterError when a value is not finite.
    """
    tensors = {
        f"{path}.{name}": value.astype(dtype)
        for path, adapter in iter_lora_modules(model)
        for name, value in adapter.adapter_parameters.items()
    }
    write_adapter(folder, tensors, describe_adapter(model, settings, metadata, num_layers))


def describe_adapter(
    model: nn.Module, settings: LoraSettings, metadata: Mapping[str, Any] | None, num_layers: int | None = None
) -> dict[str, Any]:
    """What adapter_config.json says of the model's adapter; the parameters are those of save_adapter."""
    adapters = dict(iter_lora_modules(model))
    keys, counted = _mlx_lm_keys(model, adapters)
    return {
        "fine_tune_type": settings.method,
        "num_layers": counted if num_layers is None else num_layers,
        "lora_parameters": {**settings.model_dump(include={"rank", "dropout"}), "scale": settings.scale, "keys": keys},
        "mlx_lora": {"format_version": FORMAT_VERSION, "lora": settings.model_dump(mode="json"), **(metadata or {})},
    }


def write_adapter(folder: Path, tensors: Mapping[str, mx.array], config: Mapping[str, Any]) -> None:
    """Write both files of an adapter folder (made if missing), each whole or not at all.

    Raises: MlxLoraError when they cannot be written, AdapterError when a value is not finite.
    """
    for name, value in tensors.items():
        if not mx.isfinite(value).all().item():
            raise AdapterError(
                f"{folder}: {name} is not finite in {str(value.dtype).rpartition('.')[2]}; nothing was written",
                "lower optimizer.learning_rate or optimizer.weight_decay, or set lora.save_dtype: float32",
            )
    write_whole(folder / WEIGHTS_FILE, encode_tensors(tensors, {"format": "mlx"}))
    write_json(folder / CONFIG_FILE, config)


def read_adapter(folder: Path) -> AdapterFolder:
    """Read and check an adapter folder; no model needed.

    Raises: AdapterError when a file is missing, damaged, of another kind, or its tensors are not whole sets.
    """
    config, parameters = read_adapter_config(folder)
    path = folder / WEIGHTS_FILE
    tensors = read_tensors(path)
    if not tensors:
        raise AdapterError(f"{path}: holds no tensors", "copy or train the adapter again")
    wanted = _TENSORS[parameters.method]
    foreign = [name for name in tensors if name.rpartition(".")[2] not in wanted or "." not in name]
    if foreign:
        _refuse(path, f"no part of a {parameters.method} adapter", foreign)
    modules = dict.fromkeys(name.rpartition(".")[0] for name in tensors)
    missing = [f"{module}.{part}" for module in modules for part in wanted if f"{module}.{part}" not in tensors]
    if missing:
        _refuse(path, "missing", missing)
    return AdapterFolder(
        folder, config, parameters, {name: value.astype(mx.float32) for name, value in tensors.items()}
    )


def apply_adapter(
    model: nn.Module, adapter: AdapterFolder, identity: Mapping[str, Any] | None = None
) -> AppliedAdapter:
    """Put the adapter into the model: every tensor finds its module, every adapted module its tensors.

    identity: the loaded base's name and hashes; None leaves the base unchecked. Afterwards only the adapter trains.
    Raises: AdapterError for another base, other modules or shapes, an adapter that changes nothing or beyond all
    numbers, a model adapted already. The model is then untouched.
    """
    notes = check_base(adapter, identity)
    refuse_adapted(model)
    modules = _find_modules(model, adapter)
    _check_shapes(adapter, modules)
    active = sum(bool(mx.any(adapter.tensors[f"{path}.lora_b"] != 0).item()) for path in modules)
    if not active:
        raise AdapterError(
            f"{adapter.folder}: teaches nothing: B of all {len(modules)} modules is zero", "train it first"
        )
    parameters = adapter.parameters
    put_adapters(
        model,
        modules,
        method=parameters.method,
        rank=parameters.rank,
        scale=parameters.scale,
        dropout=parameters.dropout,
        seed=0,  # A is replaced by the file's
    )
    for path, layer in iter_lora_modules(model):
        for name in layer.parameter_names:
            layer[name] = adapter.tensors[f"{path}.{name}"]
    ratio = delta_ratio(model)
    if not ratio <= _LARGEST:
        remove_lora(model)
        raise AdapterError(f"{adapter.folder}: its update is not finite on this base", "use an earlier adapter")
    return AppliedAdapter(tuple(modules), active, ratio, notes)


def check_base(adapter: AdapterFolder, identity: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Notes on what cannot be checked. Raises: AdapterError where `identity` is not of the base it was trained on."""
    trained = adapter.facts.get("identity")
    if identity is None:
        return ()
    if not isinstance(trained, Mapping) or not any(trained.get(key) for key in _IDENTITY):
        return (
            f"{adapter.folder} does not name the base it was trained on: whether this is the one cannot be checked",
        )
    differing = [key for key in _IDENTITY if trained.get(key) and trained[key] != identity.get(key)]
    if differing:
        parts = " and ".join(key.removesuffix("_sha256") for key in differing)
        raise AdapterError(
            f"{adapter.folder}: trained on {_whole_name(trained)}, "
            f"the base here is {_whole_name(identity)}: other {parts}",
            f"use the base it was trained on: {_base_name(trained)}",
        )
    if trained.get("tokenizer_sha256") and trained["tokenizer_sha256"] != identity.get("tokenizer_sha256"):
        return (f"the tokenizer files of {_base_name(identity)} have changed since this adapter was trained",)
    return ()


def _base_name(identity: Mapping[str, Any]) -> str:
    revision = identity.get("revision")
    return f"{identity.get('name', 'a base without a name')}{f' at {revision}' if revision else ''}"


def _whole_name(identity: Mapping[str, Any]) -> str:
    """Name, revision and the beginnings of both hashes."""
    hashes = ", ".join(f"{key.removesuffix('_sha256')} {str(identity.get(key))[:12]}" for key in _IDENTITY)
    return f"{_base_name(identity)} ({hashes})"


def _find_modules(model: nn.Module, adapter: AdapterFolder) -> dict[str, nn.Module]:
    present = dict(iter_modules(model))
    strangers = [path for path in adapter.modules if path not in present]
    if strangers:
        _refuse(adapter.folder, "adapts modules that this base does not have", strangers)
    unfit = [f"{path} ({type(present[path]).__name__})" for path in adapter.modules if not can_adapt(present[path])]
    if unfit:
        _refuse(adapter.folder, "adapts modules of a kind that mlx-lora cannot adapt", unfit)
    expected = _expected_modules(model, adapter.parameters)
    adapted = set(adapter.modules)
    if left_out := [path for path in expected if path not in adapted]:
        _refuse(adapter.folder, "its config adapts modules that its file has no tensors for", left_out)
    if surplus := [path for path in adapter.modules if path not in expected]:
        _refuse(adapter.folder, "its file has tensors for modules that its config does not adapt", surplus)
    return {path: module for path, module in present.items() if path in adapted}


def _expected_modules(model: nn.Module, parameters: AdapterParameters) -> set[str]:
    """Full paths that mlx-lm's linear_to_lora_layers would adapt by these parameters."""
    layers = iter_layers(model)[-max(parameters.num_layers, 0) :]
    found = {
        f"{layer.path}.{path}"
        for layer in layers
        for path in adaptable_modules(layer)
        if parameters.keys is None or path in parameters.keys
    }
    keys = parameters.keys or ()
    return found | {path for path, module in iter_modules(model) if path in keys and can_adapt(module)}


def _mlx_lm_keys(model: nn.Module, adapted: Collection[str]) -> tuple[list[str], int]:
    """Keys relative to a layer, and the number of last layers, that make mlx-lm adapt exactly the paths `adapted`."""
    layers = iter_layers(model)
    keys: dict[str, None] = {}
    lowest = len(layers)
    for path in adapted:
        layer = next((layer for layer in layers if path.startswith(f"{layer.path}.")), None)
        keys[path if layer is None else path.removeprefix(f"{layer.path}.")] = None
        lowest = lowest if layer is None else min(lowest, layer.index)
    number = len(layers) - lowest
    covered = {f"{layer.path}.{path}" for layer in layers[lowest:] for path in adaptable_modules(layer) if path in keys}
    if covered - set(adapted):  # an imported adapter may leave out some layers: then each module by its whole path
        return list(adapted), number
    return list(keys), number


def _check_shapes(adapter: AdapterFolder, modules: Mapping[str, nn.Module]) -> None:
    rank = adapter.parameters.rank
    for path, module in modules.items():
        inputs, outputs = linear_dims(module)
        expected: dict[str, tuple[int, ...]] = {"lora_a": (inputs, rank), "lora_b": (rank, outputs), "m": (outputs,)}
        if is_switch(module):
            experts = int(module.num_experts)
            expected = {"lora_a": (experts, rank, inputs), "lora_b": (experts, outputs, rank)}
        for part in expected:
            tensor = adapter.tensors.get(f"{path}.{part}")
            if tensor is not None and tensor.shape != expected[part]:
                raise AdapterError(
                    f"{adapter.folder / adapter.weights}: {path}.{part} has shape {tensor.shape}, "
                    f"this base and rank {rank} need {expected[part]}",
                    "the adapter belongs to another base, or its config was changed",
                )


def _refuse(place: Path, fact: str, names: list[str]) -> NoReturn:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    raise AdapterError(f"{place}: {fact}: {', '.join(names[:3])}{more}", "is this the right adapter for this base?")
