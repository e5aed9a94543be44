"""metrics.jsonl as a run leaves it: whole, torn, resumed, or of another version."""

import copy
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from mlx_lora.errors import MlxLoraError
from mlx_lora.report.events import number, read_events
from mlx_lora.report.pages import run_page
from mlx_lora.report.runs import read_run
from tests.report.run_folders import step, validation, whole_run, write_run


def write(tmp_path, text):
    path = tmp_path / "metrics.jsonl"
    path.write_text(text, encoding="utf-8")
    return path


def lines(*events):
    return "".join(json.dumps(event) + "\n" for event in events)


def test_events_come_back_by_kind_and_in_order(tmp_path):
    found = read_events(write(tmp_path, lines(*whole_run())))
    assert found.start["model"] == "tiny"
    assert [event["step"] for event in found.steps] == [1, 2, 3, 4, 5, 6]
    assert [(event["step"], event["loss"]) for event in found.validations] == [(0, 5.0), (3, 1.25), (6, 0.5)]
    assert found.of("end") == [{"event": "end", "step": 6, "ended_by": "steps"}]
    assert (found.last_step, found.faulty_lines, found.torn) == (6, (), False)


def test_a_torn_last_line_is_left_out_and_told(tmp_path):
    found = read_events(write(tmp_path, lines(step(1), step(2)) + '{"event": "step", "step": 3, "lo'))
    assert [event["step"] for event in found.steps] == [1, 2]
    assert (found.torn, found.faulty_lines) == (True, ())


def test_a_broken_line_between_others_is_counted_with_its_number(tmp_path):
    found = read_events(write(tmp_path, lines(step(1)) + "no json\n[1]\n" + lines(step(2))))
    assert [event["step"] for event in found.steps] == [1, 2]
    assert (found.torn, found.faulty_lines) == (False, (2, 3))


def test_of_two_events_for_one_step_the_later_counts(tmp_path):
    found = read_events(write(tmp_path, lines(step(1), step(2, 9.0), step(2, 3.0), validation(2, 1.0))))
    assert [event["loss"] for event in found.steps] == [4.0, 3.0]


def test_a_folder_without_the_file_has_no_events(tmp_path):
    found = read_events(tmp_path / "metrics.jsonl")
    assert (found.steps, found.last_step, found.torn, found.facts) == ((), 0, False, {})


def test_a_file_that_cannot_be_read_is_an_error_with_its_place(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(MlxLoraError, match=r"metrics\.jsonl"):
        read_events(tmp_path / "metrics.jsonl")


@pytest.mark.parametrize("value", [None, "1.0", True, [1]])
def test_a_figure_that_is_no_number_is_nan(value):
    assert math.isnan(number({"loss": value}, "loss"))
    assert math.isnan(number({}, "loss"))


def test_a_loss_that_is_not_finite_is_kept_as_it_was(tmp_path):
    found = read_events(write(tmp_path, lines(step(1, math.nan), step(2, math.inf))))
    assert math.isnan(number(found.steps[0], "loss"))
    assert number(found.steps[1], "loss") == math.inf


@settings(max_examples=40)
@given(text=some.text())
def test_no_text_stops_the_reader(text, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    path.write_text(text, encoding="utf-8", errors="replace")
    found = read_events(path)
    assert found.steps == ()


def places(value, above=()):
    """The keys that lead to every value of an event."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield (*above, key)
        yield from places(each, (*above, key))


RETENTION = {"event": "retention", "step": 6, "data": "general-knowledge", "metric": "contains", "forgot": False}
RETENTION |= {"questions": 50, "base": 37, "adapter": 31, "lost": 8, "gained": 2, "p": 0.1}
EDITED = [*whole_run(), RETENTION]
PLACES = [(place, path) for place, event in enumerate(EDITED) for path in places(event)]
OTHERS = [None, 0, 5, -1, 10**400, 1e-320, math.nan, math.inf, True, "text", [], [1], [{}], {}, {"a": {}}]


@settings(max_examples=60)
@given(place=some.sampled_from(PLACES), value=some.sampled_from(OTHERS))
def test_whatever_an_edited_event_holds_a_page_comes_or_the_line_is_named(place, value, tmp_path_factory):
    number, (*above, last) = place
    events = copy.deepcopy(EDITED)
    part = events[number]
    for key in above:
        part = part[key]
    part[last] = value
    folder = write_run(tmp_path_factory.mktemp("edited"), events)
    try:
        said = run_page(read_run(folder))
    except MlxLoraError as error:
        said = error.message
    assert said.startswith("<!DOCTYPE html>") or f"metrics.jsonl:{number + 1}: " in said
