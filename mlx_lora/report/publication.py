"""What of an adapter folder may leave this machine: its files without absolute paths, secrets and others' questions.

Knows nothing of the Hub. The weights go as they are.
"""

import json
import re
from collections.abc import Container, Mapping
from itertools import chain, count
from pathlib import Path
from typing import Any

from mlx_lora.errors import MlxLoraError
from mlx_lora.files import named_errors
from mlx_lora.report.privacy import without_answers, without_paths, without_secrets
from mlx_lora.report.runs import ADAPTER_CONFIG, METRICS_FILE, RUN_FILE, Run

WEIGHTS = "adapters.safetensors"
# What the model is given: a changed prompt would be another adapter, so a secret in it is refused, not blotted out.
PROMPTS = ("system_prompt", "chat_template", "chat_template_args")


def publication(folder: Path, run: Run, card: str, secrets: tuple[str, ...] = ()) -> dict[str, bytes | Path]:
    """Path in the repository → content, of an adapter folder with its card.

    Results and events go without questions and answers, which are data. secrets: texts that none of them may hold.
    Raises: MlxLoraError when a prompt holds a secret.
    """
    files: dict[str, bytes | Path] = {
        "README.md": card.encode(),
        WEIGHTS: folder / WEIGHTS,
        ADAPTER_CONFIG: _json(_adapter_config(folder / ADAPTER_CONFIG)),
    }
    if run.run_file is not None:
        files[RUN_FILE] = run.run_file.encode()
    if (folder / METRICS_FILE).is_file():
        files[METRICS_FILE] = _metrics(folder / METRICS_FILE)
    for result in run.results:
        figures = result.model_dump(mode="json", exclude={"questions"}) | {"questions": []}
        files[_result_place(result.data.name, files)] = _json(without_answers(figures))
    for path, content in files.items():
        if isinstance(content, bytes) and any(secret.encode() in content for secret in secrets if secret):
            raise MlxLoraError(f"{folder}: {path} would hold your access token", "take it out of the run's files")
    return files


def _result_place(name: str, taken: Container[str]) -> str:
    """The file of a result: a data set that was asked in several ways has several."""
    plain = re.sub(r"[/\\]", "-", name)
    ends = chain([""], (f"-{number}" for number in count(2)))
    return next(place for end in ends if (place := f"eval/{plain}{end}.json") not in taken)


def _adapter_config(path: Path) -> Any:
    with named_errors(path):
        config = json.loads(path.read_text(encoding="utf-8"))
    facts = config.get("mlx_lora") or {}
    prompts = {name: facts[name] for name in PROMPTS if name in facts}
    if without_secrets(prompts) != prompts:
        named = [name for name, value in prompts.items() if without_secrets(value) != value]
        raise MlxLoraError(
            f"{path}: its {' and '.join(named)} holds what looks like an access token or a password",
            "nothing was sent: an adapter trained with a secret in its prompt should stay where it is",
        )
    cleaned = without_paths(config)
    return {**cleaned, "mlx_lora": {**cleaned["mlx_lora"], **prompts}} if facts else cleaned


def _metrics(path: Path) -> bytes:
    """The events that are whole, cleaned; what was torn stays at home."""
    lines = []
    with named_errors(path):
        text = path.read_text(encoding="utf-8", errors="replace")
    for line in text.split("\n"):
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, Mapping):
            lines.append(json.dumps(without_paths(_without_rows(event)), ensure_ascii=False) + "\n")
    return "".join(lines).encode()


def _without_rows(event: Mapping[str, Any]) -> Mapping[str, Any]:
    """An event without the warnings and notes on its data, which quote rows."""
    run = event.get("run")
    if not isinstance(run, Mapping):
        return event
    kept = {name: value for name, value in run.items() if name != "data_warnings"}
    if isinstance(data := run.get("data"), Mapping):
        kept["data"] = {
            split: {name: value for name, value in facts.items() if name != "notes"}
            for split, facts in data.items()
            if isinstance(facts, Mapping)
        }
    return {**event, "run": kept}


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
