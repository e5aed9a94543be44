"""Scored answers made by hand, for the tests of this folder."""

from mlx_lora.evaluation.answers import score_answer
from mlx_lora.evaluation.metrics import ScoredAnswer


def row(
    prediction: str = "right",
    *,
    question: str = "?",
    category: str | None = None,
    fact: str | None = None,
    stopped: bool = True,
    nats: float = 2.0,
    tokens: int = 2,
    looping: bool = False,
) -> ScoredAnswer:
    """An answer to a question whose right answer is "right"; its likelihood is that of the right answer."""
    return ScoredAnswer(
        question=question,
        answers=("right",),
        category=category,
        fact=fact,
        place="test.jsonl:1",
        prediction=prediction,
        scores=score_answer(prediction, ["right"]),
        stopped=stopped,
        tokens=len(prediction.split()),
        reference_nats=nats,
        reference_tokens=tokens,
        looping=looping,
    )


def rows(right: int, wrong: int, nats: float = 2.0, **facts: str) -> list[ScoredAnswer]:
    """First the right answers, then the wrong ones."""
    answers = ["right"] * right + ["wrong"] * wrong
    return [row(answer, question=f"question {place}?", nats=nats, **facts) for place, answer in enumerate(answers)]
