"""The batches of a run that need the most memory. Knows nothing of models."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mlx_lora.dataset.batches import collate, plan_validation
from mlx_lora.dataset.examples import Example
from mlx_lora.training.loop import Schedule
from mlx_lora.training.prefix import prefix_cut

EPOCHS = 2  # rows change company from epoch to epoch; the worst batch of two stands for all


@dataclass(frozen=True)
class RunRows:
    """The rows of a run: `train` as the session takes them (replay rows last), `valid` may be empty."""

    train: Sequence[Example]
    valid: Sequence[Example]


def worst_batch(examples: Sequence[Example], schedule: Schedule, *, shared_prefix: bool) -> list[Example]:
    """The rows of the batch with the most positions; of equals, that with the most trained ones."""
    lengths = np.array([len(example.tokens) for example in examples])
    epochs = min(EPOCHS, -(-schedule.total_steps // schedule.steps_per_epoch))
    steps = range(1, 1 + epochs * schedule.steps_per_epoch)
    batches = sorted(
        {rows for step in steps for rows in schedule.micro_batches(step)},
        key=lambda rows: len(rows) * lengths[list(rows)].max(),
        reverse=True,
    )
    tried = batches[:200] if shared_prefix else batches[:20]  # shorter ones are not longer for sharing less
    return [examples[row] for row in max(tried, key=lambda rows: _size(examples, rows, shared_prefix))]


def worst_validation(examples: Sequence[Example], batch_size: int) -> list[Example]:
    """The rows of the longest validation batch; none without rows."""
    batches = plan_validation([len(example.tokens) - 1 for example in examples], batch_size)
    widest = max(batches, key=lambda rows: len(rows) * max(len(examples[row].tokens) for row in rows), default=())
    return [examples[row] for row in widest]


def longer(example: Example, tokens: int) -> Example:
    """The row stretched (or shortened) to so many tokens: prompt, answer and what rows share stay in proportion."""
    places = np.arange(tokens) * len(example.tokens) // tokens
    mask = example.loss_mask[places]
    expected = example.expected
    if expected is not None:
        kept = (np.cumsum(example.loss_mask) - 1)[places[mask]]
        expected = replace(expected, tokens=expected.tokens[kept], shares=expected.shares[kept])
    return replace(example, tokens=example.tokens[places], loss_mask=mask, expected=expected)


def _size(examples: Sequence[Example], rows: Sequence[int], shared_prefix: bool) -> tuple[int, int]:
    batch = collate(examples, rows)
    prefix, width = prefix_cut(batch) if shared_prefix else (0, batch.inputs.shape[1])
    return (len(rows) - (-prefix // width)) * width, batch.targets_count
