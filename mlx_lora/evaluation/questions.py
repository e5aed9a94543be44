"""Records to questions in tokens, and questions to scored answers of a model. Knows nothing of adapters or files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlx_lora.config import DataSettings
from mlx_lora.dataset.examples import build_example, record_prompt
from mlx_lora.dataset.record import Record
from mlx_lora.dataset.records import joined_faults
from mlx_lora.dataset.rendering import ChatTokenizer
from mlx_lora.errors import DataError
from mlx_lora.evaluation.answers import score_answer
from mlx_lora.evaluation.metrics import ScoredAnswer

if TYPE_CHECKING:
    import mlx.nn as nn

_NO_LIMIT = 2**31


@dataclass(frozen=True)
class Question:
    """One row to ask: its prompt as rendered in training, and the canonical answer as it would be trained."""

    record: Record
    prompt: list[int]
    reference_prompt: list[int]  # what stands before the canonical answer; differs where the template rewrites answers
    reference: list[int]  # the canonical answer with its end token


def build_questions(records: Sequence[Record], tokenizer: ChatTokenizer, settings: DataSettings) -> list[Question]:
    """The questions of all records, in order; the settings' length limit does not apply.

    Raises: DataError with up to ten faults: rows of plain text, rows without an answer, what a template refuses.
    """
    settings = settings.model_copy(
        update={"train_on": "completion", "truncation": "error", "max_seq_length": _NO_LIMIT}
    )
    questions: list[Question] = []
    faults: list[DataError] = []
    for record in records:
        try:
            questions.append(_question(record, tokenizer, settings))
        except DataError as fault:
            faults.append(fault)
    if faults:
        raise DataError(joined_faults([fault.message for fault in faults]), faults[0].hint)
    return questions


def iter_scored(
    model: "nn.Module",
    tokenizer: Any,
    questions: Sequence[Question],
    *,
    max_tokens: int,
    batch_size: int,
    numbers: bool = False,
) -> Iterator[tuple[int, ScoredAnswer]]:
    """Yield (place among `questions`, scored answer) as the model finishes them."""
    from mlx_lora.model.generate import answer_nats, iter_answers

    nats = answer_nats(
        model,
        [question.reference_prompt for question in questions],
        [question.reference for question in questions],
        batch_size=batch_size,
    )
    prompts = [question.prompt for question in questions]
    for place, answer in iter_answers(model, tokenizer, prompts, max_tokens=max_tokens, batch_size=batch_size):
        record = questions[place].record
        prediction = answer.text.strip()
        yield (
            place,
            ScoredAnswer(
                question=record.question,
                answers=record.answers,
                category=record.category,
                fact=record.fact,
                place=record.place,
                prediction=prediction,
                score=score_answer(prediction, record.answers, numbers=numbers),
                stopped=answer.stopped,
                tokens=len(answer.tokens),
                reference_nats=nats[place][0],
                reference_tokens=nats[place][1],
            ),
        )


def _question(record: Record, tokenizer: ChatTokenizer, settings: DataSettings) -> Question:
    if record.text is not None:
        raise DataError(f"{record.place}: a row of plain text asks nothing", "eval needs rows with question and answer")
    if not any(answer.strip() for answer in record.answers):
        raise DataError(f"{record.place}: no answer to compare with", "give the row an answer in words")
    prompt = record_prompt(record, tokenizer, settings)
    example = build_example(record, tokenizer, settings)
    if example is None:
        raise AssertionError("truncation=error drops nothing")
    tokens, trained = example.tokens.tolist(), example.loss_mask.tolist()
    start = len(tokens)
    while start > 1 and trained[start - 1]:  # the last answer is the run of trained tokens at the end
        start -= 1
    return Question(record, prompt, tokens[:start], tokens[start:])
