"""One base and several adapters on it at once, each for the rows that ask for it. Knows nothing of prompts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_lora.errors import AdapterError
from mlx_lora.lora.bank import AdapterBank, Resident
from mlx_lora.lora.inject import iter_modules, replace_module
from mlx_lora.lora.rows import Factors, RowLoRA, Rows, factors_of

_PROBE = (5, 6, 7, 8)  # tokens that every vocabulary has
_TOLERANCE = 0.02  # of the logits' range: bases in half precision round in another order


class RowBank:
    """The adapters of one base, by name and by number; a number is never given twice.

    Where any of them adapts a linear layer, a RowLoRA stands in its place; `rows` says whose rows the next forward
    passes hold. The bank has no lock: one thread at a time uses bank and model.
    """

    def __init__(self, model: nn.Module, identity: Mapping[str, Any] | None = None) -> None:
        """`model` and `identity` as for AdapterBank. Raises: AdapterError when the model has an adapter already."""
        self.rows = Rows()
        self._model = model
        self._bank = AdapterBank(model, identity)
        self._factors: dict[str, tuple[int, dict[str, Factors]]] = {}
        self._given = 0

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters in the bank, in the order in which they came."""
        return tuple(self._factors)

    @property
    def nbytes(self) -> int:
        """Bytes of the stacked factors; the adapters as they were read take about as many."""
        return sum(array.nbytes for layer in self._row_layers().values() for array in layer.stacked)

    def add(self, name: str, folder: Path) -> tuple[int, Resident]:
        """Read the adapter in `folder` and put it beside the others; return its number and what is known of it.

        It is asked four tokens alone and in a mixed batch before it is taken.
        Raises: AdapterError as AdapterBank.add does, and where its rows cannot be told from others. All is then as
        before.
        """
        self._install({})
        try:
            resident = self._bank.add(name, folder)
            try:
                factors = {path: factors_of(path, layer) for path, layer in resident.layers.items()}
                self._check(resident, factors)
            except BaseException:
                self._install({})
                self._bank.remove(name)
                raise
            self._factors[name] = (self._given, factors)
            self._given += 1
        finally:
            self._install(dict(self._factors.values()))
        return self._factors[name][0], resident

    def remove(self, name: str) -> None:
        """Take the adapter out; no row may use it any more. Raises: AdapterError with the near names."""
        self._bank.resident(name)
        del self._factors[name]
        self._install({})
        self._bank.remove(name)
        self._install(dict(self._factors.values()))

    def _check(self, resident: Resident, factors: Mapping[str, Factors]) -> None:
        """Raises: AdapterError where rows of a mixed batch do not answer as the base and as the adapter alone."""
        tokens = mx.array([_PROBE] * 3)
        base = self._model(tokens).astype(mx.float32)
        self._bank.activate(resident.name)
        try:
            alone = self._model(tokens).astype(mx.float32)
            mx.eval(base, alone)
        finally:
            self._bank.activate(None)
        self._install({self._given: factors})
        self.rows.use((None, self._given, None))
        try:
            mixed = self._model(tokens).astype(mx.float32)
            mx.eval(mixed)
        except ValueError as error:  # a family that reshapes the batch before a layer that is adapted
            raise _unfit(resident, str(error)) from error
        wanted = mx.stack([base[0], alone[1], base[2]])
        away, allowed = mx.abs(mixed - wanted).max().item(), (_TOLERANCE * (wanted.max() - wanted.min())).item()
        if not away <= allowed:  # type: ignore[operator]
            raise _unfit(resident, f"in a mixed batch its logits are {away:.3g} from those alone")

    def _install(self, adapters: Mapping[int, Mapping[str, Factors]]) -> None:
        """Put the factors of exactly these adapters into the model, in place of what it has."""
        for path, layer in self._row_layers().items():
            replace_module(self._model, path, layer.linear)
        linears = dict(iter_modules(self._model))
        for path in dict.fromkeys(path for factors in adapters.values() for path in factors):
            chosen = {number: factors[path] for number, factors in adapters.items() if path in factors}
            layer = RowLoRA(linears[path], self.rows, chosen)
            layer.eval()
            mx.eval(layer.stacked)
            replace_module(self._model, path, layer)

    def _row_layers(self) -> dict[str, RowLoRA]:
        return {path: module for path, module in iter_modules(self._model) if isinstance(module, RowLoRA)}


def _unfit(resident: Resident, fact: str) -> AdapterError:
    return AdapterError(
        f"{resident.adapter.folder}: its rows cannot share a batch with others on this base: {fact}",
        "eval and chat take this adapter, and fuse makes a model of it that any server takes",
    )
