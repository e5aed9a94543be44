"""Shorthand of the example tests: rows in, trained tokens out."""

from typing import Any

import numpy as np

from mlx_lora.config import DataSettings
from mlx_lora.dataset.examples import Example, build_example
from mlx_lora.dataset.formats import record_from_row
from mlx_lora.dataset.record import Record
from tests.dataset.tokenizers import TemplateTokenizer


def settings(**changes: Any) -> DataSettings:
    """Data settings with `changes`; the training file is never read here."""
    return DataSettings(train="train.jsonl", **changes)


def record(row: dict[str, Any]) -> Record:
    """The record of `row`, at f.jsonl:7."""
    return record_from_row(row, "f.jsonl:7")


def chat(*turns: str, system: str | None = None) -> Record:
    """A conversation of user and assistant turns in alternation."""
    messages = [{"role": ("user", "assistant")[n % 2], "content": turn} for n, turn in enumerate(turns)]
    return record({"messages": [{"role": "system", "content": system}, *messages] if system else messages})


def example_of(row: Record, tokenizer: TemplateTokenizer, **changes: Any) -> Example:
    """The example of `row`, which must not be dropped."""
    example = build_example(row, tokenizer, settings(**changes))
    assert example is not None
    assert example.tokens.dtype == np.int32
    assert example.loss_mask.dtype == bool
    assert len(example.tokens) == len(example.loss_mask)
    assert not example.loss_mask[0]
    return example


def trained(example: Example) -> list[list[int]]:
    """The trained tokens, one list for each unbroken stretch."""
    stretches: list[list[int]] = []
    for place, token in enumerate(example.tokens.tolist()):
        if example.loss_mask[place]:
            if not example.loss_mask[place - 1]:
                stretches.append([])
            stretches[-1].append(token)
    return stretches
