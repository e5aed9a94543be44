"""Seconds a row and peak memory of a training step, ours against Unsloth's MLX trainer, in turns.

    python benchmarks/unsloth.py --work chat16 --json
    python benchmarks/unsloth.py --work system16 --gradient-checkpointing

Unsloth (`unsloth_zoo`) is installed from PyPI into an environment of its own, without torch, and used as a black box.
Each turn is a process of its own: the same model (smollm2-135m-instruct, dequantized to float32), the same tokens and
trained positions, batch size, rank and BLAS, on a CPU. Ours is `benchmarks/train.py --side ours`. Theirs has Unsloth's
defaults (compiled steps, chunked cross-entropy), but gradient checkpointing is off, as in ours, unless asked for. The
very first turn on a machine compiles MLX's kernels, in the warm-up. Nothing else should be running.
"""

import argparse
import importlib.util
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

from works import WORKS

HERE = Path(__file__).resolve().parent
BLAS = HERE.parent / "mlx_lora" / "_blas.py"
# What unsloth_zoo's `mlx` extra asks for and what it imports; its own requirements would bring torch on Linux.
PACKAGES = [
    "cmeel-openblas>=0.3.29; sys_platform == 'linux'",
    "datasets>=4.6,<5",
    "filelock",
    "hf_transfer",
    "mlx-lm>=0.31.3,<=0.32.2",
    "mlx-vlm>=0.4.4,<=0.7.9",
    "mlx==0.32.4; sys_platform == 'darwin'",
    "mlx[cpu]==0.32.4; sys_platform == 'linux'",
    "msgspec",
    "packaging>=24.1",
    "pillow",
    "psutil",
    "requests",
    "tqdm",
    "transformers>=4.57.6,<=5.17.0,!=5.0.0,!=5.1.0",
    "typing_extensions",
]
UNSLOTH = "unsloth_zoo==2026.10.9"
ENVIRONMENT = {"UNSLOTH_ZOO_DISABLE_GPU_INIT": "1", "UNSLOTH_DISABLE_STATISTICS": "1", "HF_HUB_OFFLINE": "1"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", choices=list(WORKS), default="chat16")
    parser.add_argument("--turns", type=int, default=3, help="turns of each side")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--engine", default="auto", help="of ours: auto, plain, or parts with commas")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="of theirs, as Unsloth has it by default")
    parser.add_argument("--venv", type=Path, help="Unsloth's environment, made if missing (default: in the cache)")
    parser.add_argument("--prepare", type=Path, help=argparse.SUPPRESS)  # write what their side needs into a folder
    parser.add_argument("--task", type=Path, help=argparse.SUPPRESS)  # their side, in Unsloth's environment
    options = parser.parse_args()
    if options.prepare:
        _prepare(options, options.prepare)
        return
    if options.task:
        print(json.dumps(_theirs(json.loads(options.task.read_text()))))
        return
    with tempfile.TemporaryDirectory() as folder:
        result = _compare(options, Path(folder))
    if options.json:
        print(json.dumps(result))
        return
    print(f"{options.work}: {result['says']}")
    for side in ("ours", "unsloth"):
        found = result[side]
        print(
            f"  {side:7} {found['seconds_per_row'] * 1000:7.1f} ms a row, {found['trained_tokens_per_second']:6.0f} "
            f"trained tokens/s, peak {found['peak_bytes'] / 1e9:.2f} GB, "
            f"process {found['process_peak_bytes'] / 1e9:.2f} GB"
        )
    speed, memory = result["rows_per_second_ratio"], result["peak_memory_ratio"]
    print(f"  rows/s {speed:.2f} x, peak memory {memory:.2f} x Unsloth's")


def _compare(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from train import _median

    python = _peer_python(options.venv)
    # A process of its own writes model and rows and ends, so that nothing of them is held while the turns run.
    subprocess.run([sys.executable, *sys.argv, "--prepare", folder], check=True)
    ours = [sys.executable, HERE / "train.py", "--side", "ours", "--work", options.work, "--engine", options.engine]
    commands = {"ours": ours, "unsloth": [python, __file__, "--task", folder / "task.json"]}
    turns: dict[str, list[dict[str, Any]]] = {side: [] for side in commands}
    for _ in range(options.turns):
        for side, command in commands.items():
            environment = os.environ | (ENVIRONMENT if side == "unsloth" else {})
            done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
            if done.returncode:
                sys.exit(f"{side} failed:\n{done.stderr[-4000:]}")
            turns[side].append(json.loads(done.stdout.splitlines()[-1]))
    sides = {name: _median(found) for name, found in turns.items()}
    pairs = zip(turns["ours"], turns["unsloth"], strict=True)
    ratios = [theirs["seconds_per_row"] / ours["seconds_per_row"] for ours, theirs in pairs]
    return {
        "work": options.work,
        "says": WORKS[options.work].says,
        "peer": UNSLOTH,
        "gradient_checkpointing": options.gradient_checkpointing,
        "rows_per_second_ratio": statistics.median(ratios),
        "rows_per_second_ratios": ratios,
        "peak_memory_ratio": sides["ours"]["peak_bytes"] / sides["unsloth"]["peak_bytes"],
        "process_memory_ratio": sides["ours"]["process_peak_bytes"] / sides["unsloth"]["process_peak_bytes"],
        **sides,
    }


def _prepare(options: argparse.Namespace, folder: Path) -> None:
    """Write into `folder` what their side needs: the model in float32, and task.json with the rows as tokens."""
    import mlx_lora  # noqa: F401, I001  # puts the fast BLAS in front before MLX is imported
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from train import ALPHA, MODEL, RANK, _all_linear, _examples

    from mlx_lora.model.load import load_base

    if mx.default_device().type != mx.DeviceType.cpu:
        sys.exit("this benchmark compares float32 on a CPU: on a GPU ours would train on the quantized weights")
    work = WORKS[options.work]
    base = load_base(MODEL)
    model = folder / "model"
    shutil.copytree(base.path, model, ignore=shutil.ignore_patterns("*.safetensors*", "config.json"))
    config = json.loads((base.path / "config.json").read_text())
    config = {key: value for key, value in config.items() if not key.startswith("quantization")}
    (model / "config.json").write_text(json.dumps(config | {"torch_dtype": "float32"}))
    weights = dict(tree_flatten(base.model.parameters()))
    mx.save_safetensors(str(model / "model.safetensors"), weights, metadata={"format": "mlx"})
    rows = [
        {
            "input_ids": example.tokens.tolist(),
            "attention_mask": [1] * len(example.tokens),
            "labels": [
                token if trained else -100
                for token, trained in zip(example.tokens.tolist(), example.loss_mask.tolist(), strict=True)
            ],
        }
        for example in _examples(options.work, base.tokenizer)
    ]
    task = {
        "warmup_steps": work.warmup,
        "steps": work.warmup + work.steps,
        "gradient_checkpointing": options.gradient_checkpointing,
        "model": str(model),
        "rows": rows,
        "batch_size": work.batch_size,
        "layers": None if work.layers == "all" else work.layers,
        "rank": RANK,
        "alpha": ALPHA,
        "modules": [name.rpartition(".")[2] for name in _all_linear()],
        "output": str(folder / "output"),
    }
    (folder / "task.json").write_text(json.dumps(task))


def _peer_python(folder: Path | None) -> Path:
    """The interpreter of an environment that has Unsloth and no torch; makes it where it is missing."""
    if folder is None:
        import platformdirs

        folder = Path(platformdirs.user_cache_dir("mlx-lora")) / "benchmarks" / UNSLOTH.replace("==", "-")
    python = folder.resolve() / "bin" / "python"
    ready = folder / ".ready"
    if not ready.exists():
        print(f"installing {UNSLOTH} into {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True)
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, *PACKAGES], check=True, stdout=sys.stderr)
        subprocess.run([*install, "--no-deps", UNSLOTH], check=True, stdout=sys.stderr)
        ready.touch()
    return python


def _theirs(task: dict[str, Any]) -> dict[str, Any]:
    """Train with Unsloth as `task` says, and time its steps."""
    sys.path = [place for place in sys.path if Path(place).resolve() != HERE]  # else `import unsloth` finds this file
    specification = importlib.util.spec_from_file_location("openblas_in_front", BLAS)
    blas = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(blas)
    blas.load_openblas()

    import mlx.core as mx
    from unsloth_zoo.mlx.loader import FastMLXModel
    from unsloth_zoo.mlx.trainer import MLXTrainer, MLXTrainingConfig

    if "torch" in sys.modules:
        sys.exit("torch was imported: this is not Unsloth's MLX trainer alone")
    model, tokenizer = FastMLXModel.from_pretrained(task["model"], dtype="float32", load_in_4bit=False, text_only=True)
    model = FastMLXModel.get_peft_model(
        model,
        r=task["rank"],
        lora_alpha=task["alpha"],
        target_modules=task["modules"],
        finetune_last_n_layers=task["layers"],
        use_gradient_checkpointing="mlx" if task["gradient_checkpointing"] else False,
    )
    arguments = MLXTrainingConfig(
        per_device_train_batch_size=task["batch_size"],
        gradient_accumulation_steps=1,
        max_steps=task["steps"],
        warmup_steps=0,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        gradient_checkpointing=task["gradient_checkpointing"],
        logging_steps=1,
        output_dir=task["output"],
    )
    trainer = MLXTrainer(model, tokenizer, task["rows"], args=arguments)
    reports: list[tuple[float, float, int]] = []  # when, loss, trained tokens so far

    def after_step(_step: int, _steps: int, loss: float, *facts: Any, **_named: Any) -> None:
        reports.append((time.perf_counter(), loss, facts[4]))

    trainer.add_step_callback(after_step)
    mx.reset_peak_memory()
    started = time.perf_counter()
    trainer.train()
    if len(reports) != task["steps"]:
        sys.exit(f"{len(reports)} steps were reported, {task['steps']} were asked for")
    timed = list(zip(reports[task["warmup_steps"] - 1 :], reports[task["warmup_steps"] :], strict=False))
    seconds = [after[0] - before[0] for before, after in timed]
    tokens = [after[2] - before[2] for before, after in timed]
    return {
        "seconds_per_step": statistics.median(seconds),
        "seconds_per_row": statistics.median(seconds) / task["batch_size"],
        "trained_tokens_per_second": statistics.median(n / s for n, s in zip(tokens, seconds, strict=True)),
        "peak_bytes": mx.get_peak_memory(),
        "process_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "seconds_to_first_step": reports[0][0] - started,
        "trained_tokens_a_step": statistics.median(tokens),
        "loss": reports[-1][1],
    }


if __name__ == "__main__":
    main()
