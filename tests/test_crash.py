"""A small one of benchmarks/crash.py: real processes, SIGKILL, a full disk and flipped bits."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_runs_that_are_killed_and_meet_full_disks_and_flipped_bits_end_as_if_nothing_was() -> None:
    command = [sys.executable, "benchmarks/crash.py", "--kills", "1", "--full", "1", "--flips", "1", "--json"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["killed"]["equal"] == found["killed"]["runs"] == 1
    assert found["killed"]["kills"] >= 1
    assert found["killed"]["lost_checkpoints"] == 0
    assert found["full_disk"]["equal"] == found["full_disk"]["clean_errors"] == found["full_disk"]["runs"] == 1
    assert found["flipped_bits"]["equal"] == found["flipped_bits"]["noticed"] == found["flipped_bits"]["runs"] == 1
