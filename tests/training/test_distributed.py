"""Two ranks on loopback, started by MLX's own launcher: they equal one rank, end together, and never hang."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import mlx.core as mx
import pytest
import yaml

from mlx_lora.commands.train import run_train
from mlx_lora.config import RunConfig
from mlx_lora.errors import TrainingError
from mlx_lora.training import distributed
from mlx_lora.training.checkpoint import find_checkpoint
from mlx_lora.training.distributed import Group, join_group
from mlx_lora.training.session import build_session
from tests.tiny import save_tiny_folder
from tests.training.rows import random_rows, trial

BIN = Path(sys.prefix) / "bin"
ROOT = Path(__file__).resolve().parents[2]
SECONDS = 60  # a run takes three or four; a machine under load more
# Runs `mlx-lora train` and sends this process a signal, or raises, when it has made a step: for one rank of two.
WORKER = """
import os, sys
rank, step, action, *arguments = sys.argv[1:]
import mlx_lora.commands.train
from mlx_lora.training.session import Session
steps = Session.steps
def interrupted(session):
    for report in steps(session):
        if os.environ["MLX_RANK"] == rank and report.step == int(step):
            if action == "raise":
                raise OSError("this rank's disk is gone")
            os.kill(os.getpid(), int(action))
        yield report
Session.steps = interrupted
sys.argv = ["mlx-lora", "train", *arguments]
from mlx_lora.__main__ import main
main()
"""

# The survivor is in the last exchange of the step or in the next step's first.
LOST = r"error: step [34]: another rank ended or cannot be reached \(.*lost\){saved}\n"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny_folder(tmp_path_factory.mktemp("base"))


@pytest.fixture
def run_file(base, tmp_path):
    """Write a run file over five rows: with two ranks of two rows the second batch of an epoch has one row."""

    def write(name, batch_size, **train):
        rows = [{"question": f"What is number {n}?", "answer": "x" * (n % 3 + 1)} for n in range(8)]
        (tmp_path / "train.jsonl").write_text("\n".join(json.dumps(row) for row in rows[:5]))
        (tmp_path / "valid.jsonl").write_text("\n".join(json.dumps(row) for row in rows[5:]))
        settings = {
            "model": str(base),
            "data": {"train": str(tmp_path / "train.jsonl"), "valid": str(tmp_path / "valid.jsonl")},
            "lora": {"rank": 2, "alpha": 4, "layers": 2},
            "train": {
                "epochs": 3,
                "batch_size": batch_size,
                "save_every": 2,
                "engine": "plain",
                "retention": None,
                **train,
            },
            "optimizer": {"learning_rate": 2e-3},
            "output_dir": str(tmp_path / name),
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(settings))
        return path

    return write


def free_ports() -> int:
    """The first of two neighbouring ports that nobody listens on."""
    while True:
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            try:
                other.bind(("127.0.0.1", one.getsockname()[1] + 1))
            except OSError:
                continue
            return one.getsockname()[1]


def start(*command):
    """Start `command` on two ranks by mlx.launch, in a process group of their own."""
    launcher = [BIN / "mlx.launch", "-n", "2", "--backend", "ring", "--starting-port", str(free_ports()), "--"]
    # Standard input stays open: at its end the launcher would spin.
    return subprocess.Popen(
        [*map(str, launcher), *map(str, command)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, cwd=ROOT, start_new_session=True,
    )  # fmt: skip


def finish(process):
    """Wait for the launcher; return its stdout and stderr. A hang fails the test and leaves no process behind."""
    try:
        process.wait(SECONDS)  # its stdin has to stay open until then
        return process.stdout.read(), process.stderr.read()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for pipe in (process.stdin, process.stdout, process.stderr):
            pipe.close()


def pair(tmp_path, *command, **environment):
    """Run `command` on two ranks without the launcher, which takes a core for itself; (exit code, stderr) of each."""
    port = free_ports()
    hosts = tmp_path / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"], [f"127.0.0.1:{port + 1}"]]))
    ranks = [
        subprocess.Popen(
            [*map(str, command)], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=ROOT,
            env={**os.environ, "MLX_HOSTFILE": str(hosts), "MLX_RANK": str(rank), **environment},
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        return [(rank.wait(SECONDS), rank.stderr.read()) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()


def worker(rank, step, action, path):
    """The command that trains on two ranks; `rank` gets the signal `action`, or raises, after `step`."""
    return sys.executable, "-c", WORKER, rank, step, action, path


def events(folder, kind):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]


def assert_same_run(folder, expected):
    """The same adapter, and the same figures of every step and validation, to float32 rounding."""
    one, other = (mx.load(str(path / "adapters.safetensors")) for path in (folder, expected))
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert mx.allclose(array, other[name], rtol=1e-5, atol=1e-5).item(), name
    for kind, figures in (("step", ("loss", "gradient_norm", "epoch", "targets", "tokens")), ("validation", ("loss",))):
        found, wanted = events(folder, kind), events(expected, kind)
        assert [event["step"] for event in found] == [event["step"] for event in wanted]
        for figure in figures:
            assert [event[figure] for event in found] == pytest.approx([event[figure] for event in wanted], rel=1e-4)


def test_two_ranks_equal_one_rank_with_the_double_batch(run_file, tmp_path):
    assert run_train(run_file("one", 4, engine="auto")) == 0
    stdout, stderr = finish(start(BIN / "mlx-lora", "train", run_file("two", 2, engine="auto"), "--json"))
    assert json.loads(stdout)["ended_by"] == "steps", stderr  # one object: the other rank is silent
    assert "2 ranks of 2 rows each" in stderr
    assert stderr.count("6 steps in") == 1
    assert "error" not in stderr
    assert "was closed by the peer" not in stderr
    assert [event["step"] for event in events(tmp_path / "two", "step")] == [1, 2, 3, 4, 5, 6]
    assert_same_run(tmp_path / "two", tmp_path / "one")
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"one", "two"}
    assert {path.name for path in (tmp_path / "two").iterdir()} == {path.name for path in (tmp_path / "one").iterdir()}


def test_accumulated_micro_batches_are_split_as_well(run_file, tmp_path):
    settings = {"gradient_accumulation_steps": 2, "epochs": 2}
    assert run_train(run_file("one", 2, **settings)) == 0  # batches of 2, 2 and 1 rows: the last step has a single row
    ranks = pair(tmp_path, BIN / "mlx-lora", "train", run_file("two", 1, **settings))
    assert [code for code, _ in ranks] == [0, 0]
    assert ranks[1][1] == ""
    assert_same_run(tmp_path / "two", tmp_path / "one")


def test_a_signal_to_one_rank_ends_all_with_a_checkpoint_and_resume_completes(run_file, tmp_path):
    assert run_train(run_file("one", 4)) == 0
    path = run_file("two", 2)
    (code, stderr), (other_code, other_stderr) = pair(tmp_path, *worker("1", "3", str(signal.SIGTERM.value), path))
    assert (code, other_code, other_stderr) == (130, 0, "")
    assert "stopped after step 3; go on with:\n  mlx.launch … -- mlx-lora train" in stderr
    assert [event["step"] for event in events(tmp_path / "two", "step")] == [1, 2, 3]
    (code, stderr), _ = pair(tmp_path, BIN / "mlx-lora", "train", path, "--resume")
    assert code == 0
    assert "resumed after step 3 of 6" in stderr
    assert_same_run(tmp_path / "two", tmp_path / "one")


def test_ctrl_c_ends_launcher_and_ranks_with_a_checkpoint(run_file, tmp_path):
    process = start(BIN / "mlx-lora", "train", run_file("two", 2, epochs=100_000, save_every=1000, eval_every=1000))
    metrics, deadline = tmp_path / "two" / "metrics.jsonl", time.monotonic() + SECONDS
    while time.monotonic() < deadline and not (metrics.exists() and len(metrics.read_text().splitlines()) > 3):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: launcher and ranks
    finish(process)
    progress = find_checkpoint(tmp_path / "two" / "checkpoints").progress
    assert progress.step == events(tmp_path / "two", "step")[-1]["step"]


def test_a_killed_rank_ends_the_launcher_with_a_message(run_file, tmp_path):
    _, stderr = finish(start(*worker("1", "3", str(signal.SIGKILL.value), run_file("two", 2))))
    assert re.search(LOST.format(saved="; step 3 is saved"), stderr)
    # 1, or SIGTERM where the launcher came while Python was ending. (mlx.launch itself ends with 0, whatever happens.)
    assert re.search(r"Node with rank 0 (exited with code (1|-15)|was killed)", stderr)


def test_a_failing_rank_ends_the_others_with_a_saved_step(run_file, tmp_path):
    (code, stderr), (other_code, other_stderr) = pair(tmp_path, *worker("1", "3", "raise", run_file("two", 2)))
    assert (code, other_code) == (1, 1)
    assert "OSError: this rank's disk is gone" in other_stderr
    assert re.search(LOST.format(saved="; step 3 is saved"), stderr)
    assert "start all ranks again with --resume" in stderr
    progress = find_checkpoint(tmp_path / "two" / "checkpoints").progress
    assert (progress.step, progress.best_step) == (3, 2)


def test_without_the_rank_that_writes_the_last_checkpoint_stays(run_file, tmp_path):
    (code, _), (other_code, stderr) = pair(tmp_path, *worker("0", "3", str(signal.SIGKILL.value), run_file("two", 2)))
    assert (code, other_code) == (-signal.SIGKILL, 1)
    assert re.search("error: rank 1: " + LOST.format(saved="").removeprefix("error: "), stderr)
    found = find_checkpoint(tmp_path / "two" / "checkpoints")
    assert (found.progress.step, found.damaged) == (2, ())


GROUP = "import mlx_lora, mlx.core as mx; from mlx_lora.training.distributed import join_group; group = join_group()\n"


def test_sums_and_comparisons_of_two_ranks(tmp_path):
    script = """
arrays = {"a": mx.full((2, 3), group.rank + 1.0), "b": mx.array(10.0 * group.rank), "c": mx.ones((1,))}
sums = group.sum_arrays(arrays)
assert {name: array.tolist() for name, array in sums.items()} == {"a": [[3.0] * 3] * 2, "b": 10.0, "c": [2.0]}
assert group.sum_number(1.5) == 3.0
assert group.any(group.rank == 1)
assert not group.any(False)
assert group.same("step 3", {"a": mx.ones((2,))})
assert group.same("step 3", {"a": mx.ones((2,), mx.bfloat16), "b": mx.array(2)}, patient=True)
assert not group.same("step 3", {"a": mx.array([1.0, 0.0 if group.rank else -0.0])})  # to the bit
assert not group.same(f"step {group.rank}", {})
"""
    assert pair(tmp_path, sys.executable, "-c", GROUP + script) == [(0, ""), (0, "")]


def test_a_rank_that_waits_too_long_says_where_and_ends(tmp_path):
    script = """
import time
group.place = "step 17"
if group.rank == 1:
    time.sleep(3)
group.any(False)
"""
    (code, stderr), _ = pair(tmp_path, sys.executable, "-c", GROUP + script, MLX_LORA_RANK_TIMEOUT="0.5")
    assert code == 1
    assert "error: step 17: rank 0 has waited 0.5 s for the other ranks" in stderr
    assert "start all ranks again with --resume" in stderr


def test_ranks_that_do_not_begin_or_end_alike_are_refused(monkeypatch):
    rows = random_rows(4)
    run = trial()
    config = RunConfig.model_validate(
        {"model": "tiny", "data": {"train": "rows"}, "train": {"epochs": 1, "engine": "plain"}, "output_dir": "out"}
    )
    session = build_session(config, run.model, rows, [], Group(rank=0, size=2))
    assert session.schedule.batch_size == 16
    monkeypatch.setattr(Group, "same", lambda *_, **__: False)
    with pytest.raises(TrainingError, match="the ranks do not begin alike"):
        session.require_one_start()
    with pytest.raises(TrainingError, match="the ranks' weights differ after step 0"):
        session.require_equal_weights()


def test_a_process_by_itself_never_starts_communication(monkeypatch):
    for name in ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(distributed.mx.distributed, "init", None)
    monkeypatch.setattr(distributed.mx.distributed, "all_sum", None)
    group = join_group()
    assert (group.rank, group.size, group.leads) == (0, 1, True)
    assert group.any(True) is True
    assert group.any(False) is False
    assert group.sum_number(2.5) == 2.5
    assert group.share((4, 5, 6)) == (4, 5, 6)
    array = mx.array([1.0])
    assert group.sum_arrays({"a": array})["a"] is array


def test_the_launcher_with_one_rank_is_a_process_by_itself(monkeypatch, tmp_path):
    (tmp_path / "hosts").write_text("\n")  # as `mlx.launch -n 1` leaves it; MLX itself fails to read that
    monkeypatch.setenv("MLX_HOSTFILE", str(tmp_path / "hosts"))
    monkeypatch.setenv("MLX_RANK", "0")
    assert join_group() == Group()


def test_a_rank_without_its_group_is_refused(monkeypatch):
    monkeypatch.setenv("MLX_RANK", "1")
    monkeypatch.delenv("MLX_HOSTFILE", raising=False)
    with pytest.raises(TrainingError, match="started as rank 1, but MLX finds no other rank"):
        join_group()


@pytest.mark.parametrize("size", [2, 3, 5])
def test_the_shares_of_all_ranks_are_the_batch(size):
    rows = (7, 3, 9, 1)
    shares = [Group(rank=rank, size=size).share(rows) for rank in range(size)]
    assert sorted(row for share in shares for row in share) == sorted(rows)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
