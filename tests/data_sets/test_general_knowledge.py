"""The general knowledge questions: 150, each once, none about hockey, none with its answer in it."""

import json
import re
from collections import Counter
from pathlib import Path

from tests.data_sets.squad import squad_normal

QUESTIONS = Path(__file__).parents[2] / "mlx_lora" / "data" / "general_knowledge.jsonl"


def read_questions() -> list[dict]:
    """The rows of the file, keys in the order of the file."""
    with QUESTIONS.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_there_are_150_questions_and_no_two_are_the_same() -> None:
    rows = read_questions()
    assert len({squad_normal(row["question"]) for row in rows}) == 150
    assert [row["fact"] for row in rows] == [f"general/{number:03d}" for number in range(1, 151)]


def test_questions_are_spread_over_the_categories_like_this() -> None:
    assert Counter(row["category"] for row in read_questions()) == {
        "geography": 30,
        "science": 25,
        "everyday": 20,
        "nature": 20,
        "arithmetic": 15,
        "language": 15,
        "history": 15,
        "culture": 10,
    }


def test_rows_have_five_keys_in_order_and_the_canonical_answer_first() -> None:
    for row in read_questions():
        assert list(row) == ["question", "answer", "answers", "category", "fact"]
        assert row["answers"][0] == row["answer"]


def test_accepted_answers_of_a_question_differ_and_survive_normalization() -> None:
    for row in read_questions():
        normal = [squad_normal(answer) for answer in row["answers"]]
        assert len(set(normal)) == len(normal), row
        assert "" not in normal, row


def test_no_accepted_answer_stands_in_its_own_question() -> None:
    for row in read_questions():
        question = f" {squad_normal(row['question'])} "
        assert [answer for answer in row["answers"] if f" {squad_normal(answer)} " in question] == [], row


def test_no_question_is_about_hockey() -> None:
    for row in read_questions():
        assert not re.search(r"hockey|stanley|\bnhl\b|\bpuck\b", json.dumps(row).lower()), row


def test_the_choices_are_four_to_each_of_the_same_questions_and_one_is_right() -> None:
    with QUESTIONS.with_name("general_knowledge_choices.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    places = Counter()
    for row, open_row in zip(rows, read_questions(), strict=True):
        assert list(row) == ["question", "choices", "answer", "category", "fact"]
        assert [row[key] for key in ("question", "answer", "fact")] == [
            open_row[key] for key in ("question", "answer", "fact")
        ]
        assert len({squad_normal(choice) for choice in row["choices"]}) == 4, row
        right = {squad_normal(answer) for answer in open_row["answers"]}
        assert [choice for choice in row["choices"] if squad_normal(choice) in right] == [row["answer"]], row
        places[row["choices"].index(row["answer"])] += 1
    assert places == {0: 38, 1: 38, 2: 37, 3: 37}
