"""`mlx-lora plan`, `batch_size: auto` and the preflight of `train`, as a user meets them."""

import json
from pathlib import Path

import mlx_lora  # isort: skip  # before mlx.core: it loads OpenBLAS
import mlx.core as mx
import pytest

from mlx_lora.commands.check import run_check
from mlx_lora.commands.plan import run_plan
from mlx_lora.commands.train import run_train
from mlx_lora.errors import TrainingError
from mlx_lora.memory import fitting
from mlx_lora.runfile import load_config
from tests.memory.settled import settled
from tests.tiny import save_tiny_folder

assert mlx_lora


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    save_tiny_folder(folder / "model", layers=2)
    rows = [{"question": f"What is {n}?", "answer": "a" * (1 + n % 4)} for n in range(40)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "run.yaml").write_text(
        f"model: {folder}/model\n"
        f"data: {{train: {folder}/rows.jsonl, valid_share: 0.0}}\n"
        "lora: {rank: 4}\n"
        "train: {steps: 2, batch_size: 16, engine: [supervised_positions], retention: null}\n"
        f"output_dir: {folder}/out\n",
        encoding="utf-8",
    )
    return folder / "run.yaml"


@pytest.mark.usefixtures("one_task_at_a_time")
def test_plan_prints_one_object_whose_parts_add_up(
    run_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "_POSITIONS", 512)
    assert run_plan(load_config(run_file), json_output=True) == 0
    plan = json.loads(capsys.readouterr().out)
    step = next(phase for phase in plan["phases"] if phase["name"] == "a training step")
    assert step["total"] == step["weights"] + step["adapter"] + step["optimizer"] + step["working"]
    assert step["how"] == "measured here on 2 layers"
    assert plan["peak_bytes"] == max(phase["total"] for phase in plan["phases"])
    assert plan["fits"]
    assert plan["remedy"] is None
    assert plan["rows"] == 16
    assert plan["largest_batch_size"]["most"] > 1000
    assert [saving["part"] for saving in plan["savings"]] == ["supervised_positions", "gradient_checkpointing"]
    positions = plan["savings"][0]
    assert positions["without"] > 1.2 * positions["with_it"]

    # Of two layers the last runs where a token is trained: there is little left that could be recomputed.
    def recomputed() -> float:
        run_plan(load_config(run_file), json_output=True)
        (_, saving) = json.loads(capsys.readouterr().out)["savings"]
        return saving["without"] / saving["with_it"]

    assert 0.9 < settled(recomputed, 0.9, 1.1) < 1.1


def test_plan_ends_with_one_and_settings_that_fit_where_the_run_does_not(
    run_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "_POSITIONS", 512)
    assert run_plan(load_config(run_file, ["train.memory_limit_gb=0.006"]), json_output=False) == 1
    said = capsys.readouterr().out
    assert "does not fit" in said
    assert "computed from shapes" in said
    assert "measured here on 2 layers" in said
    assert "--set train.batch_size=" in said


def test_train_refuses_what_does_not_fit_and_what_it_proposes_instead_runs(run_file: Path) -> None:
    limit = "train.memory_limit_gb=0.006"
    with pytest.raises(TrainingError, match=r"does not fit: a training step needs .* there are 6\.0 MB") as refused:
        run_train(run_file, [limit])
    assert not (run_file.parent / "out" / "run.yaml").exists()
    assert refused.value.hint is not None
    settings = [word for word in refused.value.hint.split(";")[0].split() if "=" in word]
    assert settings
    assert run_train(run_file, [limit, *settings], overwrite=True) == 0


def test_weights_that_do_not_fit_are_refused_before_anything_is_measured(
    run_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlx_lora.memory.prediction.Slices", None)
    for refuse in (run_train, lambda path, given: run_plan(load_config(path, given), json_output=True)):
        with pytest.raises(TrainingError, match=r"its weights alone need 378\.1 kB, and there are 100\.0 kB"):
            refuse(run_file, ["train.memory_limit_gb=0.0001", f"output_dir={run_file.parent / 'never'}"])


def test_auto_is_a_number_in_the_written_run_file_and_a_resumed_run_keeps_it(
    run_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = f"output_dir={run_file.parent / 'auto'}"
    assert run_train(run_file, ["train.batch_size=auto", out]) == 0
    assert "train.batch_size: auto is 2 here\n" in capsys.readouterr().err
    assert load_config(run_file.parent / "auto" / "run.yaml").train.batch_size == 2  # 40 rows: 16 batches at least
    monkeypatch.setattr(fitting, "LEAST_BATCHES", 40)
    assert run_train(run_file, ["train.batch_size=auto", out], resume=True) == 0
    assert "resumed after step 2 of 2" in capsys.readouterr().err
    assert run_check(load_config(run_file, ["train.batch_size=auto"]), json_output=False, show=0) == 0
    assert "at batch size 1\n" in capsys.readouterr().out


def test_a_run_sets_mlx_s_limits(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = f"output_dir={run_file.parent / 'limits'}"
    before = mx.set_memory_limit(2**40)
    try:
        assert run_train(run_file, [out, "train.memory_limit_gb=3.5"]) == 0
        assert mx.set_memory_limit(before) == 3_500_000_000
    finally:
        mx.set_memory_limit(before)
    assert "3.5 GB there (train.memory_limit_gb)" in capsys.readouterr().err
