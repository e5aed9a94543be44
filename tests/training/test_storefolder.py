"""The folder of frozen layers' outputs: whole, checked, bounded, and never taken from a living run."""

import errno
import os

import numpy as np
import pytest

from mlx_lora.errors import MlxLoraError
from mlx_lora.training.storefolder import make_room, new_store, open_store

KIND = np.dtype(np.float32)
ROWS = np.arange(12, dtype=KIND).reshape(4, 3)


def write(path, rows=ROWS):
    with new_store(path, KIND, rows.shape) as writer:
        writer.write(2, rows[2:])
        writer.write(0, rows[:2])


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_rows_written_in_any_order_come_back(tmp_path):
    write(tmp_path / "deep" / "a.states")
    store = open_store(tmp_path / "deep" / "a.states", KIND, ROWS.shape)
    assert np.array_equal(store.states, ROWS)
    assert names(tmp_path / "deep") == ["a.states"]
    assert open_store(tmp_path / "b.states", KIND, ROWS.shape) is None


@pytest.mark.parametrize("damage", [lambda whole: whole[:-1], lambda whole: b"", lambda whole: b"\x01" + whole[1:]])
def test_a_store_that_is_not_what_was_written_is_none(tmp_path, damage):
    path = tmp_path / "a.states"
    write(path)
    path.write_bytes(damage(path.read_bytes()))
    assert open_store(path, KIND, ROWS.shape) is None
    write(path)
    assert open_store(path, KIND, (4, 2)) is None
    assert np.array_equal(open_store(path, KIND, ROWS.shape).states, ROWS)


def test_a_full_disk_is_an_error_with_its_place_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(MlxLoraError) as refused:
        write(tmp_path / "a.states")
    assert refused.value.message == f"{tmp_path / 'a.states'}: {os.strerror(errno.ENOSPC)}"
    assert "disk is full" in refused.value.hint
    assert names(tmp_path) == []


def test_the_longest_unused_go_first_and_those_in_use_or_wanted_stay(tmp_path):
    for age, name in enumerate(("d", "c", "b", "a")):
        write(tmp_path / f"{name}.states")
        os.utime(tmp_path / f"{name}.states", (1000 - age, 1000 - age))
    size = (tmp_path / "a.states").stat().st_size
    held = open_store(tmp_path / "a.states", KIND, ROWS.shape)  # the oldest, now the newest
    os.utime(tmp_path / "a.states", (1, 1))
    wanted = {tmp_path / "b.states": size, tmp_path / "new.states": size}
    assert make_room(tmp_path, wanted, budget=5 * size) == (0, 0)
    assert make_room(tmp_path, wanted, budget=4 * size) == (1, size)
    assert names(tmp_path) == ["a.states", "b.states", "d.states"]
    assert make_room(tmp_path, wanted, budget=0) == (1, size)
    assert names(tmp_path) == ["a.states", "b.states"]
    del held
    assert make_room(tmp_path, {}, budget=size) == (1, size)
    assert names(tmp_path) == ["b.states"]
    assert make_room(tmp_path / "not there", wanted) == (0, 0)


def test_a_use_makes_a_store_young(tmp_path):
    write(tmp_path / "a.states")
    os.utime(tmp_path / "a.states", (1, 1))
    open_store(tmp_path / "a.states", KIND, ROWS.shape)
    assert (tmp_path / "a.states").stat().st_mtime > 1000


def test_what_a_killed_run_left_half_written_goes_and_what_a_living_one_writes_stays(tmp_path):
    (tmp_path / "dead.states.4711.part").write_bytes(b"half")
    with new_store(tmp_path / "a.states", KIND, ROWS.shape) as writer:
        writer.write(0, ROWS)
        assert make_room(tmp_path, {}, budget=10**9) == (0, 0)
        assert names(tmp_path) == [f"a.states.{os.getpid()}.part"]
    assert names(tmp_path) == ["a.states"]
