"""Held-out rows share no question with the training rows, and the split hangs on the seed and the questions alone."""

from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from mlx_lora.config import DataSettings
from mlx_lora.dataset.formats import record_from_row
from mlx_lora.dataset.record import Record, folded
from mlx_lora.dataset.splits import load_splits, records_sha256, split_by_question

QUESTIONS = st.lists(st.sampled_from([f"Question {number}?" for number in range(30)]), min_size=1, max_size=60)


def record(question: str, answer: str = "A") -> Record:
    return record_from_row({"question": question, "answer": answer}, "f.jsonl:1")


@hypothesis_settings(deadline=None)
@given(QUESTIONS, st.floats(0, 0.99), st.integers(0, 2**32 - 1))
def test_no_question_is_in_both_and_no_row_is_lost(questions: list[str], share: float, seed: int) -> None:
    """https://github.com/ml-explore/mlx-examples/issues/843"""
    rows = [record(question) for question in questions]
    train, valid = split_by_question(rows, share, seed)
    assert train
    assert {row.question for row in train}.isdisjoint(row.question for row in valid)
    assert sorted(map(id, train + valid)) == sorted(map(id, rows))
    assert bool(valid) == (share > 0 and len(set(questions)) > 1)


@hypothesis_settings(deadline=None)
@given(QUESTIONS, st.integers(0, 100))
def test_the_order_of_the_rows_does_not_change_the_split(questions: list[str], seed: int) -> None:
    _, valid = split_by_question([record(question) for question in questions], 0.3, seed)
    _, other = split_by_question([record(question) for question in reversed(questions)], 0.3, seed)
    assert {row.question for row in valid} == {row.question for row in other}


def test_equal_questions_in_other_case_and_spacing_stay_together() -> None:
    rows = [record("Who  WON?"), record("who won? "), record("Who lost?")]
    train, valid = split_by_question(rows, 0.5, 0)
    assert sorted((len(train), len(valid))) == [1, 2]


def conversation(*turns: str) -> Record:
    messages = [{"role": ("user", "assistant")[number % 2], "content": turn} for number, turn in enumerate(turns)]
    return record_from_row({"messages": messages}, "f.jsonl:1")


def test_rows_of_one_conversation_stay_together() -> None:
    """Found in session 10: a row of one turn was held out while a longer row of the same conversation trained it."""
    rows = [
        conversation(*[f"{turn} of {number}" for turn in ("Q1", "A1", "Q2", "A2", "Q3", "A3")][:length])
        for number in range(20)
        for length in (2, 4, 6)
    ]
    rows += [record(f"q1  of {number}", "A1 of it") for number in range(20)]
    for seed in range(5):
        train, valid = split_by_question(rows, 0.25, seed)
        assert (len(train), len(valid)) == (60, 20)
        assert not {key for row in train for key in row.asked_keys} & {key for row in valid for key in row.asked_keys}
        assert split_by_question(rows[::-1], 0.25, seed) == (train[::-1], valid[::-1])


def test_what_is_context_only_links_no_rows() -> None:
    """Found in session 15: 100 rows with one example in their prompts were one family, and none was held out."""
    example = [{"role": "user", "content": "Example?"}, {"role": "assistant", "content": "Yes."}]
    rows = [
        record_from_row(
            {
                "prompt": [*example, {"role": "user", "content": f"Real {number}?"}],
                "completion": [{"role": "assistant", "content": "A"}],
            },
            "",
        )
        for number in range(100)
    ]
    train, valid = split_by_question(rows, 0.1, 0)
    assert (len(train), len(valid)) == (90, 10)
    assert all(len(row.asked_keys) == 1 for row in rows)


def test_equal_last_turns_of_different_conversations_may_part() -> None:
    rows = [conversation(f"Q{number}", "A", "Go on.", "B") for number in range(10)]
    train, valid = split_by_question(rows, 0.3, 0)
    assert (len(train), len(valid)) == (7, 3)


def test_single_questions_are_held_out_as_ever() -> None:
    """The rows that adapters were not trained on are found again by this split."""
    rows = [record(f"Question {number}?") for number in range(20)]
    _, valid = split_by_question(rows, 0.25, 3)
    keys = sorted((row.question_key for row in rows), key=lambda key: sha256(f"3/{key}".encode()).digest())
    assert {row.question_key for row in valid} == set(keys[:5])


@pytest.mark.parametrize(
    ("questions", "held", "asked"),
    [(1, 0, "one question"), (3, 20, "3 questions"), (2, 30, "2 questions")],
)
def test_rows_that_ask_too_little_to_be_held_out_as_asked_are_said(
    tmp_path: Path, questions: int, held: int, asked: str
) -> None:
    """Found in session 10: rows that all say `Sum it up.` to their own system text were never validated, unsaid."""
    file = tmp_path / "rows.csv"
    rows = "".join(f"Sum it up {number % questions}.,A,Text {number}\n" for number in range(60))
    file.write_text("question,answer,system\n" + rows)
    (note,) = load_splits(DataSettings(train=str(file), valid_share=0.1), seed=0).notes
    assert note.startswith(f"data.valid_share: {held} of 60 rows are held out, not 6: they ask {asked}")
    assert load_splits(DataSettings(train=str(file), valid_share=0.0), seed=0).notes == ()
    assert load_splits(DataSettings(train=str(file), valid=str(file)), seed=0).notes == ()


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_a_share_beside_a_validation_split_of_the_folder_is_said_to_have_no_effect(
    tmp_path: Path, share: float
) -> None:
    """Found in session 12: said for data.valid, and not for a folder that holds valid.jsonl."""
    for name in ("train", "valid"):
        (tmp_path / f"{name}.csv").write_text(f"question,answer\n{name},A\n")
    splits = load_splits(DataSettings(train=str(tmp_path), valid_share=share), seed=0)
    assert splits.notes == (f"data.valid_share has no effect: {tmp_path} has a valid split of its own",)
    assert [row.question for row in splits.valid] == ["valid"]
    assert load_splits(DataSettings(train=str(tmp_path)), seed=0).notes == ()


def test_another_seed_holds_out_other_questions() -> None:
    rows = [record(f"Question {number}?") for number in range(100)]
    held = {frozenset(row.question for row in split_by_question(rows, 0.1, seed)[1]) for seed in range(5)}
    assert len(held) == 5
    assert all(len(questions) == 10 for questions in held)


def test_files_that_are_given_are_taken_as_they_are(tmp_path: Path) -> None:
    for name in ("train", "valid", "test"):
        (tmp_path / f"{name}.csv").write_text(f"question,answer\n{name},A\n")
    folder = load_splits(DataSettings(train=str(tmp_path)), seed=0)
    files = load_splits(
        DataSettings(
            train=str(tmp_path / "train.csv"), valid=str(tmp_path / "valid.csv"), test=str(tmp_path / "test.csv")
        ),
        seed=0,
    )
    assert folder == files
    assert [split[0].question for split in (folder.train, folder.valid, folder.test)] == ["train", "valid", "test"]


def test_without_valid_a_share_of_the_questions_is_held_out(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("question,answer\n" + "".join(f"Question {number}?,A\n" for number in range(20)))
    splits = load_splits(DataSettings(train=str(file), valid_share=0.25), seed=3)
    assert (len(splits.train), len(splits.valid), splits.test, splits.notes) == (15, 5, [], ())
    assert not load_splits(DataSettings(train=str(file), valid_share=0.0), seed=3).valid


def test_the_digest_hangs_on_what_the_rows_say() -> None:
    one, moved = record("Q"), record_from_row({"prompt": "Q", "completion": "A"}, "elsewhere:9")
    assert records_sha256([one]) == records_sha256([moved])
    assert len({records_sha256(rows) for rows in ([one], [one, one], [record("Q", "B")], [])}) == 4


def test_a_question_with_letters_in_two_parts_is_the_same_question() -> None:
    assert folded("Où est  Montre\u0301al?") == folded("OU\u0300 EST MONTR\u00c9AL?")
