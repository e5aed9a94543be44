"""What a page shows of answers: which metric's changes, and the facts behind the questions."""

import pytest

from mlx_lora.report.answers import single_questions
from mlx_lora.report.results import change, changes, shown_metric
from tests.report.run_folders import result, scored
from tests.report.test_pages import page_of

SILENT = ["kept wrong"] * 5
LOST = [(True, False)] * 3 + [(True, True)] + [(False, False)]


def lost_by_contains(**verdict):
    return scored(result(SILENT, kind="worse"), "contains", LOST, lost=["contains"], **verdict)


def test_changes_are_shown_by_the_metric_of_the_loss_where_the_leading_one_is_silent(tmp_path):
    """The page said "broken 0" under a verdict of contains, by which 3 of 5 were lost."""
    asked = lost_by_contains()
    assert shown_metric(asked) == "contains"
    assert [change(question, "contains") for question in asked.questions] == [
        *["broken"] * 3,
        "kept right",
        "kept wrong",
    ]
    page = page_of(tmp_path, results=[asked])
    assert "All 5 Fixed 0 Broken 3 Wrong 4 Right 1" in page.text
    tags = [row["data-tags"] for row in page.named("tr") if "data-tags" in row]
    assert tags == ["wrong broken"] * 3 + ["right", "wrong"]
    assert "What changed, question by question exact match" in page.text
    assert "base wrong 0 fixed 5 kept wrong base right 0 kept right 0 broken" in page.text
    assert "What changed, question by question contains" in page.text
    assert "base wrong 0 fixed 1 kept wrong base right 1 kept right 3 broken" in page.text
    assert "Right, wrong, fixed and broken are by contains here, which shows the loss that exact match does not." in (
        page.text
    )


def test_a_gain_that_the_leading_metric_does_not_show_is_shown_too(tmp_path):
    gained = [(after, before) for before, after in LOST]
    asked = scored(result(SILENT), "contains", gained, gained=["contains"])
    page = page_of(tmp_path, results=[asked])
    assert "All 5 Fixed 3 Broken 0 Wrong 1 Right 4" in page.text
    assert "are by contains here, which shows the gain that exact match does not." in page.text


@pytest.mark.parametrize(
    ("verdict", "shown"),
    [
        ({"lost": ["exact_match", "contains"]}, "exact_match"),
        ({"gained": ["exact_match"], "lost": ["contains"]}, "contains"),
        ({"gained": ["exact_match"]}, "exact_match"),
        ({"lost": ["of a later version"]}, "exact_match"),
        ({}, "exact_match"),
    ],
)
def test_the_leading_metric_is_shown_unless_it_hides_a_loss(verdict, shown):
    assert shown_metric(scored(result(SILENT), "contains", LOST, **verdict)) == shown


def test_fractions_are_counted_as_higher_and_lower(tmp_path):
    """A p of ups and downs stood under a matrix of 0 fixed and 0 broken."""
    pairs = [(0.2, 0.9), (0.0, 0.4), (0.5, 0.1), (0.3, 0.3), (0.6, 1.0)]
    asked = scored(result(SILENT), "token_f1", pairs, leads=True)
    assert changes(asked, "token_f1") == {"higher": 3, "lower": 1, "equal": 1}
    page = page_of(tmp_path, results=[asked])
    assert "What changed, question by question token F1" in page.text
    assert "higher than the base 3 lower 1 equal 1 Chance alone" in page.text
    assert "kept wrong" not in page.text
    assert "All 5 Higher 3 Lower 1 Below full score 4 Full score 1" in page.text
    states = [(row.state, list(row.tags)) for row in single_questions(asked, "a").rows]
    assert states == [
        ("higher", ["wrong", "higher"]),
        ("higher", ["wrong", "higher"]),
        ("lower", ["wrong", "lower"]),
        ("equal", ["wrong"]),
        ("higher", ["right", "higher"]),
    ]


def test_the_counts_of_a_published_result_are_those_of_its_comparison(tmp_path):
    """`push` sends no questions: the matrix of a pulled adapter was all zeros."""
    published = result().model_copy(update={"questions": []})
    assert changes(published, "exact_match") == {"fixed": 2, "broken": 1, "kept right": 1, "kept wrong": 1}
    page = page_of(tmp_path, results=[published])
    assert "base wrong 2 fixed 1 kept wrong base right 1 kept right 1 broken" in page.text
    assert "Wrong 0" not in page.text
