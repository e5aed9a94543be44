"""A tiny base and a run file over it for the tests of `mlx-lora train`, and the workshop of those of `eval`."""

import json

import pytest
import yaml

from tests.commands.workshop import workshop  # noqa: F401
from tests.tiny import save_tiny_folder

QUESTIONS = [("What is the sky?", "blue"), ("What is grass?", "green"), ("What is snow?", "white"), ("Coal?", "black")]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny_folder(tmp_path_factory.mktemp("base"), bits=4)


@pytest.fixture
def run_file(base, tmp_path):
    """Write a run file over eight rows; keyword arguments change its sections."""

    def write(**sections):
        rows = [{"question": question, "answer": answer} for question, answer in QUESTIONS * 2]
        (tmp_path / "train.jsonl").write_text("\n".join(json.dumps(row) for row in rows[:6]))
        (tmp_path / "valid.jsonl").write_text("\n".join(json.dumps(row) for row in rows[4:]))
        settings = {
            "model": str(base),
            "data": {"train": str(tmp_path / "train.jsonl"), "valid": str(tmp_path / "valid.jsonl")},
            "lora": {"rank": 4, "alpha": 8, "layers": 2},
            "train": {
                "epochs": 3,
                "batch_size": 2,
                "engine": ["supervised_positions", "shared_prefix"],
                "retention": None,
            },
            "optimizer": {"learning_rate": 5e-3},
            "output_dir": str(tmp_path / "run"),
        }
        for section, values in sections.items():
            settings[section] = {**settings[section], **values} if isinstance(values, dict) else values
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(settings))
        return path

    return write
