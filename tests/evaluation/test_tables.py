"""What a terminal gets of an evaluation."""

import io

from rich.console import Console

from mlx_lora.evaluation.result import Evaluation
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
