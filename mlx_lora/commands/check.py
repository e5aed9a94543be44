"""`mlx-lora check`: the data of a run as the tokenizer sees it, before any weights are loaded."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_lora.config import RunConfig
from mlx_lora.console import print_error, visible
from mlx_lora.errors import DataError, MlxLoraError
from mlx_lora.runfile import load_config

if TYPE_CHECKING:
    from rich.console import Console

    from mlx_lora.dataset.examples import ChatTokenizer, Example
    from mlx_lora.dataset.inspection import Inspection
    from mlx_lora.dataset.splits import DataSplits
    from mlx_lora.model.tokenizer import Tokenizer

_OPEN, _CLOSE = "⟦", "⟧"  # around trained tokens where there is no colour
_HINT = "  hint: "  # a run file with several faults has each one's remedy on the line below it


def run_check_file(path: Path, overrides: Sequence[str] = (), *, json_output: bool, show: int) -> int:
    """run_check of the run that a file describes, with the file's own faults in the JSON. Raises: as run_check."""
    return _check(lambda: load_config(path, overrides), json_output, show)


def run_check(config: RunConfig, *, json_output: bool, show: int) -> int:
    """Print the report on the data and `show` rows with their trained tokens marked; 1 with faults, else 0.

    Raises: without `json_output` ConfigError when data.chat_template, ModelError when the tokenizer cannot be read.
    """
    return _check(lambda: config, json_output, show)


def _check(load: Callable[[], RunConfig], json_output: bool, show: int) -> int:
    try:
        config, inspection, shown, tokenizer = _inspected(load(), show)
    except MlxLoraError as fault:
        if not json_output and not isinstance(fault, DataError):
            raise
        return _print_unreadable(fault, json_output)
    # After the faults are caught: a stdout that cannot be written is none of the run's.
    if json_output:
        rows = [{"place": example.place, "text": _marked(example, tokenizer)} for example in shown]
        print(json.dumps({"model": config.model, **inspection.as_dict(), "shown": rows}, ensure_ascii=False, indent=2))
    else:
        _print_report(inspection, shown, tokenizer, config)
    return 1 if inspection.faults else 0


def _inspected(config: RunConfig, show: int) -> "tuple[RunConfig, Inspection, list[Example], Tokenizer]":
    """The run with its batch size, what is to say of its data, and the first `show` training rows."""
    from mlx_lora.commands.preflight import sized_run
    from mlx_lora.commands.rundata import load_run_tokenizer
    from mlx_lora.dataset.inspection import build_split_examples, inspect_splits
    from mlx_lora.dataset.splits import load_splits

    splits = load_splits(config.data, config.train.seed)
    tokenizer = load_run_tokenizer(config)
    built = build_split_examples(splits, tokenizer, config.data, stop_on_fault=False)
    if config.train.batch_size == "auto":
        config, _ = sized_run(config, tokenizer, splits, built)
    inspection = inspect_splits(splits, built, tokenizer.eos_ids, config)
    beside = _fault_beside(config, tokenizer, splits, len(built["train"].examples))
    if beside is not None:
        hints = [*inspection.hints, *([beside.hint] if beside.hint else [])]
        inspection = replace(inspection, faults=[*inspection.faults, beside.message], hints=hints)
    return config, inspection, built["train"].examples[:show], tokenizer


def _fault_beside(config: RunConfig, tokenizer: "Tokenizer", splits: "DataSplits", taught: int) -> DataError | None:
    """What is wrong with what the run asks beside its rows (train.retention, data.replay): `train` stops there too."""
    from mlx_lora.commands.replay import longest_prompts
    from mlx_lora.commands.retention import read_retention

    try:
        read_retention(config, tokenizer)
        longest_prompts(config, tokenizer, splits, taught)
    except DataError as fault:
        return fault
    return None


def _print_unreadable(fault: MlxLoraError, json_output: bool) -> int:
    if json_output:
        lines = fault.message.splitlines()
        hints = [line.removeprefix(_HINT) for line in lines if line.startswith(_HINT)]
        hints += [fault.hint] if fault.hint else []
        faults = [line for line in lines if not line.startswith(_HINT)]
        print(json.dumps({"faults": faults, "hints": list(dict.fromkeys(hints))}, ensure_ascii=False, indent=2))
    else:
        print_error(fault)
    return 1


def _print_report(
    inspection: "Inspection", shown: "list[Example]", tokenizer: "ChatTokenizer", config: RunConfig
) -> None:
    from rich.console import Console

    from mlx_lora.dataset.records import joined_faults

    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    console.print(_table(inspection, config))
    steps = "1 step" if inspection.steps_per_epoch == 1 else f"{inspection.steps_per_epoch} steps"
    console.print(
        f"{steps} an epoch, {inspection.steps} in all; "
        f"{inspection.padding_share:.1%} padding at batch size {config.train.batch_size}"
    )
    if inspection.replay_rows:
        console.print(f"{inspection.replay_rows} replay rows join each epoch, which the base answers before training")
    for example in shown:
        _print_row(console, example, tokenizer)
    for label, style, lines in (
        ("warning", "yellow", inspection.warnings),
        ("error", "bold red", joined_faults(inspection.faults).splitlines()),
        ("hint", "cyan", inspection.hints),
    ):
        for line in lines:
            console.print(f"{label}: ", style=style, end="")
            console.print(visible(line))
    if not inspection.faults:
        console.print("The data can be trained on.", style="green")


def _table(inspection: "Inspection", config: RunConfig) -> Any:
    from rich.table import Table

    reports = {name: report for name, report in inspection.splits.items() if report.rows}
    table = Table("", *reports, title=f"Data for {config.model}", title_justify="left")
    lines: dict[str, list[str]] = {
        "rows": [str(report.rows) for report in reports.values()],
        "formats": [
            ", ".join(f"{name} {count}" for name, count in report.formats.items()) for report in reports.values()
        ],
        "tokens (min, p50, p90, p99, max)": [
            " ".join(str(tokens) for tokens in report.length_quantiles.values()) for report in reports.values()
        ],
        f"over {config.data.max_seq_length} tokens": [str(report.over_limit) for report in reports.values()],
        "trained tokens": [f"{report.trained_tokens} ({report.trained_share:.1%})" for report in reports.values()],
        "rows trained to end": [
            f"{report.examples - report.without_end_token}/{report.examples}" for report in reports.values()
        ],
        "repeated rows": [str(report.duplicates) for report in reports.values()],
        "asked in train too": [
            "" if name == "train" else str(inspection.overlaps[f"train/{name}"]) for name in reports
        ],
    }
    for label, cells in lines.items():
        table.add_row(label, *cells)
    return table


def _print_row(console: "Console", example: "Example", tokenizer: "ChatTokenizer") -> None:
    from rich.text import Text

    from mlx_lora.dataset.inspection import trained_segments

    console.print(f"\n{example.place}", style="bold", end="")
    console.print(" (trained tokens are marked)", style="dim")
    if console.is_terminal and not console.no_color:
        text = Text()
        for piece, trained in trained_segments(example, tokenizer):
            text.append(visible(piece), style="bold black on green" if trained else "dim")
        console.print(text)
    else:
        console.print(visible(_marked(example, tokenizer)))


def _marked(example: "Example", tokenizer: "ChatTokenizer") -> str:
    from mlx_lora.dataset.inspection import trained_segments

    pieces = trained_segments(example, tokenizer)
    return "".join(f"{_OPEN}{piece}{_CLOSE}" if trained else piece for piece, trained in pieces)
