"""The replay rows of a run (data.replay), made while the base has no adapters yet."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlx_lora.config import RunConfig
from mlx_lora.console import talk
from mlx_lora.files import cache_folder
from mlx_lora.screen import RowsBar

if TYPE_CHECKING:
    from mlx_lora.dataset.examples import Example
    from mlx_lora.dataset.record import Record
    from mlx_lora.dataset.splits import DataSplits
    from mlx_lora.model.load import LoadedModel
    from mlx_lora.model.tokenizer import Tokenizer

_MOST_PROMPTS = 5000  # of a run; a longer one rehearses them again


def build_replay(
    config: RunConfig,
    base: "LoadedModel",
    tokenizer: "Tokenizer",
    splits: "DataSplits",
    taught: "Sequence[Example]",
    ranks: int,
) -> "list[Example]":
    """The rows that the run draws from beside the `taught` ones; says what they are. Raises: DataError."""
    from mlx_lora.dataset.rendering import record_prompt
    from mlx_lora.dataset.replay import BaseAnswer, as_prompt, build_replay_examples
    from mlx_lora.training.replay import answer_prompts

    wanted = _find_prompts(config, splits, len(taught), ranks)
    if not wanted.rows:
        return []
    name = f"{base.identity.config_sha256} {base.identity.weights_sha256} {base.compute}"
    written = _write_missing(config, base, tokenizer, splits, wanted, name) if wanted.missing else []
    prompts, answers = list[list[int]](), list[BaseAnswer]()
    # By themselves, so that a run with another seed finds the listed ones answered.
    for records in filter(None, (wanted.listed, [as_prompt(text, "replay") for text in written])):
        tokens = [record_prompt(record, tokenizer, config.data) for record in records]
        with RowsBar("the base answers replay prompts") as bar:
            answers += bar.follow(answer_prompts(base.model, tokenizer, tokens, name, cache_folder() / "replay"))
        prompts += tokens
    rows = build_replay_examples(prompts, answers, taught, config.data)
    ended = sum(answer.ended for answer in answers)
    trained = sum(int(row.loss_mask.sum()) for row in rows)
    count = wanted.rows
    joined = f"{count} rows join each epoch's {len(taught)} ({count / (count + len(taught)):.0%} of all)"
    talk.print(
        f"replay: {joined}, drawn from {len(rows)} that the base "
        f"answered ({trained:,} trained tokens; {ended} answers end, the others are cut)",
        markup=False,
        soft_wrap=True,
    )
    if wanted.missing:
        talk.print(f"replay: the base wrote {len(written)} of the prompts itself", markup=False, soft_wrap=True)
    return rows


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


def _find_prompts(config: RunConfig, splits: "DataSplits", taught: int, ranks: int) -> _Wanted:
    from mlx_lora.dataset.replay import choose_prompts, read_prompts, replay_rows
    from mlx_lora.training.loop import build_schedule

    count = replay_rows(taught, config.data.replay)
    if not count:
        return _Wanted(0, [], 0)
    schedule = build_schedule([1] * taught, config.train, ranks)
    reached = -(-count * schedule.total_steps // schedule.steps_per_epoch)  # more are never reached
    most = min(reached, _MOST_PROMPTS)
    listed = choose_prompts(
        read_prompts(config.data.replay_prompts), most, config.train.seed, [*splits.train, *splits.valid, *splits.test]
    )
    missing = most - len(listed) if config.data.replay_prompts is None else 0  # a file of one's own is the whole choice
    return _Wanted(count, listed, missing)


def _write_missing(
    config: RunConfig, base: "LoadedModel", tokenizer: "Tokenizer", splits: "DataSplits", wanted: _Wanted, name: str
) -> list[str]:
    """Prompts that the base writes, none that a known set of questions asks. Raises: DataError."""
    from mlx_lora.dataset.records import read_records
    from mlx_lora.dataset.rendering import render_beginning
    from mlx_lora.dataset.replay import choose_written, draw_beginnings
    from mlx_lora.evaluation.retention import BUILTIN
    from mlx_lora.training.prompts import write_prompts

    seed, watched = config.train.seed, {BUILTIN, config.train.retention or BUILTIN}
    kept_back = [*splits.test, *(record for source in sorted(watched) for record in read_records(source, "test"))]
    drawn = draw_beginnings(wanted.listed, wanted.missing + wanted.missing // 3, seed)
    begun = {words: render_beginning(words, tokenizer, config.data) for words in sorted(set(drawn))}
    beginnings = [words for words in drawn if begun[words]]
    with RowsBar("the base writes replay prompts") as bar:
        rest = bar.follow(
            write_prompts(
                base.model, tokenizer, [begun[words] for words in beginnings], seed, name, cache_folder() / "replay"
            )
        )
    texts = [words + more for words, more in zip(beginnings, rest, strict=True) if more]
    known = [*splits.train, *splits.valid, *splits.test, *wanted.listed]
    return choose_written(texts, wanted.missing, known, kept_back)
