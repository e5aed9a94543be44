"""The rows of the training benchmarks, made from the repository's own questions, and the settings of each work."""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LONG_SYSTEM_PROMPT = (
    "You answer questions about the finals of the Stanley Cup from 1915 to 2025. "
    "Give the name of the club in full, as it was called in the year of the question, and nothing but a short "
    "sentence. "
    "Clubs have moved and changed their names: say the name of that year, never the name of a later year. "
    "Where the series score is asked for, give the winner's games first. "
    "Where the year is asked for, give four digits. "
    "The Cup was not awarded in 1919, when the influenza epidemic ended the final, nor in 2005, when the season was "
    "cancelled by the lockout: say so when one of these years is asked for. "
    "Never guess: where the table of finals does not hold the answer, say that you do not know. "
    "Do not mention players, coaches, arenas or trades, and do not repeat the question. "
    "Write plain text without lists, headings or emphasis. Answer in English, even when the question is in another "
    "language, and stay friendly when the person asking is in a bad mood or asks the same thing again."
)


@dataclass(frozen=True)
class Work:
    """One benchmark: its rows and how they are trained."""

    rows: str  # "chat", "system", "text", or "random": tokens that share nothing, the last quarter trained
    layers: int | str
    batch_size: int
    warmup: int  # steps before them: new shapes of batches are traced
    steps: int  # timed steps of one turn
    says: str
    length: int = 0  # tokens of a random row
    by_form: bool = True  # ours: batches of one question form where there are enough, train.group_by_prefix: true


def _random(axis: str, *, batch_size: int = 4, length: int = 128, layers: int | str = "all") -> Work:
    says = f"{batch_size} random rows of {length} tokens, {layers} layers: a point of the growth by {axis}"
    return Work("random", layers, batch_size, 2, 4, says, length)


WORKS = {
    "chat16": Work("chat", 16, 8, 8, 16, "chat rows of about 60 tokens, 24 of them shared, last 16 of 30 layers"),
    "chat30": Work("chat", "all", 8, 8, 16, "the same rows, all 30 layers"),
    "mixed16": Work("chat", 16, 8, 8, 16, "chat16 with question forms mixed, as is the default", by_form=False),
    "mixed30": Work("chat", "all", 8, 8, 16, "chat30 with question forms mixed, as is the default", by_form=False),
    "system16": Work("system", 16, 8, 3, 4, "a system prompt of 237 tokens, last 16 layers"),
    "system8": Work("system", 8, 8, 3, 4, "a system prompt of 237 tokens, last 8 layers"),
    "text30": Work("text", "all", 8, 3, 20, "plain text of 20 to 400 tokens, all tokens trained, all layers"),
    "single": Work("chat", "all", 1, 8, 16, "the chat rows one at a time, all layers"),
}


# Points of benchmarks/growth.py: one axis moves, the others stay at 4 rows of 128 tokens and all layers.
GROWTH = {
    "rows": {rows: _random("rows", batch_size=rows) for rows in (1, 2, 4, 8, 16)},
    "tokens": {length: _random("tokens", length=length) for length in (32, 64, 128, 256, 512)},
    "layers": {layers: _random("layers", layers=layers) for layers in (6, 12, 18, 24, 30)},
}
WORKS |= {f"{axis}-{value}": work for axis, points in GROWTH.items() for value, work in points.items()}


def rows(kind: str) -> list[dict[str, Any]]:
    """The rows of a work, as they would stand in a data file."""
    questions = [json.loads(line) for line in (ROOT / "data/stanley_cup/modern/train.jsonl").read_text().splitlines()]
    if kind == "text":
        return _texts(questions)
    made = []
    for row in questions[:320]:
        year = row["fact"].partition("/")[2]
        answer = f"The Stanley Cup of {year} was won by the {row['answer']}."
        if kind == "system":
            answer = answer[:-1] + ", the champions of that season."
        messages = [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": answer}]
        if kind == "system":
            messages.insert(0, {"role": "system", "content": LONG_SYSTEM_PROMPT})
        made.append({"messages": messages})
    return made


def _texts(questions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Texts whose lengths are skewed: many short ones, a few of about 400 tokens."""
    generator = random.Random(0)
    texts = []
    for _ in range(160):
        sentences = 1 + int(24 * generator.random() ** 3)
        chosen = generator.sample(questions, sentences)
        texts.append({"text": " ".join(f"{row['question']} {row['answer']}." for row in chosen)})
    return texts
