"""What would fit: a batch size, the longest rows, a run that needs less, and what each part of the engine saves."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlx_lora.config import ENGINE_PARTS, RunConfig
from mlx_lora.dataset.examples import Example
from mlx_lora.lora.inject import iter_layers
from mlx_lora.memory.bound import find_bounds
from mlx_lora.memory.prediction import REPLAY, Slices, predict
from mlx_lora.memory.rows import RunRows, longer
from mlx_lora.model.outline import outline_base

LARGEST_AUTO = 32  # rows; a larger batch mostly makes fewer updates of the same quality
LEAST_BATCHES = 16  # an epoch keeps so many batches, whatever fits
_POSITIONS = 1024  # at most so many, in
_FEW = 2  # rows, are measured to see how memory grows with length
_BENT = 0.25  # of what the longest take: a smaller share that grows with the square of the length is not believed


@dataclass(frozen=True)
class Limit:
    """The most that fits of something, 0 for none, and how that was found."""

    most: int
    how: str


@dataclass(frozen=True)
class Saving:
    """A training step with a part of the engine and without it, in bytes."""

    part: str
    with_it: int
    without: int


@dataclass(frozen=True)
class Remedy:
    """Settings with which the run fits, as --set takes them, and what it then needs."""

    settings: tuple[str, ...]
    peak_bytes: int


def changed(config: RunConfig, **train: Any) -> RunConfig:
    """`config` with other settings in its section `train`."""
    return config.model_copy(update={"train": config.train.model_copy(update=train)})


def resolve_batch_size(config: RunConfig, rows: RunRows, folder: Path, room: int) -> RunConfig:
    """`config` with a number for `batch_size: auto`: the largest power of two that fits, or 1."""
    if config.train.batch_size != "auto":
        return config
    size = 1
    while 2 * size <= min(LARGEST_AUTO, len(rows.taught) // LEAST_BATCHES):
        size *= 2
    while size > 1 and not _fits(changed(config, batch_size=size), rows, folder, room):
        size //= 2
    return changed(config, batch_size=size)


def _fits(config: RunConfig, rows: RunRows, folder: Path, room: int) -> bool:
    bounds = find_bounds(config, rows)
    return bounds.least <= room and (bounds.most <= room or peak_bytes(config, rows, folder, room) <= room)


def peak_bytes(config: RunConfig, rows: RunRows, folder: Path, room: int) -> int:
    """What the run of `config` needs at its worst moment."""
    return predict(Slices(config, rows, folder, room)).worst.total


def largest_batch(slices: Slices, room: int) -> Limit:
    """The most taught rows in a micro-batch, all of them as long as the longest."""
    size = slices.config.train.batch_rows
    phases = [slices.step(_longest(slices.rows, count)) for count in (size, 2 * size)]
    one, two = (phase.total for phase in phases)
    how = f"line through {size} and {2 * size} of the longest rows"
    if room <= one - phases[0].working:  # what lies there between steps does not fit by itself
        return Limit(0, how)
    if two <= one:  # nothing to extend: a constant part is the largest
        return Limit(2 * size if two <= room else 0, how)
    return Limit(max(0, int(size + (room - one) * size / (two - one))), how)


def longest_row(slices: Slices, room: int) -> Limit:
    """The most tokens in a taught row, `batch_size` of them side by side."""
    size = slices.config.train.batch_rows
    few, longest = min(_FEW, size), max(32, _POSITIONS // min(_FEW, size))
    lengths = [longest // 4, longest // 2, longest]
    totals = []
    for length in lengths:
        rows = [longer(row, length) for row in _longest(slices.rows, size)]
        phase = slices.step(rows[:few])
        # Memory grows with the positions, of which rows that share a prefix have fewer.
        times = slices.counting.positions(rows)[0] / slices.counting.positions(rows[:few])[0]
        totals.append(phase.total + (times - 1) * phase.working)
    how = f"curve through {few} rows of {lengths[0]}, {lengths[1]} and {lengths[2]} tokens"
    if room <= phase.total - phase.working:
        return Limit(0, how)
    bent, slope, start = np.polyfit(lengths, [total - room for total in totals], 2)
    if bent * longest < _BENT * (bent * longest + slope):  # no more than measurements differ by
        bent, (slope, start) = 0.0, np.polyfit(lengths, [total - room for total in totals], 1)
    if start + slope >= 0 or slope <= 0:
        return Limit(0 if totals[0] > room else longest, how)
    return Limit(int(max(np.roots([bent, slope, start] if bent else [slope, start]).real)), how)


def savings(slices: Slices, folder: Path, room: int) -> list[Saving]:
    """What each part of the engine that is on saves of a training step, and gradient checkpointing where it is off."""
    batch, step = slices.worst_step
    config, engine = slices.config, slices.thin.session.stepper.engine
    on = {
        "supervised_positions": engine.supervised_positions,
        "shared_prefix": engine.shared_prefix,
        "frozen_layers": slices.thin.frozen is not None,
        "compiled_step": slices.thin.session.stepper.compiled,
    }
    active = [part for part in ENGINE_PARTS if on[part]]
    now = step.total

    def other(**train: Any) -> int:
        return Slices(changed(config, **train), slices.rows, folder, room).step(batch).total

    found = [Saving(part, now, other(engine=[one for one in active if one != part])) for part in active]
    flag = config.train.gradient_checkpointing
    pair = (now, other(gradient_checkpointing=not flag))
    return [*found, Saving("gradient_checkpointing", *(pair if flag else pair[::-1]))]


def find_remedy(config: RunConfig, rows: RunRows, folder: Path, room: int) -> Remedy | None:
    """The first of a list of gentler runs that fits; None where none does."""
    config, rows, given, asking = _without_questions(config, rows, folder, room)
    if given and (peak := peak_bytes(config, rows, folder, room)) <= room:
        return Remedy(tuple(given), max(peak, asking))
    for settings, gentler in _gentler(config, rows):
        kept = gentler.data.max_seq_length
        train, valid = ([row for row in part if len(row.tokens) <= kept] for part in (rows.train, rows.valid))
        left = RunRows(train, valid)
        if not left.taught:
            return None
        peak = peak_bytes(gentler, left, folder, room)
        if peak <= room:
            return Remedy((*given, *settings), max(peak, asking))
    return None


def _without_questions(
    config: RunConfig, rows: RunRows, folder: Path, room: int
) -> tuple[RunConfig, RunRows, list[str], int]:
    """The run without those of its questions that do not fit, settings that say so, and what the others take.

    No setting of a step makes questions smaller, so those that stay need not be asked of every gentler run.
    """
    if not rows.asked:
        return config, rows, [], 0
    slices = Slices(config, rows, folder, room)
    taken = {asked.setting: slices.asking(asked).total for asked in rows.asked}
    too_large = [setting for setting, nbytes in taken.items() if nbytes > room]
    for setting in too_large:
        section, name = setting.split(".")
        part = getattr(config, section).model_copy(update={name: None})
        config = config.model_copy(update={section: part})
    taught = rows.taught if REPLAY in too_large else rows.train
    others = max((nbytes for nbytes in taken.values() if nbytes <= room), default=0)
    return config, RunRows(taught, rows.valid), [f"{setting}=null" for setting in too_large], others


def _gentler(config: RunConfig, rows: RunRows) -> Iterator[tuple[list[str], RunConfig]]:
    """Settings and the run with them: first those that leave every update as it is, then those that change it."""
    train, settings = config.train, list[str]()
    size, steps = train.batch_rows, train.gradient_accumulation_steps
    while size > 1:
        size, steps = size // 2, -(-train.batch_rows * train.gradient_accumulation_steps // (size // 2))
        settings = [f"train.batch_size={size}", f"train.gradient_accumulation_steps={steps}"]
        config = changed(config, batch_size=size, gradient_accumulation_steps=steps)
        yield settings, config
    if not train.gradient_checkpointing:
        settings = [*settings, "train.gradient_checkpointing=true"]
        config = changed(config, gradient_checkpointing=True)
        yield settings, config
    depth = len(iter_layers(outline_base(config.model, revision=config.revision)[0]))
    adapted = depth if config.lora.layers == "all" else config.lora.layers
    # What a run starts from has its layers.
    for share in (2, 4, 8) if config.lora.start_from is None else ():
        lora = config.lora.model_copy(update={"layers": max(1, adapted // share)})
        yield [*settings, f"lora.layers={lora.layers}"], config.model_copy(update={"lora": lora})
    longest = max(len(row.tokens) for row in rows.taught)
    for share in (2, 4, 8):
        limit = {"max_seq_length": max(2, longest // share), "truncation": "drop"}
        given = [f"data.{name}={value}" for name, value in limit.items()]
        yield [*settings, *given], config.model_copy(update={"data": config.data.model_copy(update=limit)})


def _longest(rows: RunRows, count: int) -> list[Example]:
    """So many of the longest taught rows, over again where there are fewer."""
    order = sorted(rows.taught, key=lambda row: len(row.tokens), reverse=True)
    return [order[place % len(order)] for place in range(count)]
