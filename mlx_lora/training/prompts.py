"""Prompts that the base writes itself, from the first words of what a user says (Magpie, arXiv 2406.08464).

Knows nothing of settings, templates, or what makes a prompt a good one.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_lora.training.replay import ROWS, in_portions, keep

MOST_TOKENS = 24  # after the beginning: plain questions are short
_TEMPERATURE = 0.8  # of 4,800 drawn so, 84 % were one finished line (SmolLM2-135M)
_FORMAT = 2


def write_prompts(
    model: nn.Module,
    tokenizer: Any,
    beginnings: Sequence[list[int]],
    closing: str,
    seed: int,
    base: str,
    folder: Path,
    say: Callable[[str], None],
) -> Iterator[tuple[int, int] | list[str]]:
    """Yield (done, in all) while the base draws, and last what it wrote after each of the beginnings (token ids).

    Only what is finished, by an end token, `closing` (what ends a user's turn) or the first question mark, and is one
    line; "" for the others. What was drawn is kept in `folder` by base, beginnings and seed, in portions: who wants
    more of the same draws only what comes after. model, base, say: as for answer_prompts.
    """

    def work(start: int, portion: Sequence[list[int]]) -> Iterator[int | list[str]]:
        return _write_portion(model, tokenizer, portion, closing, seed + start, base, folder, say)

    return in_portions(beginnings, work)


def _write_portion(
    model: nn.Module,
    tokenizer: Any,
    beginnings: Sequence[list[int]],
    closing: str,
    seed: int,
    base: str,
    folder: Path,
    say: Callable[[str], None],
) -> Iterator[int | list[str]]:
    from mlx_lora.model.generate import iter_answers

    drawn = [_FORMAT, base, MOST_TOKENS, _TEMPERATURE, seed, sorted(tokenizer.eos_ids), closing, list(beginnings)]
    path = folder / f"{hashlib.sha256(json.dumps(drawn).encode()).hexdigest()}.json"
    texts = _read(path, len(beginnings))
    if texts is None:
        found: dict[int, str] = {}
        for place, answer in iter_answers(
            model,
            tokenizer,
            beginnings,
            max_tokens=MOST_TOKENS,
            batch_size=ROWS,
            temperature=_TEMPERATURE,
            seed=seed,
        ):
            more = _continued(tokenizer, beginnings[place], answer.tokens)
            found[place] = _finished(more, closing, answer.stopped)
            yield len(found)
        texts = [found[place] for place in range(len(beginnings))]
        keep(path, json.dumps(texts, ensure_ascii=False).encode(), say)
        mx.clear_cache()
    yield texts


def _continued(tokenizer: Any, beginning: Sequence[int], tokens: Sequence[int]) -> str:
    """The text of tokens that follow a beginning: by themselves they lose the space of a SentencePiece word."""
    before = tokenizer.decode(beginning[-1:])
    return str(tokenizer.decode([*beginning[-1:], *tokens]))[len(before) :]


def _finished(text: str, closing: str, stopped: bool) -> str:
    said, closed, _ = text.partition(closing) if closing else (text, "", "")
    line, mark, _ = said.partition("?")
    whole = line + mark if mark else line * (stopped or bool(closed))
    return "" if "\n" in whole.strip() else whole.rstrip()


def _read(path: Path, count: int) -> list[str] | None:
    """What an earlier run kept; None where it is not there or not whole."""
    try:
        texts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(texts, list) and len(texts) == count and all(isinstance(text, str) for text in texts)
    return texts if whole else None
