"""Seconds a row and peak memory of a training step, ours against mlx-lm's own trainer, in turns.

    python benchmarks/train.py --work chat30 --json
    python benchmarks/train.py --list

Each turn is a process of its own: the same model (smollm2-135m-instruct, float32 on a CPU), rows, batch size, rank and
BLAS. Ours is what `mlx-lora train` runs; theirs is `mlx_lm.tuner.trainer.train`. Nothing else should be running.
"""

import argparse
import json
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import mlx_lora  # noqa: F401  # puts the fast BLAS in front before MLX is imported, for both sides

sys.path.insert(0, str(Path(__file__).resolve().parent))
from works import WORKS, rows

MODEL = "smollm2-135m-instruct"
RANK, ALPHA = 16, 32.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", choices=list(WORKS), default="chat30", metavar="NAME", help="see --list")
    parser.add_argument("--list", action="store_true", help="name the works and leave")
    parser.add_argument("--turns", type=int, default=3, help="turns of each side")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--engine", default="auto", help="auto, plain, or parts with commas")
    parser.add_argument("--side", choices=["ours", "mlx_lm"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.list:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `--list | head` ends without a traceback
        for name, work in WORKS.items():
            print(f"{name:10} {work.says}")
        return
    if options.side:
        side = _ours(options.work, options.engine) if options.side == "ours" else _theirs(options.work)
        print(json.dumps(side))
        return
    result = _compare(options)
    if options.json:
        print(json.dumps(result))
        return
    print(f"{options.work}: {WORKS[options.work].says}")
    for side in ("ours", "mlx_lm"):
        found = result[side]
        print(
            f"  {side:7} {found['seconds_per_row'] * 1000:7.1f} ms a row, {found['trained_tokens_per_second']:6.0f} "
            f"trained tokens/s, peak {found['peak_bytes'] / 1e9:.2f} GB, "
            f"process {found['process_peak_bytes'] / 1e9:.2f} GB"
        )
    print(f"  rows/s {result['rows_per_second_ratio']:.2f} x, peak memory {result['peak_memory_ratio']:.2f} x mlx-lm's")


def _compare(options: argparse.Namespace) -> dict[str, Any]:
    turns: dict[str, list[dict[str, Any]]] = {"ours": [], "mlx_lm": []}
    for _ in range(options.turns):
        for side, found in turns.items():
            command = [sys.executable, __file__, "--work", options.work, "--side", side, "--engine", options.engine]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found.append(json.loads(output.splitlines()[-1]))
    sides = {name: _median(found) for name, found in turns.items()}
    pairs = zip(turns["ours"], turns["mlx_lm"], strict=True)
    ratios = [theirs["seconds_per_row"] / ours["seconds_per_row"] for ours, theirs in pairs]
    return {
        "work": options.work,
        "says": WORKS[options.work].says,
        "rows_per_second_ratio": statistics.median(ratios),
        "rows_per_second_ratios": ratios,
        "peak_memory_ratio": sides["ours"]["peak_bytes"] / sides["mlx_lm"]["peak_bytes"],
        "process_memory_ratio": sides["ours"]["process_peak_bytes"] / sides["mlx_lm"]["process_peak_bytes"],
        "matmul_share": sides["ours"]["matmul_share"],
        **sides,
    }


def _median(turns: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        name: statistics.median(turn[name] for turn in turns) if isinstance(value, (int, float)) else value
        for name, value in turns[0].items()
    }


def _examples(name: str, tokenizer: Any) -> list[Any]:
    from mlx_lora.config import DataSettings
    from mlx_lora.dataset.examples import build_examples
    from mlx_lora.dataset.records import read_records

    if WORKS[name].rows == "random":
        return _random_examples(WORKS[name].length)
    train_on = "all" if WORKS[name].rows == "text" else "completion"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in rows(WORKS[name].rows)))
        settings = DataSettings(train=str(path), train_on=train_on)
        return build_examples(read_records(str(path)), tokenizer, settings).examples


def _random_examples(length: int, count: int = 128) -> list[Any]:
    """Rows of `length` tokens that no two share, the last quarter trained."""
    import numpy as np

    from mlx_lora.dataset.examples import Example

    generator = np.random.default_rng(0)
    mask = np.arange(length) >= length - length // 4
    tokens = generator.integers(1000, 40_000, (count, length), dtype=np.int32)
    return [Example(row, mask, f"random:{number}", None, length) for number, row in enumerate(tokens)]


def _ours(name: str, engine: str) -> dict[str, Any]:
    import mlx.core as mx

    from mlx_lora.config import RunConfig
    from mlx_lora.lora.inject import inject_lora
    from mlx_lora.model.load import load_base
    from mlx_lora.training.session import build_session, prepare_engine

    work = WORKS[name]
    base = load_base(MODEL)
    examples = _examples(name, base.tokenizer)
    config = RunConfig.model_validate(
        {
            "model": MODEL,
            "data": {"train": "rows"},
            "lora": {"rank": RANK, "alpha": ALPHA, "layers": work.layers},
            "train": {
                "steps": 100_000,
                "batch_size": work.batch_size,
                "group_by_prefix": True if work.by_form else "contexts",
                "engine": engine if engine in ("auto", "plain") else engine.split(","),
            },
            "output_dir": "nowhere",
        }
    )
    injection = inject_lora(base.model, config.lora, seed=0)
    started = time.perf_counter()
    session = build_session(config, base.model, examples, [])
    with tempfile.TemporaryDirectory() as folder:
        for _ in prepare_engine(session, injection.first_layer, base.identity.weights_sha256, Path(folder)):
            pass
        before_first_step = time.perf_counter() - started
        mx.reset_peak_memory()
        reports = [report for report, _ in zip(session.steps(), range(work.warmup + work.steps), strict=False)]
    timed = reports[work.warmup :]
    seconds = _seconds_a_step(work.rows, [report.seconds for report in timed])
    return {
        **_side(seconds, work.batch_size, [report.targets / report.seconds for report in timed]),
        "seconds_before_first_step": before_first_step,
        "matmul_share": _flops(session, [report.step for report in timed]) / (seconds * len(timed)) / _matmul_rate(),
        "engine": [f"{report.name}: {report.line}" for report in session.reports],
        "tokens_a_row": statistics.mean(len(example.tokens) for example in examples),
        "loss": timed[-1].loss,
    }


def _theirs(name: str) -> dict[str, Any]:
    import mlx.optimizers as optimizers
    from mlx_lm.tuner.callbacks import TrainingCallback
    from mlx_lm.tuner.trainer import TrainingArgs, train
    from mlx_lm.tuner.utils import linear_to_lora_layers

    import mlx_lora.model.compute as compute
    import mlx_lora.model.load as loading

    work = WORKS[name]
    compute.use_fast_cpu = lambda model: None  # their model computes as mlx-lm wrote it
    base = loading.load_base(MODEL)
    examples = _examples(name, base.tokenizer)
    # (tokens, offset of the first trained token), as mlx-lm's own data sets give them
    dataset = [(example.tokens.tolist(), int(example.loss_mask.argmax())) for example in examples]
    model = base.model
    model.freeze()
    layers = len(model.layers) if work.layers == "all" else work.layers
    linear_to_lora_layers(model, layers, {"rank": RANK, "scale": ALPHA / RANK, "dropout": 0.0, "keys": _all_linear()})
    times: list[tuple[float, float]] = []

    class Reports(TrainingCallback):  # type: ignore[misc]
        def on_train_loss_report(self, info: dict[str, Any]) -> None:
            times.append((1 / info["iterations_per_second"], info["tokens_per_second"]))

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArgs(
            batch_size=work.batch_size,
            iters=work.warmup + work.steps,
            steps_per_report=1,
            steps_per_eval=10**9,
            steps_per_save=10**9,
            adapter_file=str(Path(folder) / "adapters.safetensors"),
        )
        optimizer = optimizers.AdamW(learning_rate=1e-3)
        train(model, optimizer, dataset, None, arguments, training_callback=Reports())
    timed = times[work.warmup :]
    seconds = _seconds_a_step(work.rows, [step for step, _ in timed])
    return _side(seconds, work.batch_size, [rate for _, rate in timed])


def _flops(session: Any, steps: list[int]) -> float:
    """Multiply-adds × 2 of the linear layers in these steps, forward and the gradient of their inputs; no attention."""
    from mlx.utils import tree_flatten

    from mlx_lora.dataset.batches import collate

    engine = session.stepper.engine

    def sizes(layers: list[Any], names: tuple[str, ...] = ("",)) -> int:
        weights = (pair for layer in layers for pair in tree_flatten(layer.parameters()))
        return 4 * sum(array.size for path, array in weights if array.ndim == 2 and any(name in path for name in names))

    layers = engine.trunk.layers
    per_position = sizes(layers)
    at_windows = sizes(layers[-1:]) - sizes(layers[-1:], ("k_proj", "v_proj"))  # of the last layer, see lastlayer.py
    width = engine.trunk.states(_one_token()).shape[-1]
    total = 0.0
    for step in steps:
        for chosen in session.schedule.micro_batches(step):
            arrays = engine.arrays(collate(session.train_set, chosen), session.store)
            total += arrays["inputs"].size * per_position + 4 * arrays["targets"].size * width * engine.vocabulary
            total -= (arrays["inputs"].size - arrays.get("windows", arrays["inputs"]).size) * at_windows
    return total


def _one_token() -> Any:
    import mlx.core as mx

    return mx.zeros((1, 1), mx.int32)


def _matmul_rate(size: int = 2048) -> float:
    """This machine's float32 matmul rate just now, in operations a second: the best of five large products."""
    import mlx.core as mx

    left, right = mx.random.normal((size, size)), mx.random.normal((size, size))
    mx.eval(left @ right)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        mx.eval(left @ right)
        times.append(time.perf_counter() - started)
    return 2 * size**3 / min(times)


def _all_linear() -> list[str]:
    attention = [f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj")]
    return [*attention, *(f"mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj"))]


def _seconds_a_step(kind: str, seconds: list[float]) -> float:
    """The median where all steps are alike; the mean over an epoch where lengths differ from batch to batch."""
    return statistics.mean(seconds) if kind == "text" else statistics.median(seconds)


def _side(seconds: float, batch_size: int, rates: list[float]) -> dict[str, Any]:
    import mlx.core as mx

    return {
        "seconds_per_step": seconds,
        "seconds_per_row": seconds / batch_size,
        "trained_tokens_per_second": statistics.median(rates),
        "peak_bytes": mx.get_peak_memory(),
        "process_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


if __name__ == "__main__":
    main()
