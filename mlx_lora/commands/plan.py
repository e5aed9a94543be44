"""`mlx-lora plan`: the memory that a run will need, before any weights are loaded."""

import dataclasses
import json
from typing import TYPE_CHECKING, Any

from mlx_lora.config import RunConfig
from mlx_lora.console import talk
from mlx_lora.screen import format_bytes

if TYPE_CHECKING:
    from mlx_lora.memory.fitting import Limit, Remedy, Saving
    from mlx_lora.memory.machine import Room
    from mlx_lora.memory.prediction import Prediction

SHAPES = "computed from shapes"


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that the command says."""

    config: RunConfig
    room: "Room"
    prediction: "Prediction"
    batch: "Limit"
    length: "Limit"
    savings: "list[Saving]"
    remedy: "Remedy | None"

    @property
    def fits(self) -> bool:
        """Whether the run stays within the room."""
        return self.prediction.worst.total <= self.room.nbytes


def run_plan(config: RunConfig, *, json_output: bool) -> int:
    """Print what the run needs, what would fit, and what each engine part saves; 0 when the run fits, else 1.

    Raises: MlxLoraError as the run itself would; PredictionError.
    """
    plan = _build(config)
    if json_output:
        print(json.dumps(_as_dict(plan)))
    else:
        _print(plan)
    return 0 if plan.fits else 1


def _build(config: RunConfig) -> Plan:
    from mlx_lora.commands.preflight import frozen_folder, require_weights_fit, sized_run
    from mlx_lora.commands.rundata import load_run_tokenizer
    from mlx_lora.dataset.inspection import build_split_examples, inspect_splits
    from mlx_lora.dataset.splits import load_splits
    from mlx_lora.memory.bound import find_bounds
    from mlx_lora.memory.fitting import find_remedy, largest_batch, longest_row, savings
    from mlx_lora.memory.machine import find_room
    from mlx_lora.memory.prediction import Slices, predict

    room, folder = find_room(config.train.memory_limit_gb), frozen_folder()
    splits = load_splits(config.data, config.train.seed)
    tokenizer = load_run_tokenizer(config)
    built = build_split_examples(splits, tokenizer, config.data)
    config, rows = sized_run(config, tokenizer, splits, built)
    inspect_splits(splits, built, tokenizer.eos_ids, config).raise_faults()
    require_weights_fit(config, find_bounds(config, rows), room)
    talk.print("measuring on a thin slice of the model …", markup=False)
    slices = Slices(config, rows, folder, room.nbytes)
    prediction = predict(slices)
    fits = prediction.worst.total <= room.nbytes
    return Plan(
        config,
        room,
        prediction,
        largest_batch(slices, room.nbytes),
        longest_row(slices, room.nbytes),
        savings(slices, folder, room.nbytes),
        None if fits else find_remedy(config, rows, folder, room.nbytes),
    )


def _as_dict(plan: Plan) -> dict[str, Any]:
    prediction, worst = plan.prediction, plan.prediction.worst
    phases = [{**dataclasses.asdict(phase), "total": phase.total} for phase in prediction.phases]
    return {
        "model": plan.config.model,
        "batch_size": plan.config.train.batch_rows,
        "fits": plan.fits,
        "peak_bytes": worst.total,
        "worst_phase": worst.name,
        "room": dataclasses.asdict(plan.room),
        **dataclasses.asdict(prediction),
        "phases": phases,
        "largest_batch_size": dataclasses.asdict(plan.batch),
        "longest_row_tokens": dataclasses.asdict(plan.length),
        "savings": [dataclasses.asdict(saving) for saving in plan.savings],
        "remedy": None if plan.remedy is None else dataclasses.asdict(plan.remedy),
    }


def _print(plan: Plan) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    prediction, worst = plan.prediction, plan.prediction.worst
    console.print(_parts_table(plan))
    console.print("\nEach phase at its worst moment:")
    for phase in prediction.phases:
        console.print(f"  {format_bytes(phase.total):>9}  {phase.name}{'  ← the most' if phase is worst else ''}")
    console.print(_savings_table(plan.savings))
    size = plan.config.train.batch_rows
    console.print(f"\nlargest batch_size that fits:  {_most(plan.batch, 'rows')}")
    console.print(
        f"longest row that fits, {size} {'rows' if size > 1 else 'row'} at once:  {_most(plan.length, 'tokens')}"
    )
    verdict = (
        f"{format_bytes(worst.total)} needed, {format_bytes(plan.room.nbytes)} there ({plan.room.source}): "
        f"{'fits' if plan.fits else 'does not fit'}"
    )
    console.print(verdict, style="green" if plan.fits else "bold red")
    if plan.remedy is not None:
        settings = " ".join(f"--set {setting}" for setting in plan.remedy.settings)
        console.print(f"{format_bytes(plan.remedy.peak_bytes)} with {settings}")


def _parts_table(plan: Plan) -> Any:
    from rich.table import Table

    prediction, step = plan.prediction, plan.prediction.step
    title = f"A training step of {plan.config.model}: {prediction.rows} rows of up to {prediction.tokens} tokens"
    table = Table("", "memory", "how it was found", title=title, title_justify="left")
    table.columns[1].justify = "right"
    weights = f"{SHAPES}: {prediction.shapes_from}; {prediction.compute}"
    for name, size, how in (
        ("weights", step.weights, weights),
        ("adapter", step.adapter, SHAPES),
        ("optimizer state", step.optimizer, SHAPES),
        ("activations, logits, gradients", step.working, step.how),
    ):
        table.add_row(name, format_bytes(size), how)
    table.add_section()
    table.add_row("all", format_bytes(step.total), "the sum")
    return table


def _savings_table(savings: "list[Saving]") -> Any:
    from rich.table import Table

    title = "\nWhat parts save of a training step (measured in the same way, without the part)"
    table = Table("", "with it", "without", "saves", title=title, title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for saving in savings:
        saved = saving.without - saving.with_it
        shown = format_bytes(saved) if saved >= 0 else f"-{format_bytes(-saved)}"
        table.add_row(saving.part, format_bytes(saving.with_it), format_bytes(saving.without), shown)
    return table


def _most(limit: "Limit", unit: str) -> str:
    return f"{limit.most:,} {unit} ({limit.how})" if limit.most else f"none ({limit.how})"
