"""Whether a stopped run and the one that takes it up are the same: what is compared, and which differences are safe.

Files and models are compared by what is in them, not by their paths. Knows nothing of checkpoints' files.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlx_lora.config import OptimizerSettings
from mlx_lora.dataset.examples import Example
from mlx_lora.training.optim import learning_rate_at
from mlx_lora.training.session import Session

# Settings that are no part of the comparison: some change nothing of a step, the others are compared by their effect.
_NOT_COMPARED: dict[str, Any] = {
    "output_dir": True,
    "model": True,  # base
    "revision": True,
    # The rows, and their tokens; the replay prompts.
    "data": {"train", "valid", "test", "valid_share", "chat_template", "replay_prompts"},
    "lora": {"start_from"},  # its weights
    "train": {"epochs", "steps", "engine", "save_every", "keep_last", "memory_limit_gb"},  # total_steps, engine
}

# The one place that says what --force lets pass, and why: the steps already made would have been the same ones.
SAFE: dict[str, str] = {
    "versions": "the same steps to rounding",
    "data.replay": "the base answered the same prompts anew: another machine, version or cache, so other rounding",
    "engine": "the same gradients to rounding",
    "settings.train.gradient_checkpointing": "the same gradients to rounding",
    "settings.train.eval_every": "only when validation looks",
    "settings.train.early_stopping_patience": "only when the run stops",
    "settings.train.retention": "only what is asked after the last step",
    "settings.train.final_adapter": "only which adapter is kept",
    "settings.lora.save_dtype": "only the numbers of the adapter file",
    "base.name": "only a name: the contents are compared",
    "base.revision": "only a name: the contents are compared",
}
TOTAL_STEPS = "total_steps"


@dataclass(frozen=True)
class Difference:
    """One value that was another when the run stopped; `safe` says why --force may pass over it, None where not."""

    place: str
    then: Any
    now: Any
    safe: str | None

    @property
    def change(self) -> str:
        """Such as "settings.lora.rank: was 8, is 16"."""
        return f"{self.place}: was {_shown(self.then)}, is {_shown(self.now)}"

    def __str__(self) -> str:
        return f"{self.change} (--force allows it: {self.safe})" if self.safe else self.change


def build_fingerprint(
    session: Session,
    identity: Mapping[str, Any],
    data: Mapping[str, str],
    versions: Mapping[str, str],
    start: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What must be the same when the run goes on, but for `engine_parts`.

    data: hashes of the rows by split, and of the listed replay prompts; how many more the base was to write.
    start: of the adapter that the run started from, where it did from one.
    """
    taught = [row for row in session.train_set if row.expected is None]
    return {
        "base": dict(identity),
        # Of equal rows another template, or a template with today's date in it, makes other tokens.
        "data": {**data, "tokens": _tokens_sha256([*taught, *session.valid_set])},
        "settings": session.config.model_dump(mode="json", exclude=_NOT_COMPARED),
        TOTAL_STEPS: session.schedule.total_steps,
        "ranks": session.group.size,  # the rows of a step follow from it
        "versions": dict(versions),
        **({"started_from": start["weights_sha256"]} if start else {}),
    }


def engine_parts(session: Session) -> dict[str, bool]:
    """Which parts of the engine are on, once they are decided."""
    engine = session.stepper.engine
    return {
        "supervised_positions": engine.supervised_positions,
        "shared_prefix": engine.shared_prefix,
        "frozen_layers": session.store is not None,
        "compiled_step": session.stepper.compiled,
    }


def find_differences(
    then: Mapping[str, Any], now: Mapping[str, Any], step: int, optimizer: OptimizerSettings
) -> list[Difference]:
    """Every value in which two fingerprints differ, for a run stopped after `step`; `optimizer`: its settings now."""
    found = []
    if "engine" not in now:  # not decided yet
        then = {name: part for name, part in then.items() if name != "engine"}
    if "replay_written" not in then.get("data", {}):  # an earlier version did not tell
        now = {**now, "data": {name: part for name, part in now.get("data", {}).items() if name != "replay_written"}}
    for place, old, new in _differing(then, now, ""):
        if place == "settings.lora.init" and old is None and new == "random":  # an earlier version had no other
            continue
        if place == "settings.data.replay_prompts":  # an earlier version told the path beside what is in the file
            continue
        safe = next((why for name, why in SAFE.items() if place == name or place.startswith(f"{name}.")), None)
        if place == TOTAL_STEPS and _same_rates(old, new, step, optimizer):
            safe = "the learning rates so far were the same"
        found.append(Difference(place, old, new, safe))
    return found


def _differing(then: Any, now: Any, place: str) -> list[tuple[str, Any, Any]]:
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        keys = sorted({*then, *now})
        return [
            different
            for key in keys
            for different in _differing(then.get(key), now.get(key), f"{place}.{key}".lstrip("."))
        ]
    return [] if then == now else [(place, then, now)]


def _same_rates(then: Any, now: Any, step: int, optimizer: OptimizerSettings) -> bool:
    """Whether the steps made so far had the learning rates that a run of `now` steps would have given them."""
    if not isinstance(then, int) or not isinstance(now, int) or now <= step:
        return False
    steps = range(1, step + 1)
    return all(learning_rate_at(n, then, optimizer) == learning_rate_at(n, now, optimizer) for n in steps)


def _tokens_sha256(examples: Sequence[Example]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        digest.update(np.int64(len(example.tokens)).tobytes())
        digest.update(np.ascontiguousarray(example.tokens, np.int32).tobytes())
        digest.update(np.ascontiguousarray(example.loss_mask, bool).tobytes())
    return digest.hexdigest()


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:20]}…{text[-8:]}"
