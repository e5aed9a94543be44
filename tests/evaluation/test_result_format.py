"""The file of a result: what is written is read back, and what cannot be read is said."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from mlx_lora.errors import DataError
from mlx_lora.evaluation.result import Evaluation, build_result
from mlx_lora.evaluation.result_format import EvaluationResult, read_result
from tests.evaluation.rows import row, rows

DATA = {"name": "quiz", "source": "quiz.jsonl", "sha256": "0" * 64, "rows": 4, "asked": 4, "kind": "open"}


def evaluation(**changes: Any) -> Evaluation:
    own = [*rows(2, 1, nats=0.5, category="c"), row("", question="question 3?", nats=math.nan, looping=True)]
    base = [*rows(1, 2, category="c"), row("wrong", question="question 3?")]
    facts: dict[str, Any] = {"label": "adapters/a", "data": DATA, "rows": own, "base_rows": base}
    return Evaluation(**{**facts, "metric": "exact_match", "seconds": 2.0, **changes})


def write(folder: Path, content: Any) -> Path:
    path = folder / "quiz.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content, allow_nan=False))
    return path


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    result = build_result(evaluation(), {"seed": None})
    assert read_result(write(tmp_path, result.model_dump(mode="json"))) == result
    assert (result.count, result.exact_match, result.value("contains"), result.accuracy) == (4, 0.5, 0.5, None)
    assert (result.perplexity, result.nats_per_token, result.non_finite) == (None, None, 1)
    assert (result.empty, result.looping, result.stop_rate) == (1, 1, 1.0)
    assert result.base is not None
    assert result.base.perplexity == pytest.approx(math.e)
    assert (result.answer_tokens, result.tokens_per_second, result.questions_per_second) == (3, 1.5, 2.0)
    assert [one.change for one in result.questions] == ["kept right", "fixed", "kept wrong", "kept wrong"]
    group = result.per_category["c"]
    assert (group.count, group.exact_match, group.interval["contains"]) == (3, 2 / 3, group.interval["exact_match"])
    assert group.base is not None
    assert (group.base.count, group.base.exact_match) == (3, 1 / 3)
    assert result.comparison is not None
    assert result.comparison["exact_match"].model_dump() == {
        "p": 1.0,
        "p_by_fact": None,
        "facts_higher": None,
        "facts_lower": None,
        "fixed": 1,
        "broken": 0,
        "kept_right": 1,
        "kept_wrong": 2,
    }
    assert result.comparison["token_f1"].model_dump(exclude_none=True) == {
        "p": 1.0,
        "higher": 1,
        "lower": 0,
        "equal": 3,
    }


def test_the_file_begins_with_what_was_asked_and_a_question_with_itself() -> None:
    content = build_result(evaluation(), {}).model_dump(mode="json")
    assert list(content)[:7] == ["format_version", "label", "data", "metric", "metrics", "count", "exact_match"]
    assert next(iter(content["questions"][0])) == "question"


def test_custom_metrics_are_figures_and_scores_of_their_own() -> None:
    custom = [row("right", question=f"{place}?") for place in range(2)]
    for place, one in enumerate(custom):
        one.scores["polite"] = place / 4  # type: ignore[index]
    result = build_result(evaluation(rows=custom, base_rows=None, metric="polite"), {})
    assert (result.custom, result.value("polite"), result.metrics[-1]) == ({"polite": 0.125}, 0.125, "polite")
    assert result.questions[1].scores["polite"] == 0.25
    assert "polite" not in result.interval
    with pytest.raises(KeyError):
        result.value("accuracy")


def test_a_later_versions_keys_are_read_over(tmp_path: Path) -> None:
    content = build_result(evaluation(), {}).model_dump(mode="json")
    assert isinstance(read_result(write(tmp_path, {**content, "colour": "red"})), EvaluationResult)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not JSON"),
        ([], "format_version is None, this version of mlx-lora reads 2"),
        ({"format_version": 1}, "format_version is 1, this version of mlx-lora reads 2"),
        ({"format_version": 2, "label": "x"}, ": data: Field required"),
    ],
)
def test_a_file_that_is_no_result_is_refused_with_the_reason(content: Any, words: str, tmp_path: Path) -> None:
    path = write(tmp_path, content)
    with pytest.raises(DataError) as error:
        read_result(path)
    assert error.value.message.startswith(f"{path}: ")
    assert words in error.value.message
    with pytest.raises(DataError, match=r"nowhere\.json: No such file"):
        read_result(tmp_path / "nowhere.json")


@pytest.mark.parametrize("gap", ["metric", "metrics", "score of the base", "figure of the base"])
def test_a_result_without_figures_of_its_metric_is_refused(tmp_path: Path, gap: str) -> None:
    # Found by tests/bad_inputs: `mlx-lora report` ended in a KeyError.
    content = build_result(evaluation(), {}).model_dump(mode="json")
    if gap == "metric":
        content["metric"] = "count"
    elif gap == "metrics":
        content["metrics"].append("accuracy")
    elif gap == "score of the base":
        del content["questions"][1]["base"]["scores"]["exact_match"]
    else:
        content["base"]["exact_match"] = None
    with pytest.raises(DataError, match=r"metric (count|accuracy|exact_match) has no figure"):
        read_result(write(tmp_path, content))
