"""A tiny base, adapters of several fates and a quiz: what the tests of `mlx-lora eval` ask."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlx_lora  # noqa: F401  (loads OpenBLAS before MLX)

import mlx.core as mx  # isort: skip
import pytest

from mlx_lora.commands.evaluate import run_evaluate
from mlx_lora.config import DataSettings, LoraSettings
from mlx_lora.dataset.rendering import render_prompt
from mlx_lora.evaluation.answers import normalize_answer
from mlx_lora.lora.adapter import save_adapter
from mlx_lora.lora.inject import inject_lora, iter_lora_modules, remove_lora
from mlx_lora.model.generate import generate_answers
from mlx_lora.model.load import load_base
from tests.tiny import save_tiny_folder

QUESTIONS = [f"What is number {number}?" for number in range(24)]
TOKENS = 6
SYSTEM = "Be brief."


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, an adapter that changes its answers, and quiz.jsonl: the questions with the adapter's own answers."""
    root = tmp_path_factory.mktemp("workshop")
    base = load_base(str(save_tiny_folder(root / "base", "llama_untied")))
    template_args = DataSettings.model_validate({"train": "x", "system_prompt": SYSTEM})
    prompts = [
        render_prompt([{"role": "user", "content": question}], base.tokenizer, template_args) for question in QUESTIONS
    ]
    plain = generate_answers(base.model, base.tokenizer, prompts, max_tokens=TOKENS)
    facts = {"model": str(root / "base"), "identity": asdict(base.identity), "system_prompt": SYSTEM, "step": 7}
    settings = LoraSettings(rank=4, dropout=0.5)
    sizes = {"zero": 0.0, "nothing": 1e-9, "faint": 1e-6, "wrecked": 1e30, "other": 0.3, "good": 0.3}
    for name, size in sizes.items():
        seed = 5 if name == "other" else 0
        inject_lora(base.model, settings, seed=seed)
        for index, (_, layer) in enumerate(iter_lora_modules(base.model)):
            layer.lora_b = size * mx.random.normal(layer.lora_b.shape, key=mx.random.key(100 * seed + index))
        save_adapter(root / name, base.model, settings=settings, metadata=facts)
        base.model.eval()
        taught = generate_answers(base.model, base.tokenizer, prompts, max_tokens=TOKENS)
        remove_lora(base.model)
    rows = [
        {
            "question": question,
            "answer": right.text,
            "category": "odd" if place % 2 else "even",
            "fact": f"f{place // 2}",
        }
        for place, (question, right, wrong) in enumerate(zip(QUESTIONS, taught, plain, strict=True))
        if normalize_answer(right.text) and normalize_answer(right.text) != normalize_answer(wrong.text)
    ]
    assert len(rows) >= 12, "choose an adapter that changes more answers"
    (root / "quiz.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def evaluate(
    root: Path, *names: str, capsys: pytest.CaptureFixture[str], code: int = 0, **options: Any
) -> dict[str, Any]:
    capsys.readouterr()
    options = {"data": [str(root / "quiz.jsonl")], "max_tokens": TOKENS, "json_output": True, **options}
    assert run_evaluate([root / name for name in names], **options) == code
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result
