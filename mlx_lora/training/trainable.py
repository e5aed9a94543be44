"""The trained arrays of a model, by name, and the modules that hold them."""

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten


class Trainable:
    """Reads and assigns the trainable parameters of `model` without walking it again.

    Holds references to the modules, so it stays right when layers are wrapped or removed around them.
    """

    def __init__(self, model: nn.Module) -> None:
        self._places: dict[str, tuple[nn.Module, str]] = {}
        for path in dict(tree_flatten(model.trainable_parameters())):
            *parents, name = path.split(".")
            module = model
            for part in parents:
                module = module[int(part)] if isinstance(module, list) else module[part]
            self._places[path] = (module, name)

    def arrays(self) -> dict[str, mx.array]:
        """Path → array, in the model's order."""
        return {path: module[name] for path, (module, name) in self._places.items()}

    def assign(self, arrays: dict[str, mx.array]) -> None:
        """Put `arrays` (path → array) into the model."""
        for path, array in arrays.items():
            module, name = self._places[path]
            module[name] = array
