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
    from mlx_lora.dataset.examples import record_prompt
    from mlx_lora.dataset.replay import build_replay_examples, choose_prompts, read_prompts, replay_rows
    from mlx_lora.training.loop import build_schedule
    from mlx_lora.training.replay import answer_prompts

    count = replay_rows(len(taught), config.data.replay)
    if not count:
        return []
    asked = [*splits.train, *splits.valid, *splits.test]
    schedule = build_schedule([1] * len(taught), config.train, ranks)
    most = -(-count * schedule.total_steps // schedule.steps_per_epoch)  # more are never reached
    chosen = choose_prompts(read_prompts(config.data.replay_prompts), most, config.train.seed, asked)
    prompts = [record_prompt(record, tokenizer, config.data) for record in chosen]
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
