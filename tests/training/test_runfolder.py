"""A run's folder: one run at a time, nothing left by dead ones, and metrics without gaps or doubles."""

import errno
import os
import subprocess
import sys

import pytest

from mlx_lora.errors import MlxLoraError
from mlx_lora.training import runfolder
from mlx_lora.training.runfolder import LOCK_FILE, Metrics, claimed_folder


def claim(folder, *, resume=False, overwrite=False):
    return claimed_folder(folder, resume=resume, overwrite=overwrite)


def test_a_folder_belongs_to_one_run_at_a_time(tmp_path):
    with claim(tmp_path / "run") as notes:
        assert notes == []
        with pytest.raises(MlxLoraError) as refused, claim(tmp_path / "run", overwrite=True):
            pytest.fail("two runs in one folder")
    assert refused.value.message == f"{tmp_path / 'run'}: process {os.getpid()} is training into it"
    assert f"kill {os.getpid()}" in refused.value.hint
    with claim(tmp_path / "run"):
        assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK_FILE]


HOLD = """
import sys
from pathlib import Path
from mlx_lora.training.runfolder import claimed_folder
with claimed_folder(Path(sys.argv[1]), resume=False, overwrite=False):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_lock_of_a_killed_run_locks_nothing(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(MlxLoraError, match=f"process {holder.pid} is training into it"), claim(tmp_path / "run"):
            pytest.fail("two runs in one folder")
    finally:
        holder.kill()
        holder.communicate()
    assert (tmp_path / "run" / LOCK_FILE).read_text().startswith(str(holder.pid))
    with claim(tmp_path / "run"):
        assert (tmp_path / "run" / LOCK_FILE).read_text().startswith(str(os.getpid()))


def test_a_lock_that_its_holder_removed_meanwhile_is_asked_for_again(tmp_path, monkeypatch):
    real, asked = runfolder.lock, []

    def late(descriptor):
        if not asked:  # between our open and our lock the other run ended
            (tmp_path / LOCK_FILE).unlink()
        asked.append(descriptor)
        return real(descriptor)

    monkeypatch.setattr(runfolder, "lock", late)
    with claim(tmp_path):
        assert len(asked) == 2
        assert (tmp_path / LOCK_FILE).exists()


def test_a_disk_without_locks_is_named(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr("fcntl.flock", none)
    with claim(tmp_path / "run") as notes:
        assert notes == [f"{tmp_path / 'run'}: this disk has no locks: make sure that no other run writes here"]


def test_a_folder_made_for_nothing_goes_and_one_with_something_in_it_stays(tmp_path):
    with pytest.raises(ZeroDivisionError), claim(tmp_path / "adapters" / "run"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with claim(tmp_path / "adapters" / "run"):
        (tmp_path / "adapters" / "run" / "run.yaml").touch()
    assert [path.name for path in (tmp_path / "adapters" / "run").iterdir()] == ["run.yaml"]
    (tmp_path / "mine").mkdir()
    with claim(tmp_path / "mine"):
        pass
    assert (tmp_path / "mine").is_dir()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path, monkeypatch, number):
    real = os.open

    def refuse(path, *rest, **more):
        if str(path).endswith(LOCK_FILE):
            raise OSError(number, os.strerror(number))
        return real(path, *rest, **more)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(MlxLoraError) as refused, claim(tmp_path / "run"):
        pytest.fail("nothing can be written there")
    assert refused.value.message == f"{tmp_path / 'run'}: {os.strerror(number)}"
    assert refused.value.hint
    assert list(tmp_path.iterdir()) == []


def test_what_killed_runs_left_half_written_goes(tmp_path):
    (tmp_path / "checkpoints" / ".00000004.partial-1a2b3c4d").mkdir(parents=True)
    (tmp_path / "checkpoints" / ".00000004.partial-1a2b3c4d" / "adapters.safetensors").touch()
    (tmp_path / ".adapters.partial-1a2b3c4d.safetensors").touch()
    (tmp_path / "notes.txt").touch()
    with claim(tmp_path, resume=True):
        pass
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["checkpoints", "notes.txt"]


def test_the_hint_names_resume_only_where_there_is_something_to_resume(tmp_path):
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(MlxLoraError, match="holds a run already") as refused, claim(tmp_path):
        pytest.fail("not asked to overwrite")
    assert "--resume" not in refused.value.hint
    (tmp_path / "checkpoints" / "00000004").mkdir(parents=True)
    with pytest.raises(MlxLoraError) as refused, claim(tmp_path):
        pytest.fail("not asked to overwrite")
    assert refused.value.hint.startswith("--resume continues it, --overwrite begins again")


def metrics_of(path, steps, seconds=0.5):
    with Metrics(path) as metrics:
        metrics.write("start", {"step": 0})
        for step in steps:
            metrics.write("step", {"step": step, "loss": 1.0, "seconds": seconds, "peak_bytes": 100 * step})
    return path.read_bytes()


def test_metrics_go_on_after_the_step_of_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = metrics_of(path, [1, 2, 3, 4])
    path.write_bytes(whole[:-9])  # torn
    with Metrics(path, 2) as metrics:
        assert metrics.notes == []
        assert metrics.seconds_before == 1.0
        assert metrics.peak_before == 200
        for step in (3, 4):
            metrics.write("step", {"step": step, "loss": 1.0, "seconds": 0.5, "peak_bytes": 100 * step})
    assert path.read_bytes() == whole


@pytest.mark.parametrize("damage", [b"\xff", b"}", b'3\n"', b"\n"])
def test_damaged_metrics_are_named_and_do_not_stop_a_resume(tmp_path, damage):
    path = tmp_path / "metrics.jsonl"
    lines = metrics_of(path, [1, 2, 3]).splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], lines[2][:10] + damage + lines[2][11:], lines[3]]))
    with Metrics(path, 3) as metrics:
        assert metrics.notes == [
            f"{path}: 1 of the first 3 steps are missing in it; the weights are not touched by this"
        ]
    path.unlink()
    with Metrics(path, 3) as metrics:
        assert metrics.notes[0].startswith(f"{path}: 3 of the first 3 steps")


def test_metrics_on_a_full_disk_name_the_place_and_stay_readable(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with Metrics(path) as metrics:
        metrics.write("start", {"step": 0})
        room = [20]

        class Full:
            def write(self, content):
                if room[0] == 0:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                taken, room[0] = content[: room[0]], 0
                return os.write(file.fileno(), taken)

        file, metrics._file = metrics._file, Full()
        with pytest.raises(MlxLoraError) as refused:
            metrics.write("step", {"step": 1, "loss": 1.0})
        metrics._file = file
    assert refused.value.message == f"{path}: {os.strerror(errno.ENOSPC)}"
    assert "disk is full" in refused.value.hint
    with Metrics(path, 0) as metrics:
        assert [event["event"] for event in metrics.kept] == ["start"]
