"""`mlx-lora eval` on several data sets, on multiple choice, with metrics of one's own, and sampled."""

import json
from pathlib import Path
from typing import Any

import pytest

from mlx_lora.commands.evaluate import run_evaluate
from mlx_lora.errors import ConfigError, DataError
from mlx_lora.evaluation.result_format import read_result
from tests.commands.workshop import TOKENS, evaluate


@pytest.fixture
def cities(tmp_path: Path) -> Path:
    """Six multiple-choice questions."""
    rows = [
        {"question": f"Which city is number {number}?", "choices": ["Oslo", "Bergen", "Rio"], "answer": number % 3}
        for number in range(6)
    ]
    (tmp_path / "cities.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "cities.jsonl"


def test_multiple_choice_is_scored_by_log_likelihood(
    workshop: Path, cities: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = evaluate(workshop, "good", base=True, data=[str(cities)], output=tmp_path / "out.json", capsys=capsys)
    assert (result["data"]["kind"], result["metric"], result["metrics"]) == (
        "choice",
        "accuracy",
        ["accuracy", "accuracy_norm"],
    )
    assert (result["exact_match"], result["stop_rate"], result["answer_tokens"]) == (None, None, 0)
    assert set(result["interval"]) == {"accuracy", "accuracy_norm"}
    for one in result["questions"]:
        assert one["answer"] == one["choices"][min(range(3), key=one["choice_nats"].__getitem__)]
        assert one["scores"]["accuracy"] == (one["answer"] == one["answers"][0])
    assert result["accuracy"] == sum(one["scores"]["accuracy"] for one in result["questions"]) / 6
    assert read_result(tmp_path / "out.json").value("accuracy") == result["accuracy"]
    alike = evaluate(workshop, "nothing", base=True, data=[str(cities)], output=tmp_path / "no.json", capsys=capsys)
    assert alike["verdict"]["kind"] == "taught nothing"


def test_rows_with_and_without_choices_are_no_one_data_set(cities: Path, workshop: Path) -> None:
    cities.write_text(cities.read_text() + '{"question": "Who?", "answer": "Ann"}\n')
    with pytest.raises(DataError, match=r'cities\.jsonl:1 has "choices", .*cities\.jsonl:7 has none'):
        run_evaluate([workshop / "good"], data=[str(cities)])


def test_several_data_sets_end_in_one_summary(
    workshop: Path,
    cities: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    capsys.readouterr()
    names = [workshop / "good", workshop / "nothing"]
    data = [str(workshop / "quiz.jsonl"), str(cities), "general-knowledge"]
    assert run_evaluate(names, base=True, data=data, limit=6, max_tokens=TOKENS, output=tmp_path / "results") == 0
    lines = capsys.readouterr().out.splitlines()
    assert sorted(file.name for file in (tmp_path / "results").iterdir()) == [
        *("good-cities.json", "good-general-knowledge.json", "good-quiz.json"),
        *("nothing-cities.json", "nothing-general-knowledge.json", "nothing-quiz.json"),
    ]
    assert lines[-4].split() == ["all", "data", "sets", "by", "base", *map(str, names)]
    assert lines[-3].split() == [
        *("quiz", "exact", "match", "0/6", "0", "%"),
        *("6/6", "100", "%", "learned", "0/6", "0", "%", "taught", "nothing"),
    ]
    assert [line.split()[:2] for line in lines[-2:]] == [["cities", "accuracy"], ["general-knowledge", "contains"]]


def test_a_narrow_terminal_gets_no_intervals_and_whole_words(
    workshop: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workshop)
    monkeypatch.setenv("COLUMNS", "64")
    capsys.readouterr()
    names = [Path(name) for name in ("good", "nothing", "other")]
    assert run_evaluate(names, base=True, data=["quiz.jsonl"], limit=6, max_tokens=TOKENS) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("quiz.jsonl: 6 questions of ")
    assert "intervals" not in lines[0]
    assert lines[1].split() == ["base", "good", "nothing", "other"]
    assert lines[2].split()[:8] == ["exact", "match", "0/6", "0", "%", "6/6", "100", "%"]
    assert all(len(line) <= 64 for line in lines[:12])


def test_a_metric_of_ones_own_leads_and_is_recorded(
    workshop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shortness.py").write_text("def short(answer, accepted):\n    return 1 / (1 + len(answer))\n")
    monkeypatch.chdir(tmp_path)
    result = evaluate(
        workshop,
        "good",
        metrics=["shortness:short", "contains"],
        output=tmp_path / "out.json",
        fail_under=0.9,
        code=1,
        capsys=capsys,
    )
    mean = sum(1 / (1 + len(one["answer"])) for one in result["questions"]) / result["count"]
    assert result["metric"] == "shortness:short"
    assert result["custom"] == {"shortness:short": pytest.approx(mean)}
    assert result["settings"]["custom_metrics"] == {"shortness:short": "shortness:short"}


def test_sampling_and_its_seed_are_recorded_and_repeat(
    workshop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def answers(**options: Any) -> tuple[Any, list[str]]:
        result = evaluate(workshop, "good", limit=6, output=tmp_path / "out.json", capsys=capsys, **options)
        settings = result["settings"]
        return (settings["sampling"], settings["temperature"], settings["seed"]), [
            one["answer"] for one in result["questions"]
        ]

    greedy = answers()
    assert greedy[0] == ("greedy", 0.0, None)
    drawn = answers(temperature=1.0, seed=3)
    assert drawn[0] == ("drawn", 1.0, 3)
    assert drawn[1] == answers(temperature=1.0, seed=3, batch_size=2)[1]
    assert drawn[1] != greedy[1]


def test_a_metric_that_no_data_set_has_is_refused_and_one_that_some_have_is_explained(
    workshop: Path, cities: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="--metric accuracy: none of the data sets has it"):
        run_evaluate([workshop / "good"], data=[str(workshop / "quiz.jsonl")], metrics=["accuracy"])
    data = [str(workshop / "quiz.jsonl"), str(cities)]
    options: dict[str, Any] = {"limit": 2, "max_tokens": 2, "output": tmp_path / "out", "metrics": ["contains"]}
    assert run_evaluate([workshop / "good"], data=data, **options) == 0
    assert "note: cities is scored by accuracy" in capsys.readouterr().err


def test_questions_with_other_accepted_answers_are_another_data_set(
    workshop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found in session 11: of two files of one name and the same questions the second had the base's scores of the
    first, and its result overwrote the other's.
    """
    row = json.loads((workshop / "quiz.jsonl").read_text().splitlines()[0])
    wrong = {**row, "answer": "xyzzy"}
    base = evaluate(workshop, "good", base=True, data=[_file(tmp_path / "0", wrong)], capsys=capsys)
    said = base["questions"][0]["base"]["answer"]
    files = [_file(tmp_path / "a", wrong), _file(tmp_path / "b", {**wrong, "answers": [said]})]
    capsys.readouterr()
    output = tmp_path / "out"
    result = evaluate(workshop, "good", base=True, data=files, output=output, capsys=capsys)["results"]
    assert [one["base"]["exact_match"] for one in result] == [0.0, 1.0]
    names = [one["data"]["name"] for one in result]
    assert names == [f"quiz-{result[0]['data']['sha256'][:8]}", f"quiz-{result[0]['data']['sha256'][:8]}-2"]
    assert sorted(file.stem for file in output.iterdir()) == sorted(names)


def _file(folder: Path, row: dict[str, Any]) -> str:
    folder.mkdir()
    (folder / "quiz.jsonl").write_text(json.dumps(row) + "\n")
    return str(folder / "quiz.jsonl")


def test_rows_that_cannot_be_asked_are_met_before_anything_is_asked(
    workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found in session 11: what another data set had answered by then was lost, of a base alone all of it."""
    from mlx_lora.evaluation.asking import Asker

    monkeypatch.setattr(Asker, "ask", lambda *_, **__: pytest.fail("asked"))
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ann"}]
    good = str(workshop / "quiz.jsonl")
    rows: list[tuple[dict[str, Any], str]] = [
        ({"text": "Ann won."}, "a row of plain text asks nothing"),
        ({"messages": turns, "choices": ["Ann", "Bob"]}, '"choices" does not belong to the chat format'),
        ({"messages": turns, "answers": {"text": "Ann"}}, '"answers" is an object, expected a list of texts'),
    ]
    for number, (row, fact) in enumerate(rows):
        file = _file(tmp_path / str(number), row)
        with pytest.raises(DataError, match=f":1: {fact}"):
            run_evaluate([], base=True, model=str(workshop / "base"), data=[good, file])


def test_what_a_metric_prints_is_no_part_of_the_json(
    workshop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found in session 11: a `print` in a metric of one's own made the JSON on stdout unreadable."""
    (tmp_path / "talker.py").write_text(
        "print('loading')\n\ndef says(answer, accepted):\n    print('scoring')\n    return 1\n"
    )
    monkeypatch.chdir(tmp_path)
    result = evaluate(
        workshop, "good", metrics=["talker:says"], limit=2, output=tmp_path / "out.json", capsys=capsys
    )  # which reads all of stdout as JSON
    assert result["custom"] == {"talker:says": 1.0}
