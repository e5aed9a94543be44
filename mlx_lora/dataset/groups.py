"""Rows that begin alike, so that a batch of them shares a long prompt prefix. Knows nothing of text or MLX."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

import numpy as np

from mlx_lora.dataset.examples import Example

UNGROUPED = -1
_LEAST_GAIN = 4  # tokens that a group must share beyond what its rows would share without it
_CONTEXT = 64  # tokens of a system prompt or context of its own; question forms are shorter
_LEVELS = 16  # lengths that are tried, from what all rows share on
_LEAST_BATCHES = 2  # rows of a smaller group would meet the same company in every epoch


def training_groups(
    examples: Sequence[Example], batch_size: int, group_by_prefix: bool | Literal["contexts"]
) -> tuple[int, ...] | None:
    """The groups that a run's batches keep to, as train.group_by_prefix says; None where rows of all kinds mix."""
    if not group_by_prefix:
        return None
    return prefix_groups(examples, batch_size, forms=group_by_prefix != "contexts")


def prefix_groups(examples: Sequence[Example], batch_size: int, *, forms: bool = True) -> tuple[int, ...]:
    """The group of each row: rows whose prompts begin with the same tokens, or UNGROUPED.

    A group has rows for at least two batches. Different system prompts, contexts or question forms become groups of
    their own, the longest shared beginnings first; without `forms` the system prompts and contexts alone.
    """
    groups = [UNGROUPED] * len(examples)
    prompts = [prompt_length(example) for example in examples]
    longest, common = max(prompts, default=0), _common_length([example.tokens for example in examples], prompts)
    step = max(_LEAST_GAIN, (longest - common) // _LEVELS)
    lengths = range(longest - (longest - common) % step, max(common, _LEAST_GAIN) - 1, -step)
    left = set(range(len(examples)))
    count = 0
    for length in lengths if forms else [common + _CONTEXT]:
        alike: dict[bytes, list[int]] = defaultdict(list)
        for row in sorted(left):
            if prompts[row] >= length:
                alike[examples[row].tokens[:length].tobytes()].append(row)
        for rows in alike.values():
            if len(rows) >= _LEAST_BATCHES * batch_size:
                left.difference_update(rows)
                for row in rows:
                    groups[row] = count
                count += 1
    return tuple(groups)


def _common_length(rows: Sequence[np.ndarray], prompts: Sequence[int]) -> int:
    """Number of leading tokens of their prompts that all `rows` share."""
    common = min(prompts, default=0)
    for row in rows:
        different = np.flatnonzero(row[:common] != rows[0][:common])
        common = int(different[0]) if len(different) else common
    return common


def prompt_length(example: Example) -> int:
    """Number of leading inputs that predict no trained token."""
    return max(0, int(np.argmax(example.loss_mask)) - 1) if example.loss_mask.any() else len(example.tokens) - 1
