"""Records to questions in tokens, and questions to scored answers of a model. Knows nothing of adapters or files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mlx_lora.config import DataSettings
from mlx_lora.dataset.examples import build_example, record_prompt
from mlx_lora.dataset.record import Record
from mlx_lora.dataset.records import joined_faults
from mlx_lora.dataset.rendering import ChatTokenizer
from mlx_lora.errors import DataError
from mlx_lora.evaluation.answers import score_answer
from mlx_lora.evaluation.damage import is_looping
from mlx_lora.evaluation.metrics import ScoredAnswer
from mlx_lora.evaluation.plugins import CustomMetric

if TYPE_CHECKING:
    import mlx.nn as nn

_NO_LIMIT = 2**31


@dataclass(frozen=True)
class Continuation:
    """An answer as it would be trained, and what stands before it there; that differs from the prompt where the
    template rewrites answers."""

    before: list[int]
    tokens: list[int]


@dataclass(frozen=True)
class Question:
    """One row to ask: its prompt as rendered in training, the canonical answer with its end token, and the choices
    without one."""

    record: Record
    prompt: list[int]
    reference: Continuation
    choices: tuple[Continuation, ...] = ()


@dataclass(frozen=True)
class Asking:
    """How questions are asked and scored. Temperature 0 is greedy, whatever the seed."""

    max_tokens: int
    batch_size: int
    temperature: float = 0.0
    seed: int = 0
    numbers: bool = False
    custom: tuple[CustomMetric, ...] = ()


def require_askable(records: Sequence[Record]) -> None:
    """Refuse rows of text, rows without an answer, keys that eval cannot take. Raises: DataError with up to ten."""
    _raise_all([fault for record in records for fault in _faults(record)])


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
    _raise_all(faults)
    return questions


def _raise_all(faults: Sequence[DataError]) -> None:
    if faults:
        raise DataError(joined_faults([fault.message for fault in faults]), faults[0].hint)


def _faults(record: Record) -> list[DataError]:
    """What keeps a row from being asked, whatever the tokenizer."""
    if record.text is not None:
        remedy = "eval needs rows with question and answer"
        return [DataError(f"{record.place}: a row of plain text asks nothing", remedy)]
    if not any(answer.strip() for answer in record.answers):
        return [DataError(f"{record.place}: no answer to compare with", "give the row an answer in words")]
    return [DataError(f"{record.place}: {fact}", hint) for fact, hint in record.unaskable.values()]


def iter_scored(
    model: "nn.Module", tokenizer: Any, questions: Sequence[Question], asking: Asking, likeliest: int = 0
) -> Iterator[tuple[int, ScoredAnswer]]:
    """Yield (place among `questions`, scored answer) as the model finishes them: all open, or all with choices.

    likeliest: how many tokens and probabilities to keep at each place of an open answer, in its `written`.
    Raises: DataError where a custom metric fails.
    """
    if questions and questions[0].choices:
        return _iter_picked(model, questions, asking)
    return _iter_written(model, tokenizer, questions, asking, likeliest)


def _iter_written(
    model: "nn.Module", tokenizer: Any, questions: Sequence[Question], asking: Asking, likeliest: int
) -> Iterator[tuple[int, ScoredAnswer]]:
    from mlx_lora.model.generate import answer_nats, iter_answers

    references = [question.reference.tokens for question in questions]
    # Templates that rewrite answers put something else before them than a prompt has.
    together = all(question.reference.before == question.prompt for question in questions)
    apart = [] if together else [question.reference.before for question in questions]
    nats = answer_nats(model, apart, references, batch_size=asking.batch_size) if apart else []
    prompts = [question.prompt for question in questions]
    for place, answer in iter_answers(
        model,
        tokenizer,
        prompts,
        max_tokens=asking.max_tokens,
        batch_size=asking.batch_size,
        temperature=asking.temperature,
        seed=asking.seed,
        references=references if together else None,
        likeliest=likeliest,
    ):
        found = nats[place][0] if answer.reference_nats is None else answer.reference_nats
        record = questions[place].record
        prediction = answer.text.strip()
        scores = score_answer(prediction, record.answers, numbers=asking.numbers)
        scores |= {one.name: one.score(prediction, record.answers, record.place) for one in asking.custom}
        yield (
            place,
            ScoredAnswer(
                question=record.question,
                answers=record.answers,
                category=record.category,
                fact=record.fact,
                place=record.place,
                prediction=prediction,
                scores=scores,
                stopped=answer.stopped,
                tokens=len(answer.tokens),
                reference_nats=found,
                reference_tokens=len(references[place]),
                looping=not answer.stopped and is_looping(answer.tokens),
                written=answer if likeliest else None,
            ),
        )


def _iter_picked(
    model: "nn.Module", questions: Sequence[Question], asking: Asking
) -> Iterator[tuple[int, ScoredAnswer]]:
    from mlx_lora.model.generate import iter_nats

    flat = [(place, number) for place, one in enumerate(questions) for number in range(len(one.choices))]
    choices = [questions[place].choices[number] for place, number in flat]
    found: list[dict[int, float]] = [{} for _ in questions]
    for index, (nats, _) in iter_nats(
        model,
        [choice.before for choice in choices],
        [choice.tokens for choice in choices],
        batch_size=asking.batch_size,
    ):
        place, number = flat[index]
        found[place][number] = nats
        if len(found[place]) == len(questions[place].choices):
            yield place, _picked(questions[place], [found[place][number] for number in sorted(found[place])])


def _picked(question: Question, nats: Sequence[float]) -> ScoredAnswer:
    """The row with its likeliest choice.

    Source: lm-evaluation-harness, lm_eval/api/task.py: acc takes the greatest log-likelihood, acc_norm the greatest
    one a character of the choice; of equal ones the first.
    """
    record = question.record
    right = record.choices.index(record.answers[0])
    likeliest = _least(nats)
    by_length = _least([one / len(choice) for one, choice in zip(nats, record.choices, strict=True)])
    return ScoredAnswer(
        question=record.question,
        answers=record.answers,
        category=record.category,
        fact=record.fact,
        place=record.place,
        prediction=record.choices[likeliest] if likeliest is not None else "",
        scores={"accuracy": likeliest == right, "accuracy_norm": by_length == right},
        stopped=True,
        tokens=0,
        reference_nats=nats[right],
        reference_tokens=len(question.choices[right].tokens),
        choices=record.choices,
        choice_nats=tuple(nats),
    )


def _least(nats: Sequence[float]) -> int | None:
    """The place of the least; None where one is NaN, for then the model picks nothing."""
    if any(one != one for one in nats):
        return None
    return min(range(len(nats)), key=nats.__getitem__)


def _question(record: Record, tokenizer: ChatTokenizer, settings: DataSettings) -> Question:
    _raise_all(_faults(record))
    prompt = record_prompt(record, tokenizer, settings)
    choices = tuple(_choice(record, choice, tokenizer, settings) for choice in record.choices)
    return Question(record, prompt, _continuation(record, tokenizer, settings), choices)


def _choice(record: Record, choice: str, tokenizer: ChatTokenizer, settings: DataSettings) -> Continuation:
    """The choice as the last answer, without its end token: that one answer could go on is no point against it."""
    messages = (*record.messages[:-1], {**record.messages[-1], "content": choice})
    said = _continuation(replace(record, messages=messages), tokenizer, settings)
    count = len(said.tokens)
    while count > 1 and said.tokens[count - 1] in tokenizer.eos_ids:
        count -= 1
    return Continuation(said.before, said.tokens[:count])


def _continuation(record: Record, tokenizer: ChatTokenizer, settings: DataSettings) -> Continuation:
    example = build_example(record, tokenizer, settings)
    if example is None:
        raise AssertionError("truncation=error drops nothing")
    tokens, trained = example.tokens.tolist(), example.loss_mask.tolist()
    start = len(tokens)
    while start > 1 and trained[start - 1]:  # the last answer is the run of trained tokens at the end
        start -= 1
    return Continuation(tokens[:start], tokens[start:])
