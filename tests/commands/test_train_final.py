"""Which adapter `mlx-lora train` leaves, and what is said of it: by right rows, and where the setting was changed."""

import json

import mlx_lora  # noqa: F401  (loads OpenBLAS before MLX)

import mlx.core as mx  # isort: skip
import pytest

from mlx_lora.commands.train import run_train
from mlx_lora.training.checkpoint import find_checkpoint
from mlx_lora.training.session import Session
from mlx_lora.training.validation import Validation
from tests.commands.test_train import events, interrupted_after

BEST, LAST = ["train.final_adapter=best"], ["train.final_adapter=last"]


@pytest.fixture
def losses(monkeypatch):
    """Let validations give these losses, one after the other; of a pair, the second is how many rows are right."""

    def give(*values):
        left = iter(values)

        def validate(session):
            found = next(left)
            nats, right = found if isinstance(found, tuple) else (found, 0)
            return Validation(nats, (True,) * right + (False,) * (len(session.valid_set) - right))

        monkeypatch.setattr(Session, "validate", validate)
        return left

    return give


def write_eight_rows(folder):
    rows = [{"question": f"What is {number}?", "answer": "blue"} for number in range(8)]
    (folder / "valid.jsonl").write_text("\n".join(map(json.dumps, rows)))


def kept(folder):
    """The step that the adapter says it is of, and whether it is that of the checkpoint of this step."""
    step = json.loads((folder / "adapter_config.json").read_text())["mlx_lora"]["step"]
    own = mx.load(str(folder / "adapters.safetensors"))
    other = mx.load(str(folder / f"checkpoints/{step:08d}/adapters.safetensors"))
    return step, all(mx.array_equal(own[name], other[name].astype(own[name].dtype)) for name in own)


def test_a_finished_run_taken_up_to_keep_its_last_adapter_leaves_that(run_file, tmp_path, capsys, losses):
    losses(5.0, 0.5, 0.9, 0.7)
    path = run_file()
    assert run_train(path, BEST) == 0
    capsys.readouterr()
    assert run_train(path, LAST, resume=True, force=True, json_output=True) == 0
    shown = capsys.readouterr()
    assert (json.loads(shown.out)["kept_step"], json.loads(shown.out)["best_step"]) == (9, 3)
    assert kept(tmp_path / "run") == (9, True)
    assert "note: train.final_adapter is last: the adapter of step 9 is put in place of step 3's" in shown.err
    assert run_train(path, LAST, resume=True, json_output=True) == 0  # the run is now the changed one
    assert kept(tmp_path / "run") == (9, True)
    assert "put in place" not in capsys.readouterr().err


@pytest.mark.parametrize("stop", [6, 9])
def test_a_run_taken_up_to_keep_its_best_adapter_finds_it_among_the_checkpoints(
    run_file, tmp_path, capsys, losses, monkeypatch, stop
):
    left = losses(5.0, 0.5, 0.9, 0.7)
    path = run_file(train={"keep_last": 3})
    with monkeypatch.context() as patch:
        interrupted_after(stop if stop < 9 else 99, patch)
        assert run_train(path, LAST) == (130 if stop < 9 else 0)
    assert kept(tmp_path / "run") == (stop, True)
    capsys.readouterr()
    assert run_train(path, BEST, resume=True, force=True, json_output=True) == 0
    shown = capsys.readouterr()
    assert (json.loads(shown.out)["kept_step"], json.loads(shown.out)["best_validation_loss"]) == (3, 0.5)
    assert kept(tmp_path / "run") == (3, True)
    assert f"note: train.final_adapter is best: the adapter of step 3 is put in place of step {stop}'s" in shown.err
    assert find_checkpoint(tmp_path / "run" / "checkpoints").progress.best_step == 3
    assert list(left) == []


def test_a_best_adapter_that_no_checkpoint_holds_is_not_claimed_to_be_kept(
    run_file, tmp_path, capsys, losses, monkeypatch
):
    left = losses(5.0, 0.5, 0.9, 0.9, 0.95)
    path = run_file(train={"keep_last": 1, "early_stopping_patience": 9})
    with monkeypatch.context() as patch:
        interrupted_after(6, patch)
        assert run_train(path, LAST) == 130
    capsys.readouterr()
    assert run_train(path, BEST, resume=True, force=True, json_output=True) == 0
    shown = capsys.readouterr()
    said = "the adapter of step 3, the best so far, is in no checkpoint any more: the best is chosen from step 6 on"
    summary = json.loads(shown.out)
    assert (summary["best_step"], summary["kept_step"], summary["best_validation_loss"]) == (6, 6, 0.9)
    assert f"warning: {said}" in shown.err
    adapter = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    assert adapter["mlx_lora"]["step"] == 6
    progress = find_checkpoint(tmp_path / "run" / "checkpoints").progress
    assert (progress.best_step, progress.validations_without_gain) == (6, 2)
    validations = [(event["step"], event["best"]) for event in events(tmp_path / "run", "validation")]
    assert validations == [(0, False), (3, True), (6, False), (6, True), (9, False)]
    assert list(left) == []


def test_a_run_that_patience_ended_does_not_go_on_because_its_best_adapter_is_gone(run_file, tmp_path, losses):
    losses(5.0, 0.5, 0.9, 0.8, 0.8)
    path = run_file(train={"epochs": 9, "keep_last": 1, "early_stopping_patience": 2})
    assert run_train(path, LAST) == 0
    assert run_train(path, BEST, resume=True, force=True) == 0
    assert kept(tmp_path / "run") == (9, True)
    assert len(events(tmp_path / "run", "step")) == 9


@pytest.mark.parametrize(
    ("began", "later", "loss", "mark", "warned"),
    [
        (0, 8, 2.5, "best so far, kept", ""),  # wrong and sure in a few, right in more than chance explains
        (2, 3, 2.5, "kept, though no better than at step 0", "the validation loss never fell below 2.0000, where it"),
        (8, 0, 1.5, "kept, though no better than at step 0", "8 of 8 validation rows were right at step 0, and 0 at"),
        (1, 0, 1.5, "best so far, kept", ""),
    ],
)
def test_whether_a_run_got_better_than_it_began_is_judged_by_its_right_rows_too(
    run_file, tmp_path, capsys, losses, began, later, loss, mark, warned
):
    path = run_file(train={"steps": 1, "epochs": None})
    write_eight_rows(tmp_path)
    losses((2.0, began), (loss, later))
    assert run_train(path) == 0
    shown = capsys.readouterr().err
    assert f"validation loss {loss:.4f} nats a token{f', {later} of 8 rows right' * (later > 0)}" in shown
    assert mark in shown
    assert ("kept, though" in shown) is ("kept, though" in mark)
    assert [part for part in ("never fell", "were right at step 0") if part in shown] == [
        part for part in ("never fell", "were right at step 0") if part in warned
    ]
    assert warned in shown
    assert find_checkpoint(tmp_path / "run" / "checkpoints").progress.base_right == f"{256 - (256 >> began):02x}"


def test_a_run_that_stops_early_with_a_falling_loss_does_not_say_that_it_no_longer_falls(
    run_file, tmp_path, capsys, losses
):
    path = run_file(train={"early_stopping_patience": 2, "epochs": 9})
    write_eight_rows(tmp_path)
    losses((2.0, 0), (1.5, 8), (1.4, 0), (1.3, 1))
    assert run_train(path) == 0
    shown = capsys.readouterr().err
    assert "stopped early: no validation was better than that of step 3\n" in shown
    assert "no longer falls" not in shown
