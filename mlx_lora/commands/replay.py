"""The replay rows of a run (data.replay), made while the base has no adapters yet."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mlx_lora.config import RunConfig
from mlx_lora.console import talk
from mlx_lora.files import cache_folder
from mlx_lora.screen import RowsBar

if TYPE_CHECKING:
    from mlx_lora.dataset.examples import Example
    from mlx_lora.dataset.splits import DataSplits
    from mlx_lora.model.load import LoadedModel
    from mlx_lora.model.tokenizer import Tokenizer


def build_replay(
    config: RunConfig,
    base: "LoadedModel",
    tokenizer: "Tokenizer",
    splits: "DataSplits",
    taught: "Sequence[Example]",
    ranks: int,
) -> "list[Example]":
    """The rows that the epochs of the `taught` rows draw from; says in one line what they are. Raises: DataError."""
    from mlx_lora.dataset.replay import build_replay_examples, replay_rows
    from mlx_lora.training.replay import answer_prompts

    count = replay_rows(len(taught), config.data.replay)
    prompts = replay_prompts(config, tokenizer, splits, len(taught), ranks)
    if not count:
        return []
    name = f"{base.identity.config_sha256} {base.identity.weights_sha256} {base.compute}"
    answers = []
    with RowsBar("the base answers replay prompts") as bar:
        for event in answer_prompts(base.model, tokenizer, prompts, name, cache_folder() / "replay"):
            if isinstance(event, list):
                answers = event
            else:
                bar.show(*event)
    rows = build_replay_examples(prompts, answers, taught, config.data)
    ended = sum(answer.ended for answer in answers)
    trained = sum(int(row.loss_mask.sum()) for row in rows)
    joined = f"{count} rows join each epoch's {len(taught)} ({count / (count + len(taught)):.0%} of all)"
    talk.print(
        f"replay: {joined}, drawn from {len(rows)} that the base "
        f"answered ({trained:,} trained tokens; {ended} answers end, the others are cut)",
        markup=False,
        soft_wrap=True,
    )
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


def replay_prompts(
    config: RunConfig, tokenizer: "Tokenizer", splits: "DataSplits", taught: int, ranks: int = 1
) -> list[list[int]]:
    """The prompts that the base answers, none without data.replay."""
    from mlx_lora.dataset.examples import record_prompt
    from mlx_lora.dataset.replay import choose_prompts, read_prompts, replay_rows
    from mlx_lora.training.loop import build_schedule

    count = replay_rows(taught, config.data.replay)
    if not count:
        return []
    asked = [*splits.train, *splits.valid, *splits.test]
    schedule = build_schedule([1] * taught, config.train, ranks)
    most = -(-count * schedule.total_steps // schedule.steps_per_epoch)  # more are never reached
    chosen = choose_prompts(read_prompts(config.data.replay_prompts), most, config.train.seed, asked)
    return [record_prompt(record, tokenizer, config.data) for record in chosen]
