"""Runs of a tiny model that are killed, meet a full disk or a flipped bit, and are resumed: as if nothing had been?

    python benchmarks/crash.py --json
    python benchmarks/crash.py --kills 10 --full 5 --flips 5

A run ends equal when adapter, newest checkpoint and metrics (but for the clock) are those of an untouched run, to the
byte. SIGKILL comes at a random moment: of the whole process, or three times in four of a random step. A checkpoint is
lost when after it the newest whole one is older than before, or a folder is there that is not whole. The full disk is a
small tmpfs where one may be mounted (as root), else a limit on the size of files. On Linux processes are forked from
one that has imported everything and computed nothing, which saves two seconds a start; elsewhere each starts anew.
"""

import argparse
import importlib
import json
import os
import platform
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["COLUMNS"] = "200"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mlx_lora  # before MLX, for its fast BLAS
import mlx_lora.__main__
import mlx_lora.commands.train
import mlx_lora.model.load
import mlx_lora.training.fingerprint
from mlx_lora.training.checkpoint import find_checkpoint, list_checkpoints

importlib.import_module("mlx_lm")  # with transformers, the most of a start

ROOT = Path(__file__).resolve().parents[1]
FORKS = sys.platform == "linux"
CLOCK = ("seconds", "peak_bytes")
STEPS = 20
MOST_KILLS = 3  # of one run; then it may end
QUESTIONS = [f"What is {word}?" for word in ("sky", "grass", "snow", "coal", "rust", "sand", "milk", "ink")]
ANSWERS = ["blue", "green", "white", "black", "red", "yellow", "white", "blue"]
VARIANTS: dict[str, dict[str, Any]] = {
    "whole engine": {"lora": {"rank": 4, "alpha": 8, "layers": 2}, "train": {"batch_size": 2}},
    "dropout, accumulation": {
        "lora": {"rank": 4, "alpha": 8, "dropout": 0.2},
        "train": {"batch_size": 1, "gradient_accumulation_steps": 2, "engine": "plain"},
    },
}


@dataclass
class Ground:
    """The folder of the benchmark, the run file of each variant, how each ends, and how long one takes."""

    folder: Path
    generator: random.Random
    endings: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def run_file(self, variant: str) -> Path:
        return self.folder / f"{list(VARIANTS).index(variant)}.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="runs that are killed, one to three times each")
    parser.add_argument("--full", type=int, default=20, help="runs on a disk that is too small")
    parser.add_argument("--flips", type=int, default=20, help="runs of which a bit is flipped on disk")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=800.0, help="begin no run after so long")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mlx-lora-crash-") as folder:
        ground = _prepare(Path(folder), random.Random(options.seed))

        def repeat(count: int, once: Callable[[Ground, int, Counter[str]], None]) -> dict[str, int]:
            found: Counter[str] = Counter(runs=0, equal=0)
            for number in range(count):
                if time.monotonic() - started > options.seconds:
                    break
                once(ground, number, found)
                found["runs"] += 1
            return dict(found)

        result = {
            "killed": repeat(options.kills, _killed),
            "full_disk": repeat(options.full, _full),
            "flipped_bits": repeat(options.flips, _flipped),
        }
    result["seconds"] = round(time.monotonic() - started)
    result["machine"] = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    if options.json:
        print(json.dumps(result))
    else:
        for name, found in result.items():
            print(f"{name:13} {found}")
    sys.exit(0 if _all_well(result) else 1)


def _all_well(result: dict[str, Any]) -> bool:
    parts = [result[name] for name in ("killed", "full_disk", "flipped_bits")]
    return (
        all(part["equal"] == part["runs"] for part in parts)
        and not result["killed"].get("lost_checkpoints")
        and result["full_disk"].get("clean_errors", 0) == result["full_disk"]["runs"]
        and result["flipped_bits"].get("noticed", 0) == result["flipped_bits"]["runs"]
    )


def _prepare(folder: Path, generator: random.Random) -> Ground:
    """A tiny base, rows, run files, and a run of each variant that nothing happens to."""
    os.environ["MLX_LORA_CACHE"] = str(folder / "cache")
    _wait(_start(lambda: _save_base(folder / "base")))
    rows = [{"question": question, "answer": answer} for question, answer in zip(QUESTIONS, ANSWERS, strict=True)]
    for name, part in (("train", rows[:6]), ("valid", rows[4:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    ground = Ground(folder, generator)
    for variant, settings in VARIANTS.items():
        steps = {"steps": STEPS, "eval_every": 3, "save_every": 1, **settings["train"]}
        run = {
            "model": str(folder / "base"),
            "data": {"train": str(folder / "train.jsonl"), "valid": str(folder / "valid.jsonl")},
            "lora": settings["lora"],
            "train": steps,
            "optimizer": {"learning_rate": 5e-3},
            "output_dir": "out",
        }
        ground.run_file(variant).write_text(json.dumps(run))  # JSON is YAML
        log = folder / "reference.log"
        for _ in range(2):  # the second finds the frozen layers' store, as the resumed ones will
            began = time.monotonic()
            code = _wait(_train(ground, variant, folder / variant / "whole", log, "--overwrite"))
            if code:
                raise SystemExit(f"{variant}: the run that nothing happens to ends with {code}:\n{log.read_text()}")
            ground.seconds[variant] = time.monotonic() - began
        ground.endings[variant] = _ending(folder / variant / "whole")
    return ground


def _killed(ground: Ground, number: int, found: Counter[str]) -> None:
    """A run that is killed one to three times, then resumed to its end."""
    variant = list(VARIANTS)[number % len(VARIANTS)]
    folder, log = ground.folder / "killed", ground.folder / "killed.log"
    shutil.rmtree(folder, ignore_errors=True)
    kills, wanted = 0, ground.generator.randint(1, MOST_KILLS)
    while kills < wanted:
        before = _newest(folder)
        child = _train(ground, variant, folder, log, *_again(before))
        if not _kill_somewhere(ground, variant, folder, child, before):  # it had ended: begin again
            shutil.rmtree(folder)
            kills = 0
            continue
        kills += 1
        found["kills"] += 1
        after = _newest(folder)
        found["kills_before_the_first_checkpoint"] += after == 0
        found["lost_checkpoints"] += after < before or _damaged(folder)
    _resume_to_the_end(ground, variant, folder, log, found)


def _kill_somewhere(ground: Ground, variant: str, folder: Path, child: int, before: int) -> bool:
    """Kill a process at a random moment: one time in four anywhere in it, else within a random step still to come."""
    generator, metrics = ground.generator, folder / "metrics.jsonl"
    anywhere, target = generator.random() < 0.25, generator.randint(min(before + 1, STEPS - 1), STEPS - 1)
    delay = generator.uniform(0, ground.seconds[variant] if anywhere else ground.seconds[variant] / STEPS)
    while not anywhere and not (metrics.exists() and f'"step", "step": {target},' in metrics.read_text()):
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            break
        time.sleep(0.001)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    return _wait(child) == -signal.SIGKILL


def _full(ground: Ground, number: int, found: Counter[str]) -> None:
    """A run whose disk is full at some point, and that is resumed when there is room."""
    variant = list(VARIANTS)[number % len(VARIANTS)]
    disk, log = ground.folder / "disk", ground.folder / "full.log"
    whole = ground.folder / variant / "whole"
    disk.mkdir(exist_ok=True)
    mounted = _mount(disk, 2**20)
    found["on_a_tmpfs"] += mounted
    try:
        while True:
            folder = disk / "run"
            shutil.rmtree(folder, ignore_errors=True)
            limit = None
            if mounted:
                _mount(disk, ground.generator.randint(4096, _used(whole)), again=True)
            else:
                largest = max(path.stat().st_size for path in whole.rglob("*") if path.is_file())
                limit = ground.generator.randint(1, largest)
            code = _wait(_train(ground, variant, folder, log, "--overwrite", largest_file=limit))
            if code != 0:
                break  # otherwise there was room enough
        said = log.read_text()
        place = re.search(r"^error: (\S+): (No space left on device|File too large)$", said, re.MULTILINE)
        found["clean_errors"] += bool(place) and code == 1 and "hint: " in said and "Traceback" not in said
        found["damaged_checkpoints"] += _damaged(folder)
        if place:
            found[f"at {Path(place[1]).relative_to(disk / 'run').parts[0] if Path(place[1]) != folder else '.'}"] += 1
        if mounted:
            _mount(disk, 2**26, again=True)
        _resume_to_the_end(ground, variant, folder, log, found)
    finally:
        if mounted:
            subprocess.run(["umount", str(disk)], check=True)


def _flipped(ground: Ground, number: int, found: Counter[str]) -> None:
    """A run that is killed, and of which a bit is flipped before it is resumed."""
    variant = list(VARIANTS)[number % len(VARIANTS)]
    folder, log = ground.folder / "flipped", ground.folder / "flipped.log"
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        child = _train(ground, variant, folder, log)
        wanted = ground.generator.randint(3, 15)  # a validation has been by then, and there is a best adapter
        while len(list_checkpoints(folder / "checkpoints")) < 2 or _newest_name(folder) < wanted:
            time.sleep(0.002)
        os.kill(child, signal.SIGKILL)
        if _wait(child) == -signal.SIGKILL and not (folder / "checkpoints" / f"{STEPS:08d}").exists():
            break
    newest = list_checkpoints(folder / "checkpoints")[-1]
    if number % 5 == 4:
        kind, files = "best adapter", [folder / "adapters.safetensors"]
        sign = "put back as of the checkpoint"
    elif number % 10 == 0:  # an even number: the variant that has one
        kind, files = "frozen layers' store", sorted((ground.folder / "cache" / "frozen").iterdir())
        sign = "damaged"
    else:
        kind, files = "checkpoint", sorted(path for path in newest.rglob("*") if path.is_file())
        sign = f"{newest} is damaged"
    file = ground.generator.choice(files)
    content = bytearray(file.read_bytes())
    content[ground.generator.randrange(len(content))] ^= 1 << ground.generator.randrange(8)
    file.write_bytes(content)
    found[f"in a {kind}"] += 1
    _resume_to_the_end(ground, variant, folder, log, found)
    found["noticed"] += sign in log.read_text()


def _resume_to_the_end(ground: Ground, variant: str, folder: Path, log: Path, found: Counter[str]) -> None:
    code = _wait(_train(ground, variant, folder, log, *_again(_newest(folder))))
    same = code == 0 and _ending(folder) == ground.endings[variant]
    if not same:
        print(f"{variant}: ends with {code} and otherwise:\n{log.read_text()}", file=sys.stderr)
    found["equal"] += same


def _again(step: int) -> tuple[str]:
    return ("--resume" if step else "--overwrite",)


def _newest(folder: Path) -> int:
    """Step of the newest whole checkpoint, 0 without one."""
    from mlx_lora.errors import TrainingError

    try:
        return find_checkpoint(folder / "checkpoints").progress.step
    except TrainingError:
        return 0


def _newest_name(folder: Path) -> int:
    return int(list_checkpoints(folder / "checkpoints")[-1].name)


def _damaged(folder: Path) -> bool:
    """Whether a checkpoint is there that is not whole."""
    from mlx_lora.errors import TrainingError

    try:
        return bool(find_checkpoint(folder / "checkpoints").damaged)
    except TrainingError:
        return bool(list_checkpoints(folder / "checkpoints"))


def _ending(folder: Path) -> dict[str, Any]:
    """What a run leaves, but for the clock; the names of all files as well, so that nothing half-written is left."""
    newest = list_checkpoints(folder / "checkpoints")[-1]
    kept = [folder / "adapters.safetensors", folder / "adapter_config.json", *newest.rglob("*")]
    ending: dict[str, Any] = {str(path.relative_to(folder)): path.read_bytes() for path in kept if path.is_file()}
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    ending["events"] = [
        {name: value for name, value in event.items() if name not in CLOCK}
        for event in events
        if event["event"] in ("step", "validation")
    ]
    ending["names"] = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    return ending


def _mount(disk: Path, size: int, *, again: bool = False) -> bool:
    how = f"{'remount,' if again else ''}size={size}"
    command = ["mount", "-t", "tmpfs", "-o", how, "tmpfs", str(disk)]
    try:
        return subprocess.run(command, capture_output=True, check=again).returncode == 0
    except FileNotFoundError:
        return False


def _used(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*"))


def _train(ground: Ground, variant: str, folder: Path, log: Path, *flags: str, largest_file: int | None = None) -> int:
    """Start `mlx-lora train` on the variant's run file, its output to `log`; return the process's number."""
    arguments = ["train", str(ground.run_file(variant)), "--set", f"output_dir={folder}", *flags]

    def work() -> None:
        if largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))
        sys.argv = ["mlx-lora", *arguments]
        mlx_lora.__main__.main()

    if FORKS:
        return _start(work, log)

    def limit() -> None:
        if largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))

    command = [sys.executable, "-m", "mlx_lora", *arguments]
    with log.open("w") as output:
        return subprocess.Popen(command, stdout=output, stderr=output, cwd=ROOT, preexec_fn=limit).pid


def _start(work: Callable[[], None], log: Path | None = None) -> int:
    """`work` in a fork of this process, which has computed nothing yet."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        if log is not None:
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(output, 1)
            os.dup2(output, 2)
        work()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _save_base(folder: Path) -> None:
    from tests.tiny import save_tiny_folder

    save_tiny_folder(folder, bits=4)


if __name__ == "__main__":
    main()
