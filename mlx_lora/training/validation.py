"""A validation: its loss, which rows come out right, and whether that is better than another. No gradients here."""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_lora.dataset.batches import collate, plan_validation
from mlx_lora.dataset.examples import Example
from mlx_lora.statistics import sign_test
from mlx_lora.training.checkpoint import Progress
from mlx_lora.training.distributed import Group
from mlx_lora.training.engine import Engine
from mlx_lora.training.frozen import FrozenStore
from mlx_lora.training.loop import total_weight

_BY_CHANCE = 0.05  # the largest p of a difference that says something


@dataclass(frozen=True)
class Validation:
    """nats: the mean loss a trained token. right: for each row, whether greedy decoding would say its answers."""

    nats: float
    right: tuple[bool, ...]


def validate(
    engine: Engine, examples: Sequence[Example], batch_size: int, store: FrozenStore | None = None,
    group: Group | None = None,
) -> Validation:  # fmt: skip
    """Loss and right rows of all `examples`: every row once, the loss weighted by its tokens.

    With a `group` each rank computes its share of the rows and all get the same. Raises: RankLostError.
    """
    group = group or Group()
    nats, right = 0.0, np.zeros(len(examples), np.float32)
    for rows in plan_validation([len(example.tokens) - 1 for example in examples], batch_size * group.size):
        share = group.share(rows)
        if share:
            of_batch, right_rows = engine.answers(engine.arrays(collate(examples, share), store), len(share))
            nats += float(np.array(of_batch))
            right[list(share)] = np.array(right_rows)
    mean = group.sum_number(nats) / total_weight(examples, range(len(examples)))
    found = np.array(group.sum_arrays({"right": mx.array(right)})["right"])
    return Validation(mean, tuple(bool(row) for row in found))


def is_better(found: Validation, nats: float, right: Sequence[bool]) -> bool:
    """Whether `found` is better than a validation with that loss and those right rows.

    It is where more rows are right than chance explains, and is not where so many fewer are. Otherwise the lower loss
    is better: it says more of long answers, but a few that a model is wrong and sure of can outweigh all others.
    """
    more = _more_right(found.right, right)
    return more > 0 if more else found.nats < nats


def is_best(found: Validation, progress: Progress) -> bool:
    """Whether `found` is better than the best so far, and has not fewer rows right than one before it had.

    Without that, a falling loss could give away a few rows at each validation, and most of them in the end.
    """
    if progress.best_loss is None:
        return True
    best, most = (unpacked(digits, len(found.right)) for digits in (progress.best_right, _most_right(progress)))
    return is_better(found, progress.best_loss, best) and _more_right(found.right, most) >= 0


def most_right(found: Validation, progress: Progress) -> str:
    """The right rows, packed, of `found` or of the best before it that had the most of them."""
    most = _most_right(progress)
    return most if most and sum(unpacked(most, len(found.right))) > sum(found.right) else packed(found.right)


def _most_right(progress: Progress) -> str:
    return progress.most_right or progress.best_right


def _more_right(now: Sequence[bool], before: Sequence[bool]) -> int:
    """1 where more rows are right now than chance explains, -1 where so many fewer are, else 0."""
    pairs = list(zip(now, before, strict=True))
    gained, lost = pairs.count((True, False)), pairs.count((False, True))
    return 0 if sign_test(gained, lost) >= _BY_CHANCE else 1 if gained > lost else -1


def better_than_start(found: Validation, progress: Progress) -> bool:
    """Whether `found` is better than the validation before the first step; where its right rows are not known, by loss.

    True where there was none.
    """
    if progress.base_loss is None:
        return True
    if not progress.base_right:
        return found.nats < progress.base_loss
    return is_better(found, progress.base_loss, unpacked(progress.base_right, len(found.right)))


def packed(right: Sequence[bool]) -> str:
    """Right and wrong rows as hexadecimal digits, a bit for each."""
    return np.packbits(right).tobytes().hex()


def unpacked(digits: str, count: int) -> tuple[bool, ...]:
    """The `count` rows that `packed` put into these digits."""
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(digits), np.uint8), count=count)
    return tuple(bool(bit) for bit in bits)
