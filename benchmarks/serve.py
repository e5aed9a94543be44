"""The server with eight adapters in one batch, against one adapter, and against mlx-lm's server with the same adapters.

    python benchmarks/serve.py --json                 # all parts
    python benchmarks/serve.py --part mixed           # clients | mixed | peer

Each server is a process of its own, the clients are threads of this one, and they share the machine. A request asks
SmolLM2-135M-Instruct (float32 on a CPU) to go on with a row of numbers, greedily, for --tokens tokens, through an
adapter: eight copies of adapters/stanley-cup-modern under eight names, so that all sides do the same arithmetic.

clients: 1 to 16 clients, each with the next adapter in turn. mixed: eight clients with eight adapters and with one, in
turns. peer: clients that ask for the adapters in turn, ours and mlx-lm's server, which is given the same float32
weights and OpenBLAS; each side answers what it can in --seconds.
"""

import argparse
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[1]
ADAPTER = ROOT / "adapters" / "stanley-cup-modern"
MODEL = "smollm2-135m-instruct"
NAMES = [f"adapter-{number}" for number in range(8)]
CLIENTS = (1, 2, 4, 8, 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["clients", "mixed", "peer"], action="append", help="default: all of them")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--turns", type=int, default=3, help="of the mixed part")
    parser.add_argument("--tokens", type=int, default=32, help="of each answer")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    parts = options.part or ["clients", "mixed", "peer"]
    result: dict[str, Any] = {"model": MODEL, "adapters": len(NAMES), "answer_tokens": options.tokens}
    with tempfile.TemporaryDirectory() as folder:
        for name in NAMES:
            shutil.copytree(ADAPTER, Path(folder) / name)
        with ours(Path(folder)) as address:
            if "clients" in parts:
                result["clients"] = [load(address, NAMES, count, options) for count in CLIENTS]
            if "mixed" in parts:
                result["mixed"] = mixed(address, options)
            if "peer" in parts:
                result["peer"] = {f"ours_{count}": load(address, NAMES, count, options) for count in (1, 8)}
        if "peer" in parts:
            result["peer"] |= peer(Path(folder), options)
    print(json.dumps(result) if options.json else json.dumps(result, indent=2))


def mixed(address: str, options: argparse.Namespace) -> dict[str, Any]:
    """Eight clients with eight adapters, and with one, in turns: tokens/s of each turn and the ratio of the medians."""
    rates: dict[str, list[float]] = {"mixed": [], "one": [], "base": []}
    for _ in range(options.turns):
        for kind, names in (("mixed", NAMES), ("one", NAMES[:1]), ("base", [MODEL])):
            rates[kind].append(load(address, names, 8, options)["tokens_per_second"])
    medians = {kind: statistics.median(each) for kind, each in rates.items()}
    return {
        "tokens_per_second": rates,
        "mixed_to_one": medians["mixed"] / medians["one"],
        "mixed_to_base": medians["mixed"] / medians["base"],
    }


def peer(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """mlx-lm's server: the adapters in turn from one client and from eight, and one adapter alone from eight."""
    weights = folder / "float32"
    write_float32(weights)
    with theirs(weights) as address:
        results = {}
        for key, names, count in (("theirs_1", NAMES, 1), ("theirs_8", NAMES, 8), ("theirs_8_one", NAMES[:1], 8)):
            bodies = [{"model": str(weights), "adapters": str(folder / name)} for name in names]
            results[key] = load(address, names, count, options, bodies)
    return results


def load(
    address: str,
    names: Sequence[str],
    clients: int,
    options: argparse.Namespace,
    bodies: Sequence[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """What `clients` clients get in options.seconds; client c's request number r goes to name c + r."""
    bodies = bodies or [{"model": name} for name in names]
    found: list[tuple[float, float, int]] = []  # of each answer: seconds to the first token, to the end, its tokens
    tokens_in_time = [0]
    lock = threading.Lock()
    warm = threading.Barrier(clients + 1)
    end = [float("inf")]

    def client(number: int) -> None:
        with httpx.Client(base_url=address, timeout=300) as http:
            # Another start each time, so that no answer is read off a prompt cache but for its first words.
            ask(http, {**bodies[number % len(bodies)], **request(90_000 + number, 2)}, None, lock, None)
            warm.wait()
            turn = 0
            while time.perf_counter() < end[0]:
                body = {**bodies[(number + turn) % len(bodies)], **request(1000 * turn + 7 * number, options.tokens)}
                answer = ask(http, body, tokens_in_time, lock, end)
                with lock:
                    found.append(answer)
                turn += 1

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    warm.wait()
    begun = time.perf_counter()
    end[0] = begun + options.seconds
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - begun
    firsts = sorted(first for first, _, _ in found)
    return {
        "clients": clients,
        "names": len(names),
        "requests": len(found),
        "requests_per_second": len(found) / seconds,
        # Tokens of the measured time only: the last answers run on alone, and would flatter or blame nobody.
        "tokens_per_second": tokens_in_time[0] / options.seconds,
        "first_token_seconds": {"p50": quantile(firsts, 0.5), "p95": quantile(firsts, 0.95)},
    }


def request(start: int, tokens: int) -> dict[str, Any]:
    """A prompt of about 40 tokens that any model goes on with until it is stopped."""
    numbers = ", ".join(str(start + step) for step in range(8))
    prompt = f"Count on from here without end: {numbers},"
    return {"prompt": prompt, "max_tokens": tokens, "temperature": 0.0, "stream": True}


def ask(
    http: httpx.Client, body: dict[str, Any], counter: list[int] | None, lock: threading.Lock, end: list[float] | None
) -> tuple[float, float, int]:
    """Seconds to the first text, to the end, and the number of tokens; those before `end` go onto the counter too."""
    begun = time.perf_counter()
    first, count = None, 0
    with http.stream("POST", "/v1/completions", json=body) as answer:
        if answer.status_code != 200:
            answer.read()
            raise SystemExit(f"{answer.status_code}: {answer.text}")
        for line in answer.iter_lines():
            if not line.startswith("data: {"):
                continue
            choice = json.loads(line[6:])["choices"]
            if choice and choice[0].get("text"):
                now = time.perf_counter()
                first = now - begun if first is None else first
                count += 1
                if counter is not None and end is not None and now < end[0]:
                    with lock:
                        counter[0] += 1
    return first or time.perf_counter() - begun, time.perf_counter() - begun, count


def quantile(ordered: Sequence[float], share: float) -> float | None:
    """The value below which `share` of them lie."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


@contextmanager
def ours(folder: Path) -> Iterator[str]:
    """Our server with all adapters; its address."""
    command = [sys.executable, "-m", "mlx_lora", "serve", *(str(folder / name) for name in NAMES), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        address = None
        for line in process.stderr or ():
            found = re.search(r"serving at (http://\S+)/v1", line)
            if found:
                address = found.group(1)
                break
        if address is None:
            raise SystemExit("our server did not start")
        threading.Thread(target=lambda: list(process.stderr or ()), daemon=True).start()  # its log, unread
        yield address
    finally:
        process.terminate()
        process.wait(timeout=60)


@contextmanager
def theirs(weights: Path) -> Iterator[str]:
    """mlx-lm's server as it is, on the same BLAS; its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program = "import mlx_lora; from mlx_lm.server import main; main()"
    command = [sys.executable, "-c", program, "--model", str(weights), "--port", str(port)]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=quiet, stderr=quiet, cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    try:
        for _ in range(300):
            try:
                httpx.get(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            except httpx.TransportError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=60)


def write_float32(folder: Path) -> None:
    """The built-in model as a plain float32 folder: what our side computes in, for a server that reads folders."""
    import mlx_lora  # noqa: F401  (loads OpenBLAS before MLX)

    import mlx.core as mx  # isort: skip
    from mlx.utils import tree_flatten

    from mlx_lora.model.load import load_base

    base = load_base(MODEL)
    folder.mkdir()
    mx.save_safetensors(
        str(folder / "model.safetensors"), dict(tree_flatten(base.model.parameters())), {"format": "mlx"}
    )
    config = json.loads((base.path / "config.json").read_text())
    for key in ("quantization", "quantization_config"):
        config.pop(key, None)
    (folder / "config.json").write_text(json.dumps(config))
    for file in base.path.iterdir():
        if file.suffix == ".json" and file.name not in ("config.json", "model.safetensors.index.json"):
            shutil.copy(file, folder)


if __name__ == "__main__":
    main()
