"""`mlx-lora init`: what it writes loads, explains itself and is not lost."""

import json
from pathlib import Path

import pytest

from mlx_lora.commands.init import run_init
from mlx_lora.config import RunConfig
from mlx_lora.errors import ConfigError, MlxLoraError
from mlx_lora.runfile import load_config
from mlx_lora.runfile.fields import all_settings

FILES = ["data/test.jsonl", "data/train.jsonl", "data/valid.jsonl", "run.yaml"]


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def init(folder: Path, *, model: str = "smollm2-135m-instruct", force: bool = False) -> RunConfig:
    assert run_init(folder, model=model, force=force) == 0
    return load_config(folder / "run.yaml")


def test_init_writes_a_run_file_that_loads_and_the_data_that_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = init(tmp_path / "new")
    assert sorted(str(path.relative_to(tmp_path / "new")) for path in (tmp_path / "new").rglob("*.*")) == FILES
    monkeypatch.chdir(tmp_path / "new")
    for named in (config.data.train, config.data.valid, config.data.test):
        assert named is not None
        assert Path(named).is_file()


def test_the_model_is_written_as_given_even_where_yaml_would_read_a_number(tmp_path: Path) -> None:
    assert init(tmp_path / "a", model="org/model: 4bit").model == "org/model: 4bit"
    assert init(tmp_path / "b", model="1e5").model == "1e5"


def test_every_setting_stands_in_the_run_file_below_its_own_description(tmp_path: Path) -> None:
    init(tmp_path)
    lines = [line.strip() for line in (tmp_path / "run.yaml").read_text(encoding="utf-8").splitlines()]
    unwrapped = " ".join(line.removeprefix("#").strip() for line in lines)
    for setting in all_settings().values():
        assert sum(line.startswith(f"{setting.name}: ") for line in lines) == 1, setting.path
        assert setting.description, setting.path
        assert setting.description in unwrapped, setting.path


def test_the_sample_asks_in_valid_and_test_what_training_answers_in_other_words(tmp_path: Path) -> None:
    init(tmp_path)
    train, valid, test = (rows(tmp_path / "data" / f"{split}.jsonl") for split in ("train", "valid", "test"))
    assert (len(train), len(valid), len(test)) == (72, 8, 8)
    answers = {row["fact"]: row["answer"] for row in train}
    assert len(answers) == 8
    assert {row["fact"]: row["answer"] for row in valid} == answers
    assert {row["fact"]: row["answer"] for row in test} == answers
    questions = [row["question"] for row in (*train, *valid, *test)]
    assert len(set(questions)) == len(questions)
    for row in (*train, *valid, *test):
        assert set(row) <= {"question", "answer", "answers", "fact"}
        accepted = row.get("answers", [row["answer"]])
        assert isinstance(accepted, list)
        assert accepted[0] == row["answer"]


def test_nothing_is_overwritten_without_force(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "valid.jsonl").write_text("mine")
    with pytest.raises(ConfigError) as caught:
        run_init(tmp_path, model="m", force=False)
    assert caught.value.message == f"{tmp_path}/data/valid.jsonl: there already"
    assert caught.value.hint == "choose another folder, or pass --force to overwrite"
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["valid.jsonl"]
    assert (tmp_path / "data" / "valid.jsonl").read_text() == "mine"


def test_force_overwrites(tmp_path: Path) -> None:
    init(tmp_path, model="first")
    assert init(tmp_path, model="second", force=True).model == "second"


def test_a_file_in_the_folders_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    with pytest.raises(MlxLoraError, match="taken"):
        run_init(tmp_path / "taken", model="m", force=False)


def test_the_next_commands_go_to_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    init(Path("new"))
    out, err = capsys.readouterr()
    assert out == ""
    assert "  cd new\n  mlx-lora check run.yaml\n  mlx-lora train run.yaml\n" in err
    init(Path())
    assert "cd " not in capsys.readouterr().err


def test_a_model_in_a_folder_nearby_is_found_from_the_new_folder_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`init new --model models/base` wrote models/base, which is not there after the `cd new` of its next line."""
    from mlx_lora.model.sources import find_source

    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "base").mkdir(parents=True)
    (tmp_path / "models" / "base" / "config.json").write_text("{}")
    config = init(Path("my run"), model="models/base")
    assert "  cd 'my run'\n" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path / "my run")
    assert find_source(config.model).path == tmp_path / "models" / "base"
    monkeypatch.chdir(tmp_path)
    assert init(Path(), model="models/base").model == "models/base", "here it is there"
    assert init(tmp_path / "b", model="~/nothing").model == "~/nothing"
