"""Files, folders and data sets are read row by row with their lines, and faults come ten at a time."""

import csv
import io
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import mlx_lora
from mlx_lora.dataset.builtin import BUILTIN_DATA_SETS, builtin_path
from mlx_lora.dataset.records import read_records, read_split_if_present
from mlx_lora.dataset.rows import iter_rows
from mlx_lora.errors import DataError, MlxLoraError


def write(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def fault_of(source: str, split: str = "train") -> DataError:
    with pytest.raises(DataError) as caught:
        read_records(source, split)
    return caught.value


def places(source: str) -> list[str]:
    return [record.place.removeprefix(source) for record in read_records(source)]


ROW = '{"question": "Q", "answer": "A"}'


def test_jsonl_rows_carry_their_line_and_blank_lines_are_skipped(tmp_path: Path) -> None:
    source = write(tmp_path, "a.jsonl", f"{ROW}\n\n  \r\n{ROW}\r\n{ROW}")
    assert places(source) == [":1", ":4", ":5"]


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    for name, content in (("a.jsonl", ROW), ("a.json", f"[{ROW}]"), ("a.csv", "question,answer\nQ,A")):
        assert read_records(write(tmp_path, name, b"\xef\xbb\xbf" + content.encode()))[0].question == "Q"


def test_line_separators_inside_json_texts_do_not_end_the_row(tmp_path: Path) -> None:
    source = write(tmp_path, "a.jsonl", json.dumps({"text": "a\u2028b\x85c"}, ensure_ascii=False))
    assert read_records(source)[0].text == "a\u2028b\x85c"


def test_all_faults_of_a_file_come_at_once_with_their_lines_up_to_ten(tmp_path: Path) -> None:
    bad = '{"messages": [{"role": "user", "content": "Q"}]}'
    source = write(tmp_path, "train.jsonl", "\n".join([ROW, "{oops", bad, *['{"question": "Q"}'] * 10]))
    lines = fault_of(source).message.splitlines()
    assert lines[0].startswith(f"{source}:2: not JSON: ")
    assert lines[1] == f'{source}:3: last message has role "user", expected "assistant"'
    assert len(lines) == 11
    assert lines[-1] == "… and 2 more"


def test_the_hint_names_the_formats(tmp_path: Path) -> None:
    error = fault_of(write(tmp_path, "a.jsonl", '{"foo": 1}'))
    assert error.message.endswith(":1: no known format (its keys: foo)")
    assert "prompt + completion" in str(error.hint)


def test_bytes_that_are_not_utf8_are_named_with_line_and_column(tmp_path: Path) -> None:
    line = b'{"question": "Caf\xe9", "answer": "A"}'
    source = write(tmp_path, "a.jsonl", ROW.encode() + b"\n" + line)
    assert fault_of(source).message == f"{source}:2: not UTF-8 (byte 0xe9 at column 18)"
    source = write(tmp_path, "a.csv", b"question,answer\nCaf\xe9,A")
    assert fault_of(source).message == f"{source}:2: not UTF-8 (byte 0xe9)"
    source = write(tmp_path, "b.jsonl", ROW.encode("utf-16"))
    assert fault_of(source).message == f"{source}:1: not UTF-8, but UTF-16"


def test_an_empty_file_has_no_rows(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.json", "a.csv"):
        source = write(tmp_path, name, "\n")
        assert fault_of(source).message == f"{source}: no rows"


def test_one_row_is_enough(tmp_path: Path) -> None:
    """https://github.com/ml-explore/mlx-examples/issues/630"""
    assert len(read_records(write(tmp_path, "a.jsonl", ROW))) == 1


def test_json_lists_and_data_lists_carry_the_line_of_each_row(tmp_path: Path) -> None:
    pretty = json.dumps([{"question": "Q", "answer": "A"}, {"text": "t ] , ["}, {"text": "u"}], indent=1)
    assert places(write(tmp_path, "a.json", pretty)) == [":2", ":6", ":9"]
    assert places(
        write(tmp_path, "b.json", '{"version": [1, {"data": 2}],\n"data":\n[' + ROW + ",\n" + ROW + "]}")
    ) == [
        ":3",
        ":4",
    ]


def test_json_with_one_object_a_line_is_read_too(tmp_path: Path) -> None:
    assert places(write(tmp_path, "a.json", f"{ROW}\n{ROW}\n")) == [":1", ":2"]


def test_broken_json_is_named_with_its_line(tmp_path: Path) -> None:
    source = write(tmp_path, "a.json", f"[{ROW},\n{{oops]")
    assert fault_of(source).message.startswith(f"{source}:2: not JSON: ")
    source = write(tmp_path, "b.json", "7")
    assert fault_of(source).message == f"{source}:1: neither a list of rows nor an object"


def test_csv_rows_carry_the_line_where_they_begin(tmp_path: Path) -> None:
    text = 'question,answer,answers,category\r\nQ1,"A,\nB",A|B,c\r\n\r\nQ2,A,,\r\n'
    source = write(tmp_path, "a.csv", text)
    first, second = read_records(source)
    assert (first.place, second.place) == (f"{source}:2", f"{source}:5")
    assert first.answers == ("A,\nB", "A", "B")
    assert (first.category, second.category, second.answers) == ("c", None, ("A",))


def test_csv_columns_for_asking_work_in_every_format_and_may_hold_anything(tmp_path: Path) -> None:
    text = "prompt,completion,answers,category,fact,choices\nQ1,A,B | C,3,,\nQ2,A,,,x,\n"
    first, second = read_records(write(tmp_path, "a.csv", text))
    assert (first.answers, first.category, first.fact) == (("A", "B", "C"), "3", None)
    assert (second.answers, second.category, second.fact) == (("A",), None, "x")


def test_csv_may_be_separated_by_semicolons_or_tabs(tmp_path: Path) -> None:
    for mark in ";\t":
        source = write(tmp_path, "a.csv", f"question{mark}answer\nWho, then?{mark}A\n")
        assert read_records(source)[0].question == "Who, then?"


def test_csv_cells_of_messages_hold_json(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    stream = io.StringIO()
    csv.writer(stream).writerows([["messages"], [json.dumps(messages)], ["[oops"]])
    source = write(tmp_path, "a.csv", stream.getvalue())
    assert fault_of(source).message == f'{source}:3: the cell "messages" is not JSON'


def test_csv_faults_name_header_cells_and_quotes(tmp_path: Path) -> None:
    source = write(tmp_path, "a.csv", "Who won?,Oilers\nWho lost?,Bruins\n")
    assert fault_of(source).message == (
        f"{source}:1: the first line must name the columns, but it has: Who won?, Oilers"
    )
    source = write(tmp_path, "b.csv", "question,answer\nQ,A,B\n")
    assert fault_of(source).message == f"{source}:2: 3 cells where the header has 2 columns"
    source = write(tmp_path, "c.csv", 'question,answer\nQ,A\nQ,"A\n')
    assert fault_of(source).message.startswith(f"{source}:3: not CSV: ")


def test_a_key_or_column_that_stands_twice_is_a_fault_and_not_the_last_value(tmp_path: Path) -> None:
    twice = '{"question": "Q", "answer": "A", "answer": "B"}'
    said = "is given twice"
    lines = write(tmp_path, "a.jsonl", f"{ROW}\n{twice}")
    assert fault_of(lines).message == f'{lines}:2: "answer" {said}'
    rows = write(tmp_path, "a.json", f"[{ROW},\n{twice},\n{ROW},\n{twice}]")
    assert fault_of(rows).message == f'{rows}:2: "answer" {said}\n{rows}:4: "answer" {said}'
    table = write(tmp_path, "a.csv", "question,answer,,,answer\nQ,A,,,B\n")
    assert fault_of(table).message == f'{table}:1: the column "answer" stands twice'
    assert {fault_of(source).hint for source in (lines, rows, table)} == {"keep one of the two"}
    assert places(write(tmp_path, "b.csv", "question,answer,,\nQ,A,,\n")) == [":2"]  # as spreadsheets leave it


def test_a_key_that_stands_twice_in_json_within_a_cell_is_a_fault(tmp_path: Path) -> None:
    cell = (
        '[{""role"": ""user"", ""content"": ""Q""}, {""role"": ""assistant"", ""content"": ""A"", ""content"": ""B""}]'
    )
    source = write(tmp_path, "a.csv", f'messages\n"{cell}"\n')
    assert fault_of(source).message == f'{source}:2: the cell "messages": "content" is given twice'


def test_a_blank_between_comma_and_quote_is_a_fault_and_no_part_of_the_answer(tmp_path: Path) -> None:
    source = write(tmp_path, "a.csv", 'question,answer\n"Who?", "Ann"\nWho?, Ann\n')
    error = fault_of(source)
    said = 'the cell "answer" has a blank before its quotes, which makes them part of the text'
    assert error.message == f"{source}:2: {said}"
    assert error.hint == "remove the blank between the separator and the quote"
    said_so = read_records(write(tmp_path, "b.csv", 'question,answer\nWho?, Ann\nWho?,"""Ann"""\n'), "test")
    assert [record.answers[0] for record in said_so] == [" Ann", '"Ann"']


def test_a_long_cell_is_read_whole(tmp_path: Path) -> None:
    source = write(tmp_path, "a.csv", f"question,answer\nQ,{'x' * 200_000}\n")
    assert len(read_records(source)[0].answers[0]) == 200_000


def test_a_folder_gives_its_splits_under_their_usual_names(tmp_path: Path) -> None:
    write(tmp_path, "train.jsonl", ROW)
    write(tmp_path, "validation.csv", "question,answer\nV,A")
    assert read_records(str(tmp_path))[0].place == f"{tmp_path}/train.jsonl:1"
    assert read_records(str(tmp_path), "valid")[0].question == "V"
    assert read_split_if_present(str(tmp_path), "test") is None
    error = fault_of(str(tmp_path), "test")
    assert error.message == f"{tmp_path}: there is no test split"
    assert "train.jsonl, validation.csv" in str(error.hint)


def test_two_files_for_one_split_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "train.jsonl", ROW)
    write(tmp_path, "train.csv", "question,answer\nV,A")
    assert fault_of(str(tmp_path)).message == f"{tmp_path}: which file is the train split, train.jsonl and train.csv?"


def test_a_missing_file_gets_a_near_name(tmp_path: Path) -> None:
    write(tmp_path, "train.jsonl", ROW)
    error = fault_of(str(tmp_path / "trian.jsonl"))
    assert error.message == f"{tmp_path}/trian.jsonl: no such file or folder"
    assert error.hint == f"did you mean {tmp_path}/train.jsonl?"


@pytest.mark.parametrize("source", ["/train.jsonl", ""])
def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(MlxLoraError) as caught:
        read_records(f"{tmp_path}{source}")
    assert caught.value.message == f"{tmp_path}: Permission denied"


def test_another_kind_of_file_is_named(tmp_path: Path) -> None:
    source = write(tmp_path, "a.parquet", "PAR1")
    error = fault_of(source)
    assert error.message == f"{source}: unknown kind of file"
    assert error.hint == "the name must end in .jsonl, .json, .csv"


def hub_with(monkeypatch: pytest.MonkeyPatch, load_dataset: Any) -> None:
    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)


def test_a_hugging_face_data_set_gives_its_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def load_dataset(name: str, configuration: str | None) -> dict[str, list[dict[str, str]]]:
        asked.append((name, configuration))
        return {"train": [{"question": "Q", "answer": "A"}] * 2, "validation": [{"question": "V", "answer": "A"}]}

    hub_with(monkeypatch, load_dataset)
    assert [record.place for record in read_records("openai/gsm8k:main")] == [
        "openai/gsm8k:main[train]:1",
        "openai/gsm8k:main[train]:2",
    ]
    valid = read_split_if_present("openai/gsm8k:main", "valid")
    assert valid is not None
    assert valid[0].question == "V"
    assert read_split_if_present("openai/gsm8k:main", "test") is None
    assert set(asked) == {("openai/gsm8k", "main")}


def test_a_published_set_with_a_strange_category_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = [None, 5, "c", ["c"], 2.5]
    rows = [{"instruction": "Q", "input": "", "output": "A", "category": kind, "choices": None} for kind in kinds]
    hub_with(monkeypatch, lambda name, configuration: {"train": rows})
    records = read_records("owner/set")
    assert [record.category for record in records] == [None, "5", "c", None, "2.5"]
    assert {record.answers for record in records} == {("A",)}


def test_the_words_of_hugging_face_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, configuration: str | None) -> None:
        raise ConnectionError("Couldn't reach the Hub\nmore")

    hub_with(monkeypatch, load_dataset)
    error = fault_of("openai/gsm8k")
    assert error.message == "openai/gsm8k: no such file or folder, and Hugging Face says: Couldn't reach the Hub"


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    error = fault_of("openai/gsm8k")
    assert error.message.startswith("openai/gsm8k: no such file or folder; ")
    assert error.hint == "check the path, or pip install 'mlx-lora[datasets]'"


@hypothesis_settings(deadline=None)
@given(st.binary(max_size=200), st.sampled_from([".jsonl", ".json", ".csv"]))
def test_any_bytes_are_rows_or_a_named_fault(scratch: Path, content: bytes, end: str) -> None:
    path = scratch / f"any{end}"
    path.write_bytes(content)
    try:
        places = [row.place for row in iter_rows(path)]
    except DataError as error:
        places = [error.message]
    assert all(place.startswith(f"{path}:") for place in places)


@hypothesis_settings(deadline=None)
@given(st.lists(st.dictionaries(st.text(max_size=4), st.text(max_size=8), max_size=3), max_size=5), st.integers(0, 3))
def test_json_rows_are_the_items_and_their_lines(scratch: Path, items: list[dict[str, str]], indent: int) -> None:
    path = scratch / "items.json"
    text = json.dumps({"data": ["other"], "x": {"data": []}, "data ": 1, "last": items}, indent=indent)
    path.write_text(text.replace('"last"', '"data"', 1))  # the later of two equal keys counts, as in json.loads
    rows = list(iter_rows(path))
    assert [row.value for row in rows] == items
    lines = path.read_text().splitlines()
    assert all(lines[int(row.place.rpartition(":")[2]) - 1].lstrip(' "da:t[')[:1] == "{" for row in rows)


def test_the_built_in_questions_are_read_by_name_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    records = read_records("general-knowledge", "valid")
    assert len(records) == 150
    assert (records[0].question, records[0].answers) == ("What is the capital of France?", ("Paris",))
    assert (records[0].place, records[149].place) == ("general-knowledge:1", "general-knowledge:150")
    assert read_split_if_present("general-knowledge", "test") is None


def test_a_misspelled_built_in_name_is_not_looked_for_on_a_hub() -> None:
    assert fault_of("general_knowledge").hint == "did you mean the built-in general-knowledge?"


def test_the_built_in_questions_lie_in_the_package_that_is_packed() -> None:
    package = Path(mlx_lora.__file__).parent
    for name in BUILTIN_DATA_SETS:
        path = builtin_path(name)
        assert path is not None
        assert path.is_file()
        assert path.is_relative_to(package)  # pyproject packs the whole folder mlx_lora
