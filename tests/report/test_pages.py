"""The pages: what stands in them, that everything is inert, and that a run's gaps are named."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mlx_lora.errors import MlxLoraError
from mlx_lora.report.comparison import comparison_page
from mlx_lora.report.facts import notes, tiles
from mlx_lora.report.pages import GENERATOR, run_page
from mlx_lora.report.runs import read_run
from tests.report.run_folders import FACTS, SETTINGS, START, result, step, validation, whole_run, write_run

NASTY = """</script><script>alert(1)</script><img src=x onerror=alert(2)>"'&{{ 7*7 }}<!--"""


class Reader(HTMLParser):
    """Tags with their attributes, and the visible text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts.append(data)
        elif not self._inside:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(tmp_path, events=None, *, results=(), name="one", settings=SETTINGS):
    return Reader(run_page(read_run(write_run(tmp_path / name, events, results=results, settings=settings))))


def test_a_page_tells_verdict_figures_changes_and_questions(tmp_path):
    page = page_of(tmp_path, results=[result()])
    assert "Did it learn? It learned data-test: the adapter answers 3 of 5, the base 2 of 5: learned." in page.text
    assert "exact match 2 of 5, 40 % (12–77) 3 of 5, 60 % (23–88)" in page.text
    assert "base wrong 2 fixed 1 kept wrong base right 1 kept right 1 broken" in page.text
    assert "All 5 Fixed 2 Broken 1 Wrong 2 Right 3" in page.text
    assert "probability 0.0300 (exact, two-sided)" in page.text
    tags = [row["data-tags"] for row in page.named("tr") if "data-tags" in row]
    assert tags == ["right fixed", "right fixed", "right", "wrong broken", "wrong"]


def test_bars_and_whiskers_have_the_exact_widths(tmp_path):
    styles = [span["style"] for span in page_of(tmp_path, results=[result()]).named("span") if "style" in span]
    assert styles[:4] == ["width:40.00%", "left:11.76%;width:65.17%", "width:60.00%", "left:23.07%;width:65.17%"]


def test_a_page_tells_numbers_data_engine_base_and_run_file(tmp_path):
    text = page_of(tmp_path).text
    for words in (
        "steps 6", "time in steps 0:12 min", "trained tokens a second 5", "best validation loss 0.5000",
        "peak memory of MLX 1.5 GB",
        "adapter file 4.9 MB", "train data/train.jsonl 6 6 60 12 14 9 1 aaaaaaaaaaaa", "valid data/valid.jsonl 2 2",
        "shared prefix on the first 24 tokens once a step", "frozen layers off adapters sit in all layers",
        "model tiny", "weights SHA-256 " + "b" * 64, "trained parameters 2,048 (2.00% of the model)", "padding 10.0%",
        "started 2026-11-22 03:00:00 UTC", "ended after all its steps", "mlx 0.32.4", "learning_rate: 0.001",
        "3 1.2500 best so far", "kept of step 6",
    ):  # fmt: skip
        assert words in re.sub(r"\s+", " ", text), words


def test_the_charts_data_is_in_the_page_as_json(tmp_path):
    page = page_of(tmp_path)
    charts = json.loads(page.scripts[0])
    assert charts["loss"]["epoch"] == 3
    assert charts["loss"]["lines"][2]["points"] == [[0, 5], [3, 1.25], [6, 0.5]]
    assert [figure["id"] for figure in page.named("figure")][:2] == ["chart-loss", "chart-rate"]


def test_every_text_that_looks_like_html_is_inert(tmp_path):
    question = {"question": NASTY, "answers": [NASTY, NASTY], "answer": NASTY, "category": NASTY, "place": NASTY}
    base = {"answer": NASTY, "scores": {"exact_match": False}, "reference_tokens": 1}
    evil = result(["fixed"], questions=[{**question, "base": base}], name="data-test")
    start = {**START, "model": NASTY, "system_prompt": NASTY, "versions": {NASTY: NASTY}}
    start["run"] = {**FACTS, "engine": [{"name": NASTY, "active": True, "line": NASTY}], "data_warnings": [NASTY]}
    events = [start, *whole_run()[1:-1], {"event": "end", "step": 6, "ended_by": "error", "message": NASTY}]
    settings = SETTINGS + f"note: {json.dumps(NASTY)}\n"
    plain = page_of(tmp_path, results=[result(["fixed"])], name="plain")
    page = page_of(tmp_path, events, results=[evil], name="<b>evil", settings=settings)
    assert page.text.count("<script>alert(1)</script>") >= 10
    assert page.named("img") == []
    assert page.named("b") == plain.named("b")
    assert len(page.named("script")) == 2
    assert "{{ 7*7 }}" in page.text
    assert not [attributes for _, attributes in page.tags if any(name.startswith("on") for name in attributes)]


def test_a_page_loads_nothing_and_runs_only_its_own_script(tmp_path):
    page = page_of(tmp_path, results=[result()])
    assert page.named("link") == page.named("iframe") == page.named("img") == []
    assert not [one for _, one in page.tags if {"src", "srcset", "action", "data"} & set(one)]
    assert {one["href"][0] for one in page.named("a")} == {"#"}
    (policy,) = (one["content"] for one in page.named("meta") if one.get("http-equiv"))
    digest = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
    assert policy.startswith(f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'")
    style = (Path(run_page.__code__.co_filename).parent / "page" / "report.css").read_text()
    assert "url(" not in style
    assert "@import" not in style


def test_a_page_names_no_path_of_the_machine_and_no_secret(tmp_path):
    folder = "/ho" + "me/anna/secret/"
    token = "hf_" + "x" * 34
    settings = SETTINGS.replace("data/train.jsonl", folder + "train.jsonl").replace("tiny", folder + "tiny")
    start = {**START, "model": folder + "tiny", "system_prompt": f"use {token}"}
    start["run"] = {**FACTS, "engine": [{"name": "frozen", "active": False, "line": f"no space in {folder}cache"}]}
    asked = result(source=folder + "test.jsonl", questions=[{"place": folder + "test.jsonl:1", "answer": token}])
    written = write_run(tmp_path / "one", [start, *whole_run()[1:]], settings=settings, results=[asked])
    page = run_page(read_run(written))
    assert "anna" not in page
    assert token not in page
    assert str(tmp_path) not in page
    assert "…/secret/train.jsonl" in page
    assert "no space in …/secret/cache" in page


def said(tmp_path, events=None, **values):
    return [text for text, _ in notes(read_run(write_run(tmp_path / "one", events, **values)))]


def test_a_whole_run_needs_no_note(tmp_path):
    assert said(tmp_path, results=[result()]) == []


def test_what_is_missing_is_named(tmp_path):
    assert said(tmp_path, [], settings=None) == [
        "There are no curves: metrics.jsonl holds no step. Training writes it.",
        "There is no run.yaml, so the settings are not known.",
    ]
    assert said(tmp_path, [START, *[step(number) for number in range(1, 7)]]) == [
        "There was no validation: set data.valid, or data.valid_share, to see when to stop.",
    ]  # fmt: skip


def test_a_run_without_any_figures_still_makes_a_page(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "run.yaml").write_text(SETTINGS)
    page = Reader(run_page(read_run(tmp_path / "one")))
    assert "Not tested yet" in page.text
    assert "learning_rate: 0.001" in page.text
    assert page.named("figure") == []


def test_a_stopped_a_killed_and_a_failed_run_say_how_to_go_on(tmp_path):
    begun = [START, validation(0, 5.0), step(1), step(2)]
    ways = {
        "signal": "It ended after step 2 of 6, stopped by hand.",
        "error": "It ended after step 2 of 6, with an error.",
    }
    for ended_by, words in ways.items():
        events = [*begun, {"event": "end", "step": 2, "ended_by": ended_by}]
        (found,) = notes(read_run(write_run(tmp_path / "one", events)))
        assert found == (words, f"mlx-lora train …/{tmp_path.name}/one/run.yaml --resume")
    (text,) = said(tmp_path, begun)
    assert text == "Its files end at step 2 of 6: it was killed, still runs, or an older version trained it."


def test_early_stopping_is_no_interruption(tmp_path):
    events = [START, validation(0, 5.0), step(1), {"event": "end", "step": 1, "ended_by": "patience"}]
    assert said(tmp_path, events) == []
    assert "ended early: the validation loss no longer fell" in page_of(tmp_path, events).text


def test_a_resumed_run_says_so_and_counts_as_whole(tmp_path):
    events = whole_run()
    stopped = {"event": "end", "step": 3, "ended_by": "signal"}
    events[6:6] = [stopped, {"event": "resume", "step": 3, "run": FACTS}]
    assert said(tmp_path, events) == ["It was stopped and resumed after step 3."]
    assert "resumed after step 3" in page_of(tmp_path, events).text


def test_torn_and_broken_lines_are_named(tmp_path):
    folder = write_run(tmp_path / "one")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('oops\n{"event": "st')
    assert [text for text, _ in notes(read_run(folder))] == [
        "The last line of metrics.jsonl was cut off, as by a crash or a full disk; it is left out.",
        "line 12 of metrics.jsonl is no event and was left out.",
    ]


def test_rows_that_were_only_hashed_stand_in_the_table_too(tmp_path):
    start = {**START, "data_sha256": {"train": "a" * 64, "replay": "9" * 64}}
    text = page_of(tmp_path, [start, *whole_run()[1:]]).text
    assert "replay – – – – – – – 999999999999" in text
    assert "test data/test.jsonl" not in text


def test_ranks_and_warnings_are_named(tmp_path):
    start = {**START, "run": {**FACTS, "ranks": 2, "data_warnings": ["2 rows repeat others"]}}
    warning = {"event": "warning", "step": 4, "message": "the loss rises"}
    assert said(tmp_path, [start, *whole_run()[1:], warning]) == [
        "2 ranks trained together: loss and tokens are of all, time and memory of the first.",
        "2 rows repeat others",
        "step 4: the loss rises",
    ]


def test_a_result_of_another_version_is_left_out_and_told(tmp_path):
    folder = write_run(tmp_path / "one", results=[result(name="old")])
    path = folder / "eval" / "old.json"
    path.write_text(path.read_text().replace('"format_version":2', '"format_version":1'))
    run = read_run(folder)
    assert run.results == ()
    ((text, command),) = notes(run)
    assert text == "eval/old.json was left out: format_version is 1, this version of mlx-lora reads 2."
    assert command is not None
    assert command.startswith("mlx-lora eval ")


def test_a_run_of_the_first_version_has_curves_and_hashes(tmp_path):
    start = {name: value for name, value in START.items() if name != "run"}
    page = page_of(tmp_path, [start, *whole_run()[1:-1]])
    assert "train data/train.jsonl " + "a" * 64 in page.text
    assert "ended after all its steps" in page.text
    assert len(page.named("figure")) == 6


def test_a_folder_that_is_no_run_is_an_error(tmp_path):
    with pytest.raises(MlxLoraError, match=r"is no run folder: it has no metrics\.jsonl"):
        read_run(tmp_path)


def test_a_faulty_run_file_and_adapter_config_are_named_and_left_out(tmp_path):
    folder = write_run(tmp_path / "one", settings="a: [1\n")
    (folder / "adapter_config.json").write_text("{")
    texts = [text for text, _ in notes(read_run(folder))]
    assert texts[0].startswith("run.yaml:")
    assert "adapter_config.json is not whole and was left out." in texts


def test_a_comparison_shows_what_differs_and_everybodys_answers(tmp_path):
    first = write_run(tmp_path / "one", results=[result()])
    wrong = ["kept wrong", "fixed", "kept right", "broken", "kept wrong"]
    settings = SETTINGS.replace("rank: 8", "rank: 16").replace("adapters/one", "adapters/two")
    second = write_run(tmp_path / "two", results=[result(wrong, kind="no difference")], settings=settings)
    page = Reader(comparison_page([read_run(first), read_run(second)]))
    assert "2 runs compared one, two, on tiny" in page.text
    assert "setting one two lora.rank 8 16" in page.text
    assert "output_dir" not in page.text
    assert "base 2 of 5, 40 % (12–77) one 3 of 5, 60 % (23–88) two 2 of 5, 40 % (12–77)" in page.text
    assert "All 5 Runs differ 1 All wrong 2 All right 2" in page.text
    tags = [row["data-tags"] for row in page.named("tr") if "data-tags" in row]
    assert tags == ["differ", "right", "right", "wrong", "wrong"]
    assert set(json.loads(page.scripts[0])) == {"loss", "valid", "rate", "norm", "pace"}


def test_a_comparison_tells_equal_names_apart_and_other_data_behind_one_name(tmp_path):
    start = {**START, "data_sha256": {"train": "e" * 64, "valid": "c" * 64}}
    first = write_run(tmp_path / "x" / "one", results=[result()])
    second = write_run(tmp_path / "y" / "one", [start, *whole_run()[1:]])
    page = Reader(comparison_page([read_run(first), read_run(second)]))
    assert "SHA-256 of train " + "a" * 12 + " " + "e" * 12 in page.text
    assert "one (1), one (2), on tiny" in page.text
    assert "one (2) was not asked data-test. mlx-lora eval …/y/one --base" in page.text


def test_a_comparison_of_equal_runs_says_that_nothing_differs(tmp_path):
    runs = [read_run(write_run(tmp_path / name)) for name in ("one", "two")]
    assert "Nothing but the folder: all settings are the same." in Reader(comparison_page(runs)).text


def test_a_comparison_is_inert_too(tmp_path):
    question = [{"question": NASTY, "answer": NASTY}]
    runs = [read_run(write_run(tmp_path / name, results=[result(questions=question)])) for name in ("<i>one", "two")]
    page = Reader(comparison_page(runs))
    assert page.text.count("<script>alert(1)</script>") == 3
    assert page.named("img") == page.named("i") == []
    assert GENERATOR.decode() in comparison_page(runs)


def luminance(colour: str) -> float:
    """Of "#rrggbb", 0 to 1. Source: WCAG 2.2, relative luminance."""
    shares = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, two: str) -> float:
    high, low = sorted((luminance(one), luminance(two)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_texts_and_curves_stand_out_in_both_colour_schemes():
    style = (Path(run_page.__code__.co_filename).parent / "page" / "report.css").read_text()
    colours = {name: pair for name, *pair in re.findall(r"--(\w+): light-dark\((#\w{6}), (#\w{6})\)", style)}
    assert len(colours) == 19
    for scheme in (0, 1):
        for ground in ("page", "card", "sunk"):
            for text in ("ink", "soft", "link", "good", "bad", "unsure"):
                assert contrast(colours[text][scheme], colours[ground][scheme]) >= 4.5, (text, ground, scheme)
        for curve in ("one", "two", "three", "four", "five", "six", "seven", "eight", "base"):
            assert contrast(colours[curve][scheme], colours["card"][scheme]) >= 3, (curve, scheme)


def test_a_lengthened_run_counts_its_steps_by_the_newest_plan(tmp_path):
    more = {"event": "resume", "step": 6, "run": {**FACTS, "total_steps": 12, "started": "2026-11-23T00:00:00+00:00"}}
    run = read_run(write_run(tmp_path / "one", [*whole_run()[:-1], more, *(step(number) for number in range(7, 13))]))
    assert (run.total_steps, run.events.last_step, run.ended_by) == (12, 12, "steps")
    assert run.facts["started"] == FACTS["started"]
    assert dict(tiles(run))["steps"] == "12"


def test_steps_without_times_or_targets_are_read_around(tmp_path):
    untold = {name: value for name, value in step(2).items() if name != "targets"}
    for event in ({**step(1), "seconds": 0.0}, untold):
        found = dict(tiles(read_run(write_run(tmp_path / "one", [START, event]))))
        assert "trained tokens a second" not in found
        assert "time in steps" in found


def test_a_resume_without_a_step_after_it_is_no_part_of_the_story(tmp_path):
    """A whole run that is told to resume makes no step; one that is stopped at once resumes twice after one step."""
    again = {"event": "resume", "step": 3, "run": FACTS}
    events = whole_run()
    events[6:6] = [again, again]
    text = said(tmp_path, [*events, {**again, "step": 6}])
    assert text == ["It was stopped and resumed after step 3."]
