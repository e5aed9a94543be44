"""How questions were asked: in words, as a command, and when two results stand side by side."""

import inspect

from mlx_lora.commands.evaluate import run_evaluate
from mlx_lora.report.asking import eval_command, manner
from mlx_lora.report.pages import introduction
from mlx_lora.report.runs import read_run
from tests.report.run_folders import SETTINGS, result, write_run

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


def test_a_command_of_a_result_from_elsewhere_runs_nothing_else(tmp_path):
    run = read_run(write_run(tmp_path / "one"))
    assert eval_command(run, result(source="x; rm y")).endswith(" --data 'x; rm y'")


def test_without_test_rows_the_validation_rows_are_the_runs_own(tmp_path):
    settings = SETTINGS.replace("  test: data/test.jsonl\n", "")
    run = read_run(write_run(tmp_path / "one", settings=settings))
    assert eval_command(run, result(source="data/valid.jsonl")) == f"mlx-lora eval {run.place} --base"


def test_the_longest_answer_that_is_not_named_is_that_of_eval():
    assert inspect.signature(run_evaluate).parameters["max_tokens"].default == 64
