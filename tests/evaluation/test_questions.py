"""Rows to prompts and references, and a model's answers to them."""

import math
from pathlib import Path

import mlx_lora  # noqa: F401  (loads OpenBLAS before MLX)

import mlx.core as mx  # isort: skip
import pytest

from mlx_lora.config import DataSettings
from mlx_lora.dataset.formats import record_from_row
from mlx_lora.dataset.record import Record
from mlx_lora.errors import DataError
from mlx_lora.evaluation.questions import (
    Asking,
    Continuation,
    Question,
    _picked,
    build_questions,
    iter_scored,
)
from mlx_lora.model.generate import generate_answers
from mlx_lora.model.load import LoadedModel, load_base
from tests.tiny import save_tiny_folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_base(str(save_tiny_folder(tmp_path_factory.mktemp("tiny"), "llama_untied")))


def asked(question: str, *answers: str, place: str = "test.jsonl:1") -> Record:
    turns = ({"role": "user", "content": question}, {"role": "assistant", "content": answers[0] if answers else ""})
    return Record(messages=turns, answers=answers, place=place, format="question/answer", category="c", fact="f")


def settings(**values: object) -> DataSettings:
    return DataSettings.model_validate({"train": "eval", **values})


def test_the_prompt_is_that_of_training_and_the_reference_ends_with_the_end_token(base: LoadedModel) -> None:
    tokenizer = base.tokenizer
    [question] = build_questions([asked("Who?", "Ann", "Anna")], tokenizer, settings(system_prompt="Be brief."))
    text = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"
    assert question.prompt == tokenizer.encode(text)
    assert question.reference.before == question.prompt
    assert question.reference.tokens == [*tokenizer.encode("Ann"), tokenizer.eos_id]


def test_only_the_last_answer_of_a_conversation_is_asked(base: LoadedModel) -> None:
    turns = [("user", "One?"), ("assistant", "Yes."), ("user", "Two?"), ("assistant", "No.")]
    record = Record(messages=tuple({"role": role, "content": text} for role, text in turns), answers=("No.",))
    [question] = build_questions([record], base.tokenizer, settings(train_on="all"))
    assert base.tokenizer.decode(question.prompt).endswith("Two?<|im_end|>\n<|im_start|>assistant\n")
    assert "Yes." in base.tokenizer.decode(question.prompt)
    assert question.reference.tokens == [*base.tokenizer.encode("No."), base.tokenizer.eos_id]


def test_the_length_limit_of_training_does_not_apply(base: LoadedModel) -> None:
    [question] = build_questions([asked("w" * 50, "x")], base.tokenizer, settings(max_seq_length=8, truncation="drop"))
    assert len(question.prompt) > 50


def test_rows_that_cannot_be_asked_are_all_named(base: LoadedModel) -> None:
    records = [
        Record(messages=(), text="prose", place="a.jsonl:1"),
        asked("Who?", "Ann", place="a.jsonl:2"),
        asked("Who?", " ", place="a.jsonl:3"),
    ]
    with pytest.raises(DataError) as error:
        build_questions(records, base.tokenizer, settings())
    assert error.value.message == ("a.jsonl:1: a row of plain text asks nothing\na.jsonl:3: no answer to compare with")


def test_answers_are_scored_with_likelihood_and_facts_of_the_row(base: LoadedModel, tmp_path: Path) -> None:
    tokenizer = base.tokenizer
    first = build_questions([asked("Who?", "Ann")], tokenizer, settings())
    [answer] = generate_answers(base.model, tokenizer, [first[0].prompt], max_tokens=5)
    assert answer.text.strip(), "choose a question that the tiny model answers with some text"
    questions = build_questions([asked("Who?", "Ann"), asked("Who?", answer.text)], tokenizer, settings())
    scored = dict(iter_scored(base.model, tokenizer, questions, Asking(max_tokens=5, batch_size=2)))
    assert [scored[place].prediction for place in (0, 1)] == [answer.text.strip()] * 2
    assert [scored[place].scores["exact_match"] for place in (0, 1)] == [False, True]
    assert scored[0].reference_tokens == len(tokenizer.encode("Ann")) + 1
    assert scored[0].reference_nats > scored[0].reference_tokens  # random weights
    assert (scored[0].category, scored[0].fact, scored[0].tokens) == ("c", "f", len(answer.tokens))


def choose(question: str, *choices: str, right: int = 0) -> Record:
    return record_from_row({"question": question, "choices": list(choices), "answer": right}, "test.jsonl:1")


def test_choices_are_scored_as_answers_without_their_end_token(base: LoadedModel) -> None:
    [question] = build_questions([choose("Who?", "Ann", "Bob Ross", right=1)], base.tokenizer, settings())
    assert [one.tokens for one in question.choices] == [base.tokenizer.encode("Ann"), base.tokenizer.encode("Bob Ross")]
    assert all(one.before == question.prompt for one in question.choices)


def test_the_likeliest_choice_is_picked_and_the_likeliest_a_character(base: LoadedModel) -> None:
    names = ("Kurt", "x" * 9, "Ann Ann Ann")
    records = [choose(f"Who is number {number}?", *names, right=2) for number in range(6)]
    questions = build_questions(records, base.tokenizer, settings())
    scored = dict(iter_scored(base.model, base.tokenizer, questions, Asking(max_tokens=5, batch_size=4)))
    for place, question in enumerate(questions):
        one = scored[place]
        plain = [plain_nats(base, choice.before, choice.tokens) for choice in question.choices]
        assert one.choice_nats == pytest.approx(plain, rel=1e-4)
        raw = min(range(3), key=plain.__getitem__)
        by_length = min(range(3), key=lambda choice: plain[choice] / len(records[place].choices[choice]))
        assert one.prediction == records[place].choices[raw]
        assert one.scores == {"accuracy": raw == 2, "accuracy_norm": by_length == 2}
        assert (one.reference_nats, one.reference_tokens) == (one.choice_nats[2], 11)
    # Random weights find four tokens likelier than eleven; a character is another matter.
    assert {one.prediction for one in scored.values()} == {"Kurt"}
    assert any(one.scores["accuracy_norm"] for one in scored.values())


def plain_nats(base: LoadedModel, prompt: list[int], rest: list[int]) -> float:
    logits = base.model(mx.array([[*prompt, *rest]]))[0, len(prompt) - 1 : -1]
    losses = mx.logsumexp(logits, axis=-1) - mx.take_along_axis(logits, mx.array(rest)[:, None], axis=-1)[:, 0]
    return float(losses.sum().item())


def test_a_model_whose_likelihoods_are_no_numbers_picks_nothing() -> None:
    record = choose("Who?", "Ann", "Bob")
    question = Question(record, [5], Continuation([5], [6]), (Continuation([5], [6]), Continuation([5], [7])))
    one = _picked(question, [1.0, math.nan])
    assert (one.prediction, one.scores) == ("", {"accuracy": False, "accuracy_norm": False})
