"""The report counts what is there, and tells faults from warnings."""

import json
from pathlib import Path
from typing import Any

import pytest

from mlx_lora.config import DataSettings, RunConfig, TrainSettings
from mlx_lora.dataset.batches import collate, plan_epoch
from mlx_lora.dataset.groups import training_groups
from mlx_lora.dataset.inspection import Inspection, build_split_examples, inspect_splits, trained_segments
from mlx_lora.dataset.record import Record
from mlx_lora.dataset.splits import DataSplits
from mlx_lora.errors import DataError
from tests.dataset.examples_of import chat, example_of, record
from tests.dataset.tokenizers import tokenizer_of

TOKENIZER = tokenizer_of("smollm2")


def configuration(*, batch_size: int = 2, steps: int | None = None, accumulate: int = 1, **data: Any) -> RunConfig:
    train = TrainSettings(
        epochs=None if steps else 3, steps=steps, batch_size=batch_size, gradient_accumulation_steps=accumulate
    )
    return RunConfig(model="m", data=DataSettings(train="train.jsonl", **data), train=train, output_dir="out")


def inspected(
    train: list[Record], valid: list[Record] | None = None, test: list[Record] | None = None, **changes: Any
) -> Inspection:
    config = configuration(**changes)
    splits = DataSplits(train, valid or [], test or [])
    built = build_split_examples(splits, TOKENIZER, config.data, stop_on_fault=False)
    return inspect_splits(splits, built, TOKENIZER.eos_ids, config)


def asked(question: str, *answers: str) -> Record:
    return record({"question": question, "answer": answers[0], "answers": list(answers)})


def test_rows_formats_and_tokens_are_counted() -> None:
    rows = [asked("Q", "A"), asked("Q2", "AB"), record({"text": "T"})]
    report = inspected(rows).splits["train"]
    assert (report.rows, report.examples, report.formats) == (3, 3, {"question/answer": 2, "text": 1})
    lengths = sorted(len(example_of(row, TOKENIZER).tokens) for row in rows)
    assert report.length_quantiles == {
        "min": lengths[0], "p50": lengths[1], "p90": lengths[2], "p99": lengths[2], "max": lengths[2]
    }  # fmt: skip
    assert report.tokens == sum(lengths)
    assert report.trained_tokens == 2 + 3 + 1
    assert report.trained_share == 6 / sum(lengths)
    assert report.without_end_token == 0


def test_clean_data_has_no_faults_and_no_warnings() -> None:
    inspection = inspected([asked("Q", "A"), asked("Q2", "A")], [asked("V", "A")])
    assert (inspection.faults, inspection.warnings) == ([], [])
    inspection.raise_faults()
    assert inspected([asked("Q", "A")]).splits["valid"].length_quantiles == {}


@pytest.mark.parametrize(
    ("changes", "steps_per_epoch", "steps"),
    [({}, 3, 9), ({"batch_size": 4}, 2, 6), ({"accumulate": 2}, 2, 6), ({"steps": 7}, 3, 7)],
)
def test_steps_count_the_last_partial_batch_and_group(
    changes: dict[str, Any], steps_per_epoch: int, steps: int
) -> None:
    inspection = inspected([asked(f"Q{number}", "A") for number in range(5)], **changes)
    assert (inspection.steps_per_epoch, inspection.steps) == (steps_per_epoch, steps)


def test_the_padding_share_is_that_of_the_first_epochs_batches() -> None:
    rows = [asked("Q" * number, "A") for number in range(1, 30)]
    examples = [example_of(row, TOKENIZER) for row in rows]
    lengths, groups = [len(e.tokens) - 1 for e in examples], training_groups(examples, 4, "contexts")
    batches = [collate(examples, b) for b in plan_epoch(lengths, 4, seed=0, epoch=0, groups=groups)]
    expected = 1 - sum(batch.tokens for batch in batches) / sum(batch.inputs.size for batch in batches)
    assert inspected(rows, batch_size=4).padding_share == pytest.approx(expected, abs=1e-12)


def test_rows_over_the_limit_are_faults_or_warnings_as_the_settings_say() -> None:
    rows = [asked("Q" * 100, "A"), asked("Q", "A")]
    error = inspected(rows, max_seq_length=110)
    assert error.splits["train"].over_limit == 1
    assert len(error.faults) == 1
    with pytest.raises(DataError, match=r"data\.max_seq_length is 110") as caught:
        error.raise_faults()
    assert caught.value.hint == "raise data.max_seq_length, or set data.truncation to drop or prompt"
    drop = inspected(rows, max_seq_length=110, truncation="drop")
    assert (drop.faults, drop.warnings) == ([], ["train: 1 row over the limit left out"])
    prompt = inspected(rows, max_seq_length=110, truncation="prompt")
    assert prompt.splits["train"].shortened == 1
    assert "train: 1 row over the limit: the prompt was shortened" in prompt.warnings


def test_when_every_row_is_dropped_there_is_nothing_to_train_on() -> None:
    inspection = inspected([asked("Q", "A")], max_seq_length=5, truncation="drop")
    assert inspection.faults == [
        "train.jsonl: no training rows are left: all 1 have more than data.max_seq_length = 5 tokens"
    ]
    assert (inspection.steps, inspection.padding_share) == (0, 0.0)


def test_patience_without_validation_rows_is_a_fault_and_not_a_wish() -> None:
    config = configuration()
    train = config.train.model_copy(update={"early_stopping_patience": 2})
    splits = DataSplits([asked("Q", "A")], [], [])
    built = build_split_examples(splits, TOKENIZER, config.data)
    found = inspect_splits(splits, built, TOKENIZER.eos_ids, config.model_copy(update={"train": train}))
    with pytest.raises(DataError, match=r"train\.early_stopping_patience: there are no validation rows"):
        found.raise_faults()
    assert found.hints == ["set data.valid, raise data.valid_share, or leave train.early_stopping_patience out"]


def test_repeated_rows_are_counted() -> None:
    inspection = inspected([asked("Q", "A")] * 3 + [asked("q", "A")])
    assert inspection.splits["train"].duplicates == 2
    assert inspection.warnings == ["train: 2 rows repeating an earlier one exactly"]


def test_keys_that_are_not_read_are_said_in_one_line() -> None:
    """Found in session 10: answers were trained without the `context` that stood beside them, without a word."""
    rows = [record({"question": f"Q{number}", "answer": "A", "context": "C", "id": number}) for number in range(2)]
    inspection = inspected([*rows, record({"text": "T", "id": 7})])
    assert inspection.warnings == ['train: keys that are not read: "id" (3 rows), "context" (2 rows)']


def test_a_question_with_another_answer_is_a_contradiction_and_an_accepted_variant_is_not() -> None:
    rows = [asked("Who won?", "Oilers", "Edmonton"), asked("who  won?", "Edmonton"), asked("Who won?", "Flames")]
    (case,) = inspected(rows).contradictions
    assert (case.question, case.answers) == ("Who won?", ("Oilers", "Flames"))
    other_context = [chat("Hi", "A", "Go on", "B"), chat("Hello", "A", "Go on", "C")]
    assert inspected(other_context).contradictions == []


def test_contradictions_between_splits_are_found_and_only_five_are_listed() -> None:
    train = [asked(f"Q{number}", "A") for number in range(7)]
    inspection = inspected(train, [asked(f"Q{number}", "B") for number in range(7)])
    assert len(inspection.contradictions) == 7
    assert inspection.warnings[1] == 'f.jsonl:7: "B" contradicts "A" at f.jsonl:7: the same question'
    assert inspection.warnings[-1] == "… and 2 more questions with contradicting answers"


def test_questions_in_training_and_in_another_split_are_counted() -> None:
    inspection = inspected([asked("Q1", "A"), asked("Q2", "A")], [asked("q1 ", "A")], [asked("Q3", "A")])
    assert inspection.overlaps == {"train/valid": 1, "train/test": 0}
    assert inspection.warnings == ["train/valid: 1 questions in both: the scores will look better than they are"]


def test_a_question_of_an_earlier_turn_is_in_training_too() -> None:
    """Found in session 10: a held-out row whose conversation a longer training row holds was not counted."""
    longer, other = chat("Q1", "A1", "Q2", "A2"), chat("Q2", "A2")
    assert inspected([longer], [chat("q1", "A1"), other], [longer]).overlaps == {"train/valid": 1, "train/test": 2}


def test_a_setting_without_effect_is_a_warning() -> None:
    warnings = inspected([asked("Q", "A")], replay_prompts="own.txt").warnings
    assert warnings == ["data.replay_prompts has no effect: data.replay is not set"]


def test_what_is_held_out_otherwise_than_asked_is_a_warning() -> None:
    splits = DataSplits([asked("Q", "A")], [], [], ("data.valid_share: 0 of 1",))
    built = build_split_examples(splits, TOKENIZER, configuration().data)
    assert inspect_splits(splits, built, TOKENIZER.eos_ids, configuration()).warnings == ["data.valid_share: 0 of 1"]


def test_everything_is_json() -> None:
    values = inspected([asked("Q", "A"), asked("Q", "B")]).as_dict()
    assert json.loads(json.dumps(values)) == values
    assert values["splits"]["train"]["trained_share"] > 0
    assert values["contradictions"][0]["answers"] == ["A", "B"]


def test_segments_joined_are_the_row_and_the_trained_ones_its_answers() -> None:
    example = example_of(chat("Q1", "A1", "Q2", "A2"), TOKENIZER)
    segments = trained_segments(example, TOKENIZER)
    assert "".join(piece for piece, _ in segments) == TOKENIZER.decode(example.tokens.tolist())
    assert [piece for piece, trained in segments if trained] == ["A1<|im_end|>", "A2<|im_end|>"]
    assert [trained for _, trained in segments] == [False, True, False, True]


def test_the_stanley_cup_rows_are_clean() -> None:
    from mlx_lora.dataset.splits import load_splits

    folder = Path(__file__).parents[2] / "data" / "stanley_cup" / "modern"
    splits = load_splits(DataSettings(train=str(folder)), seed=0)
    inspection = inspected(splits.train, splits.valid, splits.test)
    assert (inspection.faults, inspection.warnings) == ([], [])


def test_a_column_that_only_eval_refuses_is_said_and_stops_no_run() -> None:
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    inspection = inspected([record({"messages": turns, "choices": 3, "answers": {"n": 1}})])
    assert inspection.warnings == ['train: keys that are not read: "answers" (1 row), "choices" (1 row)']
    assert inspection.faults == []
