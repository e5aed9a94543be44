"""Answers of an adapter that the file no longer holds: a run evaluated half-way, then resumed to its end.

Reported by a review: the half-trained adapter's answers stood for the new one's, in silence.
"""

import pytest

from mlx_lora.report.card import adapter_card
from mlx_lora.report.comparison import comparison_page
from mlx_lora.report.facts import notes
from mlx_lora.report.headline import forgetting_headline, learning_headline
from mlx_lora.report.runs import read_run
from tests.report.run_folders import START, result, step, validation, whole_run, write_run
from tests.report.test_headline import EVENT, GENERAL, KNOWN
from tests.report.test_pages import Reader, page_of

STALE = "data-test was asked at step 3; the adapter here is of step 6."


def read(tmp_path, *results, events=None):
    return read_run(write_run(tmp_path / "one", events, results=results))  # its adapter is of step 6


def test_an_older_adapters_answers_do_not_say_that_it_learned(tmp_path):
    answer = learning_headline(read(tmp_path, result(adapter_step=3)))
    assert (answer.state, answer.title) == ("unknown", "The adapter changed since it was asked")
    assert answer.sentence == STALE
    assert answer.command == f"mlx-lora eval …/{tmp_path.name}/one --base"


@pytest.mark.parametrize("adapter_step", [6, None, "3"])
def test_where_the_step_is_the_same_or_not_known_nothing_is_said(tmp_path, adapter_step):
    run = read(tmp_path, result(adapter_step=adapter_step))
    assert learning_headline(run).title == "It learned"
    assert notes(run) == []


def test_the_note_has_the_command_that_asks_the_same_again(tmp_path):
    asked = result(name="other", source="data/other rows.jsonl", adapter_step=3, max_tokens=24)
    assert notes(read(tmp_path, asked)) == [
        (
            "other was asked at step 3; the adapter here is of step 6.",
            f"mlx-lora eval …/{tmp_path.name}/one --base --data 'data/other rows.jsonl' --max-tokens 24",
        )
    ]


def test_the_adapters_own_answers_decide_and_the_older_ones_are_named(tmp_path):
    own = result(name="a", source="a.jsonl", adapter_step=6)
    older = result(name="b", source="b.jsonl", kind="worse", adapter_step=3)
    answer = learning_headline(read(tmp_path, own, older))
    assert answer.title == "It learned"
    assert answer.sentence == (
        "a: the adapter answers 3 of 5, the base 2 of 5: learned. b was asked at step 3; the adapter here is of step 6."
    )


def test_a_loss_that_never_fell_still_decides(tmp_path):
    events = [START, validation(0, 3.0), step(1), validation(1, 3.0)]
    answer = learning_headline(read(tmp_path, result(adapter_step=3), events=events))
    assert (answer.state, answer.title) == ("unsure", "It taught nothing")
    assert answer.sentence.endswith(STALE)


def test_an_older_adapters_answers_do_not_say_that_it_forgot_nothing(tmp_path):
    asked = result(KNOWN, **GENERAL, kind="no difference", adapter_step=3)
    answer = forgetting_headline(read(tmp_path, asked))
    assert (answer.state, answer.title) == ("unknown", "The adapter changed since it was asked")
    assert answer.sentence == "general-knowledge was asked at step 3; the adapter here is of step 6."
    assert answer.command.endswith("/one --base --data general-knowledge --metric exact_match")
    answer = forgetting_headline(read(tmp_path, asked, events=[*whole_run(), EVENT]))
    assert answer.title == "It forgot"


def test_the_page_says_it_where_the_answers_are(tmp_path):
    page = page_of(tmp_path, results=[result(adapter_step=3)])
    assert f"2026-11-22. Bars show exact match with 95 % intervals. {STALE}" in page.text
    assert "It learned" not in page.text


def test_a_comparison_says_which_step_answered(tmp_path):
    asked = {"a": result(adapter_step=3), "b": result(adapter_step=6)}
    runs = [read_run(write_run(tmp_path / name, results=[one])) for name, one in asked.items()]
    text = Reader(comparison_page(runs)).text
    assert "a, step 3 3 of 5" in text
    assert f"a: {STALE} mlx-lora eval" in text


def test_a_model_card_claims_nothing_of_the_newer_adapter(tmp_path):
    card = adapter_card(read(tmp_path, result(adapter_step=3)), name="anna/one")
    assert "| data-test (5), at step 3 | exact match | 3 of 5, 60 % (" in card.replace("\N{NO-BREAK SPACE}", " ")
    assert f"\n\n{STALE}\n\n" in card
    assert "learned" not in card
