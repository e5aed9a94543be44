"""Checkpoints: whole or passed over, equal for equal runs, and never the last one lost."""

import errno
import json
import os
import shutil

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_lora.errors import MlxLoraError, TrainingError
from mlx_lora.training.checkpoint import Progress, find_checkpoint, list_checkpoints, save_checkpoint

ARRAYS = {"b.lora_a": mx.array([[1.0, 2.0]]), "a.lora_b": mx.array([3.0])}
STATE = {
    "step": mx.array(7, mx.uint64),
    "learning_rate": mx.array(1e-3),
    "b.lora_a": {"m": mx.array([0.5]), "v": mx.zeros((2, 0))},
}


def save(folder, step, *, keep=2, **progress):
    known = Progress(
        step=step, base_loss=2.5, best_loss=1.25, best_step=3, best_right="a0", validations_without_gain=1, **progress
    )
    return save_checkpoint(
        folder, known, ARRAYS, STATE, keep=keep, adapter={"step": step}, best=sorted(folder.parent.glob("adapter*"))
    )


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_was_saved_comes_back_to_the_bit(tmp_path):
    save(tmp_path / "checkpoints", 7, fingerprint={"settings": {"seed": 1}})
    found = find_checkpoint(tmp_path / "checkpoints")
    assert found.damaged == ()
    assert found.progress == Progress(7, 2.5, 1.25, 3, "a0", 1, {"settings": {"seed": 1}})
    arrays, state = found.read_arrays()
    assert {name: array.tolist() for name, array in arrays.items()} == {"b.lora_a": [[1.0, 2.0]], "a.lora_b": [3.0]}
    assert state["step"].dtype == mx.uint64
    assert state["step"].item() == 7
    assert state["b.lora_a"]["m"].tolist() == [0.5]
    assert state["b.lora_a"]["v"].shape == (2, 0)


def test_equal_runs_have_equal_checkpoints_to_the_byte(tmp_path):
    one, other = (save(tmp_path / name / "checkpoints", 7) for name in ("one", "other"))
    assert contents(one) == contents(other)
    assert set(contents(one)) == {"adapters.safetensors", "adapter_config.json", "optimizer.safetensors", "state.json"}


def test_the_newest_are_kept_and_no_half_removed_one_stays(tmp_path):
    for step in range(1, 6):
        save(tmp_path / "c", step, keep=3)
    assert [path.name for path in list_checkpoints(tmp_path / "c")] == ["00000003", "00000004", "00000005"]
    assert len(list((tmp_path / "c").iterdir())) == 3


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    (folder.parent / "adapters.safetensors").write_bytes(b"the best one")
    save(folder, 4)
    save(folder, 8)
    return folder


@settings(max_examples=60)
@given(data=st.data())
def test_a_flipped_bit_anywhere_or_a_cut_is_found_and_the_one_before_is_used(saved, data):
    files = sorted(path for path in (saved / "00000008").rglob("*") if path.is_file())
    file = data.draw(st.sampled_from(files))
    whole = file.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        damaged = whole[:place]
    else:
        damaged = whole[:place] + bytes([whole[place] ^ 1 << data.draw(st.integers(0, 7))]) + whole[place + 1 :]
    file.write_bytes(damaged)
    try:
        found = find_checkpoint(saved)
        if file.name == "state.json" and found.progress.step == 8:
            # White space between two values is all that may change without a trace: nothing that it says did.
            assert json.loads(damaged) == json.loads(whole)
        else:
            assert found.progress.step == 4
            assert [path.name for path, _ in found.damaged] == ["00000008"]
    finally:
        file.write_bytes(whole)
    assert find_checkpoint(saved).progress.step == 8


def test_without_a_whole_checkpoint_all_faults_are_named(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "c")
    (tmp_path / "c" / "00000008" / "optimizer.safetensors").unlink()
    (tmp_path / "c" / "00000004" / "state.json").write_text("[]")
    with pytest.raises(TrainingError) as refused:
        find_checkpoint(tmp_path / "c")
    lines = refused.value.message.splitlines()
    assert "00000008" in lines[0]
    assert "No such file" in lines[0]
    assert "00000004" in lines[1]
    assert lines[2] == f"{tmp_path / 'c'}: no whole checkpoint to resume from"
    assert "--overwrite" in refused.value.hint


def test_a_checkpoint_of_another_format_is_no_checkpoint(saved, tmp_path):
    shutil.copytree(saved / "00000008", tmp_path / "c" / "00000008")
    state = json.loads((tmp_path / "c" / "00000008" / "state.json").read_text())
    (tmp_path / "c" / "00000008" / "state.json").write_text(json.dumps({"format": 1, **state["progress"]}))
    with pytest.raises(TrainingError, match="no whole checkpoint"):
        find_checkpoint(tmp_path / "c")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS])
@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_a_failing_disk_leaves_the_checkpoints_that_were_there(tmp_path, monkeypatch, number, call):
    save(tmp_path / "c", 4)
    before = contents(tmp_path / "c")

    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    if call == "write":
        monkeypatch.setattr("mlx_lora.training.checkpoint.iter_encoded", fail)
    elif call == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr("pathlib.Path.rename", fail)
    with pytest.raises(MlxLoraError) as refused:
        save(tmp_path / "c", 5)
    assert refused.value.message == f"{tmp_path / 'c' / '00000005'}: {os.strerror(number)}"
    assert refused.value.hint
    assert contents(tmp_path / "c") == before


def test_the_best_adapter_travels_in_the_checkpoint_and_comes_back(tmp_path):
    (tmp_path / "adapters.safetensors").write_bytes(b"the best one")
    (tmp_path / "adapter_config.json").write_bytes(b"{}")
    save(tmp_path / "c", 4)
    found = find_checkpoint(tmp_path / "c")
    assert found.restore_best(tmp_path) == []
    (tmp_path / "adapters.safetensors").write_bytes(b"the next one")
    (tmp_path / "adapter_config.json").unlink()
    assert found.restore_best(tmp_path) == ["adapter_config.json", "adapters.safetensors"]
    assert (tmp_path / "adapters.safetensors").read_bytes() == b"the best one"
