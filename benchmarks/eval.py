"""Questions a second of our batched answers, against a loop over mlx_lm.generate and mlx-lm's batch_generate.

    python benchmarks/eval.py --json
    python benchmarks/eval.py --prompt long --adapter adapters/stanley-cup

All three sides answer the same prompts with the same model object (smollm2-135m-instruct, float32 on a CPU), greedily,
in one process, in turns, and their answers are compared. Nothing else should be running. `cpu_seconds_ratio` compares
the processor time instead of the clock: it says something on a busy machine too.
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx_lora  # noqa: F401  (loads OpenBLAS before MLX)

import mlx.core as mx  # isort: skip
import mlx_lm
from mlx_lm.generate import batch_generate

from mlx_lora.config import DataSettings
from mlx_lora.dataset.rendering import render_prompt
from mlx_lora.lora.adapter import apply_adapter, read_adapter
from mlx_lora.model.generate import generate_answers
from mlx_lora.model.load import LoadedModel, load_base

sys.path.insert(0, str(Path(__file__).resolve().parent))
from works import LONG_SYSTEM_PROMPT

ROOT = Path(__file__).resolve().parents[1]
QUESTIONS = ROOT / "data" / "stanley_cup" / "modern" / "test.jsonl"
MODEL = "smollm2-135m-instruct"


@dataclass
class Side:
    """One way of answering: its questions a turn, and what each turn took."""

    answer: Callable[[], list[str]]
    questions: int
    seconds: list[float]
    cpu_seconds: list[float]

    def turn(self) -> list[str]:
        """Answer once and note the time."""
        clock, processor = time.perf_counter(), time.process_time()
        answers = self.answer()
        self.seconds.append(time.perf_counter() - clock)
        self.cpu_seconds.append(time.process_time() - processor)
        return answers

    def facts(self) -> dict[str, Any]:
        """For the result: medians over the turns."""
        return {
            "questions": self.questions,
            "questions_per_second": self.questions / statistics.median(self.seconds),
            "seconds": self.seconds,
            "cpu_seconds_per_question": statistics.median(self.cpu_seconds) / self.questions,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=70, help="questions that both batched sides answer")
    parser.add_argument("--plain-rows", type=int, default=10, help="of these, how many the plain loop answers")
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--prompt", choices=["short", "long"], default="short", help="the shared system prompt")
    parser.add_argument("--adapter", type=Path, help="answer with this adapter on")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    result = compare(options)
    if options.json:
        print(json.dumps(result))
        refuse_different(result)
        return
    for name in ("ours", "batch_generate", "plain_loop"):
        print(f"{name:15} {result[name]['questions_per_second']:7.2f} questions/s")
    for name, ratio in result["questions_per_second_ratio"].items():
        cpu, equal = result["cpu_seconds_ratio"][name], result["equal_answers"][name]
        print(
            f"{ratio:.2f} x {name} by the clock, {cpu:.2f} x by processor time, {equal[0]} of {equal[1]} answers equal"
        )
    refuse_different(result)


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """All sides in turns, and the ratios of ours to each."""
    base = load_base(MODEL)
    if options.adapter:
        apply_adapter(base.model, read_adapter(options.adapter), asdict(base.identity))
        base.model.eval()
    prompts = read_prompts(base, options.rows, LONG_SYSTEM_PROMPT if options.prompt == "long" else None)
    few = prompts[:: max(1, len(prompts) // options.plain_rows)][: options.plain_rows]
    tokenizer, count = base.tokenizer, options.max_tokens
    sides = {
        "ours": Side(
            lambda: [one.text for one in generate_answers(base.model, tokenizer, prompts, max_tokens=count)],
            len(prompts),
            [],
            [],
        ),
        "batch_generate": Side(
            lambda: list(batch_generate(base.model, tokenizer.wrapper, prompts, max_tokens=count).texts),
            len(prompts),
            [],
            [],
        ),
        "plain_loop": Side(
            lambda: [mlx_lm.generate(base.model, tokenizer.wrapper, one, max_tokens=count) for one in few],
            len(few),
            [],
            [],
        ),
    }
    generate_answers(base.model, tokenizer, prompts[:2], max_tokens=2)  # warm-up: pages and BLAS threads
    answers: dict[str, list[str]] = {}
    for _ in range(options.turns):
        answers = {name: side.turn() for name, side in sides.items()}
    pairs = {
        "batch_generate": list(zip(answers["ours"], answers["batch_generate"], strict=True)),
        "plain_loop": [
            (answers["ours"][prompts.index(prompt)], text)
            for prompt, text in zip(few, answers["plain_loop"], strict=True)
        ],
    }
    facts = {name: side.facts() for name, side in sides.items()}
    ours = facts["ours"]
    return {
        "model": MODEL,
        "adapter": str(options.adapter) if options.adapter else None,
        "device": str(mx.default_device()),
        "prompt_tokens": statistics.mean(map(len, prompts)),
        "answer_tokens": statistics.mean(len(tokenizer.encode(text)) for text in answers["ours"]),
        "max_tokens": count,
        "questions_per_second_ratio": {
            name: ours["questions_per_second"] / facts[name]["questions_per_second"] for name in pairs
        },
        "cpu_seconds_ratio": {
            name: facts[name]["cpu_seconds_per_question"] / ours["cpu_seconds_per_question"] for name in pairs
        },
        "equal_answers": {name: [equal_count(found), len(found)] for name, found in pairs.items()},
        "different_answers": [pair for found in pairs.values() for pair in found if pair[0].strip() != pair[1].strip()],
        **facts,
    }


def refuse_different(result: dict[str, Any]) -> None:
    """Speeds of different answers are no comparison. Raises: SystemExit with the pairs that differ."""
    pairs = result["different_answers"]
    if pairs:
        raise SystemExit("\n".join([f"{len(pairs)} answers differ:", *(f"  {one!r} / {two!r}" for one, two in pairs)]))


def equal_count(pairs: Sequence[tuple[str, str]]) -> int:
    """How many pairs of texts are alike but for white space at the ends, which mlx_lm.generate trims."""
    return sum(one.strip() == two.strip() for one, two in pairs)


def read_prompts(base: LoadedModel, count: int, system_prompt: str | None) -> list[list[int]]:
    """Prompts as eval renders them, in a seeded order: neighbours in the file are equally long."""
    if QUESTIONS.is_file():
        questions = [json.loads(line)["question"] for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]
    else:
        questions = [f"Which team won the Stanley Cup in {year}?" for year in range(1915, 2026)]
    random.Random(0).shuffle(questions)
    settings = DataSettings.model_validate({"train": "eval", "system_prompt": system_prompt})
    return [
        render_prompt([{"role": "user", "content": question}], base.tokenizer, settings)
        for question in questions[:count]
    ]


if __name__ == "__main__":
    main()
