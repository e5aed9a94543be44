"""What a run made the model forget: its answers to a retention set beside the base's. Knows nothing of models."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mlx_lora.config import DataSettings
from mlx_lora.dataset.rendering import ChatTokenizer
from mlx_lora.evaluation.metrics import ScoredAnswer, kind_of
from mlx_lora.evaluation.questions import build_questions
from mlx_lora.evaluation.subjects import Chosen, Source, read_source
from mlx_lora.evaluation.verdict import ALPHA
from mlx_lora.statistics import compare_right

METRICS = {"open": "contains", "choice": "accuracy"}  # a base answers open questions in sentences
MAX_TOKENS = 32  # plain questions are answered at once, and every run waits for this
BUILTIN_QUESTIONS = 50  # of the built-in set, evenly spread: enough for McNemar's test to see a sixth of them go
BUILTIN = "general-knowledge"


@dataclass(frozen=True)
class Retention:
    """How many of the questions base and adapter answer right, and by how much that is chance."""

    data: str
    questions: int
    base: int
    adapter: int
    lost: int  # right before, wrong now
    gained: int
    p: float  # of McNemar's exact test, two-sided
    metric: str = "contains"

    @property
    def forgot(self) -> bool:
        """Whether the adapter knows less, and not by chance."""
        return self.lost > self.gained and self.p < ALPHA

    @property
    def line(self) -> str:
        """Such as "general knowledge 37/50 → 31/50 (contains)"."""
        counts = f"{self.base}/{self.questions} → {self.adapter}/{self.questions}"
        return f"{self.data.replace('-', ' ')} {counts} ({self.metric})"

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {**asdict(self), "forgot": self.forgot}


def read_retention_set(name: str, tokenizer: ChatTokenizer, settings: DataSettings) -> Source:
    """The questions of `train.retention`, tried with the run's template now. Raises: DataError, as eval would."""
    source = read_source(Chosen(name, "test"), BUILTIN_QUESTIONS if name == BUILTIN else None)
    build_questions(source.records, tokenizer, settings)
    return source


def compare_retention(data: str, base: Sequence[ScoredAnswer], adapter: Sequence[ScoredAnswer]) -> Retention:
    """The comparison of two lists of answers to the same questions. Raises: ValueError for other lengths."""
    metric = METRICS[kind_of(base)]
    before, after = [row.right(metric) for row in base], [row.right(metric) for row in adapter]
    changes = compare_right(before, after)
    return Retention(
        data, len(before), sum(before), sum(after), len(changes.broken), len(changes.fixed), changes.p, metric
    )


def remedy(replay: float | None) -> str:
    """What to change in a run file whose run forgot, where `replay` is its data.replay."""
    more = "data.replay: 0.2 rehearses what the base knew" if not replay else "a larger data.replay rehearses more"
    return f"{more}; fewer epochs and a lower optimizer.learning_rate also forget less"
