"""Adapters that stay in memory beside one base, and are put on by name. Knows nothing of prompts; imports MLX only.

An adapter's layers are made when it is added. Putting it on replaces modules by these layers: nothing is read or
computed. The factors of a mix are joined by its first answer. The bank has no lock: one thread at a time uses bank and
model.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_lora.errors import AdapterError
from mlx_lora.files import named_errors
from mlx_lora.lora.adapter import AdapterFolder, AppliedAdapter, apply_adapter, read_adapter
from mlx_lora.lora.adapter_config import CONFIG_FILE, WEIGHTS_FILE, read_adapter_config
from mlx_lora.lora.inject import iter_lora_modules, refuse_adapted, remove_lora, replace_module
from mlx_lora.lora.layer import AdapterLayer, DoRALinear
from mlx_lora.lora.mix import Mix, mix_layers, parse_mix, unknown_adapter

_MIXES = 4  # whose layers are kept: putting one on again costs nothing


@dataclass(frozen=True, eq=False)
class Resident:
    """An adapter in the bank: its name there, its folder as read, what applying it did, its layers by full path.

    version: names the state of the files that were read; keys and values computed with another one are not its own.
    """

    name: str
    adapter: AdapterFolder
    applied: AppliedAdapter
    version: str
    layers: Mapping[str, AdapterLayer]


class AdapterBank:
    """One base and any number of adapters, of any rank, scale, method and modules; at most one mix of them is on."""

    def __init__(self, model: nn.Module, identity: Mapping[str, Any] | None = None) -> None:
        """`model`: a bare base in evaluation mode. `identity`: its name and hashes; None leaves the base unchecked.

        Raises: AdapterError when the model has an adapter already.
        """
        refuse_adapted(model)
        self.model = model
        self.identity = identity
        self._residents: dict[str, Resident] = {}
        self._active: Mix | None = None
        self._installed: dict[str, AdapterLayer] = {}  # what is in the model now, by full path
        self._mixes: dict[Mix, dict[str, AdapterLayer]] = {}  # the layers of the mixes used last, of these residents

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters in the bank, in the order in which they came."""
        return tuple(self._residents)

    @property
    def active(self) -> Mix | None:
        """Who answers now; None for the base."""
        return self._active

    @property
    def cache_key(self) -> str | None:
        """Equal only for models that compute the same: keys and values belong to it. None for the base."""
        if self._active is None:
            return None
        versions = [(self._residents[name].version, weight) for name, weight in self._active.parts]
        return versions[0][0] if self._active.is_plain else repr(versions)

    def resident(self, name: str) -> Resident:
        """The adapter of this name. Raises: AdapterError with the near names."""
        if name not in self._residents:
            raise unknown_adapter(name, self._residents)
        return self._residents[name]

    def parse(self, text: str) -> Mix:
        """What activate would put on for `text`; nothing is put on. Raises: AdapterError."""
        mix = parse_mix(text, self._residents.__contains__)
        for name in mix.names:
            self.resident(name)
        return mix

    def add(self, name: str, folder: Path, *, replace: bool = False) -> Resident:
        """Read the adapter in `folder`, check it against the base and keep it as `name`; what answers stays.

        `replace`: in place of the adapter that has the name now, if any; where that is on, the new one is then on.
        Raises: AdapterError for a name that is taken, and as read_adapter and apply_adapter do; all is then as before.
        """
        if not name.strip():
            raise AdapterError("an adapter needs a name", "such as the name of its folder")
        if name in self._residents and not replace:
            raise AdapterError(
                f"{name}: there is an adapter of this name already", "remove it first, or take another name"
            )
        read_adapter_config(folder)  # says what is missing
        version = folder_version(folder)  # before reading: of a file that changes meanwhile no cache is reused
        adapter = read_adapter(folder)
        with self._bare_model():
            try:
                applied = apply_adapter(self.model, adapter, self.identity)
                layers = dict(iter_lora_modules(self.model))
            finally:
                remove_lora(self.model)
        for layer in layers.values():
            layer.eval()
            mx.eval(layer.adapter_parameters)
            if isinstance(layer, DoRALinear):
                layer.keep_gains()
        self._commit({**self._residents, name: Resident(name, adapter, applied, version, layers)}, self._active)
        return self._residents[name]

    def activate(self, text: str | None) -> Mix | None:
        """Put on an adapter by name, or several by weight (`a:0.7+b:0.3`), in place of what is on; None: the base.

        Raises: AdapterError for an unknown name, a wrong weight or a mix with no exact sum; all is then as before.
        """
        mix = None if text is None else self.parse(text)
        self._commit(self._residents, mix)
        return mix

    def remove(self, name: str) -> None:
        """Forget the adapter of this name; where it is on, alone or in a mix, the base answers from now on.

        Raises: AdapterError with the near names when there is none.
        """
        self.resident(name)
        left = {other: resident for other, resident in self._residents.items() if other != name}
        self._commit(left, None if self._active is not None and name in self._active.names else self._active)

    def _commit(self, residents: dict[str, Resident], active: Mix | None) -> None:
        """Make this the state of bank and model; where it cannot be, nothing has changed."""
        mixes = self._mixes if residents is self._residents else {}
        layers: dict[str, AdapterLayer] = {}
        if active is not None:
            layers = mixes[active] if active in mixes else _layers_of(active, residents)
        if active is not None and not active.is_plain:
            others = [item for item in mixes.items() if item[0] != active]
            mixes = dict([*others[1 - _MIXES :], (active, layers)])
        self._install(layers)
        self._residents, self._active, self._mixes = residents, active, mixes

    @contextmanager
    def _bare_model(self) -> Iterator[None]:
        """Inside, the model is the base; afterwards it has what it had before."""
        before = self._installed
        self._install({})
        try:
            yield
        finally:
            self._install(before)

    def _install(self, layers: dict[str, AdapterLayer]) -> None:
        before = self._installed
        try:
            self._replace(before, layers)
        except BaseException:  # Ctrl-C: half an adapter must not stay
            self._replace({**before, **layers}, before)
            raise
        self._installed = layers

    def _replace(self, present: Mapping[str, AdapterLayer], wanted: Mapping[str, AdapterLayer]) -> None:
        for path, layer in present.items():
            if path not in wanted:
                replace_module(self.model, path, layer.linear)
        for path, layer in wanted.items():
            replace_module(self.model, path, layer)


def folder_version(folder: Path) -> str:
    """A text that differs for every state of the adapter's weights and config in `folder`. Raises: MlxLoraError."""
    states = []
    for file in (folder / WEIGHTS_FILE, folder / CONFIG_FILE):
        with named_errors(file):
            facts = file.stat()
        states.append(f"{file.resolve()} {facts.st_mtime_ns} {facts.st_size}")
    return " ".join(states)


def _layers_of(mix: Mix, residents: Mapping[str, Resident]) -> dict[str, AdapterLayer]:
    """The layers to put into the model for `mix`, by full path. Raises: AdapterError for a mix with no exact sum."""
    found: dict[str, list[tuple[str, AdapterLayer, float]]] = {}
    for name, weight in mix.parts:
        for path, layer in residents[name].layers.items():
            found.setdefault(path, []).append((name, layer, weight))
    return {path: mix_layers(path, parts) for path, parts in found.items()}
