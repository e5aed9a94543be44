"""The room that a machine has, and the limits that follow from it."""

from pathlib import Path

import pytest

import mlx_lora
from mlx_lora.memory.machine import LEAST_CACHE, Limits, Room, choose_limits, find_room, set_limits

assert mlx_lora
GB = 10**9


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, Path]:
    """A Linux machine with 8,000,000 kB free and no container."""
    (tmp_path / "meminfo").write_text("MemTotal:       16000000 kB\nMemAvailable:    8000000 kB\n")
    (tmp_path / "cgroup").mkdir()
    return {"proc": tmp_path / "meminfo", "cgroups": tmp_path / "cgroup"}


def test_the_room_on_linux_is_what_can_be_had_without_swapping(machine: dict[str, Path]) -> None:
    assert find_room(device={}, **machine) == Room(8_000_000 * 1024, "free memory")


def test_a_container_s_limit_counts_without_what_is_taken_but_for_cached_files(machine: dict[str, Path]) -> None:
    (machine["cgroups"] / "memory.max").write_text("4000000000\n")
    (machine["cgroups"] / "memory.current").write_text("3000000000\n")
    (machine["cgroups"] / "memory.stat").write_text("anon 1\ninactive_file 500000000\n")
    assert find_room(device={}, **machine) == Room(1_500_000_000, "what is left of this container's limit")
    (machine["cgroups"] / "memory.max").write_text("max\n")
    assert find_room(device={}, **machine).source == "free memory"


def test_on_metal_the_room_is_the_recommended_working_set(machine: dict[str, Path]) -> None:
    room = find_room(device={"max_recommended_working_set_size": 11 * GB}, **machine)
    assert room == Room(11 * GB, "Metal's recommended working set", wired=11 * GB)


def test_a_limit_of_the_run_file_wins(machine: dict[str, Path]) -> None:
    room = find_room(2.5, device={"max_recommended_working_set_size": 11 * GB}, **machine)
    assert room == Room(2_500_000_000, "train.memory_limit_gb", wired=11 * GB)


def test_a_machine_that_tells_nothing_has_its_whole_memory(tmp_path: Path) -> None:
    room = find_room(device={}, proc=tmp_path / "none", cgroups=tmp_path)
    assert room.source == "this machine's memory"
    assert room.nbytes > GB / 4


def test_the_cache_holds_one_step_as_far_as_there_is_room_beside_the_peak() -> None:
    room = Room(10 * GB, "", wired=9 * GB)
    assert choose_limits(4 * GB, 3 * GB, room) == Limits(10 * GB, 3 * GB, 7 * GB)
    assert choose_limits(8 * GB, 3 * GB, room) == Limits(10 * GB, 2 * GB, 9 * GB)
    assert choose_limits(10 * GB, 3 * GB, Room(10 * GB, "")) == Limits(10 * GB, LEAST_CACHE, None)


def test_mlx_is_given_the_limits_and_no_wired_one_without_metal() -> None:
    calls: list[tuple[str, int]] = []

    class Api:
        def __getattr__(self, name: str) -> object:
            return lambda nbytes: calls.append((name, nbytes))

    set_limits(Limits(3, 2, None), Api())
    assert calls == [("set_memory_limit", 3), ("set_cache_limit", 2)]
    set_limits(Limits(3, 2, 1), Api())
    assert calls[-1] == ("set_wired_limit", 1)
