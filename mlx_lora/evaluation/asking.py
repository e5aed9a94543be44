"""One loaded base that answers with and without adapters. Knows nothing of files or screens."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from mlx_lora.evaluation.metrics import ScoredAnswer
from mlx_lora.evaluation.plugins import CustomMetric
from mlx_lora.evaluation.questions import Asking, Question, build_questions, iter_scored
from mlx_lora.evaluation.subjects import Source, Subject
from mlx_lora.lora.adapter import AppliedAdapter, apply_adapter
from mlx_lora.lora.inject import remove_lora
from mlx_lora.lora.rendering import Rendering
from mlx_lora.model.load import LoadedModel

if TYPE_CHECKING:
    from mlx_lora.model.generate import Likeliest

_LIKELIEST = 32  # tokens of the base whose probability is compared at each place; the others count as one
Progress = Callable[[str, int], AbstractContextManager[Callable[[], None]]]  # (title, total) → advance by one


class Asker:
    """Asks the model that is in memory, as it is now, and remembers what the base answered."""

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        max_tokens: int,
        batch_size: int,
        numbers: bool,
        progress: Progress,
        temperature: float = 0.0,
        seed: int = 0,
        custom: Sequence[CustomMetric] = (),
    ) -> None:
        self.loaded = loaded
        self.asking = Asking(max_tokens, batch_size, temperature, seed, numbers, tuple(custom))
        self._progress = progress
        self._questions: dict[tuple[str, str], list[Question]] = {}
        self._of_base: dict[tuple[str, str], tuple[list[ScoredAnswer], float]] = {}

    def settings(self) -> dict[str, Any]:
        """How it asks, for the record."""
        asking = self.asking
        return {
            "base": asdict(self.loaded.identity),
            "compute": self.loaded.compute,
            "sampling": "drawn" if asking.temperature > 0 else "greedy",
            "temperature": asking.temperature,
            "seed": asking.seed if asking.temperature > 0 else None,
            "max_tokens": asking.max_tokens,
            "batch_size": asking.batch_size,
            "normalize_numbers": asking.numbers,
            "custom_metrics": {one.name: one.target for one in asking.custom},
        }

    def prepare(self, subjects: Sequence[Subject], sources: Sequence[Source]) -> None:
        """Meet now what would otherwise stop it after minutes of answers: rows that a template refuses, adapters that
        do not fit. Raises: DataError, AdapterError.
        """
        for rendering in [subject.rendering for subject in subjects] or [Rendering()]:
            for source in sources:
                self._questions_of(rendering, source)
        for subject in subjects:
            with self.adapted(subject):
                pass

    def ask_base(self, rendering: Rendering, source: Source) -> tuple[list[ScoredAnswer], float]:
        """The base's answers to these prompts, asked once; call it while no adapter is on."""
        key = (rendering.key, source.name)
        if key not in self._of_base:
            self._of_base[key] = self.ask("base", rendering, source, likeliest=_LIKELIEST)
        return self._of_base[key]

    def drift(self, rendering: Rendering, source: Source, base_rows: Sequence[ScoredAnswer]) -> float | None:
        """How far the model as it is now is from what the base says: mean KL(base‖model) in nats a token.

        Over the base's own answers, as ask_base gives them. None for choices, and where a likelihood is no number.
        """
        from mlx_lora.model.generate import iter_divergences

        prompts, answers, expected = list[list[int]](), list[list[int]](), list["Likeliest"]()
        for question, row in zip(self._questions_of(rendering, source), base_rows, strict=True):
            if row.written is not None and row.written.likeliest is not None:
                places = len(row.written.likeliest.tokens)
                prompts.append(question.prompt)
                # Where it ended by itself, the end is a place too; its token is not read.
                answers.append([*row.written.tokens, 0][:places])
                expected.append(row.written.likeliest)
        if not prompts:
            return None
        total = 0.0
        with self._progress(f"drift, {source.name}", len(prompts)) as advance:
            for _, nats in iter_divergences(
                self.loaded.model, prompts, answers, expected, batch_size=self.asking.batch_size
            ):
                total += nats
                advance()
        return max(total, 0.0) / sum(map(len, answers)) if math.isfinite(total) else None

    def ask(
        self, label: str, rendering: Rendering, source: Source, likeliest: int = 0
    ) -> tuple[list[ScoredAnswer], float]:
        """The scored answers in the order of the data, and the seconds they took. Raises: DataError.

        likeliest: as for iter_scored.
        """
        tokenizer = self.loaded.tokenizer.with_chat_template(rendering.chat_template, rendering.place)
        questions = self._questions_of(rendering, source)
        started = time.perf_counter()
        answers: dict[int, ScoredAnswer] = {}
        with self._progress(f"{label}, {source.name}", len(questions)) as advance:
            for place, answer in iter_scored(self.loaded.model, tokenizer, questions, self.asking, likeliest):
                answers[place] = answer
                advance()
        return [answers[place] for place in range(len(questions))], time.perf_counter() - started

    def _questions_of(self, rendering: Rendering, source: Source) -> list[Question]:
        key = (rendering.key, source.name)
        if key not in self._questions:
            tokenizer = self.loaded.tokenizer.with_chat_template(rendering.chat_template, rendering.place)
            records = [replace(record, format=rendering.row_format(record.format)) for record in source.records]
            self._questions[key] = build_questions(records, tokenizer, rendering.settings())
        return self._questions[key]

    @contextmanager
    def adapted(self, subject: Subject) -> Iterator[AppliedAdapter]:
        """Put the adapter on for the length of the block; the base is then as it was. Raises: AdapterError."""
        model = self.loaded.model
        applied = apply_adapter(model, subject.adapter, asdict(self.loaded.identity))
        model.eval()  # the new layers come with dropout on
        try:
            yield applied
        finally:
            remove_lora(model)
