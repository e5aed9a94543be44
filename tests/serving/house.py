"""A tiny base with adapters of several kinds, what each of them answers alone, and a server over them."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mlx_lora  # noqa: F401  (loads OpenBLAS before MLX)

import mlx.core as mx  # isort: skip
import uvicorn
from mlx_lm.generate import generate_step

from mlx_lora.config import LoraSettings
from mlx_lora.dataset.rendering import render_prompt
from mlx_lora.lora.adapter import apply_adapter, read_adapter, save_adapter
from mlx_lora.lora.inject import inject_lora, iter_lora_modules, remove_lora
from mlx_lora.lora.rendering import Rendering, rendering_of
from mlx_lora.model.load import load_base
from mlx_lora.serving.app import Service, build_app
from mlx_lora.serving.engine import Engine
from mlx_lora.serving.limits import Limits
from mlx_lora.serving.listening import open_socket
from mlx_lora.serving.metrics import Metrics
from mlx_lora.serving.residents import Residents
from tests.tiny import save_tiny_folder

TOKENS = 6
BASE = "tiny-base"
KINDS = {
    "red": LoraSettings(rank=4),
    "blue": LoraSettings(rank=2, method="dora"),
    "green": LoraSettings(rank=6, target_modules="attention", layers=2),
}
SYSTEM = "Be green."  # green's system prompt
_MARGIN = 1e-3  # between the likeliest tokens of every answer that a test expects: no rounding can swap them


@dataclass(frozen=True)
class House:
    """Folders of base and adapters; name → question → the answer that this one gives alone, greedily."""

    base: Path
    adapters: Path
    answers: dict[str, dict[str, str]]
    tokens: dict[str, dict[str, int]]

    def ask(self, place: int) -> tuple[str, str, str]:
        """The name, the question and the expected answer of request number `place`."""
        names = list(self.answers)
        name = names[place % len(names)]
        questions = list(self.answers[name])
        question = questions[(place // len(names)) % len(questions)]
        return name, question, self.answers[name][question]


def build_house(root: Path, family: str, *, questions: int = 8) -> House:
    """Write base and adapters under `root`, and ask each of them alone."""
    base_folder = save_tiny_folder(root / BASE, family)
    base = load_base(str(base_folder))
    for index, (name, settings) in enumerate(KINDS.items()):
        inject_lora(base.model, settings, seed=index)
        for place, (_, layer) in enumerate(iter_lora_modules(base.model)):
            layer.lora_b = 0.3 * mx.random.normal(layer.lora_b.shape, key=mx.random.key(1000 * index + place))
        system = SYSTEM if name == "green" else None
        save_adapter(root / "adapters" / name, base.model, settings=settings, metadata={"system_prompt": system})
        remove_lora(base.model)
    answers: dict[str, dict[str, str]] = {}
    tokens: dict[str, dict[str, int]] = {}
    for name in (BASE, *KINDS):
        rendering = Rendering()
        if name != BASE:
            adapter = read_adapter(root / "adapters" / name)
            rendering = rendering_of(adapter.config, adapter.folder)
            apply_adapter(base.model, adapter)
            base.model.eval()
        found: dict[str, str] = {}
        counts: dict[str, int] = {}
        for number in range(100):
            question = f"Question {number * number}, {'long ' * (number % 4)}please?"
            prompt = render_prompt([{"role": "user", "content": question}], base.tokenizer, rendering.settings())
            answer = _clear_answer(base, prompt)
            if answer is not None:
                found[question] = base.tokenizer.decode(answer)
                counts[question] = len(answer)
            if len(found) == questions:
                break
        answers[name], tokens[name] = found, counts
        remove_lora(base.model)
    assert all(len(found) == questions for found in answers.values())
    assert len({str(sorted(found.items())) for found in answers.values()}) == len(answers)
    return House(base_folder, root / "adapters", answers, tokens)


def _clear_answer(base: Any, prompt: list[int]) -> list[int] | None:
    """mlx-lm's own greedy answer; None where two tokens were nearly as likely."""
    tokens: list[int] = []
    for token, logprobs in generate_step(mx.array(prompt), base.model, max_tokens=TOKENS):
        best = mx.sort(logprobs)[-2:]
        if (best[1] - best[0]).item() < _MARGIN:
            return None
        if token in base.tokenizer.eos_ids:
            return tokens
        tokens.append(token)
    return tokens


@dataclass
class Running:
    """A server on a loopback port."""

    address: str
    engine: Engine
    residents: Residents
    metrics: Metrics


@contextmanager
def engine_of(
    house: House, *, limits: Limits | None = None, names: tuple[str, ...] = tuple(KINDS)
) -> Iterator[tuple[Engine, Residents, Metrics]]:
    """An engine with the adapters of these names."""
    metrics = Metrics()
    engine = Engine(partial(load_base, str(house.base)), limits or Limits(), metrics)
    residents = engine.start()
    try:
        for name in names:
            engine.call(partial(residents.load, name, house.adapters / name)).result()
        yield engine, residents, metrics
    finally:
        engine.stop()


@contextmanager
def served(house: House, *, key: str | None = None, **options: Any) -> Iterator[Running]:
    """The house behind a real port, until the block ends."""
    with engine_of(house, **options) as (engine, residents, metrics):
        service = Service(engine, residents, metrics, adapters=house.adapters, log_prompts=False)
        config = uvicorn.Config(build_app(service, key=key), log_config=None, access_log=False, lifespan="off")
        server = uvicorn.Server(config)
        with open_socket("127.0.0.1", 0) as listener:
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
            thread.start()
            while not server.started:
                time.sleep(0.01)
            try:
                yield Running(f"http://127.0.0.1:{listener.getsockname()[1]}", engine, residents, metrics)
            finally:
                server.should_exit = True
                thread.join()
