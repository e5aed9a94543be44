"""Metrics from outside: found by entry point or by name, and every fault of theirs is named."""

from pathlib import Path

import pytest

from mlx_lora.errors import ConfigError, DataError
from mlx_lora.evaluation.plugins import CustomMetric, load_metrics

METRIC = """
def first_letter(answer, accepted):
    return float(answer[:1] == accepted[0][:1])

def boom(answer, accepted):
    raise KeyError("no such thing")

def percent(answer, accepted):
    return 97.0

def text(answer, accepted):
    return "1"

def nothing(answer, accepted):
    return None

def endless(answer, accepted):
    return 10 ** 400

limit = 3
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package in site-packages, as far as Python can tell, that offers two metrics."""
    (tmp_path / "letters_metric.py").write_text(METRIC)
    (tmp_path / "broken_metric.py").write_text("raise RuntimeError('no licence')\n")
    facts = tmp_path / "letters-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: letters\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(
        "[mlx_lora.metrics]\nfirst_letter = letters_metric:first_letter\nlicensed = broken_metric:score\n"
        "limit = letters_metric:limit\nmissing = letters_metric:nowhere\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_an_entry_point_is_found_by_its_name(installed: Path) -> None:
    [metric] = load_metrics(["contains", "first_letter", "first_letter"])
    assert (metric.name, metric.target) == ("first_letter", "letters_metric:first_letter")
    assert metric.score("Boston", ["Bruins", "Boston Bruins"], "a.jsonl:1") == 1.0
    assert metric.score("Toronto", ["Bruins"], "a.jsonl:1") == 0.0


def test_a_function_of_the_current_folder_is_found_by_module_and_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_scores.py").write_text("def half(answer, accepted):\n    return 0.5\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [entry for entry in __import__("sys").path if entry])
    [metric] = load_metrics(["my_scores:half"])
    assert metric.score("any", ["thing"], "a.jsonl:1") == 0.5


def test_true_and_false_are_one_and_zero() -> None:
    metric = CustomMetric("same", "x:same", lambda answer, accepted: answer in accepted)
    assert metric.score("a", ["a"], "") is not True
    assert (metric.score("a", ["a"], ""), metric.score("b", ["a"], "")) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("name", "words", "hint"),
    [
        ("first_leter", "--metric first_leter: no such metric", "did you mean first_letter?"),
        ("bleu", "--metric bleu: no such metric", "there are exact_match, contains, "),
        ("licensed", "broken_metric:score cannot be loaded: RuntimeError: no licence", "mend or install"),
        ("missing", "letters_metric:nowhere cannot be loaded: AttributeError", "mend or install"),
        ("nowhere.at_all:f", "nowhere.at_all:f cannot be loaded: ModuleNotFoundError", "mend or install"),
        ("limit", "letters_metric:limit is int, no function", "a metric is a function"),
    ],
)
def test_a_plug_in_that_cannot_be_loaded_is_named_with_the_reason(
    name: str, words: str, hint: str, installed: Path
) -> None:
    with pytest.raises(ConfigError) as error:
        load_metrics([name])
    assert words in error.value.message
    assert hint in (error.value.hint or "")


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("boom", "failed on the answer 'Oslo' to a.jsonl:7: KeyError: 'no such thing'"),
        ("percent", "returned 97.0 for the answer 'Oslo' to a.jsonl:7"),
        ("text", "returned '1' for"),
        ("nothing", "returned None for"),
        ("endless", "returned 1000000"),
    ],
)
def test_a_plug_in_that_fails_is_named_with_the_row(function: str, words: str, installed: Path) -> None:
    [metric] = load_metrics([f"letters_metric:{function}"])
    with pytest.raises(DataError) as error:
        metric.score("Oslo", ["Bergen"], "a.jsonl:7")
    assert f"metric letters_metric:{function} (letters_metric:{function}) {words}" in error.value.message


def test_a_name_that_two_packages_offer_is_refused(installed: Path) -> None:
    other = installed / "rival-1.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: rival\nVersion: 1.0\n")
    (other / "entry_points.txt").write_text("[mlx_lora.metrics]\nfirst_letter = rival:score\n")
    with pytest.raises(ConfigError, match="several packages offer it: letters_metric:first_letter, rival:score"):
        load_metrics(["first_letter"])
