"""Memory before the first step: `auto` gets a number, what does not fit is refused, and MLX gets its limits."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_lora.commands.replay import longest_prompts, stand_in_rows
from mlx_lora.config import RunConfig
from mlx_lora.errors import PredictionError, TrainingError
from mlx_lora.files import cache_folder
from mlx_lora.runfile import load_config
from mlx_lora.screen import format_bytes

if TYPE_CHECKING:
    from mlx_lora.dataset.examples import ExampleSet
    from mlx_lora.dataset.splits import DataSplits
    from mlx_lora.memory.bound import Bounds
    from mlx_lora.memory.machine import Room
    from mlx_lora.memory.prediction import Phase
    from mlx_lora.memory.rows import Asked, RunRows
    from mlx_lora.model.tokenizer import Tokenizer

_UNMEASURED_CACHE = 2**30  # bytes that MLX may keep of freed arrays until the first step has shown what one takes


def sized_run(
    config: RunConfig,
    tokenizer: "Tokenizer",
    splits: "DataSplits",
    built: "Mapping[str, ExampleSet]",
    *,
    ranks: int = 1,
    earlier: Path | None = None,
) -> tuple[RunConfig, "RunRows"]:
    """`config` with a number for `batch_size: auto`, the rows of the run, and the questions that its model answers.

    The number is that of the run file `earlier`, where a run is resumed. Where the base will answer replay prompts,
    there are rows as long as the longest answers. Raises: DataError, PredictionError.
    """
    from mlx_lora.memory.fitting import changed

    if config.train.batch_size != "auto":
        return config, _run_rows(config, tokenizer, splits, built, ranks)
    rows = _run_rows(changed(config, batch_size=1), tokenizer, splits, built, ranks)
    config = _resolve_auto(config, rows, earlier)
    return config, _run_rows(config, tokenizer, splits, built, ranks)  # larger batches reach more replay prompts


def _run_rows(
    config: RunConfig, tokenizer: "Tokenizer", splits: "DataSplits", built: "Mapping[str, ExampleSet]", ranks: int
) -> "RunRows":
    from mlx_lora.memory.prediction import REPLAY
    from mlx_lora.memory.rows import Asked, RunRows
    from mlx_lora.training.replay import LIKELIEST, MOST_TOKENS, ROWS

    taught = built["train"].examples
    prompts = longest_prompts(config, tokenizer, splits, len(taught), ranks) if taught else []
    asked = [Asked(REPLAY, prompts, MOST_TOKENS, rows=ROWS, likeliest=LIKELIEST)] if prompts else []
    rows = [*taught, *stand_in_rows(config, prompts, taught)]
    return RunRows(rows, built["valid"].examples, [*asked, *_retention_questions(config, tokenizer)])


def _retention_questions(config: RunConfig, tokenizer: "Tokenizer") -> "list[Asked]":
    """What is asked at the end of the run. Raises: DataError."""
    from mlx_lora.commands.retention import read_retention
    from mlx_lora.evaluation.questions import build_questions
    from mlx_lora.evaluation.retention import MAX_TOKENS
    from mlx_lora.memory.prediction import RETENTION
    from mlx_lora.memory.rows import Asked

    source = read_retention(config, tokenizer)
    if source is None:
        return []
    questions = build_questions(source.records, tokenizer, config.data)
    choices = [choice for question in questions for choice in question.choices]
    if choices:
        return [Asked(RETENTION, [one.before for one in choices], 0, [one.tokens for one in choices])]
    references = [question.reference.tokens for question in questions]
    return [Asked(RETENTION, [question.prompt for question in questions], MAX_TOKENS, references)]


def _resolve_auto(config: RunConfig, rows: "RunRows", earlier: Path | None) -> RunConfig:
    from mlx_lora.memory.fitting import changed, resolve_batch_size
    from mlx_lora.memory.machine import find_room

    if earlier is not None and earlier.is_file():
        return changed(config, batch_size=load_config(earlier).train.batch_size)
    if not rows.train:  # the report on the data says so
        return changed(config, batch_size=1)
    return resolve_batch_size(config, rows, frozen_folder(), find_room(config.train.memory_limit_gb).nbytes)


def fit_run(config: RunConfig, rows: "RunRows") -> str:
    """Give MLX the limits of a run that fits; return one line that says so.

    A run that stays far below what there is costs milliseconds; another is measured on a thin slice of its model.
    Raises: TrainingError with settings that fit.
    """
    import mlx.core as mx

    from mlx_lora.memory.bound import find_bounds
    from mlx_lora.memory.machine import choose_limits, find_room, set_limits
    from mlx_lora.memory.prediction import Slices, predict

    room = find_room(config.train.memory_limit_gb)
    bounds = find_bounds(config, rows)
    require_weights_fit(config, bounds, room)
    peak, working = bounds.most, min(bounds.working, _UNMEASURED_CACHE)
    needed = f"less than {format_bytes(peak)} needed"
    if peak > room.nbytes:
        try:
            worst = predict(Slices(config, rows, frozen_folder(), room.nbytes)).worst
        except PredictionError as error:
            return f"warning: {error.message}"
        finally:
            mx.clear_cache()
            mx.reset_peak_memory()  # what was measured is no part of the run
        if worst.total > room.nbytes:
            raise _does_not_fit(config, rows, worst, room)
        peak, working = worst.total, worst.working
        needed = f"about {format_bytes(peak)} needed"
    set_limits(choose_limits(peak, working, room))
    return f"memory: {needed}, {format_bytes(room.nbytes)} there ({room.source})"


def require_weights_fit(config: RunConfig, bounds: "Bounds", room: "Room") -> None:
    """Raises: TrainingError where not even the weights fit: nothing is to be measured then."""
    if bounds.least > room.nbytes:
        raise TrainingError(
            f"{config.model}: this run does not fit: its weights alone need {format_bytes(bounds.least)}, and there "
            f"are {format_bytes(room.nbytes)} ({room.source})",
            "take a smaller base, or one with fewer bits",
        )


def frozen_folder() -> Path:
    """Where `train` keeps what frozen layers gave."""
    return cache_folder() / "frozen"


def _does_not_fit(config: RunConfig, rows: "RunRows", worst: "Phase", room: "Room") -> TrainingError:
    from mlx_lora.memory.fitting import find_remedy

    message = (
        f"{config.model}: this run does not fit: {worst.name} needs {format_bytes(worst.total)}, and there are "
        f"{format_bytes(room.nbytes)} ({room.source})"
    )
    try:
        remedy = find_remedy(config, rows, frozen_folder(), room.nbytes)
    except PredictionError as error:
        return TrainingError(message, f"what would fit cannot be measured: {error.message}")
    if remedy is None:
        return TrainingError(message, "take a smaller base, or one with fewer bits; `mlx-lora plan` shows the parts")
    settings = " ".join(f"--set {setting}" for setting in remedy.settings)
    return TrainingError(message, f"{format_bytes(remedy.peak_bytes)} with {settings}; `mlx-lora plan` shows the parts")
