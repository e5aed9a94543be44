"""Early signs that a run goes wrong: one line each, with what to do. Pure functions of what the loop has reported.

Each is said once a run. A line that comes for nothing teaches people to read none: every limit here leaves room.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean, median, stdev
from typing import Any, NamedTuple, Protocol

from mlx_lora.config import LoraSettings, OptimizerSettings, RunConfig
from mlx_lora.training.loop import Schedule

# Learning rate x alpha (x sqrt(rank) with rsLoRA): the first step's size of B·A does not depend on the rank otherwise.
# Practice lies between 1.6e-3 (mlx-lm's defaults: 1e-5, rank 8, scale 20) and 0.26 (the highest that taught anything
# here: 4e-3, rank 32, scale 2); QLoRA (arXiv 2305.14314) has 3.2e-3, our default 3.2e-2. A factor of two or three is
# left on both sides. Lion's steps are signs: its authors take a third to a tenth of AdamW's rate (arXiv 2302.06675).
_USUAL: dict[str, tuple[float, float]] = {
    "adamw": (5e-4, 0.6),
    "adam": (5e-4, 0.6),
    "adafactor": (5e-4, 0.6),
    "lion": (5e-5, 0.2),
}
_MOVED = 0.02  # share of the loss; less from one pass over the rows to a later one is no learning
_MOVED_WITHIN = 0.05  # the same between other rows
_NOTHING_LEFT = 0.05  # nats: what is near zero has no way to go
_FIRST_LOOK = 64  # steps after the warm-up
_FEWEST = 20  # a run that is over by then
_EXPLODED = 10.0  # times the usual gradient norm
_TURNED = 1.02  # times the best validation loss
_LAST_NORMS, _EARLIER_NORMS = 5, 20
_WHOLE_ROW = 0.1  # of the median length of the output layer's rows


class Seen(Protocol):
    """What of a step is looked at (training/loop.py's StepReport)."""

    @property
    def step(self) -> int: ...
    @property
    def loss(self) -> float: ...
    @property
    def gradient_norm(self) -> float: ...


def unusual_learning_rate(optimizer: OptimizerSettings, lora: LoraSettings) -> str | None:
    """A learning rate of zero, or one far from what is usual for this update rule, alpha and rank."""
    rate = optimizer.learning_rate
    if rate == 0:
        return "optimizer.learning_rate is 0: nothing will be learned; 1e-3 is the default"
    if optimizer.name not in _USUAL:
        return None
    reach = lora.alpha * (math.sqrt(lora.rank) if lora.use_rslora else 1.0)
    low, high = (limit / reach for limit in _USUAL[optimizer.name])
    if low <= rate <= high:
        return None
    where, effect = ("below", "little will be learned") if rate < low else ("above", "the loss may well blow up")
    return (
        f"optimizer.learning_rate {rate:g} is far {where} what is usual for {optimizer.name} with rank {lora.rank} and "
        f"alpha {lora.alpha:g} ({low:.0e} to {high:.0e}): {effect}"
    )


def still_loss(steps: Sequence[Seen], *, steps_per_epoch: int, warmup_steps: int, total_steps: int) -> str | None:
    """A training loss that has not moved since the first steps, looked for at ends of epochs, and within the first one.

    Two epochs have the same rows, so their means are compared as they are. Within the first epoch, after 64, 128, 256 …
    steps, the first and the last quarter have other rows: there the fall must be small by two standard errors.
    """
    done = len(steps) - warmup_steps
    if len(steps) >= 2 * steps_per_epoch:
        if len(steps) % steps_per_epoch or done < (_FIRST_LOOK if len(steps) < total_steps else _FEWEST):
            return None
        first, last, doubt, limit = steps[:steps_per_epoch], steps[-steps_per_epoch:], 0.0, _MOVED
    else:
        if len(steps) > steps_per_epoch or done < _FIRST_LOOK or done & (done - 1):
            return None
        first, last = (steps[warmup_steps:][part] for part in (slice(done // 4), slice(-(done // 4), None)))
        doubt = 2 * math.sqrt((stdev(_losses(first)) ** 2 + stdev(_losses(last)) ** 2) / len(first))
        limit = _MOVED_WITHIN
    before, now = fmean(_losses(first)), fmean(_losses(last))
    if before < _NOTHING_LEFT or before - now + doubt > limit * before:
        return None
    return (
        f"the training loss does not move: {before:.3f} at first, {now:.3f} by step {steps[-1].step}; raise "
        "optimizer.learning_rate, or see with `mlx-lora check` what is trained"
    )


def exploding_gradients(steps: Sequence[Seen]) -> str | None:
    """A gradient norm many times the usual one for several steps, with a loss that rises."""
    if len(steps) < _EARLIER_NORMS + _LAST_NORMS:
        return None
    earlier, last = steps[-_EARLIER_NORMS - _LAST_NORMS : -_LAST_NORMS], steps[-_LAST_NORMS:]
    usual, now = (median(seen.gradient_norm for seen in part) for part in (earlier, last))
    loss, loss_now = fmean(_losses(earlier)), fmean(_losses(last))
    if now <= _EXPLODED * usual or loss_now <= 1.2 * loss:
        return None
    return (
        f"the gradient norm explodes: {now:.3g} at step {steps[-1].step}, {usual:.3g} before, and the loss rose from "
        f"{loss:.3f} to {loss_now:.3f}; stop and lower optimizer.learning_rate, or set optimizer.max_grad_norm"
    )


def turning_validation(
    validations: Sequence[tuple[int, float]], steps: Sequence[Seen], *, keeps_best: bool = True, kept: int = 0
) -> str | None:
    """A validation loss that has risen twice in a row since its best. validations: (step, loss), not the base's.

    kept: the step of the validation that the run calls its best, 0 where that is not known.
    """
    if len(validations) < 3:
        return None
    best_step, best = min(validations, key=lambda validation: validation[1])
    (before_step, before), (step, now) = validations[-2:]
    if not (best_step < before_step and best < before < now and now > _TURNED * best):
        return None
    then = [seen.loss for seen in steps if seen.step <= best_step][-10:]
    falls = bool(then) and fmean(_losses(steps[-10:])) < fmean(then)
    risen = f"the validation loss rises: {best:.4f} at step {best_step}, {before:.4f}, {now:.4f} at step {step}"
    if falls:
        fate = "is kept" if keeps_best else "would be kept with train.final_adapter: best"
        return (
            f"{risen}, while the training loss falls: over-fitting. The adapter of step {kept or best_step} {fate}; "
            "fewer epochs, more rows or a lower rank help, and train.early_stopping_patience stops by itself"
        )
    return f"{risen}, and the training loss with it: lower optimizer.learning_rate"


def mute_end_tokens(lengths: Mapping[str, float]) -> str | None:
    """End tokens that the base cannot emit. lengths: text of each trained end token → length of its output row,
    as a share of the median row's.

    A token's logit is its row times the state: adapters change the states, and no state raises a row of zeros.
    """
    mute = {text: share for text, share in lengths.items() if share < _WHOLE_ROW}
    if not mute:
        return None
    which = ", ".join(f"{text!r} ({share:.1%} of the usual length)" for text, share in mute.items())
    return (
        f"the base cannot emit {which}: it was never trained to, and answers will not end. Take the instruct version "
        "of this base, or a data.chat_template that ends turns with a token it knows"
    )


class Watch:
    """Looks at a run as it goes, and says each warning once.

    `events`: what metrics.jsonl holds before a resume, about which everything has been said.
    """

    def __init__(self, config: RunConfig, schedule: Schedule, events: Iterable[Mapping[str, Any]] = ()) -> None:
        self._config, self._schedule = config, schedule
        self._steps: list[Seen] = []
        self._validations: list[tuple[int, float]] = []
        self._kept = 0  # the step of the validation that was the best so far
        self._said: set[str] = set()
        for event in events:
            if event["event"] == "step":
                self.step(_Kept(event["step"], event["loss"], event["gradient_norm"]))
            elif event["event"] == "validation":
                self.validation(event["step"], event["loss"], kept=bool(event.get("best")))

    def start(self) -> list[str]:
        """What can be said before the first step."""
        return self._once("rate", lambda: unusual_learning_rate(self._config.optimizer, self._config.lora))

    def step(self, seen: Seen) -> list[str]:
        """What an optimizer update makes worth saying."""
        self._steps.append(seen)
        lines = self._once("gradients", lambda: exploding_gradients(self._steps))
        return lines + self._once("still", self._still)

    def validation(self, step: int, loss: float, *, kept: bool) -> list[str]:
        """What a validation makes worth saying; the base's own, at step 0, is no part of it. kept: the best so far."""
        if step > 0:
            self._validations.append((step, loss))
        self._kept = step if kept else self._kept
        lowest = min(self._validations, key=lambda validation: validation[1], default=(0, 0.0))[0]
        if lowest < self._kept:  # the loss rises while more rows come out right: that is no over-fitting
            return []
        keeps_best = self._config.train.final_adapter == "best"
        return self._once(
            "validation",
            lambda: turning_validation(self._validations, self._steps, keeps_best=keeps_best, kept=self._kept),
        )

    def _still(self) -> str | None:
        optimizer, total = self._config.optimizer, self._schedule.total_steps
        if optimizer.learning_rate == 0:  # said before the first step
            return None
        warmup, per_epoch = round(optimizer.warmup_ratio * total), self._schedule.steps_per_epoch
        return still_loss(self._steps, steps_per_epoch=per_epoch, warmup_steps=warmup, total_steps=total)

    def _once(self, name: str, look: Callable[[], str | None]) -> list[str]:
        line = None if name in self._said else look()
        if line is None:
            return []
        self._said.add(name)
        return [line]


class _Kept(NamedTuple):
    step: int
    loss: float
    gradient_norm: float


def _losses(steps: Iterable[Seen]) -> list[float]:
    return [seen.loss for seen in steps]
