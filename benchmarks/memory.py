"""Predicted against measured memory: the figures of `mlx-lora plan` beside the peaks of real runs, each a process.

    python benchmarks/memory.py --json           all configurations
    python benchmarks/memory.py NAME... --json   some of them; --list names them

A run's rows are few, so that every one of its batches comes; what is compared is the peak of the whole run (loading,
check, frozen layers, steps, validation) and that of its steps. --flat N trains the built-in model for N steps (or the
given --seconds) on rows of very different lengths, and prints MLX's memory and the process's on the way, and whether it
is flat.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REAL = "smollm2-135m-instruct"
_FLAT = 1.05  # of what is taken after one epoch: the most that any later step may take
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Work:
    """A configuration: a model (a family of tests/tiny.py with 12 layers, or the built-in one), rows and settings.

    With `rows` 0 it is the demo, with its own rows: those of its steps are trained that should take the most.
    """

    model: str
    rows: int
    words: int  # in a question; an answer has a third of them
    settings: dict[str, Any]


WORKS = {
    "tiny-llama": Work("llama", 32, 40, {"train.batch_size": 8}),
    "tiny-plain": Work("llama", 32, 40, {"train.batch_size": 8, "train.engine": "plain"}),
    "tiny-gemma3": Work("gemma3", 32, 40, {"train.batch_size": 8, "train.gradient_checkpointing": True}),
    "tiny-frozen": Work("qwen3", 32, 40, {"train.batch_size": 8, "lora.layers": 6, "train.epochs": 2}),
    "tiny-mixtral": Work("mixtral", 32, 30, {"train.batch_size": 4, "train.gradient_accumulation_steps": 4}),
    "tiny-dora": Work("olmo2", 32, 30, {"lora.method": "dora", "lora.rank": 32, "optimizer.name": "adafactor"}),
    "tiny-long": Work("qwen2", 8, 160, {"train.batch_size": 2, "data.train_on": "all"}),
    "real-chat": Work(REAL, 32, 12, {"train.batch_size": 8, "lora.rank": 8}),
    "real-checkpointing": Work(REAL, 32, 12, {"train.batch_size": 16, "train.gradient_checkpointing": True}),
    "real-rank": Work(REAL, 16, 6, {"train.batch_size": 2, "train.gradient_checkpointing": True, "lora.rank": 64}),
    "real-plain": Work(REAL, 16, 12, {"train.batch_size": 4, "train.engine": "plain"}),
    "real-frozen": Work(REAL, 32, 12, {"train.batch_size": 8, "lora.layers": 16, "train.epochs": 2}),
    "real-long": Work(REAL, 4, 160, {"train.batch_size": 2}),
    "real-demo": Work(REAL, 0, 0, {"data.replay": None}),
    "real-demo-replay": Work(REAL, 0, 0, {}),
    # Little is trained at once: what the model answers before or after training is the peak.
    "tiny-asking": Work(
        "qwen2", 40, 90, {"train.batch_size": 1, "train.gradient_checkpointing": True, "train.retention": "train.jsonl"}
    ),
    "real-asking": Work(
        REAL,
        8,
        6,
        {"train.batch_size": 1, "train.gradient_checkpointing": True, "train.retention": "general-knowledge"},
    ),
}
DEMO_STEPS = 18


def write_run(work: Work, folder: Path) -> Path:
    """The work's run file, rows and model in `folder`."""
    sys.path.insert(0, str(ROOT))
    if not work.rows:
        return _write_tree(
            folder, {**_demo(), "output_dir": str(folder / "out"), "train.retention": None, **work.settings}
        )
    model, mark = work.model, time.time_ns() % 10**9  # new rows: what frozen layers gave is not on the disk yet
    if model != REAL:
        from tests.tiny import save_tiny_folder

        model = str(save_tiny_folder(folder / "model", work.model, layers=12))
    for name, count in (("train", work.rows), ("valid", max(2, work.rows // 4))):
        rows = []
        for number in range(count):
            length = work.words * (2 + number % 3) // 4
            words = [f"word{(number * 7 + place) % 90}" for place in range(length)]
            rows.append(
                {"question": f"{name} {mark} {number} " + " ".join(words), "answer": " ".join(words[: 1 + length // 3])}
            )
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings = {
        "model": model,
        "data.train": str(folder / "train.jsonl"),
        "data.valid": str(folder / "valid.jsonl"),
        "train.epochs": 1,
        "train.retention": None,
        "output_dir": str(folder / "out"),
        **work.settings,
    }
    if settings["train.retention"] == "train.jsonl":
        settings["train.retention"] = settings["data.train"]
    return _write_tree(folder, settings)


def _demo() -> dict[str, Any]:
    """The settings of the demo's run file; its data is found from anywhere."""
    from mlx_lora.runfile import load_config

    found = load_config(ROOT / "configs/stanley_cup_modern.yaml").model_dump(mode="json")
    data = {name: str(ROOT / found["data"][name]) for name in ("train", "valid", "test")}
    sections = {f"{name}.{key}": value for name in ("lora", "train", "optimizer") for key, value in found[name].items()}
    settings = {f"data.{key}": value for key, value in {**found["data"], **data}.items()}
    return {"model": found["model"], **settings, **sections}


def _write_tree(folder: Path, settings: dict[str, Any]) -> Path:
    tree: dict[str, Any] = {}
    for place, value in settings.items():
        *above, name = place.split(".")
        (tree.setdefault(above[0], {}) if above else tree)[name] = value
    path = folder / "run.yaml"
    path.write_text(json.dumps(tree), encoding="utf-8")  # JSON is YAML
    return path


def predict(path: Path) -> dict[str, int]:
    """What `mlx-lora plan` predicts: the peak of the run, and that of its steps and validations."""
    import mlx_lora  # isort: skip  # before mlx.core: it loads OpenBLAS
    from mlx_lora.commands.preflight import frozen_folder, run_rows
    from mlx_lora.commands.rundata import load_run_tokenizer
    from mlx_lora.dataset.inspection import build_split_examples
    from mlx_lora.dataset.splits import load_splits
    from mlx_lora.memory.prediction import Slices
    from mlx_lora.memory.prediction import predict as predict_run
    from mlx_lora.runfile import load_config

    assert mlx_lora
    config = load_config(path)
    splits, tokenizer = load_splits(config.data, config.train.seed), load_run_tokenizer(config)
    rows = run_rows(config, tokenizer, splits, build_split_examples(splits, tokenizer, config.data))
    prediction = predict_run(Slices(config, rows, frozen_folder(), 2**40))
    late = [phase.total for phase in prediction.phases if phase.name in ("a training step", "a validation")]
    return {"run": prediction.worst.total, "steps": max(late)}


def measure(path: Path, *, demo: bool) -> dict[str, int]:
    """The peaks of a real run: of all of it, and since its first step (as metrics.jsonl has it)."""
    import mlx_lora  # isort: skip  # before mlx.core: it loads OpenBLAS
    import mlx.core as mx

    from mlx_lora.commands import train

    assert mlx_lora
    train.fit_run = lambda config, rows: ""  # no limits from the very prediction that is tested
    if demo:
        _train_worst_steps()
    found: list[int] = []
    reset = mx.reset_peak_memory

    def noted() -> None:
        found.append(mx.get_peak_memory())
        reset()

    mx.reset_peak_memory = noted
    train.run_train(path, [])
    noted()
    events = [json.loads(line) for line in (path.parent / "out" / "metrics.jsonl").read_text("utf-8").splitlines()]
    steps = max(event["peak_bytes"] for event in events if event["event"] == "step")
    return {"run": max([*found, steps]), "steps": steps}


def _train_worst_steps() -> None:
    """Let runs train only those steps of their first two epochs that should take the most memory."""
    from mlx_lora.memory.rows import Counting
    from mlx_lora.training import session as sessions
    from mlx_lora.training.loop import Schedule

    build = sessions.build_session

    def shortened(*given: Any, **more: Any) -> Any:
        session = build(*given, **more)
        whole, rows, counting = session.schedule, session.train_set, Counting(True, 2**20)
        sizes = {
            step: [counting.positions([rows[row] for row in batch]) for batch in whole.micro_batches(step)]
            for step in range(1, 2 * whole.steps_per_epoch + 1)
        }
        orders = [
            sorted(sizes, key=lambda step: max(weight * one[0] + one[1] for one in sizes[step]), reverse=True)
            for weight in (1e6, 0.25, 0.0)
        ]
        chosen = list(dict.fromkeys(step for order in orders for step in order[: DEMO_STEPS // len(orders)]))

        class WorstFirst(Schedule):
            def micro_batches(self, step: int) -> list[tuple[int, ...]]:
                return whole.micro_batches(chosen[step - 1])

        session.schedule = WorstFirst(**{**vars(whole), "total_steps": len(chosen)})
        return session

    sessions.build_session = shortened


def flat(steps: int, seconds: float, layers: int | str) -> dict[str, Any]:
    """Memory on the way of a run of the built-in model, row by row of 20 to 200 tokens, for `steps` or `seconds`.

    With adapters in the last `layers` the others run once, as in any such run.

    Flat means: once every row was there, neither the arrays in use, MLX's peak nor the process grow by a twentieth.
    """
    import mlx_lora  # isort: skip  # before mlx.core: it loads OpenBLAS
    import mlx.core as mx
    import numpy as np

    from mlx_lora.config import RunConfig
    from mlx_lora.dataset.examples import Example
    from mlx_lora.lora.inject import inject_lora
    from mlx_lora.model.load import load_base
    from mlx_lora.training.session import build_session, prepare_engine

    assert mlx_lora
    sections = {"data": {"train": "rows"}, "train": {"steps": steps, "batch_size": 1}, "lora": {"layers": layers}}
    config = RunConfig.model_validate({"model": REAL, "output_dir": "nowhere", **sections})
    base = load_base(REAL)
    injection = inject_lora(base.model, config.lora, seed=0)
    draw = np.random.default_rng(0)
    rows = []
    for number in range(200):
        tokens = draw.integers(5, 40_000, int(draw.integers(20, 201))).astype(np.int32)
        rows.append(Example(tokens, np.arange(len(tokens)) > len(tokens) * 3 // 4, f"row {number}", None))
    session = build_session(config, base.model, rows, [])
    with tempfile.TemporaryDirectory() as folder:
        for _ in prepare_engine(session, injection.first_layer, "flat", Path(folder)):
            pass
    found: list[dict[str, Any]] = []
    began = time.perf_counter()
    for report in session.steps():
        late = time.perf_counter() - began > seconds
        if report.step == 50 or report.step % 100 == 0 or late:
            memory = {"active": mx.get_active_memory(), "cache": mx.get_cache_memory(), "peak": report.peak_bytes}
            found.append({"step": report.step, "seconds": round(time.perf_counter() - began), **memory, "rss": _rss()})
            print(json.dumps(found[-1]), file=sys.stderr, flush=True)
        if late:
            break
    later = [one for one in found if one["step"] >= len(rows)]
    slope = np.polyfit([one["step"] for one in later], [one["rss"] for one in later], 1)[0]
    grown = {name: round(max(one[name] for one in later) / later[0][name], 3) for name in ("active", "peak", "rss")}
    return {
        "points": found,
        "rss_bytes_per_1000_steps": round(1000 * slope),
        f"most_over_step_{len(rows)}": grown,
        "flat": all(share < _FLAT for share in grown.values()),
    }


def _rss() -> int:
    """Bytes of this process that are in memory."""
    shown = subprocess.run(["ps", "-o", "rss=", "-p", str(os.getpid())], capture_output=True, text=True, check=True)
    return 1024 * int(shown.stdout)


def row(name: str) -> dict[str, Any]:
    """One configuration, predicted and measured in processes of their own."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_run(WORKS[name], Path(folder))
        demo = [] if WORKS[name].rows else ["--demo"]
        predicted, measured = (_child([mode, str(path), *demo]) for mode in ("--predict", "--measure"))
    ratios = {f"{part}_ratio": round(predicted[part] / measured[part], 3) for part in ("run", "steps")}
    return {"name": name, "predicted": predicted, "measured": measured, **ratios}


def _child(given: list[str]) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, __file__, *given], stdout=subprocess.PIPE, stderr=sys.stderr, text=True, check=True
    )
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Predicted against measured memory.")
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--flat", type=int, metavar="N")
    parser.add_argument("--layers", type=int, help="adapters in the last N layers, for --flat; else in all")
    parser.add_argument("--seconds", type=float, default=720.0, help="an end for --flat")
    parser.add_argument("--predict", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--demo", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.list:
        print("\n".join(WORKS))
    elif given.predict or given.measure:
        print(json.dumps(predict(given.predict) if given.predict else measure(given.measure, demo=given.demo)))
    elif given.flat:
        print(json.dumps(flat(given.flat, given.seconds, given.layers or "all")))
    else:
        rows = []
        for name in given.names or WORKS:
            rows.append(row(name))
            print(_line(rows[-1]), file=sys.stderr if given.json else sys.stdout, flush=True)
        if given.json:
            print(json.dumps({"rows": rows}))


def _line(found: dict[str, Any]) -> str:
    cells = [
        f"{found['predicted'][part] / 1e6:9.1f} {found['measured'][part] / 1e6:9.1f} {found[f'{part}_ratio']:6.3f}"
        for part in ("run", "steps")
    ]
    return f"{found['name']:20} " + "   ".join(cells)


if __name__ == "__main__":
    main()
