"""The file eval/<data set>.json, field by field, and reading it. Knows nothing of models, answers or screens.

Whatever shows or compares results reads them through here; result.py fills them in. Shares and means are 0 to 1.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mlx_lora.errors import DataError

FORMAT_VERSION = 2

DataKind = Literal["open", "choice"]  # answers are written, or one of a row's choices is picked
VerdictKind = Literal["learned", "worse", "mixed", "no difference", "broken", "taught nothing"]
Change = Literal["fixed", "broken", "kept right", "kept wrong"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)  # keys of a later version are read over


class Figures(_Part):
    """What a set of answers scores: of one model on one data set, or on a part of it.

    A metric that the kind of data does not have is null.
    """

    count: int = Field(description="questions")
    exact_match: float | None = Field(None, description="share; open questions")
    contains: float | None = Field(None, description="share; open questions")
    token_f1: float | None = Field(None, description="mean; open questions")
    accuracy: float | None = Field(None, description="share; multiple choice by log-likelihood (lm-eval's acc)")
    accuracy_norm: float | None = Field(None, description="share; the same a character of the choice (acc_norm)")
    custom: dict[str, float] = Field({}, description="mean of each metric from an entry point")
    stop_rate: float | None = Field(None, description="share that ended by itself; open questions")
    perplexity: float | None = Field(None, description="of the canonical answers, a token; null: infinite or NaN")
    nats_per_token: float | None = Field(None, description="its natural logarithm; null likewise")
    non_finite: int = Field(0, description="questions whose canonical answer has no finite likelihood")
    empty: int = Field(0, description="answers with nothing in them")
    looping: int = Field(0, description="answers that repeat themselves until the limit")
    interval: dict[str, tuple[float, float]] = Field({}, description="95 % Wilson interval of each share")

    def value(self, metric: str) -> float:
        """The share or mean of `metric`. Raises: KeyError where there is none."""
        found = self.custom.get(metric) if metric in self.custom else getattr(self, metric, None)
        if found is None:
            raise KeyError(metric)
        return float(found)


class GroupFigures(Figures):
    """The figures of a category or a fact, with the base's beside them."""

    base: Figures | None = None


class DataFacts(_Part):
    """Which questions were asked."""

    name: str = Field(description="the file's stem here")
    source: str = Field(description="as given: a path, a built-in name, a Hugging Face name")
    sha256: str = Field(description="of what the rows say, in order")
    answers_sha256: str | None = Field(
        None, description="of the accepted answers to the questions asked; null: written by an earlier version"
    )
    rows: int
    asked: int = Field(description="fewer than rows with a limit")
    kind: DataKind = "open"
    trained_on: bool = Field(False, description="the adapter was trained on these very rows")
    trained_questions: int | None = Field(
        None, description="of those asked, how many the adapter's training rows ask too; null: its rows are not here"
    )
    held_out: bool = Field(False, description="of the training file, by the run itself")


class _Tested(_Part):
    p: float = Field(description="two-sided, exact: McNemar's test of right or wrong, the sign test of fractions")
    p_by_fact: float | None = Field(
        None, description="two-sided, exact sign test with facts in place of questions; null: each is asked once"
    )
    facts_higher: int | None = Field(None, description="facts that score higher over all their forms")
    facts_lower: int | None = None


class RightOrWrong(_Tested):
    """Base against adapter by a metric that is right or wrong: the four counts add up to the questions."""

    fixed: int = Field(description="wrong before, right now")
    broken: int = Field(description="right before, wrong now")
    kept_right: int
    kept_wrong: int


class UpsAndDowns(_Tested):
    """Base against adapter by a metric that is a fraction: the three counts add up to the questions."""

    higher: int
    lower: int
    equal: int


class Verdict(_Part):
    """Whether it learned, in a word and in a sentence."""

    kind: VerdictKind
    sentence: str
    gained: list[str] = Field([], description="metrics with a gain that chance does not explain")
    lost: list[str] = Field([], description="metrics with such a loss")
    signs: list[str] = Field([], description="as signs of the result")


class Asked(_Part):
    """A question as the data has it."""

    question: str
    answers: list[str] = Field(description="accepted, the canonical one first")
    choices: list[str] | None = Field(None, description="multiple choice: the texts to pick from")
    category: str | None = None
    fact: str | None = None
    place: str = Field(description="data/test.jsonl:17")


class Said(_Part):
    """What a model answered, and how likely it finds the right answer."""

    answer: str = Field(description="its words; multiple choice: the likeliest choice")
    scores: dict[str, bool | float] = Field(description="of every metric: right or wrong, or 0 to 1")
    stopped: bool | None = Field(None, description="ended by itself; null for multiple choice")
    tokens: int = Field(0, description="of the answer")
    looping: bool = Field(False, description="repeats itself until the limit")
    reference_nats: float | None = Field(None, description="-ln p of the canonical answer; null: not finite")
    reference_tokens: int
    choice_nats: list[float | None] | None = Field(None, description="multiple choice: -ln p of each text")


class QuestionRow(Said, Asked):
    """One question with what the subject answered, and the base."""

    change: Change | None = Field(None, description="by the leading metric; null where the base was not asked")
    base: Said | None = None


class _Head(_Part):
    format_version: int = FORMAT_VERSION
    label: str = Field(description="the adapter's folder, or base")
    data: DataFacts
    metric: str = Field(description="the leading one")
    metrics: list[str] = Field(description="all that this file has, in the order to show them")


class EvaluationResult(Figures, _Head):
    """One model's answers to one data set, with the base's beside them where it was asked: the whole file."""

    base: Figures | None = None
    verdict: Verdict | None = None
    signs: list[str] = Field([], description="plain remarks of damage in the subject's own answers")
    drift: float | None = Field(
        None,
        description="mean KL(base‖subject), nats a token of the base's own answers; null: choices, no base, not finite",
    )
    comparison: dict[str, RightOrWrong | UpsAndDowns] | None = Field(None, description="of every metric")
    per_category: dict[str, GroupFigures] = {}
    per_fact: dict[str, GroupFigures] = {}
    questions: list[QuestionRow]
    settings: dict[str, Any] = Field(description="base, sampling, seed, limits, prompts: how it was asked")
    seconds: float = Field(description="to answer and score the subject's questions")
    answer_tokens: int
    tokens_per_second: float | None
    questions_per_second: float
    versions: dict[str, str]
    machine: dict[str, str]
    timestamp: str = Field(description="ISO 8601, UTC")


def hash_answers(accepted: Iterable[Sequence[str]]) -> str:
    """SHA-256 of the accepted answers to each question, in order: what right and wrong are measured by."""
    return hashlib.sha256(json.dumps([list(each) for each in accepted]).encode()).hexdigest()


def is_result(path: Path) -> bool:
    """Whether a file is an evaluation's, of whatever version."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and {"format_version", "label", "questions"} <= content.keys()


def read_result(path: Path) -> EvaluationResult:
    """The result in a file. Raises: DataError where it cannot be read or is of another version."""
    remedy = "run mlx-lora eval again"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}", "check the path and its permissions") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON", remedy) from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise DataError(f"{path}: format_version is {version}, this version of mlx-lora reads {FORMAT_VERSION}", remedy)
    try:
        result = EvaluationResult.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise DataError(f"{path}: {place}: {first['msg']}", remedy) from error
    for name in dict.fromkeys((result.metric, *result.metrics)):
        if not _has_metric(result, name):
            raise DataError(f"{path}: metric {name} has no figure, or a question no score by it", remedy)
    return result


def _has_metric(result: EvaluationResult, name: str) -> bool:
    """Whether subject and base, and all that they said, have been scored by a metric."""
    said = [one for question in result.questions for one in (question, question.base) if one is not None]
    figures = [one for one in (result, result.base) if one is not None]
    return all(name in one.scores for one in said) and all(
        name in one.custom or isinstance(getattr(one, name, None), float) for one in figures
    )
