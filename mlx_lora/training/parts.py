"""Which parts of the engine a run uses, in one line each, and the check of them against the plain forward."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from mlx_lora.config import ENGINE_PARTS, LoraSettings, TrainSettings
from mlx_lora.dataset.batches import Batch, collate
from mlx_lora.dataset.examples import Example
from mlx_lora.training.checkpointing import checkpoint_layers
from mlx_lora.training.engine import Engine
from mlx_lora.training.head import head_size
from mlx_lora.training.lastlayer import use_windows, windows
from mlx_lora.training.prefix import learn_head_axes, prefix_cut
from mlx_lora.training.trunk import Trunk, find_trunk

CHECK_ROWS = 2
_TOLERANCE = {mx.float32: 1e-4, mx.float16: 2e-2, mx.bfloat16: 5e-2}


@dataclass(frozen=True)
class PartReport:
    """What one part of the engine does for this run, or why it does nothing."""

    name: str
    active: bool
    line: str


def build_engine(
    model: nn.Module,
    examples: Sequence[Example],
    batches: Sequence[Sequence[int]],
    settings: TrainSettings,
    lora: LoraSettings,
) -> tuple[Engine, list[PartReport]]:
    """The engine for this run and a report on each part; frozen layers are decided where the store is built.

    `model` has its adapters already; `batches` are rows that go together, which the reports are counted on.
    """
    trunk = find_trunk(model)
    engine, reports = Engine(model, trunk), list[PartReport]()
    if settings.engine != "plain":
        asked = ENGINE_PARTS if settings.engine == "auto" else tuple(settings.engine)
        engine, reports = _with_parts(engine, asked, [collate(examples, rows) for rows in batches], lora)
    if trunk is not None and settings.gradient_checkpointing:
        checkpoint_layers(trunk)  # last: what a part makes of a layer is recomputed as a whole
    return engine, reports


def _with_parts(
    engine: Engine, asked: Sequence[str], sample: Sequence[Batch], lora: LoraSettings
) -> tuple[Engine, list[PartReport]]:
    trunk = engine.trunk
    if trunk is None:
        why = "this family's trunk and head are not where mlx-lm's models have them: plain forward"
        return engine, [PartReport(name, False, why) for name in asked if name != "compiled_step"]
    engine.vocabulary = head_size(trunk)
    refusal, reports = cache_refusal(trunk, lora), []
    if "supervised_positions" in asked:
        engine.supervised_positions = True
        whole = refusal or _window_refusal(trunk)
        engine.last_layer = whole is None
        reports.append(_supervised_line(sample, whole))
    if "shared_prefix" in asked:
        report = PartReport("shared_prefix", False, f"{refusal}: plain prompts") if refusal else _prefix_line(sample)
        engine.shared_prefix = report.active
        reports.append(report)
    return engine, reports


def _supervised_line(sample: Sequence[Batch], whole: str | None) -> PartReport:
    positions = sum(batch.inputs.size for batch in sample)
    trained = sum(int(np.count_nonzero(batch.weights)) for batch in sample)
    line = f"vocabulary projection and loss on {trained / positions:.0%} of the positions"
    if whole is not None:
        return PartReport("supervised_positions", True, f"{line}, the last layer on all: {whole}")
    places = sum(windows(batch.weights).size for batch in sample)
    return PartReport("supervised_positions", True, f"{line}, the last layer on {places / positions:.0%}")


def _prefix_line(sample: Sequence[Batch]) -> PartReport:
    cuts = [prefix_cut(batch) for batch in sample]
    shared = sorted({prefix for prefix, _ in cuts})
    if shared == [0]:
        return PartReport("shared_prefix", False, "the rows of a batch share no untrained prefix that is worth it")
    whole = sum(batch.inputs.size for batch in sample)
    left = sum(
        (len(batch.rows) - (-prefix // width)) * width for batch, (prefix, width) in zip(sample, cuts, strict=True)
    )
    tokens = f"{shared[0]}" if len(shared) == 1 else f"{shared[0]} to {shared[-1]}"
    line = f"the first {tokens} tokens of a batch once a step: {1 - left / whole:.0%} fewer positions"
    return PartReport("shared_prefix", True, line)


def cache_refusal(trunk: Trunk, lora: LoraSettings) -> str | None:
    """Why attention cannot be given other keys and values than its own: layers that keep more, or dropout."""
    if lora.dropout > 0:
        return "dropout draws a mask for every position"
    try:
        learn_head_axes(trunk)
    except (AttributeError, TypeError, ValueError, IndexError) as error:
        return f"this family's layers keep more than keys and values ({type(error).__name__})"
    return None


def _window_refusal(trunk: Trunk) -> str | None:
    try:
        use_windows(trunk)
    except (AttributeError, TypeError, ValueError, IndexError) as error:
        return f"this family's does not run on some positions alone ({type(error).__name__})"
    return None


def gradient_difference(
    found: tuple[mx.array, dict[str, mx.array]], expected: tuple[mx.array, dict[str, mx.array]]
) -> float:
    """Largest relative difference between two (nats, gradients) pairs.

    A tensor's difference is relative to the norm of the whole gradient: small ones have no digits of their own.
    """
    (nats, gradients), (plain_nats, plain_gradients) = found, expected
    norm = mx.sqrt(sum((mx.square(g).sum() for g in plain_gradients.values()), mx.array(0.0)))
    worst = mx.abs(nats - plain_nats) / mx.maximum(mx.abs(plain_nats), 1e-6)
    for name, gradient in plain_gradients.items():
        difference = mx.sqrt(mx.square(gradients[name] - gradient).sum()) / mx.maximum(norm, 1e-12)
        worst = mx.maximum(worst, difference)
    return float(worst)


def tolerance(model: nn.Module) -> float:
    """Largest gradient_difference that counts as rounding, for the dtype in which the model computes."""
    arrays = dict(tree_flatten(model.parameters())).values()
    return max(_TOLERANCE.get(array.dtype, 1e-4) for array in arrays)


def check_batch(examples: Sequence[Example], rows: Sequence[int]) -> Batch:
    """The first of `rows`, and a replay row: enough to compare, little enough for the plain way."""
    rows = list(rows[:CHECK_ROWS])
    replay = next((row for row, example in enumerate(examples) if example.expected is not None), None)
    if replay is not None and all(examples[row].expected is None for row in rows):
        rows = [*rows[:1], replay]
    return collate(examples, rows)


def frozen_refusal(trunk: Trunk | None, settings: TrainSettings, first_layer: int, epochs: float) -> str | None:
    """Why the frozen layers cannot run once, or None."""
    if trunk is None:
        return "this family's layers are not where mlx-lm's models have them"
    if first_layer == 0:
        return "adapters sit in all layers (lora.layers: N trains the last N only)"
    if epochs < 2 and settings.engine == "auto":
        return "a single pass over the rows gains nothing"
    return None


def disk_refusal(bytes_needed: int, folder: Path, share: float = 0.25) -> str | None:
    """Why the stored outputs do not fit the disk: at most `share` of what is free may be used."""
    import shutil

    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if bytes_needed <= share * free:
        return None
    return f"the outputs need {bytes_needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free on this disk"
