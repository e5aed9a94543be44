"""`mlx-lora train` as its user meets it, on a tiny model: folders, resume, refusals, signals."""

import json
import os
import signal
from pathlib import Path

import mlx.core as mx
import pytest
import yaml
from typer.testing import CliRunner

from mlx_lora.chat.places import find_adapter
from mlx_lora.cli import app
from mlx_lora.commands import trainloop
from mlx_lora.commands.evaluate import run_evaluate
from mlx_lora.commands.train import run_train
from mlx_lora.errors import AdapterError, MlxLoraError, TrainingError
from mlx_lora.lora.adapter import read_adapter
from mlx_lora.training.checkpoint import list_checkpoints


def events(folder, kind):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]


def test_a_run_leaves_a_whole_adapter_folder_that_taught_something(run_file, tmp_path):
    assert run_train(run_file()) == 0
    folder = tmp_path / "run"
    assert {path.name for path in folder.iterdir()} == {
        "adapters.safetensors", "adapter_config.json", "run.yaml", "metrics.jsonl", "checkpoints",
    }  # fmt: skip
    assert [event["step"] for event in events(folder, "step")] == list(range(1, 10))
    assert [event["step"] for event in events(folder, "validation")] == [0, 3, 6, 9]
    assert events(folder, "end") == [{"event": "end", "step": 9, "ended_by": "steps"}]
    (start,) = events(folder, "start")
    told = {name: start["run"][name] for name in ("total_steps", "steps_per_epoch", "ranks", "modules")}
    assert told == {"total_steps": 9, "steps_per_epoch": 3, "ranks": 1, "modules": 14}
    assert (start["run"]["data"]["train"]["rows"], start["run"]["data"]["valid"]["rows"]) == (6, 4)
    assert [part["name"] for part in start["run"]["engine"]][:2] == ["supervised_positions", "shared_prefix"]
    losses = [event["loss"] for event in events(folder, "validation")]
    assert losses[-1] < 0.8 * losses[0]
    assert [event["better"] for event in events(folder, "validation")] == [
        False,
        *(loss < losses[0] for loss in losses[1:]),
    ]
    facts = json.loads((folder / "adapter_config.json").read_text())["mlx_lora"]
    assert facts["step"] == 9
    assert facts["identity"]["weights_sha256"]
    assert set(facts["data_sha256"]) == {"train", "valid"}
    assert facts["row_formats"] == ["question/answer"]
    assert "run" not in facts
    assert facts["versions"]["mlx-lora"]
    assert yaml.safe_load((folder / "run.yaml").read_text())["lora"]["rank"] == 4


def test_every_checkpoint_is_an_adapter_that_can_be_asked_and_knows_its_step(run_file, tmp_path, capsys):
    run_train(run_file(train={"keep_last": 9}))
    capsys.readouterr()
    assert run_evaluate([tmp_path / "run/checkpoints/00000006"], json_output=True) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["settings"]["adapter_step"], result["data"]["source"]) == (6, str(tmp_path / "valid.jsonl"))
    kept, last = (read_adapter(tmp_path / "run" / folder) for folder in (".", "checkpoints/00000009"))
    assert kept.config == last.config
    assert kept.tensors.keys() == last.tensors.keys()
    assert all(mx.array_equal(last.tensors[name], tensor).item() for name, tensor in kept.tensors.items())
    earlier = read_adapter(tmp_path / "run/checkpoints/00000003")
    assert not any(mx.array_equal(earlier.tensors[name], tensor).item() for name, tensor in kept.tensors.items())


def test_the_whole_engine_and_the_plain_way_end_in_the_same_validation_loss(run_file, tmp_path, capsys):
    ends = []
    for engine in ("plain", "auto"):
        assert run_train(run_file(train={"engine": engine}, output_dir=str(tmp_path / engine))) == 0
        ends.append([event["loss"] for event in events(tmp_path / engine, "validation")])
    shown = capsys.readouterr().err
    assert "on  frozen_layers         the lower 2 of 4 layers ran once for 10 rows" in shown
    assert ends[1] == pytest.approx(ends[0], rel=1e-4)
    assert ends[0][-1] < 0.8 * ends[0][0]


def test_a_folder_that_holds_a_run_is_not_overwritten_unasked(run_file, tmp_path):
    path = run_file()
    run_train(path)
    before = (tmp_path / "run" / "adapters.safetensors").read_bytes()
    with pytest.raises(MlxLoraError, match="holds a run already") as refused:
        run_train(path)
    assert "--resume" in refused.value.hint
    assert (tmp_path / "run" / "adapters.safetensors").read_bytes() == before
    for name in ("hub.json", "README.md"):  # of one that was pulled: it would be said to come from there
        (tmp_path / "run" / name).write_text("{}")
    assert run_train(path, ["train.seed=1"], overwrite=True) == 0
    assert (tmp_path / "run" / "adapters.safetensors").read_bytes() != before
    assert not any((tmp_path / "run" / name).exists() for name in ("hub.json", "README.md"))


def interrupted_after(step, monkeypatch):
    """Send this process Ctrl-C while `step` is being reported."""
    show = trainloop.TrainScreen.step

    def send(screen, report):
        show(screen, report)
        if report.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(trainloop.TrainScreen, "step", send)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"lora": {"dropout": 0.2}},
        {"train": {"gradient_accumulation_steps": 2, "batch_size": 1}},
        {"train": {"engine": "auto"}},
        {"train": {"engine": "plain"}, "optimizer": {"name": "muon"}},
        {"lora": {"init": "contrastive"}, "data": {"replay": 0.4}, "train": {"engine": "auto"}},
    ],
    ids=["parts", "dropout", "accumulation", "whole engine", "plain", "contrastive"],
)
def test_resume_gives_bitwise_the_uninterrupted_weights(run_file, tmp_path, monkeypatch, settings):
    # https://github.com/ml-explore/mlx-examples/issues/841: resume restored weights only
    assert run_train(run_file(**settings, output_dir=str(tmp_path / "whole"))) == 0
    path = run_file(**settings)
    with monkeypatch.context() as patch:
        interrupted_after(4, patch)
        assert run_train(path) == 130
    assert [event["step"] for event in events(tmp_path / "run", "step")] == [1, 2, 3, 4]
    assert run_train(path, resume=True) == 0
    resumed, whole = ((tmp_path / folder / "adapters.safetensors").read_bytes() for folder in ("run", "whole"))
    assert resumed == whole
    ends = [(event["step"], event["ended_by"]) for event in events(tmp_path / "run", "end")]
    assert ends == [(9, "steps")]  # as in a run that was never stopped
    kept = ("step", "epoch", "loss", "gradient_norm", "learning_rate", "targets", "tokens", "padding_share")
    for kind in ("step", "validation"):
        resumed, whole = (
            [{key: event[key] for key in kept if key in event} for event in events(tmp_path / folder, kind)]
            for folder in ("run", "whole")
        )
        assert resumed == whole
    newest = [list_checkpoints(tmp_path / folder / "checkpoints")[-1] for folder in ("run", "whole")]
    for name in ("adapters.safetensors", "optimizer.safetensors"):
        one, other = (mx.load(str(folder / name)) for folder in newest)
        assert one.keys() == other.keys()
        assert all(mx.array_equal(one[key], other[key]).item() for key in one)


def test_resume_refuses_a_changed_run_with_the_list_of_what_differs(run_file, tmp_path, monkeypatch):
    path = run_file()
    interrupted_after(3, monkeypatch)
    run_train(path)
    with pytest.raises(TrainingError) as refused:
        run_train(path, ["optimizer.learning_rate=0.1", "lora.alpha=4"], resume=True)
    assert "settings.lora.alpha: was 8.0, is 4.0" in refused.value.message
    assert "settings.optimizer.learning_rate: was 0.005, is 0.1" in refused.value.message
    (tmp_path / "train.jsonl").write_text('{"question": "What?", "answer": "Other"}')
    with pytest.raises(TrainingError, match=r"data\.train: was"):
        run_train(path, resume=True)


def test_a_damaged_checkpoint_is_passed_over_aloud(run_file, tmp_path, monkeypatch, capsys):
    path = run_file(train={"save_every": 1})
    with monkeypatch.context() as patch:
        interrupted_after(5, patch)
        run_train(path)
    newest = list_checkpoints(tmp_path / "run" / "checkpoints")[-1]
    torn = newest / "adapters.safetensors"
    torn.write_bytes(torn.read_bytes()[:-7])
    assert run_train(path, resume=True) == 0
    shown = capsys.readouterr().err
    assert "is damaged (adapters.safetensors: checksum differs); using the one before" in shown
    assert "resumed after step 4 of 9" in shown
    assert [event["step"] for event in events(tmp_path / "run", "step")] == list(range(1, 10))


def test_early_stopping_keeps_the_best_adapter(run_file, tmp_path):
    path = run_file(
        train={"epochs": 30, "early_stopping_patience": 2}, optimizer={"learning_rate": 0.3, "schedule": "constant"}
    )
    assert run_train(path, json_output=True) == 0
    folder = tmp_path / "run"
    validations = events(folder, "validation")[1:]
    best = min(validations, key=lambda event: event["loss"])
    assert len(validations) < 30
    assert [event["step"] for event in validations if event["best"]][-1] == best["step"]
    assert json.loads((folder / "adapter_config.json").read_text())["mlx_lora"]["step"] == best["step"]


def test_without_validation_rows_the_last_adapter_is_kept(run_file, tmp_path):
    path = run_file(data={"valid": None, "valid_share": 0.0})
    assert run_train(path) == 0
    assert events(tmp_path / "run", "validation") == []
    assert json.loads((tmp_path / "run" / "adapter_config.json").read_text())["mlx_lora"]["step"] == 9


def test_a_learning_rate_that_breaks_the_run_ends_with_step_and_rows_and_exit_code_1(run_file, tmp_path, capsys):
    path = run_file(optimizer={"learning_rate": 1e20, "max_grad_norm": None, "warmup_ratio": 0.0})
    with pytest.raises(TrainingError, match="step 2: the loss is nan") as broke:
        run_train(path)
    assert broke.value.hint.endswith("; no adapter was kept yet")
    with pytest.raises(AdapterError, match=r"run: its run has kept no adapter$") as none:
        find_adapter(str(tmp_path / "run"))
    assert none.value.hint == f"mlx-lora report {tmp_path / 'run'} says how it ended"
    (end,) = events(tmp_path / "run", "end")
    assert (end["step"], end["ended_by"]) == (1, "error")
    assert end["message"].startswith("step 2: the loss is nan")


def test_json_prints_one_object_on_stdout(run_file, tmp_path):
    result = CliRunner().invoke(app, ["train", str(run_file()), "--json", "--set", "train.epochs=1"])
    assert result.exit_code == 0
    summary = json.loads(result.stdout)
    assert summary["steps"] == summary["total_steps"] == 3
    assert summary["ended_by"] == "steps"
    assert summary["adapter_bytes"] == (tmp_path / "run" / "adapters.safetensors").stat().st_size


def test_the_folder_of_a_base_is_not_written_into(run_file, base):
    before = sorted(path.name for path in base.iterdir())
    for options in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(MlxLoraError, match=r"holds a model \(config.json\)"):
            run_train(run_file(output_dir=str(base)), **options)
    assert sorted(path.name for path in base.iterdir()) == before


def test_a_refused_run_leaves_no_folder(run_file, tmp_path):
    with pytest.raises(MlxLoraError, match=r"lora\.layers: 40 asked for"):
        run_train(run_file(lora={"layers": 40}, output_dir=str(tmp_path / "new" / "run")))
    assert not (tmp_path / "new").exists()


def test_resume_without_a_checkpoint_says_so(run_file):
    with pytest.raises(TrainingError, match="no whole checkpoint to resume from"):
        run_train(run_file(), resume=True)


def test_the_header_names_model_scale_and_parts(run_file, tmp_path, capsys):
    run_train(run_file())
    shown = capsys.readouterr().err
    assert "lora rank 4, effective scale 2, 14 modules" in shown
    assert "on  supervised_positions" in shown
    assert "on  checked" in shown
    assert Path(tmp_path / "run" / "run.yaml").exists()


@pytest.mark.parametrize(("valid", "every"), [({}, 3), ({"valid": None, "valid_share": 0}, None)])
def test_the_time_left_knows_how_often_the_run_validates(run_file, monkeypatch, valid, every):
    path, made = run_file(), []
    if valid:
        settings = yaml.safe_load(path.read_text())
        settings["data"] |= valid
        path.write_text(yaml.safe_dump(settings))

    class Noting(trainloop.TrainScreen):
        def __init__(self, *arguments):
            made.append(arguments)
            super().__init__(*arguments)

    monkeypatch.setattr(trainloop, "TrainScreen", Noting)
    assert run_train(path) == 0
    assert made == [(1, 9, every)]
