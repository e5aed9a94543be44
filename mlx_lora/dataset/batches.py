"""Examples to batches: which rows go together, and the padded arrays. Knows nothing of text, tokenizers or MLX."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from mlx_lora.dataset.examples import Example, Expected
from mlx_lora.dataset.groups import UNGROUPED

PAD = 0  # any token would do: padding is to the right and has weight zero
# Rows whose lengths differ by less than this share may change places in the order of lengths.
_JITTER = 0.05


@dataclass(frozen=True)
class Batch:
    """Rows side by side, ready for the model: B rows of T tokens."""

    inputs: np.ndarray  # (B, T) int32, right-padded
    targets: np.ndarray  # (B, T) int32: inputs shifted left by one
    weights: np.ndarray  # (B, T) float32: 1 on trained targets (or their row's weight), 0 on prompt and padding
    rows: np.ndarray  # (B,) int32: indices into the examples
    lengths: np.ndarray  # (B,) int32: real input tokens of each row
    expected: Expected | None = None  # of all rows that have it, one after the other
    expected_places: np.ndarray | None = None  # (A,) int64: where in the flat (B·T) arrays its lines belong

    @property
    def tokens(self) -> int:
        """Real input tokens."""
        return int(self.lengths.sum())

    @property
    def targets_count(self) -> int:
        """Trained targets."""
        return int(np.count_nonzero(self.weights))

    @property
    def padding_share(self) -> float:
        """Share of the B x T places that hold padding."""
        return 1.0 - self.tokens / self.inputs.size


def plan_epoch(
    lengths: Sequence[int], batch_size: int, *, seed: int, epoch: int, groups: Sequence[int] | None = None
) -> list[tuple[int, ...]]:
    """Row indices of each batch of an epoch: rows of one group and of like length together, every row exactly once.

    Rows change company and batches change order from epoch to epoch; all of it follows from (seed, epoch) alone. What
    is left over of each of the `groups` (of `prefix_groups`) goes together by length, and the batch that is left
    smaller is one among the others.
    """
    generator = np.random.Generator(np.random.PCG64([seed, epoch]))
    spread = 1.0 + _JITTER * generator.random(len(lengths))
    order = np.argsort(np.asarray(lengths) * spread, kind="stable")
    batches: list[np.ndarray] = []
    if groups is not None:
        of_row = np.asarray(groups, dtype=np.int64)[order]
        left = of_row == UNGROUPED
        # Sorted once, not searched once a group: with many rows there are many groups.
        by_group = np.argsort(of_row, kind="stable")
        edges = np.searchsorted(of_row[by_group], np.arange(int(of_row.max(initial=UNGROUPED)) + 2))
        for start, stop in pairwise(edges):
            members = by_group[start:stop]
            spare = generator.choice(members, len(members) % batch_size, replace=False)
            left[spare] = True
            kept = members[~left[members]]
            batches += np.split(order[kept], len(kept) // batch_size) if len(kept) else []
        order = order[left]
    full, rest = divmod(len(order), batch_size)
    sizes = np.full(full, batch_size)
    if rest:
        sizes = np.insert(sizes, int(generator.integers(full + 1)), rest)
    batches += np.split(order, np.cumsum(sizes)[:-1]) if len(order) else []
    return [tuple(int(row) for row in batches[place]) for place in generator.permutation(len(batches))]


def plan_replay(first: int, count: int, pool: int, *, seed: int) -> list[int]:
    """`count` of `pool` rows from place `first` of an endless row of them: each once, then each again in another order.

    All of it follows from `seed`.
    """
    turns = range(first // pool, (first + count - 1) // pool + 1) if count else ()
    orders = [np.random.Generator(np.random.PCG64([seed, turn, 1])).permutation(pool) for turn in turns]
    return [int(orders[place // pool - first // pool][place % pool]) for place in range(first, first + count)]


def plan_validation(lengths: Sequence[int], batch_size: int) -> list[tuple[int, ...]]:
    """Row indices of each batch of a validation: by length, the same every time, every row exactly once."""
    order = [int(row) for row in np.argsort(np.asarray(lengths), kind="stable")]
    return [tuple(order[start : start + batch_size]) for start in range(0, len(order), batch_size)]


def padded_length(longest: int) -> int:
    """`longest` rounded up so that at most a sixteenth is padding (or three tokens) and widths are few.

    A compiled step is traced again for each width: there are at most sixteen between a length and its double.
    """
    multiple = max(4, 1 << max(0, longest.bit_length() - 5))
    return -(-longest // multiple) * multiple


def collate(examples: Sequence[Example], rows: Sequence[int], *, width: int | None = None) -> Batch:
    """The batch of `rows`, as wide as `padded_length` says of the longest row's inputs, or `width`.

    Raises: ValueError where `width` is too narrow for a row.
    """
    chosen = [examples[row] for row in rows]
    lengths = np.array([len(example.tokens) - 1 for example in chosen], dtype=np.int32)
    longest = int(lengths.max())
    padded = padded_length(longest) if width is None else width
    if padded < longest:
        raise ValueError(f"a row of {longest} inputs does not fit a width of {width}")
    inputs = np.full((len(chosen), padded), PAD, dtype=np.int32)
    targets = np.full((len(chosen), padded), PAD, dtype=np.int32)
    weights = np.zeros((len(chosen), padded), dtype=np.float32)
    for place, (example, length) in enumerate(zip(chosen, lengths, strict=True)):
        inputs[place, :length] = example.tokens[:-1]
        targets[place, :length] = example.tokens[1:]
        weights[place, :length] = example.loss_mask[1:] * example.weight
    return Batch(inputs, targets, weights, np.array(rows, dtype=np.int32), lengths, *_expected(chosen, padded))


def _expected(examples: Sequence[Example], width: int) -> tuple[Expected, np.ndarray] | tuple[None, None]:
    """Probabilities and places of the rows that have them; K is the same for all."""
    rows = [(place, row, row.expected) for place, row in enumerate(examples) if row.expected is not None]
    if not rows:
        return None, None
    places = [place * width + np.flatnonzero(row.loss_mask[1:]) for place, row, _ in rows]
    tokens, shares = zip(*((of.tokens, of.shares) for _, _, of in rows), strict=True)
    return Expected(np.concatenate(tokens), np.concatenate(shares)), np.concatenate(places)
