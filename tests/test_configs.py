"""The run files, schema and reference that ship with the project are valid and current."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from mlx_lora.config import RunConfig
from mlx_lora.model.builtin import BUILTIN_MODELS
from mlx_lora.runfile import load_config
from mlx_lora.runfile.fields import all_sections, all_settings

ROOT = Path(__file__).resolve().parent.parent
RUN_FILES = sorted((ROOT / "configs").glob("*.yaml"))


def script(path: str) -> ModuleType:
    """A script of the repository as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_are_run_files() -> None:
    assert {path.stem for path in RUN_FILES} >= {"stanley_cup_modern", "stanley_cup_full", "mistral_7b_qlora"}


@pytest.mark.parametrize("path", RUN_FILES, ids=lambda path: path.stem)
def test_a_shipped_run_file_loads_and_its_data_is_there(path: Path) -> None:
    config = load_config(path)
    for named in (config.data.train, config.data.valid, config.data.test):
        assert named is not None
        assert (ROOT / named).is_file(), named


@pytest.mark.parametrize("path", RUN_FILES, ids=lambda path: path.stem)
def test_a_shipped_run_file_names_a_model_that_anyone_can_get(path: Path) -> None:
    model = load_config(path).model
    assert model in BUILTIN_MODELS or model.startswith("mlx-community/")


@pytest.mark.parametrize("path", RUN_FILES, ids=lambda path: path.stem)
def test_a_shipped_run_file_names_the_schema_and_an_adapter_folder_of_its_own(path: Path) -> None:
    assert path.read_text(encoding="utf-8").splitlines()[0] == "# yaml-language-server: $schema=./schema.json"
    assert load_config(path).output_dir == f"adapters/{path.stem.replace('_', '-')}"


def test_the_committed_schema_and_reference_are_current() -> None:
    builder = script("docs/build_config_reference.py")
    remedy = "run: python docs/build_config_reference.py"
    assert (ROOT / "configs" / "schema.json").read_text(encoding="utf-8") == builder.build_schema(), remedy
    assert (ROOT / "docs" / "CONFIG.md").read_text(encoding="utf-8") == builder.build_reference(), remedy


def test_the_reference_has_a_row_for_every_setting() -> None:
    lines = (ROOT / "docs" / "CONFIG.md").read_text(encoding="utf-8").splitlines()
    for path, setting in all_settings().items():
        assert sum(line.startswith(f"| `{path}` | {setting.kind} | ") for line in lines) == 1, path
    assert [line for line in lines if line.startswith("## ")] == [
        "## At the top",
        *(f"## `{name}`" for name in all_sections() if name),
    ]


def test_the_order_sentences_are_what_their_script_builds_and_no_order_is_in_two_splits() -> None:
    splits = script("data/orders/build.py").build_rows()
    orders = [(row["answer"]) for rows in splits.values() for row in rows]
    assert len(set(orders)) == len(orders) == 160 + 24 + 24
    for split, rows in splits.items():
        lines = (ROOT / "data" / "orders" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line) for line in lines] == rows
        for row in rows:
            assert set(json.loads(row["answer"])) == {"item", "size", "quantity", "day"}


IDLE = [
    ({"data": {"replay_prompts": "own.txt"}}, "data.replay_prompts has no effect: data.replay is not set"),
    ({"data": {"valid": "v.csv", "valid_share": 0.3}}, "data.valid_share has no effect: data.valid is given"),
    ({"optimizer": {"name": "adam", "weight_decay": 0.1}}, "optimizer.weight_decay has no effect: adam has none"),
    ({"optimizer": {"name": "adamw", "momentum": 0.5}}, "optimizer.momentum has no effect: adamw takes none"),
    (
        {"optimizer": {"schedule": "constant", "final_ratio": 0.1}},
        "optimizer.final_ratio has no effect: optimizer.schedule is constant",
    ),
]


@pytest.mark.parametrize(("sections", "said"), IDLE)
def test_a_setting_that_another_makes_idle_is_said(sections: dict[str, dict[str, object]], said: str) -> None:
    """Found in session 10: the settings tell their limits, but a run passed over them without a word."""
    run = {"model": "m", "data": {"train": "t.csv"}, "train": {"steps": 1}, "output_dir": "out"}
    data = {"train": "t.csv", **sections.get("data", {})}
    config = RunConfig.model_validate({**run, **sections, "data": data})
    assert config.without_effect == (said,)
    assert RunConfig.model_validate(config.model_dump()).without_effect == (said,)


@pytest.mark.parametrize("path", RUN_FILES, ids=lambda path: path.stem)
def test_no_setting_of_a_run_file_is_idle(path: Path) -> None:
    assert load_config(path).without_effect == ()
