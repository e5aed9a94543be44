"""How questions were asked: in words, as a command, and when two results stand side by side."""

import inspect

import pytest

from mlx_lora.commands.evaluate import run_evaluate
from mlx_lora.evaluation.result_format import hash_answers
from mlx_lora.report.asking import differences, eval_command, manner
from mlx_lora.report.comparison import comparison_page
from mlx_lora.report.pages import introduction
from mlx_lora.report.results import same_questions
from mlx_lora.report.runs import read_run
from tests.report.run_folders import SETTINGS, result, scored, write_run
from tests.report.test_pages import Reader

DRAWN = {"sampling": "drawn", "temperature": 0.7, "seed": 3, "max_tokens": 24, "normalize_numbers": True}


def as_choices(one, metric="accuracy"):
    data = one.data.model_copy(update={"kind": "choice"})
    return one.model_copy(update={"data": data, "metric": metric, "metrics": [metric]})


def test_a_page_says_how_answers_were_drawn_how_long_and_compared_how():
    """Temperature, seed and --numbers stood in the file only."""
    assert introduction(result()) == (
        "5 questions, from data/test.jsonl; answers greedy (temperature 0), at most 64 tokens each; 2026-11-22. "
        "Bars show exact match with 95 % intervals."
    )
    assert introduction(result(rows=70, normalize_numbers=False)).startswith(
        "5 questions of 70, evenly spread, from data/test.jsonl; answers greedy (temperature 0), at most 64 tokens "
        "each, without --numbers; 2026-11-22. "
    )
    assert introduction(result(**DRAWN)).startswith(
        "5 questions, from data/test.jsonl; answers drawn at temperature 0.7, seed 3, at most 24 tokens each, with "
        "--numbers (number words, digits and dates count as equal); 2026-11-22. "
    )
    assert manner(as_choices(result(**DRAWN))) == {"answers": "the likeliest choice counts"}


def test_the_command_asks_the_same_questions_in_the_same_way(tmp_path):
    run = read_run(write_run(tmp_path / "one"))
    begin = f"mlx-lora eval {run.place} --base"
    assert eval_command(run) == begin
    assert eval_command(run, result()) == begin
    assert eval_command(run, result(rows=70)) == f"{begin} --limit 5"
    asked = result(name="general-knowledge", source="general-knowledge", **DRAWN)
    assert eval_command(run, asked) == (
        f"{begin} --data general-knowledge --metric exact_match --max-tokens 24 --temperature 0.7 --seed 3 --numbers"
    )
    contains = asked.model_copy(update={"metric": "contains", "settings": {}})
    assert eval_command(run, contains) == f"{begin} --data general-knowledge"
    choices = as_choices(result(source="c.jsonl", **DRAWN))
    assert eval_command(run, choices) == f"{begin} --data c.jsonl"
    assert eval_command(run, as_choices(result(source="c.jsonl"), "accuracy_norm")).endswith(" --metric accuracy_norm")


def test_what_a_run_held_out_is_asked_again_without_a_name(tmp_path):
    run = read_run(write_run(tmp_path / "one"))
    asked = result(source="data/train.jsonl")
    held_out = asked.model_copy(update={"data": asked.data.model_copy(update={"held_out": True})})
    assert eval_command(run, held_out) == f"mlx-lora eval {run.place} --base"
    assert introduction(held_out).startswith("5 questions, held out of data/train.jsonl; ")


def test_a_command_of_a_result_from_elsewhere_runs_nothing_else(tmp_path):
    run = read_run(write_run(tmp_path / "one"))
    assert eval_command(run, result(source="x; rm y")).endswith(" --data 'x; rm y'")


def test_without_test_rows_the_validation_rows_are_the_runs_own(tmp_path):
    settings = SETTINGS.replace("  test: data/test.jsonl\n", "")
    run = read_run(write_run(tmp_path / "one", settings=settings))
    assert eval_command(run, result(source="data/valid.jsonl")) == f"mlx-lora eval {run.place} --base"


def test_the_longest_answer_that_is_not_named_is_that_of_eval():
    assert inspect.signature(run_evaluate).parameters["max_tokens"].default == 64


def test_bars_without_intervals_claim_none():
    asked = scored(result(), "token_f1", [(0.0, 0.5)] * 5, leads=True)
    assert introduction(asked).endswith("; 2026-11-22. Bars show token F1.")


@pytest.mark.parametrize(
    "other",
    [
        {"normalize_numbers": True},
        {"max_tokens": 24},
        {"sampling": "drawn", "temperature": 0.7, "seed": 0},
    ],
)
def test_what_was_asked_otherwise_does_not_stand_side_by_side(other):
    """Runs asked with --numbers and without, or with other lengths, were compared as if asked alike."""
    plain = {"normalize_numbers": False, "temperature": 0.0, "seed": None}
    assert same_questions(result(**plain)) != same_questions(result(**{**plain, **other}))
    assert same_questions(result(**plain)) == same_questions(result()) == same_questions(result(**plain, batch_size=8))
    choices = as_choices(result(**{**plain, **other}))
    assert same_questions(choices) == same_questions(as_choices(result(**plain))), "nothing is written there"


def test_other_accepted_answers_do_not_stand_side_by_side():
    """Found by a review in session 15: a gain by a variant more among the accepted was told as the adapter's."""
    more = [{"answers": ["answer 0", "variant 0", "no idea 0"]}]
    one, two = result(), result(questions=more)
    assert same_questions(one) != same_questions(two)
    assert differences(one, two) == "other accepted answers"
    told = one.data.model_copy(update={"answers_sha256": hash_answers(each.answers for each in one.questions)})
    pushed = one.model_copy(update={"data": told, "questions": []})
    assert same_questions(pushed) == same_questions(one)
    choices = as_choices(one)
    assert same_questions(choices) == same_questions(as_choices(two)), "the right choice is in the hash of the rows"


def test_a_custom_metric_of_another_function_does_not_stand_side_by_side():
    pairs = [(0.0, 1.0)] * 5
    one, two = (
        scored(result(custom_metrics={"token_f1": target}), "token_f1", pairs, leads=True) for target in ("a:f", "b:f")
    )
    assert same_questions(one) != same_questions(two)
    assert differences(one, two) == "another function for token F1"


def test_seeds_count_where_answers_are_drawn():
    one, two = (result(sampling="drawn", temperature=0.7, seed=seed) for seed in (1, 2))
    assert same_questions(one) != same_questions(two)


def test_differences_are_named_in_words():
    one, two = result(rows=70, **DRAWN), result(["fixed"] * 7, normalize_numbers=False)
    assert differences(one, two) == (
        "5 questions of 70 instead of 7 questions, answers drawn at temperature 0.7, seed 3 instead of answers greedy "
        "(temperature 0), at most 24 tokens each instead of at most 64 tokens each, with --numbers (number words, "
        "digits and dates count as equal) instead of without --numbers"
    )
    assert differences(result(), result(sha256="e" * 64)) == "other rows of that name"


def compared(tmp_path, first, second, **values):
    one = write_run(tmp_path / "one", results=[first])
    two = write_run(tmp_path / "two", results=[second] if second else [], **values)
    return Reader(comparison_page([read_run(one), read_run(two)])).text


def test_the_command_for_a_run_that_was_not_asked_names_the_questions(tmp_path):
    """Without --data it asked the run's own test rows."""
    asked = result(name="general-knowledge", source="general-knowledge")
    assert (
        f"two was not asked general-knowledge. mlx-lora eval …/{tmp_path.name}/two --base "
        "--data general-knowledge --metric exact_match" in compared(tmp_path, asked, None)
    )


def test_a_run_that_was_asked_otherwise_was_not_left_unasked(tmp_path):
    text = compared(tmp_path, result(), result(["fixed", "broken"], rows=5))
    assert "was not asked" not in text
    assert (
        "two was asked data-test otherwise than one: 2 questions of 5 instead of 5 questions. "
        f"mlx-lora eval …/{tmp_path.name}/two --base" in text
    )
    assert text.count("otherwise than") == 1


def test_bases_that_answered_otherwise_are_told_apart(tmp_path):
    """The first run's base stood for all."""
    told = result(questions=[{"base": {"answer": "told", "scores": {"exact_match": True}, "reference_tokens": 3}}])
    text = compared(tmp_path, result(), told)
    assert "question right answer one two base of one base of two state" in text
    assert "base of one wrong: base 0 base of two right: told right" in text
    assert "question right answer one two base state" in compared(tmp_path, result(), result())


def test_bars_tell_bases_apart_by_their_figures(tmp_path):
    changes = ["kept right", "fixed", "kept right", "broken", "kept wrong"]
    text = compared(tmp_path, result(), result(changes)).replace("\N{NO-BREAK SPACE}", " ")
    assert "base of one 2 of 5, 40 % (12–77) base of two 3 of 5, 60 % (23–88) one 3 of 5" in text


def test_a_run_without_its_questions_as_they_are_published_stands_beside_others(tmp_path):
    """`push` sends no questions: the page of a pulled adapter and one's own ended in a ValueError."""
    published = result().model_copy(update={"questions": []})
    text = compared(tmp_path, result(), published)
    assert "base 2 of 5" in text.replace("\N{NO-BREAK SPACE}", " ")
    assert "Runs differ" not in text
