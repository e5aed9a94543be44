"""Replay: prompts whose answers the base gives itself before training, and those answers as rows.

Rehearsing them keeps what the base knew (self-synthesized rehearsal, arXiv 2403.01244). A row is not trained on its
tokens but towards the probabilities that the base gave them and their rivals (learning without forgetting, arXiv
1606.09282): while the model is still as the base was, there is no gradient, so no answer is learned by heart. Which
prompts, how many and what a row is made of; the answers come from training/replay.py, further prompts from
training/prompts.py. Knows nothing of MLX.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mlx_lora.config import DataSettings
from mlx_lora.dataset.examples import Example, Expected
from mlx_lora.dataset.record import Record, folded
from mlx_lora.dataset.records import read_records
from mlx_lora.errors import DataError
from mlx_lora.files import typed_path

BUILTIN_PROMPTS = Path(__file__).parent.parent / "data" / "replay_prompts.txt"
_BEGINNING = 2  # words of a prompt that the base goes on from: "Who wrote", "What is"
_SMALL_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a an and are at be by called did do does for from had has have how in is it its like many much name of on one "
        "s that the there they this to use used was were what when where which who why with you your",
    )
)


@dataclass(frozen=True)
class BaseAnswer:
    """What the base says to a prompt, with its end token where it ended by itself, and what it expected meanwhile."""

    tokens: list[int]
    ended: bool
    expected: Expected


def replay_rows(taught: int, share: float | None) -> int:
    """How many rows to add to an epoch's `taught` ones, so that they are `share` of all; at least one for a share."""
    return max(1, round(taught * share / (1 - share))) if share and taught else 0


def read_prompts(source: str | None) -> list[Record]:
    """The prompts of a .txt file (one a line), of any data file (its answers are not used), or the built-in ones.

    Each prompt once. Raises: DataError where there is no such file, or nothing in it.
    """
    if source is not None and not source.lower().endswith(".txt"):
        records = read_records(source)
    else:
        records = _read_lines(BUILTIN_PROMPTS if source is None else typed_path(source))
    first: dict[str, Record] = {}
    for record in records:
        first.setdefault(_prompt_key(record), record)
    return list(first.values())


def _prompt_key(record: Record) -> str:
    """All that the base reads before it answers: "Sum it up." after another text is another prompt."""
    read = record.messages[:-1]
    if len(read) <= 1 and not record.tools:
        return record.question_key
    told = [{**message, "content": folded(str(message["content"]))} for message in read]
    return json.dumps([told, record.tools], sort_keys=True, default=str)


def without_asked(prompts: Iterable[Record], asked: Iterable[Record]) -> list[Record]:
    """The prompts that no turn of a row of `asked` asks: the base's answer would contradict a taught one."""
    taken = {folded(question) for record in asked for question in record.questions}
    return [record for record in prompts if record.question_key not in taken]


def choose_prompts(prompts: Sequence[Record], count: int, seed: int) -> list[Record]:
    """At most `count` prompts in their order, drawn by `seed`; a larger count keeps those of a smaller one."""
    # By hash, not by shuffle: a prompt added to the file does not change which of the others are drawn.
    drawn = sorted(prompts, key=lambda record: hashlib.sha256(f"{seed}/{_prompt_key(record)}".encode()).digest())
    chosen = {_prompt_key(record) for record in drawn[:count]}
    return [record for record in prompts if _prompt_key(record) in chosen]


def draw_beginnings(prompts: Sequence[Record], count: int, seed: int) -> list[str]:
    """`count` beginnings of prompts, each as often as prompts begin so; none where no prompt is longer."""
    words = [record.question.split() for record in prompts]
    longer = [" ".join(each[:_BEGINNING]) for each in words if len(each) > _BEGINNING]
    if not longer:
        return []
    return [longer[place] for place in np.random.Generator(np.random.PCG64(seed)).integers(len(longer), size=count)]


def choose_written(texts: Iterable[str], count: int, known: Iterable[Record], kept_back: Iterable[Record]) -> list[str]:
    """The first `count` of the prompts that the base wrote, without those that are `known` already, or come twice.

    None that holds all the words of a question `kept_back`, but for small ones: it would rehearse what is measured.
    """
    seen = {frozenset(_words(question)) for record in known for question in record.questions}
    asked = {content_words(question) for record in kept_back for question in record.questions} - {frozenset()}
    chosen: list[str] = []
    for text in texts:
        words = frozenset(_words(text))
        if len(chosen) < count and len(words) > _BEGINNING and words not in seen:
            seen.add(words)
            if not any(content <= words for content in asked):
                chosen.append(text)
    return chosen


def content_words(question: str) -> frozenset[str]:
    """The words and numbers of a question, but for those that English questions are put together with."""
    return frozenset(_words(question)) - _SMALL_WORDS


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def as_prompt(text: str, place: str) -> Record:
    """A prompt without an answer."""
    return Record(
        ({"role": "user", "content": text}, {"role": "assistant", "content": ""}), place=place, format="question/answer"
    )


def build_replay_examples(
    prompts: Sequence[Sequence[int]], answers: Sequence[BaseAnswer], taught: Sequence[Example], settings: DataSettings
) -> list[Example]:
    """The rows of prompts (token ids) and answers, without those that got none or have no room for one.

    A replay row weighs as much as one of the `taught` rows, on average, however many tokens either has: data.replay is
    a share of the loss as well.

    Only the answer is trained. One that did not end by itself, or is cut at data.max_seq_length, has no end token: the
    model must not learn to end there. Raises: DataError where no prompt was answered.
    """
    examples = []
    for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True), 1):
        trained = min(len(answer.tokens), settings.max_seq_length - len(prompt))
        if trained > 0 and len(answer.tokens) > answer.ended:  # an end alone is no answer
            tokens = np.array([*prompt, *answer.tokens[:trained]], np.int32)
            mask = np.arange(len(tokens)) >= len(prompt)
            expected = Expected(answer.expected.tokens[:trained], answer.expected.shares[:trained])
            examples.append(Example(tokens, mask, f"replay:{number}", None, len(tokens), expected=expected))
    if not examples:
        raise DataError(
            f"data.replay: the base answers none of {len(prompts)} prompts within data.max_seq_length",
            "raise data.max_seq_length, or name other prompts with data.replay_prompts",
        )
    weight = _mean_trained(taught) / _mean_trained(examples)
    return [replace(example, weight=weight) for example in examples]


def _mean_trained(examples: Sequence[Example]) -> float:
    return sum(int(example.loss_mask[1:].sum()) for example in examples) / len(examples)


def examples_sha256(examples: Sequence[Example]) -> str:
    """SHA-256 of the rows' tokens and of what they are trained towards, in order."""
    digest = hashlib.sha256()
    for example in examples:
        own = [] if example.expected is None else [example.expected.tokens, example.expected.shares]
        sizes = np.array([len(example.tokens), example.weight])
        for array in (sizes, example.tokens.astype(np.int32), example.loss_mask, *own):
            digest.update(array.tobytes())
    return digest.hexdigest()


def _read_lines(path: Path) -> list[Record]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}", "check data.replay_prompts") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 (byte {error.start + 1})", "save the file as UTF-8") from error
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1)]
    records = [as_prompt(line, f"{path}:{number}") for number, line in lines if line]
    if not records:
        raise DataError(f"{path}: holds no prompts", "write one a line")
    return records
