"""How far an adapter moved what the base says where nothing was taught: finer than counting right answers.

    python benchmarks/drift.py adapters/stanley-cup-modern
    python benchmarks/drift.py first second --prompts prompts.txt --json

The base answers questions greedily (24 tokens); at each of these tokens the adapter's distribution is compared with
the base's over the whole vocabulary. Mean KL(base‖adapter) in nats a token; 0 is a model that forgot nothing. The
questions: those of `general-knowledge`, which no run rehearses, and the built-in replay prompts (or --prompts).
"""

import argparse
import json
import random
from pathlib import Path

import mlx_lora  # noqa: F401  (loads OpenBLAS before MLX)
from mlx_lora.config import DataSettings
from mlx_lora.dataset.rendering import record_prompt
from mlx_lora.dataset.replay import read_prompts
from mlx_lora.lora.adapter import apply_adapter, read_adapter
from mlx_lora.lora.fidelity import Row, answer_logits, measure_distance
from mlx_lora.lora.inject import remove_lora
from mlx_lora.model.generate import generate_answers
from mlx_lora.model.load import load_base

MODEL = "smollm2-135m-instruct"
TOKENS = 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("adapters", nargs="+", type=Path, help="adapter folders")
    parser.add_argument("--prompts", help="what was rehearsed; the built-in prompts unless given")
    parser.add_argument("--limit", type=int, default=40, help="questions of each set, drawn by chance")
    parser.add_argument("--json", action="store_true", help="one object on stdout")
    given = parser.parse_args()
    base = load_base(MODEL)
    settings = DataSettings(train="-")
    sets = {"not rehearsed": read_prompts("general-knowledge"), "rehearsed": read_prompts(given.prompts)}
    found: dict[str, dict[str, float]] = {str(folder): {} for folder in given.adapters}
    for name, records in sets.items():
        chosen = random.Random(0).sample(records, min(given.limit, len(records)))
        prompts = [record_prompt(record, base.tokenizer, settings) for record in chosen]
        answers = generate_answers(base.model, base.tokenizer, prompts, max_tokens=TOKENS)
        rows = [Row((*prompt, *answer.tokens), len(prompt)) for prompt, answer in zip(prompts, answers, strict=True)]
        rows = [row for row in rows if len(row.tokens) > row.prompt_length]
        expected = list(answer_logits(base.model, rows))
        for folder in given.adapters:
            apply_adapter(base.model, read_adapter(folder))
            found[str(folder)][name] = measure_distance(expected, answer_logits(base.model, rows)).kl
            remove_lora(base.model)
    if given.json:
        print(json.dumps({"model": MODEL, "tokens": TOKENS, "questions": given.limit, "kl_nats_a_token": found}))
        return
    for folder, drift in found.items():
        print(f"{folder}: " + ", ".join(f"{name} {kl:.4f}" for name, kl in drift.items()) + " nats a token")


if __name__ == "__main__":
    main()
