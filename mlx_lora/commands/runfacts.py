"""What a run is, as its first line in metrics.jsonl tells it to `mlx-lora report`. Changes nothing."""

import platform
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlx_lora.dataset.inspection import Inspection
    from mlx_lora.lora.inject import Injection
    from mlx_lora.model.load import LoadedModel
    from mlx_lora.training.session import Session


def run_facts(
    session: "Session", base: "LoadedModel", injection: "Injection", inspection: "Inspection"
) -> dict[str, Any]:
    """Schedule, adapter size, data in numbers, engine parts and machine, as JSON values."""
    schedule = session.schedule
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "total_steps": schedule.total_steps,
        "steps_per_epoch": schedule.steps_per_epoch,
        "ranks": session.group.size,
        "compute": base.compute,
        "modules": len(injection.modules),
        "trainable_parameters": injection.trainable_parameters,
        "total_parameters": injection.total_parameters,
        "data": inspection.as_dict()["splits"],
        "data_warnings": inspection.warnings,
        "engine": [asdict(report) for report in session.reports],
        "machine": {
            "system": platform.platform(),
            "processor": platform.machine(),
            "python": platform.python_version(),
        },
    }
