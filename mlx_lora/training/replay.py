"""The base's own answers to the replay prompts, and how sure it was of every token. Knows nothing of settings."""

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_lora.dataset.examples import Expected
from mlx_lora.dataset.replay import BaseAnswer
from mlx_lora.errors import MlxLoraError
from mlx_lora.files import write_whole

# Forgetting shows in how an answer begins; what follows costs as much to train and adds less.
MOST_TOKENS = 24
ROWS = 64  # answered together: a quarter faster than 32 on a CPU, and 128 hardly more
# Kept together: an interrupt loses a minute or two of work on two cores, and half-full batches at the end cost little.
PORTION = 512
LIKELIEST = 32  # tokens whose probability is kept at each position; the others count as one
_FORMAT = 2
_Item = TypeVar("_Item")
_Made = TypeVar("_Made")


def answer_prompts(
    model: nn.Module, tokenizer: Any, prompts: Sequence[list[int]], base: str, folder: Path, say: Callable[[str], None]
) -> Iterator[tuple[int, int] | list[BaseAnswer]]:
    """Yield (done, in all) while the base works, and last its greedy answers in the order of the prompts.

    model: the base without adapters. `base` names its weights and how it computes. Answers are kept in `folder`, by
    base, prompts and limit, in portions: an interrupted run, or one with fewer prompts, leaves the next one the
    portions that it finished. `say` takes one line where they cannot be kept.
    """
    return in_portions(prompts, lambda _, portion: _answer_portion(model, tokenizer, portion, base, folder, say))


def in_portions(
    items: Sequence[_Item], work: Callable[[int, Sequence[_Item]], Iterator[int | list[_Made]]]
) -> Iterator[tuple[int, int] | list[_Made]]:
    """Yield (done, in all), and last what `work`, given a portion's start and items, made of all of them.

    `work` yields how many of the portion are done, and last what it made of them.
    """
    made: list[_Made] = []
    for start in range(0, len(items), PORTION):
        for news in work(start, items[start : start + PORTION]):
            if isinstance(news, list):
                made += news
            else:
                yield start + news, len(items)
    yield made


def _answer_portion(
    model: nn.Module, tokenizer: Any, prompts: Sequence[list[int]], base: str, folder: Path, say: Callable[[str], None]
) -> Iterator[int | list[BaseAnswer]]:
    from mlx_lora.model.generate import iter_answers

    key = json.dumps(
        [_FORMAT, base, MOST_TOKENS, LIKELIEST, sorted(tokenizer.eos_ids), tokenizer.eos_id, list(prompts)]
    )
    path = folder / f"{hashlib.sha256(key.encode()).hexdigest()}.npz"
    answers = _read(path)
    if answers is None:
        found: dict[int, BaseAnswer] = {}
        for place, answer in iter_answers(
            model, tokenizer, prompts, max_tokens=MOST_TOKENS, batch_size=ROWS, likeliest=LIKELIEST
        ):
            assert answer.likeliest is not None
            tokens = [*answer.tokens, *([tokenizer.eos_id] if answer.stopped else [])]
            expected = Expected(answer.likeliest.tokens, answer.likeliest.shares)
            found[place] = BaseAnswer(tokens, answer.stopped, expected)
            yield len(found)
        answers = [found[place] for place in range(len(prompts))]
        keep(path, _packed(answers), say)
        mx.clear_cache()
    yield answers


def keep(path: Path, content: bytes, say: Callable[[str], None]) -> None:
    """Write what could be made again; a disk that refuses is no reason to end the run."""
    try:
        write_whole(path, content)
    except MlxLoraError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        say(f"not kept for the next run: {error.message}")


def _packed(answers: Sequence[BaseAnswer]) -> bytes:
    file = io.BytesIO()
    np.savez(
        file,
        lengths=np.array([len(answer.tokens) for answer in answers]),
        ended=np.array([answer.ended for answer in answers]),
        answers=np.concatenate([np.array(answer.tokens, np.int32) for answer in answers]),
        tokens=np.concatenate([answer.expected.tokens for answer in answers]),
        shares=np.concatenate([answer.expected.shares for answer in answers]),
    )
    return file.getvalue()


def _read(path: Path) -> list[BaseAnswer] | None:
    """What an earlier run kept; None where it is not there or not whole."""
    try:
        with np.load(path) as kept:
            lengths, ended, answers, tokens, shares = (
                kept[name] for name in ("lengths", "ended", "answers", "tokens", "shares")
            )
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error):
        return None
    stops = np.cumsum(lengths)
    return [
        BaseAnswer(answers[start:stop].tolist(), bool(end), Expected(tokens[start:stop], shares[start:stop]))
        for start, stop, end in zip(stops - lengths, stops, ended, strict=True)
    ]
