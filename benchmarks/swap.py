"""Milliseconds to change the adapter of a resident base, with many beside it; a reload from disk for comparison.

    python benchmarks/swap.py --json
    python benchmarks/swap.py --adapters 10 --turns 20

One adapter of the built-in model is copied N times with other values, so that each answers differently. Timed are:
`swap` (AdapterBank.activate, to another adapter each time), `use` (LoraModel.use, which also sets how prompts are
written), `off` (to the base), `mix` (two adapters by weight, for the first time), `join` (what the first answer of such
a mix computes beside its own work: factors side by side), `again` (the same mixes once more), `add` (read, check and
keep), `apply` (read and put on without a bank), and mlx-lm's way: base and adapter loaded anew (`mlx_lm.load`). Answers
of some adapters are compared with those of fresh loads, to the bit. Nothing else should run.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlx_lora  # noqa: F401  (loads OpenBLAS before MLX)

import mlx.core as mx  # isort: skip
import mlx_lm

from mlx_lora import LoraModel
from mlx_lora.chat.voice import Voice
from mlx_lora.lora.adapter import apply_adapter, read_adapter
from mlx_lora.lora.adapter_config import CONFIG_FILE, WEIGHTS_FILE
from mlx_lora.lora.inject import remove_lora
from mlx_lora.lora.tensor_file import encode_tensors
from mlx_lora.model.load import load_base

ROOT = Path(__file__).resolve().parents[1]
MODEL = "smollm2-135m-instruct"
TOKENS = mx.array([[1, 7, 30, 31, 200, 9, 12, 300]])
CHECKED = 5  # adapters whose answers are compared with a fresh injection


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", type=Path, default=ROOT / "adapters" / "stanley-cup-modern")
    parser.add_argument("--adapters", type=int, default=50, help="resident at once")
    parser.add_argument("--turns", type=int, default=100, help="swaps that are timed")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(options.adapter, options.adapters, options.turns, Path(folder))
    if options.json:
        sys.stdout.write(json.dumps(result, indent=2) + "\n")
        return
    print(f"{result['adapters']} adapters of {result['modules']} modules resident; milliseconds")
    for name, facts in result["milliseconds"].items():
        print(f"{name:<8} median {facts['median']:10.2f}   slowest {facts['slowest']:10.2f}   of {facts['turns']}")
    print(f"answers equal those of fresh loads, to the bit: {result['answers_equal']}")


def measure(adapter: Path, count: int, turns: int, folder: Path) -> dict[str, Any]:
    """Times and facts; `folder` takes the copies."""
    paths = copies(adapter, count, folder)
    base = load_base(MODEL)
    identity = asdict(base.identity)
    fresh = [fresh_logits(base.model, path, identity) for path in paths[:CHECKED]]
    seconds: dict[str, list[float]] = {}
    seconds["apply"] = [
        timed(lambda path=path: fresh_logits(base.model, path, identity, run=False)) for path in paths[:5]
    ]
    voice = Voice(base)
    bank, model = voice.bank, LoraModel(voice)
    before = mx.get_active_memory()
    seconds["add"] = [timed(lambda path=path: bank.add(path.name, path)) for path in paths]
    resident_bytes = mx.get_active_memory() - before
    seconds["swap"] = [timed(lambda turn=turn: bank.activate(paths[turn % count].name)) for turn in range(turns)]
    seconds["use"] = [timed(lambda turn=turn: model.use(paths[turn % count].name)) for turn in range(turns)]
    equal = []
    for path, expected in zip(paths, fresh, strict=False):
        bank.activate(path.name)
        equal.append(bool(mx.array_equal(base.model(TOKENS), expected)))
    seconds["off"] = []
    for turn in range(turns):
        bank.activate(paths[turn % count].name)
        seconds["off"].append(timed(lambda: bank.activate(None)))
    seconds["mix"], seconds["join"], seconds["again"] = [], [], []
    for turn in range(min(turns, 20)):
        text = f"{paths[turn % count].name}:0.7+{paths[(turn + 1) % count].name}:0.3"
        seconds["mix"].append(timed(lambda text=text: bank.activate(text)))
        seconds["join"].append(timed(lambda: mx.eval(base.model.parameters())))
        bank.activate(None)
        seconds["again"].append(timed(lambda text=text: bank.activate(text)))
        bank.activate(None)
    bank.activate(None)
    seconds["mlx-lm"] = [
        timed(lambda path=path: mlx_lm.load(str(base.path), adapter_path=str(path))) for path in paths[:3]
    ]
    return {
        "model": MODEL,
        "compute": base.compute,
        "adapters": count,
        "modules": len(bank.resident(paths[0].name).layers),
        "adapter_bytes": (adapter / WEIGHTS_FILE).stat().st_size,
        "resident_bytes": resident_bytes,
        "answers_equal": all(equal),
        "milliseconds": {name: facts_of(found) for name, found in seconds.items()},
    }


def copies(adapter: Path, count: int, folder: Path) -> list[Path]:
    """`count` adapters like `adapter`, every B scaled by a factor of its own."""
    tensors = read_adapter(adapter).tensors
    paths = []
    for number in range(count):
        path = folder / f"copy-{number:03}"
        path.mkdir()
        shutil.copyfile(adapter / CONFIG_FILE, path / CONFIG_FILE)
        factor = 1 - number / (2 * count)
        scaled = {name: tensor * factor if name.endswith("lora_b") else tensor for name, tensor in tensors.items()}
        (path / WEIGHTS_FILE).write_bytes(encode_tensors(scaled, {"format": "mlx"}))
        paths.append(path)
    return paths


def fresh_logits(model: Any, path: Path, identity: dict[str, Any], *, run: bool = True) -> mx.array | None:
    """Read the adapter, put it on the bare model, answer if `run`, and take it off again."""
    apply_adapter(model, read_adapter(path), identity)
    model.eval()
    logits = model(TOKENS) if run else None
    mx.eval(logits if run else model.parameters())
    remove_lora(model)
    return logits


def timed(act: Callable[[], object]) -> float:
    """Seconds that `act` took."""
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def facts_of(seconds: list[float]) -> dict[str, float]:
    """In milliseconds."""
    return {"median": 1e3 * statistics.median(seconds), "slowest": 1e3 * max(seconds), "turns": len(seconds)}


if __name__ == "__main__":
    main()
