"""Which modules of a model get adapters, and putting them in and out. Knows nothing of files; imports MLX only."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_lora.config import LoraSettings
from mlx_lora.errors import AdapterError
from mlx_lora.lora.adapter_config import LARGEST_SCALE
from mlx_lora.lora.layer import (
    AdapterLayer,
    DoRALinear,
    LoRALinear,
    LoRASwitchLinear,
    can_adapt,
    is_quantized,
    is_switch,
    linear_dims,
)
from mlx_lora.lora.targets import match_targets


@dataclass(frozen=True)
class Injection:
    """What inject_lora did.

    modules: full paths of the adapted modules, in the model's order. trainable_parameters and total_parameters count
    weights as if unpacked (total includes the adapter's). first_layer: index of the lowest transformer layer adapted.
    """

    modules: tuple[str, ...]
    trainable_parameters: int
    total_parameters: int
    first_layer: int


@dataclass(frozen=True, eq=False)
class Layer:
    """One transformer layer: its index in the model, its path, and the module itself."""

    index: int
    path: str
    module: nn.Module


def inject_lora(model: nn.Module, settings: LoraSettings, *, seed: int) -> Injection:
    """Put adapters into the modules that `settings` choose, freeze everything else; return what was done.

    Raises: AdapterError when a preset or name matches nothing, there are fewer layers than asked for, or the model
    has adapters already. The model is then untouched.
    """
    refuse_adapted(model)
    chosen = _last_layers(iter_layers(model), settings.layers)
    present = {layer: adaptable_modules(layer) for layer in chosen}
    keys = match_targets(list(present.values()), settings.target_modules)
    modules = {
        f"{layer.path}.{path}": module
        for layer, found in present.items()
        for path, module in found.items()
        if path in keys
    }
    _check_size(settings, modules)
    _check_init(settings, modules)
    put_adapters(
        model,
        modules,
        method=settings.method,
        rank=settings.rank,
        scale=settings.scale,
        dropout=settings.dropout,
        seed=seed,
        fixed_a=settings.init == "contrastive",
    )
    for _, adapter in iter_lora_modules(model):
        mx.eval(adapter.adapter_parameters)
    first = next(layer for layer in chosen if any(path.startswith(f"{layer.path}.") for path in modules))
    return Injection(tuple(modules), _size(model.trainable_parameters()), parameter_count(model), first.index)


def put_adapters(
    model: nn.Module,
    modules: dict[str, nn.Module],
    *,
    method: str,
    rank: int,
    scale: float,
    dropout: float,
    seed: int,
    fixed_a: bool = False,
) -> None:
    """Wrap each of `modules` (full path → module) in place, and freeze all but the adapters' parameters.

    These are lazy still: who replaces them by a file's never computes them. With `fixed_a` all but A are trained.
    Raises: AdapterError when the method has no layer for one of them; the model is then untouched.
    """
    kinds = {path: _layer_class(path, module, method) for path, module in modules.items()}
    keys = mx.random.split(mx.random.key(seed), max(len(modules), 1))
    model.freeze()
    for (path, module), key in zip(modules.items(), keys, strict=False):
        adapter = kinds[path](module, rank, scale, dropout, key)
        replace_module(model, path, adapter)
        adapter.freeze()
        adapter.unfreeze_adapter()
        if fixed_a:
            adapter.freeze(keys=["lora_a"], recurse=False)


def remove_lora(model: nn.Module) -> None:
    """Put the original modules back, the very same objects. The model stays frozen."""
    for path, adapter in list(iter_lora_modules(model)):
        replace_module(model, path, adapter.linear)


def set_adapter_enabled(model: nn.Module, enabled: bool) -> None:
    """Switch every adapter of the model on, or off so that it answers as the base."""
    for _, adapter in iter_lora_modules(model):
        adapter.enabled = enabled


def iter_lora_modules(model: nn.Module) -> Iterator[tuple[str, AdapterLayer]]:
    """The adapter layers of the model with their full paths, in the model's order."""
    for path, module in iter_modules(model):
        if isinstance(module, AdapterLayer):
            yield path, module


def transformer_layers(model: nn.Module) -> list[nn.Module]:
    """The list of layers that the inner model iterates: the list itself, not a copy, so that entries can be replaced.

    Raises: AdapterError when the model has no single such list.
    """
    wanted = [id(layer) for layer in _layer_modules(model)]
    for _, owner in [("", model), *iter_modules(model)]:
        for value in owner.values():
            if isinstance(value, list) and [id(item) for item in value] == wanted:
                return value
    raise AdapterError(f"{_kind(model)}: its layers do not stand in one list")


def iter_layers(model: nn.Module) -> list[Layer]:
    """The model's transformer layers with their paths, each once, lowest first."""
    paths = {id(module): path for path, module in iter_modules(model)}
    modules = {id(module): module for module in _layer_modules(model)}
    return [Layer(index, paths[key], module) for index, (key, module) in enumerate(modules.items())]


def iter_modules(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Every module below `module` with its dotted path, in the order of definition; not those inside an adapter."""
    start = prefix and f".{prefix}"  # tree_flatten takes a prefix with the dot that it then removes
    for name, child in dict(tree_flatten(module.children(), prefix=start, is_leaf=nn.Module.is_module)).items():
        if isinstance(child, nn.Module):
            yield name, child
            if not isinstance(child, AdapterLayer):
                yield from iter_modules(child, name)


def adaptable_modules(layer: Layer) -> dict[str, nn.Module]:
    """Path relative to the layer → each of its modules that an adapter layer exists for."""
    return {path: module for path, module in iter_modules(layer.module) if can_adapt(module)}


def replace_module(model: nn.Module, path: str, module: nn.Module) -> None:
    """Set the module at the dotted `path`, in the very object that holds it."""
    *parents, last = path.split(".")
    owner: Any = model
    for name in parents:
        owner = owner[int(name)] if isinstance(owner, list) else owner[name]
    owner[int(last) if isinstance(owner, list) else last] = module


def refuse_adapted(model: nn.Module) -> None:
    """Raises: AdapterError when the model has adapters already: a second set would nest in the first."""
    if next(iter_lora_modules(model), None) is not None:
        raise AdapterError("the model has an adapter already", "remove it first (remove_lora), or load the base anew")


def parameter_count(model: nn.Module) -> int:
    """Parameters of the model with packed weights counted as unpacked; scales and their biases are storage."""
    total = 0
    for module in [model, *(child for _, child in _all_modules(model))]:
        own = {
            name: value for name, value in module.items() if isinstance(value, mx.array) and not name.startswith("_")
        }
        if is_quantized(module):
            total += own["weight"].size * 32 // module.bits + (own["bias"].size if "bias" in own else 0)
        else:
            total += sum(value.size for value in own.values())
    return total


def _all_modules(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for path, child in iter_modules(module):
        yield path, child
        if isinstance(child, AdapterLayer):
            yield f"{path}.linear", child.linear


def _layer_modules(model: nn.Module) -> list[nn.Module]:
    layers = getattr(model, "layers", None)
    if layers is None or not all(isinstance(layer, nn.Module) for layer in layers) or not len(layers):
        raise AdapterError(f"{_kind(model)}: this kind of model shows no list of layers to adapt")
    return list(layers)


def _last_layers(layers: list[Layer], wanted: str | int) -> list[Layer]:
    if isinstance(wanted, str):
        return layers
    if wanted > len(layers):
        raise AdapterError(
            f"lora.layers: {wanted} asked for, the model has {len(layers)}", f"use `all`, or 1 to {len(layers)}"
        )
    return layers[-wanted:]


def _check_size(settings: LoraSettings, modules: dict[str, nn.Module]) -> None:
    widest = max(min(linear_dims(module)) for module in modules.values())
    if settings.rank > widest:
        fact = f"lora.rank: {settings.rank} is more than any module of this model can use"
        raise AdapterError(fact, f"use 1 to {widest}; 8 to 64 are usual")
    if settings.scale > LARGEST_SCALE:
        fact = f"lora.alpha: {settings.alpha:g} at rank {settings.rank} is an effective scale of {settings.scale:g}"
        raise AdapterError(fact, f"alpha is usually one to four times the rank; the scale may be {LARGEST_SCALE:g}")


def _check_init(settings: LoraSettings, modules: dict[str, nn.Module]) -> None:
    experts = next((path for path, module in modules.items() if is_switch(module)), None)
    if settings.init == "contrastive" and experts is not None:
        fact = f"lora.init: contrastive chooses one A for all rows, and {experts} has one for each expert"
        raise AdapterError(fact, "leave the experts out (attention), or take lora.init: random")


def _layer_class(path: str, module: nn.Module, method: str) -> type[LoRALinear | LoRASwitchLinear | DoRALinear]:
    if not is_switch(module):
        return DoRALinear if method == "dora" else LoRALinear
    if method == "dora":
        raise AdapterError(
            f"{path}: DoRA has no layer for experts", "use method: lora, or leave the experts out (attention)"
        )
    return LoRASwitchLinear


def _size(parameters: Any) -> int:
    return sum(value.size for value in dict(tree_flatten(parameters)).values())


def _kind(model: nn.Module) -> str:
    return str(getattr(model, "model_type", type(model).__name__))
