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
class Asked:
    """Prompts that the run's model answers, many at a time, because of a `setting`.

    `references`: continuations whose likelihood is wanted too, one a prompt; with `max_tokens` 0 nothing else is.
    """

    setting: str
    prompts: Sequence[Sequence[int]]
    max_tokens: int  # of an answer
    references: Sequence[Sequence[int]] | None = None
    rows: int = 32  # together, at most
    likeliest: int = 0  # tokens kept at each place of an answer

    def longest(self, count: int) -> "Asked":
        """Only so many of the longest prompts."""
        order = sorted(range(len(self.prompts)), key=lambda place: len(self.prompts[place]))[-count:]
        references = None if self.references is None else [self.references[place] for place in order]
        return replace(self, prompts=[self.prompts[place] for place in order], references=references)


@dataclass(frozen=True)
class RunRows:
    """The rows of a run: `train` as the session takes them (replay rows last), `valid` may be empty, and questions."""

    train: Sequence[Example]
    valid: Sequence[Example]
    asked: Sequence[Asked] = ()

    @property
    def taught(self) -> list[Example]:
        """The rows of `train` that are not replayed: an epoch is once through these."""
        return [row for row in self.train if row.expected is None]


@dataclass(frozen=True)
class Counting:
    """How the engine goes through a batch."""

    shared_prefix: bool
    most: int  # trained positions whose logits are there at once; 0 where trained ones are like the others

    def positions(self, rows: Sequence[Example]) -> tuple[int, int]:
        """Positions that go through the layers, and those whose logits are there at once."""
        batch = collate(rows, range(len(rows)))
        prefix, width = prefix_cut(batch) if self.shared_prefix else (0, batch.inputs.shape[1])
        return (len(rows) - (-prefix // width)) * width, min(batch.targets_count, self.most)


def worst_batch(
    examples: Sequence[Example], schedule: Schedule, counting: Counting, weights: Sequence[float] = (1.0, 0.0)
) -> list[Example]:
    """The rows of the batch for which the weighted sum of its two numbers of positions is the largest.

    Of equals it is the one with the most positions, then with the most trained ones.
    """
    lengths = np.array([len(example.tokens) for example in examples])
    targets = np.array([np.count_nonzero(example.loss_mask[1:]) for example in examples])
    epochs = min(EPOCHS, -(-schedule.total_steps // schedule.steps_per_epoch))
    steps = range(1, 1 + epochs * schedule.steps_per_epoch)

    def weighed(positions: int, logits: int) -> tuple[float, int, int]:
        return weights[0] * positions + weights[1] * logits, positions, logits

    def at_most(rows: tuple[int, ...]) -> tuple[float, int, int]:
        chosen = list(rows)
        return weighed(len(rows) * int(lengths[chosen].max()), min(int(targets[chosen].sum()), counting.most))

    batches = sorted({rows for step in steps for rows in schedule.micro_batches(step)}, key=at_most, reverse=True)
    tried = batches[:200] if counting.shared_prefix else batches[:20]  # shorter ones are not longer for sharing less
    return max(([examples[row] for row in rows] for rows in tried), key=lambda rows: weighed(*counting.positions(rows)))


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
