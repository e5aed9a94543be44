"""What a terminal gets of an evaluation."""

import io

from rich.console import Console

from mlx_lora.evaluation.result import Evaluation, build_result
from mlx_lora.evaluation.tables import print_evaluations
from tests.evaluation.rows import row


def test_no_answer_and_no_question_can_steer_the_terminal() -> None:
    facts = {"name": "quiz", "source": "quiz.jsonl", "asked": 2, "rows": 2}
    steering = "\x1b]0;title\x07\x9b2J"
    shown = io.StringIO()
    rows = [row(f"wrong{steering}", question=f"Who?{steering}", fact=f"fact{steering}"), row(fact=f"fact{steering}")]
    evaluation = Evaluation("adapters/one", facts, rows, None, "exact_match", 1.0)
    print_evaluations(Console(file=shown, force_terminal=True, color_system=None, width=200), [evaluation])
    printed = shown.getvalue()
    assert "Who?␛]0;title␇\ufffd2J" in printed
    assert "wrong␛]0;title␇\ufffd2J  ≠  right" in printed
    assert "fact␛]0;title␇\ufffd2J 1/2" in printed
    assert not {"\x1b", "\x07", "\x9b"} & set(printed)


def test_facts_in_several_forms_get_a_test_of_their_own() -> None:
    facts = {"name": "quiz", "source": "quiz.jsonl", "sha256": "0" * 64, "asked": 4, "rows": 4}
    asked = [("a 1?", "a"), ("a 2?", "a"), ("b 1?", "b"), ("b 2?", "b")]
    base = [row("wrong", question=question, fact=fact) for question, fact in asked]
    rows = [row("right", question=question, fact=fact) for question, fact in asked]
    shown = io.StringIO()
    evaluation = Evaluation("adapters/one", facts, rows, base, "exact_match", 1.0)
    print_evaluations(Console(file=shown, width=200), [evaluation])
    (line,) = [line for line in shown.getvalue().splitlines() if line.startswith("facts better / worse")]
    assert line.split() == ["facts", "better", "/", "worse,", "p", "2", "/", "0,", "0.5000"]
    counts = build_result(evaluation, {}).comparison["exact_match"]
    assert (counts.p, counts.p_by_fact, counts.facts_higher, counts.facts_lower) == (0.125, 0.5, 2, 0)
