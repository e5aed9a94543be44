"""The base and the adapters on it, kept in the engine's thread; others read the names. Knows nothing of requests."""

import time
from collections.abc import Mapping, Set
from dataclasses import asdict
from pathlib import Path

from mlx_lora.lora.row_bank import RowBank
from mlx_lora.model.continuous import Owner
from mlx_lora.model.load import LoadedModel
from mlx_lora.serving.refusals import Refusal, unknown_model
from mlx_lora.serving.roster import Speaker, adapter_speaker, base_speaker


class Residents:
    """Who can be asked. `load`, `unload` and `drop_unused` belong to the engine's thread; reading is free."""

    def __init__(self, base: LoadedModel) -> None:
        self._base = base
        self._bank = RowBank(base.model, asdict(base.identity))
        self._owners: set[Owner] = {None}
        self._leaving: dict[str, Owner] = {}  # their running answers are finished first
        speaker = base_speaker(base, int(time.time()))
        self._speakers: Mapping[str, Speaker] = {speaker.name: speaker}  # replaced, never changed: threads read it
        self.base_name = speaker.name
        self.compute = base.compute
        self.nbytes = 0  # of the stacked adapters

    @property
    def speakers(self) -> Mapping[str, Speaker]:
        """The base first, then the adapters in the order in which they came, by name."""
        return self._speakers

    def speaker(self, name: str) -> Speaker:
        """Who answers to `name`. Raises: Refusal with the names that there are."""
        found = self._speakers.get(name)
        if found is None:
            raise unknown_model(name, self._speakers)
        return found

    def load(self, name: str, folder: Path) -> Speaker:
        """Put the adapter in `folder` beside the others. Raises: MlxLoraError, Refusal; all is then as before."""
        if name in self._leaving:
            raise Refusal(
                409, f"{name!r} is still answering what was asked before it was unloaded.", headers={"Retry-After": "2"}
            )
        if name in self._speakers:
            raise Refusal(409, f"{name!r} is loaded already.", code="already_loaded", param="name")
        number, resident = self._bank.add(name, folder)
        try:
            speaker = adapter_speaker(self._base, number, resident, int(time.time()))
        except BaseException:
            self._bank.remove(name)
            raise
        self.nbytes = self._bank.nbytes
        self._owners.add(number)
        self._speakers = {**self._speakers, name: speaker}
        return speaker

    def unload(self, name: str) -> None:
        """Refuse new requests for the adapter at once; it leaves memory when its last answer is finished.

        Raises: Refusal for the base, or a name that is not loaded.
        """
        speaker = self.speaker(name)
        if speaker.owner is None:
            raise Refusal(400, "The base cannot be unloaded.", param="name")
        self._leaving[name] = speaker.owner
        self._speakers = {other: each for other, each in self._speakers.items() if other != name}

    def drop_unused(self, owners: Set[Owner]) -> None:
        """Take out of memory the unloaded adapters whom no row in `owners` needs any more."""
        for name, owner in list(self._leaving.items()):
            if owner not in owners:
                self._owners.discard(owner)
                self._bank.remove(name)
                del self._leaving[name]
                self.nbytes = self._bank.nbytes

    def use_owners(self, owners: tuple[Owner, ...]) -> None:
        """Say whose rows the next forward pass holds. Raises: RuntimeError for an adapter that has left."""
        if not self._owners.issuperset(owners):
            raise RuntimeError(f"a row of adapters {owners}, of which {sorted(map(str, self._owners))} are here")
        self._bank.rows.use(owners)

    def has(self, owner: Owner) -> bool:
        """Whether this adapter, or the base, is in memory."""
        return owner in self._owners
