"""The base's own answers to the replay prompts, kept so that a second run finds them. Knows nothing of settings."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_lora.files import write_json

Answers = list[tuple[list[int], bool]]  # token ids, and whether the base ended by itself

# Forgetting shows in how an answer begins; what follows costs as much to train and adds less.
MOST_TOKENS = 48
_FORMAT = 1


def answer_prompts(
    model: nn.Module, tokenizer: Any, prompts: Sequence[list[int]], base: str, folder: Path
) -> Iterator[int | Answers]:
    """Yield the number of prompts answered, and last the base's greedy answers in the order of the prompts.

    model: the base without adapters. `base` names its weights and how it computes. Answers are kept in `folder`, by
    base, prompts and limit; what is found there is yielded at once.
    """
    from mlx_lora.model.generate import iter_answers

    key = json.dumps([_FORMAT, base, MOST_TOKENS, sorted(tokenizer.eos_ids), list(prompts)])
    path = folder / f"{hashlib.sha256(key.encode()).hexdigest()}.json"
    answers = _read(path, len(prompts))
    if answers is None:
        found: dict[int, tuple[list[int], bool]] = {}
        for place, answer in iter_answers(model, tokenizer, prompts, max_tokens=MOST_TOKENS):
            found[place] = (answer.tokens, answer.stopped)
            yield len(found)
        answers = [found[place] for place in range(len(prompts))]
        write_json(path, answers)
        mx.clear_cache()
    yield answers


def _read(path: Path, count: int) -> Answers | None:
    """What an earlier run kept; None where it is not there or not whole."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        answers = [([int(token) for token in tokens], bool(ended)) for tokens, ended in kept]
    except (OSError, ValueError, TypeError):
        return None
    return answers if len(answers) == count else None
