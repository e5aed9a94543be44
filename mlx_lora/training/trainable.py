"""The trained arrays of a model, by name, and the modules that hold them."""

from collections.abc import Mapping

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_lora.lora.layer import AdapterLayer


class Trainable:
    """Reads and assigns the trainable parameters of `model` without walking it again.

    Holds references to the modules, so it stays right when layers are wrapped or removed around them.
    """

    def __init__(self, model: nn.Module) -> None:
        self._places: dict[str, tuple[nn.Module, str]] = {}
        self._whole: dict[str, tuple[nn.Module, str]] = {}
        for path in dict(tree_flatten(model.trainable_parameters())):
            *parents, name = path.split(".")
            module = model
            for part in parents:
                module = module[int(part)] if isinstance(module, list) else module[part]
            self._places[path] = self._whole[path] = (module, name)
            if isinstance(module, AdapterLayer):
                start = path.removesuffix(name)
                self._whole |= {start + part: (module, part) for part in module.parameter_names}

    def arrays(self) -> dict[str, mx.array]:
        """Path → array, in the model's order."""
        return {path: module[name] for path, (module, name) in self._places.items()}

    def whole(self) -> dict[str, mx.array]:
        """The same, and the parameters of the adapters that are not trained (lora.init)."""
        return {path: module[name] for path, (module, name) in self._whole.items()}

    def fits(self, arrays: Mapping[str, mx.array]) -> bool:
        """Whether `arrays` may be what `whole` is at another step: equal shapes, and equal where nothing is trained."""
        whole = self.whole()
        return {path: array.shape for path, array in arrays.items()} == {
            path: array.shape for path, array in whole.items()
        } and all(bool(mx.array_equal(arrays[path], whole[path])) for path in whole.keys() - self._places.keys())

    def assign(self, arrays: dict[str, mx.array]) -> None:
        """Put `arrays` (path → array) into the model."""
        for path, array in arrays.items():
            module, name = self._whole[path]
            module[name] = array
