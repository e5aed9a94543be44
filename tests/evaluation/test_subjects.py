"""What is asked: names, splits and portions of data sets."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import mlx_lora  # noqa: F401  (loads OpenBLAS before MLX)

import pytest  # isort: skip

from mlx_lora.config import RunConfig
from mlx_lora.dataset.record import Record
from mlx_lora.dataset.records import read_records
from mlx_lora.dataset.splits import load_splits, records_sha256
from mlx_lora.errors import DataError
from mlx_lora.evaluation.result_format import hash_answers
from mlx_lora.evaluation.subjects import (
    Chosen,
    Subject,
    choose_sources,
    data_name,
    read_source,
    read_sources,
    spread_rows,
)
from mlx_lora.lora.adapter import AdapterFolder
from mlx_lora.lora.rendering import Rendering


def write_rows(path: Path, count: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.dumps({"question": f"q{row}?", "answer": f"a{row}"}) for row in range(count)]
    path.write_text("\n".join(rows) + "\n")
    return path


def subject_of(folder: Path, data: dict[str, Any]) -> Subject:
    """An adapter whose run had this data, as `train` writes down the hashes."""
    run = RunConfig.model_validate({"model": "m", "data": data, "train": {"epochs": 1}, "output_dir": "out"})
    facts = {"data_sha256": {"train": records_sha256(load_splits(run.data, run.train.seed).train)}}
    return Subject("a", folder, cast("AdapterFolder", SimpleNamespace(facts=facts)), Rendering(), run)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("data/stanley_cup/modern/test.jsonl", "modern-test"),
        ("data/trivia/questions.jsonl", "trivia-questions"),
        ("general-knowledge", "general-knowledge"),
        ("data/hockey.csv", "hockey"),
        ("data/hockey", "hockey-test"),
    ],
)
def test_files_of_common_names_are_told_apart_by_their_folder(source: str, name: str) -> None:
    assert data_name(source, "test") == name


def test_a_limit_takes_rows_from_all_over_the_file(tmp_path: Path) -> None:
    records = [Record(messages=(), text=str(place)) for place in range(10)]
    assert [record.text for record in spread_rows(records, 4)] == ["0", "2", "5", "7"]
    assert spread_rows(records, 99) == records
    assert spread_rows(records, None) == records


def test_a_source_knows_its_file_and_how_much_of_it_is_asked(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "quiz.jsonl", 6)
    source = read_source(Chosen(str(file), "test"), 3)
    assert source.facts() == {
        "name": "quiz",
        "source": str(file),
        "sha256": records_sha256(read_records(str(file))),
        "answers_sha256": hash_answers(record.answers for record in source.records),
        "rows": 6,
        "asked": 3,
        "kind": "open",
        "held_out": False,
    }
    assert [record.question for record in source.records] == ["q0?", "q2?", "q4?"]


@pytest.mark.parametrize(
    ("source", "asked", "leading"),
    [
        ("general-knowledge", [], "contains"),
        ("general-knowledge-choices", [], "accuracy"),
        ("general-knowledge-choices", ["contains", "accuracy_norm"], "accuracy_norm"),
    ],
)
def test_built_in_questions_are_led_by_a_metric_that_they_have(source: str, asked: list[str], leading: str) -> None:
    assert read_source(Chosen(source, "test"), None).leading_metric(asked) == leading


def test_a_folder_gives_its_test_rows(tmp_path: Path) -> None:
    write_rows(tmp_path / "quiz" / "train.jsonl", 5)
    write_rows(tmp_path / "quiz" / "test.jsonl", 2)
    source = read_source(Chosen(str(tmp_path / "quiz"), "test"), None)
    assert (source.name, source.rows, len(source.sha256)) == ("quiz-test", 2, 64)


def test_data_sets_of_one_name_get_names_of_their_own(tmp_path: Path) -> None:
    files = [write_rows(tmp_path / folder / "quiz.jsonl", rows) for folder, rows in (("a", 1), ("b", 2))]
    names = [source.name for source in read_sources([Chosen(str(file), "test") for file in files], None)]
    assert names == [f"quiz-{records_sha256(read_records(str(file)))[:8]}" for file in files]


@pytest.mark.parametrize(
    ("files", "data", "name", "rows"),
    [
        ({"train.jsonl": 20}, {"train": "train.jsonl"}, "run-train-held-out", 2),
        ({"train.jsonl": 20, "valid.jsonl": 3}, {"train": "train.jsonl", "valid": "valid.jsonl"}, "run-valid", 3),
        ({"d/train.jsonl": 9, "d/valid.jsonl": 3, "d/test.jsonl": 4}, {"train": "d"}, "d-test", 4),
        ({"d/train.jsonl": 9, "d/valid.jsonl": 3}, {"train": "d"}, "d-valid", 3),
        ({"d/train.jsonl": 9, "d/test.jsonl": 4, "v.jsonl": 3}, {"train": "d", "valid": "v.jsonl"}, "d-test", 4),
    ],
)
def test_a_run_is_asked_what_it_was_not_trained_on(
    tmp_path: Path, files: dict[str, int], data: dict[str, str], name: str, rows: int
) -> None:
    folder = tmp_path / "run"
    for file, count in files.items():
        write_rows(folder / file, count)
    subject = subject_of(folder, {split: str(folder / place) for split, place in data.items()})
    (source,) = read_sources(choose_sources([subject], []), None)
    splits = load_splits(subject.run.data, subject.run.train.seed)
    assert (source.name, source.rows) == (name, rows)
    assert source.records == (splits.test or splits.valid)
    assert source.facts()["held_out"] == name.endswith("held-out")
    assert not source.is_training_data_of(subject)


def test_rows_that_the_run_did_not_hold_out_are_not_asked_as_such(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "train.jsonl", 20)
    subject = subject_of(tmp_path, {"train": str(file)})
    held = load_splits(subject.run.data, subject.run.train.seed).valid
    subject.adapter.facts["data_sha256"]["valid"] = records_sha256(held)
    (source,) = read_sources(choose_sources([subject], []), None)
    assert source.records == held
    write_rows(file, 25)
    with pytest.raises(DataError, match="changed since the run"):
        read_sources(choose_sources([subject], []), None)


def test_a_run_without_any_other_rows_must_be_told_what_to_ask(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "train.jsonl", 5)
    with pytest.raises(DataError, match=r"data\.test and data\.valid are null, and data\.valid_share is 0"):
        choose_sources([subject_of(tmp_path, {"train": str(file), "valid_share": 0.0})], [])


@pytest.mark.parametrize("share", [0.2, 0.0])
def test_a_training_file_is_known_with_the_rows_that_were_held_out(tmp_path: Path, share: float) -> None:
    file = write_rows(tmp_path / "train.jsonl", 10)
    other = write_rows(tmp_path / "other.jsonl", 9)
    subject = subject_of(tmp_path, {"train": str(file), "valid_share": share})
    assert read_source(Chosen(str(file), "test"), 3).is_training_data_of(subject)
    assert not read_source(Chosen(str(other), "test"), None).is_training_data_of(subject)


def test_what_is_asked_twice_is_read_once() -> None:
    assert choose_sources([], ["a.jsonl", "b.jsonl", "a.jsonl"]) == [
        Chosen("a.jsonl", "test"),
        Chosen("b.jsonl", "test"),
    ]
    with pytest.raises(DataError):
        choose_sources([], [])
