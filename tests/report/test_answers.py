"""What a page shows of answers: which metric's changes, and the facts behind the questions."""

import pytest

from mlx_lora.evaluation.result_format import EvaluationResult
from mlx_lora.report.answers import fact_row, missed_facts, single_questions
from mlx_lora.report.results import change, changes, shown_metric
from tests.report.run_folders import of_facts, result, scored
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


def test_the_chance_of_a_change_is_told_by_fact_too_where_facts_have_several_forms(tmp_path):
    counts = {"p": 0.00001, "fixed": 20, "broken": 0, "kept_right": 0, "kept_wrong": 0}
    content = result(["fixed"] * 20).model_dump()
    content["comparison"] = {"exact_match": {**counts, "p_by_fact": 0.0625, "facts_higher": 5, "facts_lower": 0}}
    page = page_of(tmp_path, results=[EvaluationResult.model_validate(content)])
    assert (
        "with probability below 0.0001 (exact, two-sided). Counted by fact, 5 better and 0 worse, it is 0.0625."
        in page.text
    )


def test_the_drift_from_the_base_stands_among_the_figures(tmp_path):
    content = {**result(["fixed"] * 3).model_dump(), "drift": 0.0456}
    page = page_of(tmp_path, results=[EvaluationResult.model_validate(content)])
    assert "drift from the base, nats a token – 0.046" in page.text
    assert "drift from the base" not in page_of(tmp_path / "without", results=[result(["fixed"] * 3)]).text


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


FACTS = {"champion/1990": (2, 0, 2), "champion/1991": (2, 2, 1), "champion/1992": (2, 0, 0)}


def test_facts_are_right_where_every_form_is(tmp_path):
    """The figures were in the file and on no page."""
    asked = of_facts(result(), FACTS)
    assert fact_row(asked) == ["facts, every form right", "1 of 3", "1 of 3"]
    assert missed_facts(asked) == ["champion/1991 1 of 2", "champion/1992 0 of 2"]
    text = page_of(tmp_path, results=[asked]).text
    assert "facts, every form right 1 of 3 1 of 3" in text
    shown = "Facts not right in every form 2 of 3, by exact match champion/1991 1 of 2 champion/1992 0 of 2"
    assert f"{shown} Which questions" in text


def test_facts_without_the_base_have_one_column():
    groups = of_facts(result(), FACTS).per_fact
    alone = {name: figures.model_copy(update={"base": None}) for name, figures in groups.items()}
    assert fact_row(result(base=False).model_copy(update={"per_fact": alone})) == ["facts, every form right", "1 of 3"]


def test_facts_asked_once_each_are_the_questions_themselves(tmp_path):
    asked = of_facts(result(), {"general/001": (1, 1, 0), "general/002": (1, 1, 1)})
    assert fact_row(asked) is None
    assert missed_facts(asked) == []
    assert "every form" not in page_of(tmp_path, results=[asked]).text


def test_many_missed_facts_are_one_press_away(tmp_path):
    asked = of_facts(result(), {f"fact/{place:02}": (2, 0, 1) for place in range(30)})
    page = page_of(tmp_path, results=[asked])
    assert "fact/19 1 of 2 10 more fact/20 1 of 2" in page.text
    assert len(page.named("details")) == 1
    asked = of_facts(result(), {f"fact/{place:02}": (2, 0, 1) for place in range(20)})
    assert page_of(tmp_path, results=[asked], name="two").named("details") == []


def test_a_facts_share_of_fractions_is_its_mean():
    asked = scored(result(), "token_f1", [(0.0, 0.5)] * 5, leads=True)
    group = {"count": 2, "token_f1": 0.75, "base": {"count": 2, "token_f1": 1.0}}
    asked = asked.model_validate({**asked.model_dump(), "per_fact": {"a": group}})
    assert fact_row(asked) == ["facts, every form right", "1 of 1", "0 of 1"]
    assert missed_facts(asked) == ["a 0.75"]
