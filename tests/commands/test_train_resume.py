"""`mlx-lora train` stopped and taken up again: by patience, by force, by a full disk, by an impatient person."""

import errno
import json
import os
import shutil
import signal

import mlx_lora  # noqa: F401  (loads OpenBLAS before MLX)

import mlx.core as mx  # isort: skip
import pytest
import yaml

from mlx_lora.commands import train as train_command
from mlx_lora.commands import trainloop
from mlx_lora.commands.train import run_train
from mlx_lora.errors import DataError, MlxLoraError, TrainingError
from mlx_lora.report.facts import notes, tiles
from mlx_lora.report.runs import read_run
from mlx_lora.training import storefolder
from mlx_lora.training.checkpoint import find_checkpoint, list_checkpoints
from mlx_lora.training.runfolder import claimed_folder
from mlx_lora.training.validation import Validation
from tests.commands.test_train import events, interrupted_after

CLOCK = ("seconds", "peak_bytes")


def ending(folder):
    """What a run leaves but for its clock: the bytes of the adapter and of the newest checkpoint, and the events."""
    newest = list_checkpoints(folder / "checkpoints")[-1]
    files = [folder / "adapters.safetensors", *(path for path in newest.rglob("*") if path.is_file())]
    found = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    for kind in ("step", "validation"):
        found[kind] = [{k: v for k, v in event.items() if k not in CLOCK} for event in events(folder, kind)]
    return found


def stop_after(step, path, monkeypatch, **settings):
    with monkeypatch.context() as patch:
        interrupted_after(step, patch)
        assert run_train(path, **settings) == 130


STREAK = {
    "train": {"epochs": 30, "eval_every": 2, "save_every": 5, "early_stopping_patience": 3},
    "optimizer": {"learning_rate": 0.3, "schedule": "constant"},
}


def test_a_resume_amid_a_streak_without_gain_stops_where_the_uninterrupted_run_does(run_file, tmp_path, monkeypatch):
    assert run_train(run_file(**STREAK, output_dir=str(tmp_path / "whole"))) == 0
    validations = events(tmp_path / "whole", "validation")
    best = max(event["step"] for event in validations if event["best"])
    assert validations[-1]["step"] == best + 6 < 90
    path = run_file(**STREAK)
    stop_after(best + 3, path, monkeypatch)  # one validation without gain, and a step after it
    stopped = find_checkpoint(tmp_path / "run" / "checkpoints").progress
    assert (stopped.step, stopped.best_step, stopped.validations_without_gain) == (best + 3, best, 1)
    assert run_train(path, resume=True) == 0
    assert ending(tmp_path / "run") == ending(tmp_path / "whole")
    assert ending(tmp_path / "run")["step"][-1]["step"] == best + 6


def test_a_run_that_patience_has_ended_does_not_go_on_by_itself(run_file, tmp_path):
    path = run_file(**STREAK)
    run_train(path)
    before = ending(tmp_path / "run")
    assert run_train(path, resume=True) == 0
    assert ending(tmp_path / "run") == before
    more = ["train.early_stopping_patience=4"]
    with pytest.raises(TrainingError) as refused:
        run_train(path, more, resume=True)
    assert refused.value.message.splitlines()[1:] == [
        "  settings.train.early_stopping_patience: was 3, is 4 (--force allows it: only when the run stops)"
    ]
    assert refused.value.hint == "undo these changes, or go on all the same with --resume --force"
    assert run_train(path, more, resume=True, force=True) == 0
    assert len(events(tmp_path / "run", "step")) > len(before["step"])
    assert run_train(path, more, resume=True) == 0  # the run is now the changed one


def test_a_constant_schedule_can_be_lengthened_to_what_the_longer_run_would_have_been(run_file, tmp_path, monkeypatch):
    steady = {"optimizer": {"schedule": "constant", "warmup_ratio": 0.0}}
    assert run_train(run_file(**steady, train={"epochs": 5}, output_dir=str(tmp_path / "whole"))) == 0
    path = run_file(**steady)
    assert run_train(path) == 0
    with pytest.raises(TrainingError, match=r"total_steps: was 9, is 15 \(--force allows it: the learning rates so"):
        run_train(path, ["train.epochs=5"], resume=True)
    assert run_train(path, ["train.epochs=null", "train.steps=15"], resume=True, force=True) == 0
    assert ending(tmp_path / "run")["adapters.safetensors"] == ending(tmp_path / "whole")["adapters.safetensors"]
    assert ending(tmp_path / "run")["step"] == ending(tmp_path / "whole")["step"]
    (went_on,) = events(tmp_path / "run", "resume")
    assert (went_on["step"], went_on["run"]["total_steps"]) == (9, 15)
    run = read_run(tmp_path / "run")
    assert dict(tiles(run))["steps"] == "15"
    assert ("It was stopped and resumed after step 9.", None) in notes(run)
    with pytest.raises(TrainingError, match=r"total_steps: was 15, is 9$"):  # these steps are made
        run_train(path, resume=True, force=True)


def test_force_passes_over_nothing_that_makes_another_run(run_file, tmp_path, monkeypatch):
    path = run_file()
    stop_after(4, path, monkeypatch)
    before = ending(tmp_path / "run")
    changes = ["train.epochs=4", "lora.alpha=4", "train.batch_size=3", "train.eval_every=1"]
    with pytest.raises(TrainingError) as refused:
        run_train(path, changes, resume=True, force=True)
    assert refused.value.message.splitlines()[1:] == [
        "  settings.lora.alpha: was 8.0, is 4.0",
        "  settings.train.batch_size: was 2, is 3",
        "  settings.train.eval_every: was 'epoch', is 1 (--force allows it: only when validation looks)",
        "  total_steps: was 9, is 8",
    ]
    assert refused.value.hint == "undo these changes to resume, or begin again with --overwrite"
    assert ending(tmp_path / "run") == before


def test_what_is_asked_after_the_last_step_may_change_by_force(run_file, tmp_path, monkeypatch):
    """Found in session 15: a set that had gone kept a stopped run from ever being resumed."""
    path = run_file()
    stop_after(4, path, monkeypatch)
    change = ["train.retention=general-knowledge"]
    with pytest.raises(TrainingError, match=r"train\.retention: .* \(--force allows it: only what is asked after"):
        run_train(path, change, resume=True)
    assert run_train(path, change, resume=True, force=True) == 0
    assert [event["step"] for event in events(tmp_path / "run", "step")] == list(range(1, 10))


def test_another_version_resumes_by_force_and_says_so(run_file, tmp_path, monkeypatch, capsys):
    path = run_file()
    stop_after(4, path, monkeypatch)
    monkeypatch.setattr(train_command.metadata, "version", lambda name: f"99.{len(name)}")
    with pytest.raises(
        TrainingError, match=r"versions\.mlx: was '0\..*', is '99\.3' \(--force allows it: the same step"
    ):
        run_train(path, resume=True)
    assert run_train(path, resume=True, force=True) == 0
    assert "--force: versions.mlx-lm: was" in capsys.readouterr().err


def test_rows_and_base_may_move_and_a_template_may_not_change(run_file, tmp_path, monkeypatch):
    (tmp_path / "own.jinja").write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}:{{ m.content }}<|im_end|>{% endfor %}"
    )
    template = {"data": {"chat_template": str(tmp_path / "own.jinja")}}
    path = run_file(**template)
    stop_after(4, path, monkeypatch)
    shutil.move(tmp_path / "train.jsonl", tmp_path / "moved.jsonl")
    moved = [f"data.train={tmp_path / 'moved.jsonl'}"]
    (tmp_path / "own.jinja").write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>{% endfor %}"
    )
    with pytest.raises(TrainingError) as refused:
        run_train(path, moved, resume=True, force=True)
    assert [line.split(":")[0].strip() for line in refused.value.message.splitlines()[1:]] == ["data.tokens"]
    (tmp_path / "own.jinja").write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}:{{ m.content }}<|im_end|>{% endfor %}"
    )
    assert run_train(path, moved, resume=True) == 0


def test_without_a_checkpoint_a_resume_is_refused_before_anything_is_loaded(run_file, tmp_path, monkeypatch):
    monkeypatch.setattr(train_command, "_build", None)
    with pytest.raises(TrainingError, match="no whole checkpoint to resume from"):
        run_train(run_file(), resume=True)
    assert not (tmp_path / "run").exists()


def test_a_run_that_never_began_leaves_no_folder(run_file, tmp_path):
    path = run_file(output_dir=str(tmp_path / "new" / "run"))
    (tmp_path / "train.jsonl").write_text('{"question": "What?"}')
    with pytest.raises(DataError):
        run_train(path)
    assert not (tmp_path / "new").exists()


def test_a_second_run_into_the_same_folder_is_refused(run_file, tmp_path):
    with (
        claimed_folder(tmp_path / "run", resume=False, overwrite=False),
        pytest.raises(MlxLoraError, match=f"process {os.getpid()} is training into it"),
    ):
        run_train(run_file(), overwrite=True)


def twice_after(step, monkeypatch):
    """Ctrl-C, and once more while the next step is reported."""
    show = trainloop.TrainScreen.step

    def send(screen, report):
        show(screen, report)
        if report.step == step:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(10**8):  # the thread that reads the signals has to come to its turn
                pass

    monkeypatch.setattr(trainloop.TrainScreen, "step", send)


def test_how_to_go_on_names_the_settings_of_the_command_line(run_file, tmp_path, monkeypatch, capsys):
    path = run_file()
    folder = f"output_dir={tmp_path / 'other run'}"
    with monkeypatch.context() as patch:
        twice_after(5, patch)
        assert run_train(path, [folder]) == 130
    assert f"go on with: mlx-lora train {path} --set '{folder}' --resume" in capsys.readouterr().err


def test_ctrl_c_twice_stops_at_once_with_the_last_checkpoint_intact(run_file, tmp_path, monkeypatch, capsys):
    assert run_train(run_file(output_dir=str(tmp_path / "whole"))) == 0
    path = run_file()
    with monkeypatch.context() as patch:
        twice_after(5, patch)
        assert run_train(path) == 130
    shown = capsys.readouterr().err
    assert "stopping after this step; once more to stop at once" in shown
    assert f"stopped at once; step 3 is saved; go on with: mlx-lora train {path} --resume" in shown
    assert find_checkpoint(tmp_path / "run" / "checkpoints").progress.step == 3
    assert run_train(path, resume=True) == 0
    assert ending(tmp_path / "run") == ending(tmp_path / "whole")


def full_disk_at(call, patch):
    """Let the `call`-th fsync, and all after it, meet a full disk."""
    real, calls = os.fsync, []

    def sync(descriptor):
        calls.append(descriptor)
        if len(calls) >= call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    patch.setattr(os, "fsync", sync)
    return calls


def test_a_full_disk_at_any_write_names_place_and_remedy_and_loses_nothing(run_file, tmp_path, monkeypatch):
    assert run_train(run_file(output_dir=str(tmp_path / "whole"))) == 0
    path, folder = run_file(), tmp_path / "run"
    with monkeypatch.context() as patch:
        calls = full_disk_at(10**9, patch)
        run_train(path)
    places = set()
    for call in range(2, len(calls) + 1, len(calls) // 6):
        shutil.rmtree(folder)
        with monkeypatch.context() as patch:
            full_disk_at(call, patch)
            with pytest.raises(MlxLoraError, match=os.strerror(errno.ENOSPC)) as refused:
                run_train(path)
        places.add(refused.value.message.removeprefix(str(folder)).split(":")[0].strip("/").split("/")[0])
        assert "the disk is full: free some space" in refused.value.hint
        saved = list_checkpoints(folder / "checkpoints") if folder.exists() else []
        if saved:
            assert f"step {int(saved[-1].name)} is saved; go on with: mlx-lora train" in refused.value.hint
        assert run_train(path, resume=bool(saved), overwrite=not saved) == 0
        assert ending(folder) == ending(tmp_path / "whole")
    assert len(places) >= 3, places
    assert {"run.yaml", "checkpoints"} <= places


def test_a_frozen_store_that_does_not_fit_steps_aside_aloud(run_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLX_LORA_CACHE", str(tmp_path / "cache"))
    path = run_file(train={"engine": "auto"})
    stop_after(4, path, monkeypatch)
    assert "on  frozen_layers" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "cache")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(storefolder.StoreWriter, "write", full)
    with pytest.raises(TrainingError, match=r"engine\.frozen_layers: was True, is False \(--force allows it"):
        run_train(path, resume=True)
    assert run_train(path, overwrite=True) == 0
    shown = capsys.readouterr().err
    assert f"off frozen_layers         not kept: {tmp_path / 'cache' / 'frozen'}" in shown
    assert "No space left on device (the disk is full: free some space" in shown


def test_an_adapter_that_is_gone_or_damaged_is_put_back_by_a_resume(run_file, tmp_path, monkeypatch, capsys):
    path = run_file()
    stop_after(4, path, monkeypatch)
    best = (tmp_path / "run" / "adapters.safetensors").read_bytes()
    (tmp_path / "run" / "adapters.safetensors").write_bytes(best[:-1] + b"?")
    interrupted_after(5, monkeypatch)
    assert run_train(path, resume=True) == 130
    assert "note: adapters.safetensors put back as of the checkpoint" in capsys.readouterr().err
    assert (tmp_path / "run" / "adapters.safetensors").read_bytes() == best


def test_the_seconds_of_a_resumed_run_are_those_of_all_its_parts(run_file, tmp_path, monkeypatch, capsys):
    path = run_file()
    stop_after(4, path, monkeypatch)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    first = next(index for index, line in enumerate(lines) if '"step": 1,' in line)
    lines[first] = json.dumps({**json.loads(lines[first]), "seconds": 1000.0, "peak_bytes": 10**12})
    (tmp_path / "run" / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    capsys.readouterr()
    assert run_train(path, resume=True, json_output=True) == 0
    summary = json.loads(capsys.readouterr().out)
    assert 1000 <= summary["seconds"] < 1100
    assert summary["peak_bytes"] == 10**12


def test_a_validation_loss_that_is_not_finite_ends_the_run(run_file, tmp_path, monkeypatch):
    losses = iter([2.0, 1.0, float("nan")])
    monkeypatch.setattr(
        "mlx_lora.training.session.Session.validate", lambda session: Validation(next(losses), (False,) * 4)
    )
    with pytest.raises(TrainingError, match="step 6: the validation loss is nan"):
        run_train(run_file())
    assert find_checkpoint(tmp_path / "run" / "checkpoints").progress.best_step == 3


def test_the_terminal_may_go_away_and_the_run_goes_on(run_file, tmp_path, monkeypatch):
    class Gone:
        encoding = "utf-8"

        def write(self, text):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        flush = isatty = lambda self, *_: False

        def fileno(self):
            raise ValueError("no descriptor")

    path = run_file()
    monkeypatch.setattr("sys.stderr", Gone())
    assert run_train(path) == 0
    assert len(events(tmp_path / "run", "step")) == 9


def test_a_run_says_its_warnings_before_the_first_step(run_file, tmp_path, capsys):
    assert run_train(run_file(optimizer={"learning_rate": 0.0})) == 0
    shown = capsys.readouterr().err
    assert shown.count("warning: optimizer.learning_rate is 0: nothing will be learned; 1e-3 is the default") == 1
    assert shown.index("nothing will be learned") < shown.index("step 0/9  validation loss")
    assert "the training loss does not move" not in shown
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    warned = [(event["step"], event["message"]) for event in metrics if event["event"] == "warning"]
    assert warned == [(0, "optimizer.learning_rate is 0: nothing will be learned; 1e-3 is the default")]


def test_an_end_token_without_a_row_of_its_own_is_warned_of(base, run_file, tmp_path, capsys):
    import mlx.core as mx

    shutil.copytree(base, tmp_path / "mute")
    weights = mx.load(str(tmp_path / "mute" / "model.safetensors"))
    for part in ("scales", "biases"):
        table = weights[f"model.embed_tokens.{part}"]
        table[4] = mx.zeros_like(table[4])  # <|im_end|>
    mx.save_safetensors(str(tmp_path / "mute" / "model.safetensors"), weights, {"format": "mlx"})
    run_train(run_file(), ["train.epochs=1"])
    assert "cannot emit" not in capsys.readouterr().err
    run_train(run_file(model=str(tmp_path / "mute")), ["train.epochs=1"], overwrite=True)
    assert "warning: the base cannot emit '<|im_end|>' (0.0% of the usual length)" in capsys.readouterr().err
    assert yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())["model"].endswith("mute")


@pytest.mark.parametrize("engine", ["auto", "plain"])
def test_the_peak_of_a_run_is_that_of_its_beginning_too(run_file, tmp_path, monkeypatch, capsys, engine):
    def heavy(*_):
        mx.eval(mx.zeros(50_000_000))

    monkeypatch.setattr("mlx_lora.commands.train.print_header", heavy)
    assert run_train(run_file(train={"engine": engine}), json_output=True) == 0
    assert json.loads(capsys.readouterr().out)["peak_bytes"] > 200_000_000
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert max(line["peak_bytes"] for line in lines if line["event"] == "step") < 100_000_000
