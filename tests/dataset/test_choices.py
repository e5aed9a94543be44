"""Multiple-choice rows: which choice the answer means, and what is trained of it."""

from typing import Any

import pytest

from mlx_lora.dataset.formats import RowError, record_from_row
from mlx_lora.dataset.records import read_records
from mlx_lora.dataset.splits import records_sha256

CITIES = ["Oslo", "Bergen", "Paris"]


@pytest.mark.parametrize(
    ("choices", "answer", "right"),
    [
        (CITIES, "Paris", "Paris"),
        (CITIES, "C", "Paris"),
        (CITIES, "c", "Paris"),
        (CITIES, 2, "Paris"),
        (CITIES, "2", "Paris"),
        (["B", "A"], "A", "A"),  # the text of a choice comes before its letter
        (["3", "2", "1"], "1", "1"),
        (["3", "2", "1"], 1, "2"),  # a number is a place
    ],
)
def test_the_answer_is_the_text_the_letter_or_the_place_of_a_choice(
    choices: list[str], answer: Any, right: str
) -> None:
    record = record_from_row({"question": "Where?", "choices": choices, "answer": answer, "fact": "f"}, "a.jsonl:1")
    assert record.choices == tuple(choices)
    assert record.answers == (right,)
    assert record.messages[-1] == {"role": "assistant", "content": right}  # what training teaches
    assert (record.question, record.fact, record.format) == ("Where?", "f", "question/answer")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"choices": "Oslo"}, '"choices" is no list of texts'),
        ({"choices": [1, 2]}, '"choices" is no list of texts'),
        ({"choices": ["Oslo"]}, '"choices" has 1 of them, expected two or more'),
        ({"choices": ["Oslo", " "]}, '"choices" has an empty one'),
        ({"choices": ["Oslo", "Oslo"]}, '"choices" has one of them twice'),
        ({"answer": "Rome"}, "\"answer\" is 'Rome', which is none of the 3 choices"),
        ({"answer": "D"}, "\"answer\" is 'D', which is none of the 3 choices"),
        ({"answer": 3}, '"answer" is 3, which is none of the 3 choices'),
        ({"answer": -1}, '"answer" is -1, which is none of the 3 choices'),
        ({"answer": True}, '"answer" is True, which is none of the 3 choices'),
        ({"answers": ["Paris"]}, 'a row with "choices" has one right answer: give "answer" without "answers"'),
    ],
)
def test_what_is_wrong_with_choices_is_said(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RowError) as error:
        record_from_row({"question": "Where?", "choices": CITIES, "answer": "Paris", **changes}, "a.jsonl:1")
    assert str(error.value) == words


def test_a_csv_cell_holds_choices_between_bars_or_as_json(tmp_path: Any) -> None:
    file = tmp_path / "quiz.csv"
    file.write_text('question,choices,answer\nWhere?,Oslo | Paris,B\nWhere?,"[""Oslo"", ""Paris""]",0\n')
    assert [(one.choices, one.answers) for one in read_records(str(file))] == [
        (("Oslo", "Paris"), ("Paris",)),
        (("Oslo", "Paris"), ("Oslo",)),
    ]


def test_choices_are_part_of_what_a_data_set_is() -> None:
    row = {"question": "Where?", "answer": "Paris"}
    plain, one, other = (
        record_from_row({**row, **more}, "") for more in ({}, {"choices": CITIES}, {"choices": ["Paris", "Rome"]})
    )
    assert len({records_sha256([record]) for record in (plain, one, other)}) == 3
    # Of rows without choices the hash is the one that adapters of earlier versions hold.
    assert records_sha256([plain]) == "3b6611642dcae711008785d82870ea09ab987e28fe899bfec15f46df41c122de"
