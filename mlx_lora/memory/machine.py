"""The memory that MLX may take on this machine, and the limits that it is given. Knows nothing of models or runs."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

PROC, CGROUPS = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
LEAST_CACHE = 32 * 2**20  # bytes of freed arrays that MLX keeps on a CPU by itself


@dataclass(frozen=True)
class Room:
    """Bytes that MLX's arrays may take in this process, and how that was found.

    wired: the most that a GPU may keep resident (Metal); None elsewhere.
    """

    nbytes: int
    source: str
    wired: int | None = None


@dataclass(frozen=True)
class Limits:
    """What MLX is told, in bytes: when to wait, how much of what is freed to keep, how much stays resident."""

    memory: int
    cache: int
    wired: int | None


def find_room(
    limit_gb: float | None = None,
    *,
    device: Mapping[str, Any] | None = None,
    proc: Path = PROC,
    cgroups: Path = CGROUPS,
) -> Room:
    """What train.memory_limit_gb gives, or else the machine.

    On Metal that is the recommended working set; elsewhere what is free now, within a container's limit.
    """
    device = mx.device_info() if device is None else device
    advised = device.get("max_recommended_working_set_size")
    wired = None if advised is None else int(advised)
    if limit_gb is not None:
        return Room(int(limit_gb * 1e9), "train.memory_limit_gb", wired)
    if wired is not None:
        return Room(wired, "Metal's recommended working set", wired)
    free = _available(proc)
    if free is None:
        return Room(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "this machine's memory")
    left = _left_in_container(cgroups)
    if left is not None and left < free:
        return Room(left, "what is left of this container's limit")
    return Room(free, "free memory")


def choose_limits(peak: int, working: int, room: Room) -> Limits:
    """Limits for a run that takes `peak` bytes at its worst moment, `working` of which come and go with each step.

    The cache may hold one step's arrays, so that the next step finds them, as far as there is room beside the peak: it
    is bounded, whatever lengths the rows have, and never needs to be cleared.
    """
    cache = max(LEAST_CACHE, min(working, room.nbytes - peak))
    return Limits(room.nbytes, cache, None if room.wired is None else min(room.wired, peak + cache))


def set_limits(limits: Limits, api: Any = mx) -> None:
    """Give `limits` to MLX."""
    api.set_memory_limit(limits.memory)
    api.set_cache_limit(limits.cache)
    if limits.wired is not None:
        api.set_wired_limit(limits.wired)


def _available(proc: Path) -> int | None:
    """Linux's estimate of what can be had without swapping; None elsewhere."""
    try:
        lines = proc.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None


def _left_in_container(cgroups: Path) -> int | None:
    """What this process may still take, by version 2 or 1 of Linux's control groups; None without a limit."""
    for limit, used, stat, cached in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
    ):
        try:
            most = (cgroups / limit).read_text(encoding="ascii").strip()
            taken = int((cgroups / used).read_text(encoding="ascii"))
            lines = (cgroups / stat).read_text(encoding="ascii").splitlines()
        except OSError:
            continue
        if most.isdecimal():  # "max" is none
            files = sum(int(line.split()[1]) for line in lines if line.split()[0] == cached)  # given back when needed
            return max(0, int(most) - taken + files)
    return None
