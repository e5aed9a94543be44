"""The replay rows of a run (data.replay), made while the base has no adapters yet."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlx_lora.config import RunConfig
from mlx_lora.console import talk
from mlx_lora.errors import DataError
from mlx_lora.files import cache_folder
from mlx_lora.screen import RowsBar

if TYPE_CHECKING:
    from mlx_lora.dataset.examples import Example
    from mlx_lora.dataset.record import Record
    from mlx_lora.dataset.splits import DataSplits
    from mlx_lora.model.load import LoadedModel
    from mlx_lora.model.tokenizer import Tokenizer

_MOST_PROMPTS = 5000  # of a run; a longer one rehearses them again


@dataclass(frozen=True)
class Replay:
    """Rows to rehearse, and what is compared when a run is resumed: a hash of the prompts, how many it writes."""

    rows: "list[Example]"
    compared: dict[str, str]


def build_replay(
    config: RunConfig,
    base: "LoadedModel",
    tokenizer: "Tokenizer",
    splits: "DataSplits",
    taught: "Sequence[Example]",
    ranks: int,
) -> Replay:
    """What the run draws from beside the `taught` rows; says what it is. Raises: DataError."""
    from mlx_lora.dataset.rendering import record_prompt
    from mlx_lora.dataset.replay import BaseAnswer, as_prompt, build_replay_examples
    from mlx_lora.dataset.splits import records_sha256
    from mlx_lora.training.replay import answer_prompts

    wanted = _find_prompts(config, splits, len(taught), ranks)
    if not wanted.rows:
        return Replay([], {})
    if wanted.left_out:
        every = wanted.left_out + wanted.free
        _say(f"replay: {wanted.left_out} of {every} prompts are left out: the run's rows or train.retention ask them")
    written = _write_missing(config, base, tokenizer, splits, wanted) if wanted.missing else []
    prompts, answers = list[list[int]](), list[BaseAnswer]()
    # By themselves, so that a run with another seed finds the listed ones answered.
    for records in filter(None, (wanted.listed, [as_prompt(text, "replay") for text in written])):
        tokens = [record_prompt(record, tokenizer, config.data) for record in records]
        with RowsBar("the base answers replay prompts") as bar:
            answers += bar.follow(
                answer_prompts(base.model, tokenizer, tokens, base.contents, cache_folder() / "replay", _warn)
            )
        prompts += tokens
    rows = build_replay_examples(prompts, answers, taught, config.data)
    ended = sum(int(row.tokens[-1]) in tokenizer.eos_ids for row in rows)
    trained = sum(int(row.loss_mask.sum()) for row in rows)
    count = wanted.rows
    joined = f"{count} rows join each epoch's {len(taught)} ({count / (count + len(taught)):.0%} of all)"
    _say(
        f"replay: {joined}, drawn from {len(rows)} that the base "
        f"answered ({trained:,} trained tokens; {ended} answers end, the others are cut)"
    )
    if len(rows) < len(prompts):
        _say(f"replay: {len(prompts) - len(rows)} prompts got no answer, or leave no room in data.max_seq_length")
    if wanted.missing:
        fewer = f" ({wanted.missing} were wanted)" if len(written) < wanted.missing else ""
        _say(f"replay: the base wrote {len(written)} of the prompts itself{fewer}")
    # Of the written ones the number: their texts, and so the rows, differ by rounding between machines.
    return Replay(rows, {"replay_prompts": records_sha256(wanted.listed), "replay_written": str(wanted.missing)})


def _say(line: str) -> None:
    talk.print(line, markup=False, soft_wrap=True)


def _warn(line: str) -> None:
    _say(f"warning: {line}")


def stand_in_rows(config: RunConfig, prompts: Sequence[list[int]], taught: "Sequence[Example]") -> "list[Example]":
    """Rows as long as the longest that build_replay can return, with nothing in their answers. Raises: DataError."""
    import numpy as np

    from mlx_lora.dataset.examples import Expected
    from mlx_lora.dataset.replay import BaseAnswer, build_replay_examples
    from mlx_lora.training.replay import LIKELIEST, MOST_TOKENS

    nothing = Expected(
        np.zeros((MOST_TOKENS, LIKELIEST), np.int32), np.full((MOST_TOKENS, LIKELIEST), 0.5 / LIKELIEST, np.float32)
    )
    answer = BaseAnswer([0] * MOST_TOKENS, False, nothing)
    return build_replay_examples(prompts, [answer] * len(prompts), taught, config.data) if prompts else []


def longest_prompts(
    config: RunConfig, tokenizer: "Tokenizer", splits: "DataSplits", taught: int, ranks: int = 1
) -> list[list[int]]:
    """The prompts that the base answers, none without data.replay; for those to be written, as long as they can get."""
    from mlx_lora.dataset.rendering import record_prompt
    from mlx_lora.dataset.replay import as_prompt, draw_beginnings
    from mlx_lora.training.prompts import MOST_TOKENS

    wanted = _find_prompts(config, splits, taught, ranks)
    prompts = [record_prompt(record, tokenizer, config.data) for record in wanted.listed]
    beginnings = draw_beginnings(wanted.listed, wanted.missing, config.train.seed)
    begun = {words: record_prompt(as_prompt(words, "replay"), tokenizer, config.data) for words in set(beginnings)}
    return [*prompts, *([*begun[words], *[0] * MOST_TOKENS] for words in beginnings)]


@dataclass(frozen=True)
class _Wanted:
    """What the run rehearses: rows an epoch, the prompts that are there, and how many more the base has to write."""

    rows: int
    listed: "list[Record]"
    missing: int
    left_out: int  # prompts that must not be rehearsed
    free: int  # the others of the file


def _find_prompts(config: RunConfig, splits: "DataSplits", taught: int, ranks: int) -> _Wanted:
    from mlx_lora.dataset.replay import choose_prompts, read_prompts, replay_rows, without_asked
    from mlx_lora.training.loop import build_schedule

    count = replay_rows(taught, config.data.replay)
    if not count:
        return _Wanted(0, [], 0, 0, 0)
    schedule = build_schedule([1] * taught, config.train, ranks)
    reached = -(-count * schedule.total_steps // schedule.steps_per_epoch)  # more are never reached
    most = min(reached, _MOST_PROMPTS)
    own = config.data.replay_prompts
    prompts = read_prompts(own)
    free = without_asked(prompts, [*splits.train, *splits.valid, *splits.test, *_questions(config.train.retention)])
    if not free:
        raise DataError(
            f"data.replay_prompts: {own}: the run's rows and train.retention ask all of its prompts",
            "name other prompts, or none for the built-in ones",
        )
    listed = choose_prompts(free, most, config.train.seed)
    missing = most - len(listed) if own is None else 0  # a file of one's own is the whole choice
    return _Wanted(count, listed, missing, len(prompts) - len(free), len(free))


def _questions(*sources: str | None) -> "list[Record]":
    """Those by which forgetting is measured: rehearsed, they would measure nothing."""
    from mlx_lora.dataset.records import read_records

    named = {source for source in sources if source is not None}
    return [record for source in sorted(named) for record in read_records(source, "test")]


def _write_missing(
    config: RunConfig, base: "LoadedModel", tokenizer: "Tokenizer", splits: "DataSplits", wanted: _Wanted
) -> list[str]:
    """Prompts that the base writes, none that a known set of questions asks. Raises: DataError."""
    from mlx_lora.dataset.rendering import render_beginning
    from mlx_lora.dataset.replay import choose_written, draw_beginnings
    from mlx_lora.evaluation.retention import BUILTIN
    from mlx_lora.training.prompts import write_prompts

    seed, folder = config.train.seed, cache_folder() / "replay"
    drawn = draw_beginnings(wanted.listed, wanted.missing + wanted.missing // 3, seed)
    begun = {words: render_beginning(words, tokenizer, config.data) for words in sorted(set(drawn))}
    beginnings = [words for words in drawn if begun[words][0]]
    tokens = [begun[words][0] for words in beginnings]
    closing = next((begun[words][1] for words in beginnings), "")  # the template's, the same after all words
    with RowsBar("the base writes replay prompts") as bar:
        rest = bar.follow(write_prompts(base.model, tokenizer, tokens, closing, seed, base.contents, folder, _warn))
    texts = [words + more for words, more in zip(beginnings, rest, strict=True) if more]
    known = [*splits.train, *splits.valid, *splits.test, *wanted.listed]
    return choose_written(texts, wanted.missing, known, [*splits.test, *_questions(BUILTIN, config.train.retention)])
