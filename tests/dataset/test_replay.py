"""Replay rows: which prompts, how many, and what of them is trained."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from mlx_lora.config import DataSettings
from mlx_lora.dataset.batches import collate
from mlx_lora.dataset.examples import Example, Expected
from mlx_lora.dataset.record import UNTRAINED, Record
from mlx_lora.dataset.records import read_records
from mlx_lora.dataset.replay import (
    BaseAnswer,
    build_replay_examples,
    choose_prompts,
    choose_written,
    content_words,
    draw_beginnings,
    examples_sha256,
    read_prompts,
    replay_rows,
    without_asked,
)
from mlx_lora.errors import DataError

END = 2
SETTINGS = DataSettings(train="rows.jsonl", max_seq_length=8)
TAUGHT = Example(np.int32([5, 6, 7]), np.array([False, False, True]), "train:1", None)


def prompts(*questions: str) -> list[Record]:
    return [
        Record(({"role": "user", "content": question}, {"role": "assistant", "content": ""})) for question in questions
    ]


@pytest.mark.parametrize(
    ("taught", "share", "rows"),
    [
        (80, 0.2, 20),
        (350, 0.25, 117),
        (350, 0.5, 350),
        (3, 0.1, 1),
        (9, 0.0, 0),
        (9, None, 0),
        (0, 0.5, 0),
    ],
)
def test_replay_rows_are_the_share_of_all_rows(taught: int, share: float | None, rows: int) -> None:
    assert replay_rows(taught, share) == rows


def said(*tokens: int, ended: bool = False) -> BaseAnswer:
    """An answer, every token of which the base expected with probability 1/2, and its successor with 1/4."""
    lines = np.array([[token, token + 1] for token in tokens], np.int32).reshape(-1, 2)
    return BaseAnswer(list(tokens), ended, Expected(lines, np.tile(np.float32([0.5, 0.25]), (len(tokens), 1))))


def rows_of(prompts: list[list[int]], answers: list[BaseAnswer]) -> list[Example]:
    return build_replay_examples(prompts, answers, [TAUGHT], SETTINGS)


def test_only_the_answer_is_trained_and_its_end_only_where_the_base_ended_by_itself() -> None:
    ended, cut = rows_of([[5, 6], [5, 7]], [said(8, 9, END, ended=True), said(8, 9)])
    assert (ended.tokens.tolist(), ended.loss_mask.tolist()) == ([5, 6, 8, 9, END], [False, False, True, True, True])
    assert (cut.tokens.tolist(), cut.loss_mask.tolist()) == ([5, 7, 8, 9], [False, False, True, True])
    assert ended.expected is not None
    assert ended.expected.tokens.tolist() == [[8, 9], [9, 10], [END, END + 1]]


def test_an_answer_that_does_not_fit_is_cut_with_its_end_and_its_probabilities() -> None:
    (row,) = rows_of([[5, 6]], [said(8, 9, 10, 11, 12, 13, END, ended=True)])
    assert row.tokens.tolist() == [5, 6, 8, 9, 10, 11, 12, 13]
    assert row.expected is not None
    assert row.expected.tokens[:, 0].tolist() == [8, 9, 10, 11, 12, 13]
    assert row.expected.shares.shape == (6, 2)
    (row,) = rows_of([[5, 6]], [said(8, 9, 10, 11, 12, END, ended=True)])
    assert row.tokens.tolist() == [5, 6, 8, 9, 10, 11, 12, END]


def test_prompts_without_an_answer_or_too_long_are_left_out() -> None:
    answers = [said(END, ended=True), said(8, END, ended=True), said(9), said(10, END, ended=True)]
    rows = rows_of([[5], [6], [7] * 8, [4]], answers)
    assert [row.tokens.tolist() for row in rows] == [[6, 8, END], [4, 10, END]]
    assert [row.place for row in rows] == ["replay:2", "replay:4"]


def test_a_base_that_answers_nothing_is_an_error() -> None:
    with pytest.raises(DataError, match=r"data\.replay: the base answers none of 1 prompts"):
        rows_of([[5]], [said(END, ended=True)])


def test_a_replay_row_weighs_as_much_as_a_taught_row_however_long_it_is() -> None:
    rows = rows_of([[5], [6]], [said(8, 9, 10, 11), said(8, 9)])
    taught = [TAUGHT, Example(np.int32([5, 6, 7, 8]), np.array([False, False, True, True]), "train:2", None)]
    assert [row.weight for row in rows] == [1 / 3, 1 / 3]  # one trained token taught, three replayed
    assert [row.weight for row in build_replay_examples([[5]], [said(8, 9, 10)], taught, SETTINGS)] == [0.5]
    assert collate(rows, [1]).weights[0, :3].tolist() == pytest.approx([1 / 3, 1 / 3, 0.0])


def test_batches_hold_the_probabilities_where_their_tokens_are_trained() -> None:
    rows = [TAUGHT, *rows_of([[5, 6], [5]], [said(8, 9), said(8, END, ended=True)])]
    batch = collate(rows, [1, 0, 2])
    assert batch.expected is not None
    assert batch.expected_places is not None
    assert batch.expected_places.tolist() == [1, 2, 8, 9]
    assert batch.targets.reshape(-1)[batch.expected_places].tolist() == [8, 9, 8, END]
    assert batch.expected.tokens[:, 0].tolist() == [8, 9, 8, END]
    assert batch.targets_count == 5
    assert collate(rows, [0]).expected is None


def test_a_larger_count_keeps_the_prompts_of_a_smaller_and_another_seed_draws_others() -> None:
    ten = prompts(*(f"Question {n}?" for n in range(10)))
    few, many = choose_prompts(ten, 3, 0), choose_prompts(ten, 7, 0)
    assert (len(few), len(many)) == (3, 7)
    assert [record for record in many if record in few] == few
    assert choose_prompts(ten[::-1], 3, 0) == few[::-1]
    assert choose_prompts(ten, 3, 1) != few
    assert choose_prompts(ten, 99, 0) == choose_prompts(ten, 99, 1) == ten  # every seed finds these in the cache


def test_what_the_run_teaches_or_asks_is_never_replayed() -> None:
    asked = prompts("who won  the CUP in 1990?")
    found = without_asked(prompts("Who won the Cup in 1990?", "Who are you?"), asked)
    assert [record.question for record in found] == ["Who are you?"]


CHAT = (
    {"role": "user", "content": "Capital of Zorb?"},
    {"role": "assistant", "content": "Zed"},
    {"role": "user", "content": "And of Zarb?"},
    {"role": "assistant", "content": "Zad"},
)


def test_an_earlier_question_of_a_taught_conversation_is_not_replayed_unless_it_is_context_only() -> None:
    listed = prompts("capital of  Zorb?", "And of Zarb?", "Who are you?")
    assert [record.question for record in without_asked(listed, [Record(CHAT)])] == ["Who are you?"]
    context_only = Record((CHAT[0], CHAT[1] | {UNTRAINED: True}, *CHAT[2:]))
    assert without_asked(listed, [context_only]) == [listed[0], listed[2]]


def test_an_earlier_question_of_a_conversation_that_is_kept_back_is_not_written() -> None:
    written = ["What is the capital of Zorb?", "What about Zarb?", "What is the capital of Zurb?"]
    assert choose_written(written, 9, [], [Record(CHAT)]) == ["What is the capital of Zurb?"]
    assert choose_written(["And capital of Zorb?", "Of zorb, capital?"], 9, [Record(CHAT)], []) == [
        "And capital of Zorb?"
    ]


def test_one_question_under_other_texts_is_as_many_prompts(tmp_path: Path) -> None:
    rows = [{"question": "Sum it up.", "system": f"Text {n}", "answer": "-"} for n in (1, 2, 3, 2)]
    rows.append({"question": "sum it  up.", "answer": "-"})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = read_prompts(str(tmp_path / "rows.jsonl"))
    assert [record.messages[0]["content"] for record in found] == ["Text 1", "Text 2", "Text 3", "sum it  up."]
    assert [len(choose_prompts(found, count, 0)) for count in (1, 2, 3, 4)] == [1, 2, 3, 4]


def test_prompts_come_from_lines_or_from_rows_whose_answers_are_not_used(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("Who are you?\n\n  What is tea? \r\nwho are  you?\n", encoding="utf-8")
    found = read_prompts(str(tmp_path / "prompts.txt"))
    assert [record.question for record in found] == ["Who are you?", "What is tea?"]
    assert found[1].place == f"{tmp_path}/prompts.txt:3"
    (tmp_path / "rows.jsonl").write_text('{"question": "What is tea?", "answer": "A drink"}\n', encoding="utf-8")
    assert [record.question for record in read_prompts(str(tmp_path / "rows.jsonl"))] == ["What is tea?"]


@pytest.mark.parametrize(
    ("content", "words"), [(None, "No such file"), (b" \n", "holds no prompts"), (b"ok\n\xff", r"not UTF-8 \(byte 4\)")]
)
def test_a_prompt_file_that_cannot_be_used_is_named(content: bytes | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=f"prompts.txt: {words}"):
        read_prompts(str(path))


def test_the_hash_of_rows_sees_tokens_masks_probabilities_and_order() -> None:
    pairs = [([5, 6], said(8, 9)), ([5], said(6, 8, 9)), ([5, 6], said(8, 7)), ([5, 6], said(8, 9))]
    rows = [rows_of([prompt], [answer])[0] for prompt, answer in pairs]
    assert rows[0].tokens.tolist() == rows[1].tokens.tolist()
    assert rows[3].expected is not None
    rows[3].expected.shares[0, 0] = 0.6
    orders = [rows, rows[::-1], *([row] for row in rows)]
    assert len({examples_sha256(order) for order in orders}) == len(orders)


def test_beginnings_are_the_first_words_of_prompts_as_often_as_prompts_begin_so() -> None:
    listed = prompts("Who wrote  Emma?", "Who wrote Hamlet?", "Who wrote Faust?", "Name a bird.", "Hello!", "Say hi")
    drawn = draw_beginnings(listed, 400, 0)
    assert set(drawn) == {"Who wrote", "Name a"}
    assert drawn.count("Who wrote") == 284  # three of four, by chance
    assert draw_beginnings(listed, 400, 0) == drawn != draw_beginnings(listed, 400, 1)
    assert draw_beginnings(listed[4:], 9, 0) == []


def test_of_what_the_base_wrote_nothing_comes_twice_is_known_or_holds_a_question_that_is_kept_back() -> None:
    known = prompts("What is tea?")
    kept_back = prompts("What is the capital of France?", "What is it?")  # of the second only small words are there
    written = [
        "What is Tea",  # known
        "Which city is the CAPITAL of France today?",  # kept back
        "Which city is the capital of Peru?",
        "which city is  the capital of Peru",  # the one before
        "What is?",  # nothing was added
        "Who was Otto?",
        "What is it like to fly?",
        "Where do birds sleep?",  # beyond the count
    ]
    found = choose_written(written, 3, known, kept_back)
    assert found == ["Which city is the capital of Peru?", "Who was Otto?", "What is it like to fly?"]


def test_the_built_in_prompts_are_many_and_ask_none_of_the_general_knowledge_questions() -> None:
    built_in, kept_back = read_prompts(None), read_records("general-knowledge")
    assert len(built_in) == len({content_words(record.question) | {record.question} for record in built_in}) >= 400
    assert not {record.question_key for record in built_in} & {record.question_key for record in kept_back}
    same = [
        (one.question, other.question)
        for one, other in product(built_in, kept_back)
        if content_words(one.question) == content_words(other.question)
    ]
    assert same == []


def test_no_built_in_prompt_gives_an_answer_of_general_knowledge_away() -> None:
    """A prompt with all content words of a question and of its answer would rehearse what the set measures."""
    told = [
        (prompt.question, row.question)
        for prompt, row in product(read_prompts(None), read_records("general-knowledge"))
        if content_words(row.question) | content_words(row.answers[0]) <= content_words(prompt.question)
    ]
    assert told == []
