"""Axes, smoothing and charts: exact places and labels."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as some

from mlx_lora.report.charts import Chart, Line, Mark
from mlx_lora.report.curves import compared_charts, run_charts
from mlx_lora.report.runs import read_run
from mlx_lora.report.scales import Scale, prefers_log, scale_of_values, shown
from mlx_lora.report.series import smoothed, span_for, thinned
from tests.report.run_folders import START, step, validation, write_run


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *[(0.0178, "0.0178"), (264.0, "264"), (1.5e-3, "0.0015"), (1.5e-4, "1.5e-4"), (12400.0, "12,400"), (0, "0")],
        *[(6.5603, "6.56"), (-0.25, "-0.25"), (3e-10, "3e-10"), (2.5e6, "2.5e6"), (99999, "99,999")],
    ],
)
def test_values_are_shown_in_few_digits(value, text):
    assert shown(value) == text


def test_ticks_are_round_and_lie_on_the_axis():
    assert Scale("linear", 0, 264).ticks(6) == [0, 50, 100, 150, 200, 250]
    assert Scale("linear", 0, 1.018).ticks(5) == [0, 0.25, 0.5, 0.75, 1.0]
    assert Scale("log", 0.003, 12).ticks() == [0.01, 0.1, 1, 10]
    assert Scale("log", 0.3, 8).ticks() == [0.5, 1, 2, 5]


@given(
    low=some.floats(1e-6, 1e6), factor=some.floats(1.01, 1e6), kind=some.sampled_from(["linear", "log"])
)  # fmt: skip
def test_every_axis_has_ticks_that_rise_within_it(low, factor, kind):
    scale = scale_of_values([low, low * factor], kind)
    ticks = scale.ticks()
    assert 1 <= len(ticks) <= 14
    assert ticks == sorted(set(ticks))
    assert all(-1e-9 <= scale.share(tick) <= 1 + 1e-9 for tick in ticks)


def test_an_axis_has_room_and_places_its_ends():
    scale = scale_of_values([1.0, 5.0], "linear")
    assert (scale.low, scale.high) == (0.0, 5.24)
    assert scale.share(2.62) == 0.5
    assert scale_of_values([4.0, 5.0], "linear").low == pytest.approx(3.94)
    assert scale_of_values([4.0, 5.0], "linear", from_zero=True).low == 0
    assert Scale("log", 0.01, 100).share(1) == pytest.approx(0.5)


@pytest.mark.parametrize("value", [0.0, 3.0, -2.0])
def test_an_axis_of_one_value_is_not_empty(value):
    scale = scale_of_values([value], "linear")
    assert scale.low < scale.high
    assert 0 <= scale.share(value) <= 1


def test_the_rounding_of_equal_values_is_no_span():
    scale = scale_of_values([50.0, 50.00000000000001], "linear")
    assert (scale.low, round(scale.high)) == (0, 100)


def test_an_axis_becomes_logarithmic_from_a_tenfold_span():
    assert prefers_log([0.5, 5.0])
    assert not prefers_log([0.51, 5.0])
    assert not prefers_log([0.0, 5.0])
    assert not prefers_log([math.nan])


def test_the_smoothed_curve_is_the_fair_exponential_mean():
    # span 3 keeps a half: weights 1; 1/3, 2/3; 1/7, 2/7, 4/7.
    found = smoothed([(1, 7.0), (2, 1.0), (3, math.nan), (4, 7.0)], 3)
    assert found == [(1, 7.0), (2, pytest.approx(3.0)), (4, pytest.approx(7 / 7 + 2 / 7 + 28 / 7))]
    assert [span_for(count) for count in (3, 264, 100_000)] == [5, 13, 100]


@given(
    values=some.lists(some.one_of(some.floats(-1e9, 1e9), some.just(math.nan)), min_size=1, max_size=300),
    most=some.integers(4, 60),
)
def test_thinning_keeps_ends_and_extremes(values, most):
    points = [(float(place), value) for place, value in enumerate(values)]
    found = thinned(points, most)
    assert len(found) <= most or len(points) <= most
    assert [repr(point) for point in (found[0], found[-1])] == [repr(point) for point in (points[0], points[-1])]
    assert [x for x, _ in found] == sorted(x for x, _ in found)
    inner = [value for value in values[1:-1] if math.isfinite(value)]
    if inner:
        kept = [value for _, value in found]
        assert max(inner) in kept
        assert min(inner) in kept


def chart(points, **values):
    return Chart("loss", "Loss", "nats", [Line("loss", points, "one")], "Loss falls.", **values)


def test_paths_lie_in_the_square_of_a_thousand():
    one = chart([(0.0, 0.0), (5.0, 1.0), (10.0, 2.0)], marks=[Mark(5.0, "here")])
    (view,) = one.views
    assert view.kind == "linear"
    # The axis ends at 2.12: 2 lies 0.12 / 2.12 from the top.
    assert view.paths == [("line", "one", "M0 1000L500 528.3L1000 56.6")]
    assert view.marks == [(50.0, "here")]
    assert view.x_labels == [(0.0, "0"), (20.0, "2"), (40.0, "4"), (60.0, "6"), (80.0, "8"), (100.0, "10")]
    assert view.y_labels[0] == (100.0, "0")


def test_a_value_that_is_not_finite_leaves_a_gap():
    (view,) = chart([(0.0, 0.0), (1.0, 1.0), (2.0, math.nan), (3.0, 1.0), (4.0, 0.0)]).views
    assert view.paths[0][2].count("M") == 2
    assert chart([(0.0, math.nan)]).views == []
    assert chart([(0.0, 0.0), (2.0, math.inf)]).data()["lines"][0]["points"] == [[0.0, 0.0], [2.0, None]]


def test_steps_are_labelled_with_whole_numbers_only():
    assert [text for _, text in chart([(1.0, 1.0), (3.0, 2.0)]).views[0].x_labels] == ["0", "1", "2", "3"]


def test_the_first_axis_is_the_one_that_suits_the_values():
    assert [view.kind for view in chart([(1.0, 0.1), (2.0, 1.0)]).views] == ["log", "linear"]
    assert [view.kind for view in chart([(1.0, 0.5), (2.0, 1.0)]).views] == ["linear", "log"]
    assert [view.kind for view in chart([(1.0, 0.1), (2.0, 1.0)], axis="linear").views] == ["linear", "log"]
    assert [view.kind for view in chart([(1.0, 0.1), (2.0, 1.0)], axis="from zero").views] == ["linear"]


def test_a_run_has_six_charts_with_its_exact_figures(tmp_path):
    charts = {one.key: one for one in run_charts(read_run(write_run(tmp_path / "one")))}
    assert list(charts) == ["loss", "rate", "norm", "pace", "tokens", "memory"]
    lines = {line["name"]: line["points"] for line in charts["loss"].data()["lines"]}
    assert lines["training, each step"] == [[1, 4], [2, 2], [3, 1.33333], [4, 1], [5, 0.8], [6, 0.666667]]
    assert lines["validation"] == [[0, 5], [3, 1.25], [6, 0.5]]
    assert charts["loss"].marks == [Mark(6.0, "best: step 6, 0.5")]
    assert charts["loss"].steps_per_epoch == 3
    assert "Validation loss: 5 nats a token at step 0, 0.5 nats a token at step 6" in charts["loss"].sentence
    assert charts["tokens"].data()["lines"][0]["points"][0] == [1, 50.0]
    assert charts["memory"].data()["lines"][0]["points"][-1] == [6, 1.5]


def test_charts_without_figures_are_left_out(tmp_path):
    bare = {"event": "step", "step": 1, "loss": 2.0}
    folder = write_run(tmp_path / "old", [START, bare, {**bare, "step": 2, "loss": 1.0}])
    assert [one.key for one in run_charts(read_run(folder))] == ["loss"]
    assert run_charts(read_run(write_run(tmp_path / "none", []))) == []


def test_the_best_of_equal_validations_is_the_first(tmp_path):
    events = [START, validation(0, 5.0), step(1), validation(1, 1.0), step(2), validation(2, 1.0)]
    assert run_charts(read_run(write_run(tmp_path / "one", events)))[0].marks == [Mark(1.0, "best: step 1, 1")]


def test_runs_are_laid_over_one_another_in_their_own_colours(tmp_path):
    runs = [read_run(write_run(tmp_path / name)) for name in ("one", "two")]
    charts = {one.key: one for one in compared_charts(runs)}
    assert [(line.name, line.colour) for line in charts["valid"].lines] == [("one", "one"), ("two", "two")]
    assert charts["valid"].sentence == "Validation loss: one ends at 0.5; two ends at 0.5."


def test_compared_runs_show_learning_rate_and_gradient_norm_too(tmp_path):
    quick = [START, *[step(number, learning_rate=0.002, gradient_norm=5.0) for number in range(1, 4)]]
    runs = [read_run(write_run(tmp_path / "one")), read_run(write_run(tmp_path / "two", quick))]
    charts = {one.key: one for one in compared_charts(runs)}
    assert list(charts) == ["loss", "valid", "rate", "norm", "pace"]
    assert charts["rate"].sentence == "Learning rate: one ends at 0.001; two ends at 0.002."
    assert charts["norm"].sentence == "Gradient norm before clipping, smoothed: one ends at 2; two ends at 5."
    assert charts["rate"].data()["lines"][1]["points"] == [[1, 0.002], [2, 0.002], [3, 0.002]]
    assert [view.kind for view in charts["rate"].views] == ["linear", "log"]
