"""`mlx-lora adapters`: which adapters there are, all facts of one, and removing one."""

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_lora.chat.places import ADAPTERS, find_adapter
from mlx_lora.commands.adapterfacts import Shelved, age_text, read_shelved
from mlx_lora.commands.plaintable import print_table
from mlx_lora.console import talk
from mlx_lora.errors import AdapterError
from mlx_lora.screen import format_bytes

if TYPE_CHECKING:
    from mlx_lora.lora.adapter import AdapterFolder


def run_adapters_list(root: Path = ADAPTERS, *, json_output: bool = False) -> int:
    """Print a line for every adapter folder in `root`, the youngest first; return exit code 0.

    Raises: AdapterError when there is no such folder.
    """
    if not root.is_dir():
        raise AdapterError(f"{root}: no such folder", "`mlx-lora train` writes adapters under adapters/")
    folders = sorted({config.parent for config in root.glob("*/adapter_config.json")})
    shelved = sorted((read_shelved(folder, folder.name) for folder in folders), key=lambda one: -one.made)
    if json_output:
        sys.stdout.write(json.dumps({"folder": str(root), "adapters": [one.as_json() for one in shelved]}) + "\n")
        return 0
    if not shelved:
        talk.print(f"{root}: holds no adapters yet", markup=False, soft_wrap=True)
        return 0
    columns = ["adapter", "size", "base", "method, rank", "score", "base's score", "age"]
    print_table(columns, [_line(one) for one in shelved], right=("size", "age"))
    return 0


def run_adapters_show(name: str, *, json_output: bool = False) -> int:
    """Print all that the files of an adapter say, its scores, and how large its update is in each module; return 0.

    Raises: AdapterError for an adapter that cannot be read.
    """
    folder = find_adapter(name)
    shelved = read_shelved(folder)
    if shelved.fault is not None:
        raise AdapterError(
            f"{folder}: {shelved.fault}", "copy or train it again, or remove it (`mlx-lora adapters rm`)"
        )
    from mlx_lora.lora.adapter import read_adapter

    adapter = read_adapter(folder)
    norms = _norms(adapter)
    if json_output:
        sys.stdout.write(json.dumps(_shown_json(shelved, adapter, norms)) + "\n")
    else:
        _print_shown(shelved, adapter, norms)
    return 0


def _line(one: Shelved) -> list[str]:
    age = age_text(time.time() - one.made)
    if one.fault is not None:
        return [one.label, format_bytes(one.weight_bytes), one.base, "–", f"unusable: {one.fault}", "", age]
    result = one.result
    score = "not evaluated" if result is None else one.score_text(result)
    before = "" if result is None or result.base is None else f"{100 * result.base.value(result.metric):.0f} %"
    return [one.label, format_bytes(one.weight_bytes), one.base, one.method, score, before, age]


def _norms(adapter: "AdapterFolder") -> dict[str, float]:
    from mlx_lora.lora.factors import norm, read_factors

    return {path: norm(factors) for path, factors in read_factors(adapter).items()}


def _shown_json(shelved: Shelved, adapter: "AdapterFolder", norms: dict[str, float]) -> dict[str, Any]:
    run, parameters = shelved.run, adapter.parameters
    assert run is not None
    return {
        **shelved.as_json(),
        "scale": parameters.scale,
        "num_layers": parameters.num_layers,
        "keys": parameters.keys,
        "modules": len(norms),
        "parameters": sum(tensor.size for tensor in adapter.tensors.values()),
        "facts": run.adapter,
        "settings": run.settings,
        "steps": run.events.last_step,
        "results": shelved.scores,
        "faults": run.faults,
        "notes": _notes(shelved),
        "update_norm": norms,
    }


def _print_shown(shelved: Shelved, adapter: "AdapterFolder", norms: dict[str, float]) -> None:
    from mlx_lora.report.card import merged_from
    from mlx_lora.report.facts import adapter_facts, base_facts, data_table, environment, run_facts

    run, parameters = shelved.run, adapter.parameters
    assert run is not None
    count = sum(tensor.size for tensor in adapter.tensors.values())
    layers = "all layers" if parameters.num_layers <= 0 else f"the last {parameters.num_layers} layers"
    shape = [
        ("folder", str(shelved.folder)),
        ("size", f"{format_bytes(shelved.weight_bytes)}, {count:,} parameters"),
        ("method, rank", f"{shelved.method}, scale {parameters.scale:g}"),
        ("modules", f"{len(norms)} in {layers}"),
        ("age", age_text(time.time() - shelved.made)),
    ]
    known = {"method", "rank"}
    trained = [pair for pair in (*adapter_facts(run), *run_facts(run)) if pair[0] not in known]
    pairs = [
        *shape,
        *base_facts(run),
        *trained,
        *environment(run),
        *([("merged from", origin)] if (origin := merged_from(run)) is not None else []),
        *_origin(shelved),
    ]
    print_table(["", ""], [list(pair) for pair in pairs])
    data = data_table(run)
    if data is not None:
        print_table([name or "data" for name in data.columns], [list(row) for row in data.rows])
    if run.results:
        rows = [[one.data.name, shelved.score_text(one), _base_score(one), _verdict(one)] for one in run.results]
        print_table(["score on", "adapter", "base", "verdict"], rows)
    for note in (*_notes(shelved), *run.faults):
        talk.print(f"note: {note}", markup=False, soft_wrap=True)
    print_table(["update by module", "‖ΔW‖", "layers", "largest in layer"], _norm_rows(norms), right=("‖ΔW‖", "layers"))


def _notes(shelved: Shelved) -> list[str]:
    """What the figures shown do not say."""
    from mlx_lora.report.asking import changed_since

    run, parameters = shelved.run, shelved.parameters
    notes = [note for result in run.results if (note := changed_since(run, result))] if run else []
    if parameters is not None and parameters.method == "dora":
        notes.append("DoRA: ‖ΔW‖ is of the direction alone; what the magnitudes do depends on the base")
    return notes


def _base_score(result: Any) -> str:
    from mlx_lora.report.answers import share_text

    return "–" if result.base is None else share_text(result.base, result.metric).replace("\N{NO-BREAK SPACE}", " ")


def _verdict(result: Any) -> str:
    return "–" if result.verdict is None else str(result.verdict.kind)


def _origin(shelved: Shelved) -> list[tuple[str, str]]:
    from mlx_lora.commands.pull import read_origin

    origin = read_origin(shelved.folder)
    return [] if origin is None else [("pulled from", origin)]


def _norm_rows(norms: dict[str, float]) -> list[list[str]]:
    """A row for each kind of module: the norm over its layers together, and where it is largest."""
    kinds: dict[str, dict[str, float]] = {}
    for path, value in norms.items():
        parts = path.split(".")
        place = next((index for index, part in enumerate(parts) if part.isdigit()), -1)
        kinds.setdefault(".".join(parts[place + 1 :]), {})[parts[place] if place >= 0 else path] = value
    rows = []
    for kind, layers in kinds.items():
        largest = max(layers, key=lambda layer: layers[layer])
        together = sum(value**2 for value in layers.values()) ** 0.5
        rows.append([kind, f"{together:.3g}", str(len(layers)), f"{largest} ({layers[largest]:.3g})"])
    total = sum(value**2 for value in norms.values()) ** 0.5
    return [*rows, ["all", f"{total:.3g}", "", ""]]
