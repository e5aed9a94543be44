"""A micro-batch's gradients and the optimizer's update, compiled where the run allows it. Knows nothing of steps."""

from typing import Any

import mlx.core as mx
import mlx.optimizers as optimizers

from mlx_lora.config import OptimizerSettings
from mlx_lora.training.engine import Arrays, Engine
from mlx_lora.training.optim import clipped
from mlx_lora.training.trainable import Trainable

Parameters = dict[str, mx.array]


class Stepper:
    """One optimizer update as functions of arrays, compiled where the run allows it.

    The parameters live in the model; `parameters` and `optimizer.state` are what a checkpoint holds.
    """

    def __init__(
        self, engine: Engine, trainable: Trainable, optimizer: optimizers.Optimizer, settings: OptimizerSettings, *,
        compiled: bool,
    ) -> None:  # fmt: skip
        self.engine, self.trainable, self.optimizer, self.settings = engine, trainable, optimizer, settings
        self.compiled = compiled
        optimizer.init(trainable.arrays())
        random: Any = [mx.random.state]
        self._gradients = mx.compile(self._nats_and_gradients, random, random) if compiled else self._nats_and_gradients
        self._update = mx.compile(self._updated) if compiled else self._updated

    def gradients(self, arrays: Arrays) -> tuple[mx.array, Parameters]:
        """Summed nats of a micro-batch and their gradient for every trained array."""
        parameters = self.trainable.arrays()
        nats, gradients = self._gradients(parameters, arrays)
        self.trainable.assign(parameters)  # tracing leaves placeholders in the model
        return nats, gradients

    def no_gradients(self) -> tuple[mx.array, Parameters]:
        """What `gradients` would return for a micro-batch without rows."""
        return mx.array(0.0), {name: mx.zeros_like(array) for name, array in self.trainable.arrays().items()}

    def update(self, gradients: Parameters, weight: float, learning_rate: float) -> mx.array:
        """Apply summed `gradients` divided by the targets' `weight`; return the gradient norm, not yet computed."""
        state = {name: value for name, value in self.optimizer.state.items() if name != "learning_rate"}
        parameters, state, norm = self._update(
            self.trainable.arrays(), state, gradients, mx.array(float(weight)), mx.array(learning_rate)
        )
        self.trainable.assign(parameters)
        self.optimizer.state = state | {"learning_rate": mx.array(learning_rate)}
        return norm

    def _nats_and_gradients(self, parameters: Parameters, arrays: Arrays) -> tuple[mx.array, Parameters]:
        def nats(parameters: Parameters) -> mx.array:
            self.trainable.assign(parameters)
            return self.engine.nats(arrays)

        value, gradients = mx.value_and_grad(nats)(parameters)
        return value, gradients

    def _updated(
        self, parameters: Parameters, state: dict[str, Any], gradients: Parameters, weight: mx.array, rate: mx.array
    ) -> tuple[Parameters, dict[str, Any], mx.array]:
        gradients = {name: gradient / weight for name, gradient in gradients.items()}
        gradients, norm = clipped(gradients, self.settings.max_grad_norm)
        self.optimizer.state = state | {"learning_rate": rate}
        parameters = self.optimizer.apply_gradients(gradients, parameters)
        state = {name: value for name, value in self.optimizer.state.items() if name != "learning_rate"}
        return parameters, state, norm
