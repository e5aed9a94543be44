"""`mlx-lora config schema` and `config show`: what goes to stdout can be read back."""

import json
from pathlib import Path

import pytest

from mlx_lora.commands.config import run_config_schema, run_config_show
from mlx_lora.errors import ConfigError
from mlx_lora.runfile import config_schema, load_config

TEXT = "model: m\ndata: {train: rows.jsonl}\ntrain: {epochs: 1}\noutput_dir: out\n"


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(TEXT)
    return path


def test_schema_is_one_closed_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_config_schema() == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema == config_schema()
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["model", "data", "train", "output_dir"]
    for section in schema["$defs"].values():
        assert section["additionalProperties"] is False
        for setting in section["properties"].values():
            assert setting["description"]


def test_show_prints_yaml_that_loads_to_the_same_run(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_config_show(run_file, ["lora.rank=4"], False) == 0
    out = capsys.readouterr().out
    assert "  # Longest row, in tokens.\n  max_seq_length: 2048\n" in out
    assert "  rank: 4\n" in out
    again = run_file.with_name("again.yaml")
    again.write_text(out)
    assert load_config(again) == load_config(run_file, ["lora.rank=4"])


def test_show_as_json_is_one_object_with_every_default(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_config_show(run_file, [], True) == 0
    assert json.loads(capsys.readouterr().out) == load_config(run_file).model_dump()


def test_show_of_a_faulty_file_prints_nothing(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"--set lora\.rnak: lora\.rnak is not a setting"):
        run_config_show(run_file, ["lora.rnak=4"], False)
    assert capsys.readouterr().out == ""
