"""`mlx-lora adapters diff`: two adapters side by side: settings, data, scores, and how alike their updates are."""

import json
import sys
from dataclasses import asdict, dataclass
from typing import Any

from mlx_lora.chat.places import find_adapter
from mlx_lora.commands.adapterfacts import Shelved, read_shelved
from mlx_lora.commands.plaintable import print_table
from mlx_lora.console import talk
from mlx_lora.errors import AdapterError


@dataclass(frozen=True)
class Likeness:
    """How alike two updates are, of one module or of all.

    distance: ‖ΔW₂ - ΔW₁‖ / ‖ΔW₁‖. cosine: of the angle between them as vectors. inputs, outputs: how much of the
    smaller span lies in the other, 0 to 1; None where it is not defined (all modules together, or an update of zero).
    """

    distance: float | None
    cosine: float | None
    inputs: float | None = None
    outputs: float | None = None


def run_adapters_diff(first: str, second: str, *, json_output: bool = False) -> int:
    """Print in what two adapters differ; return exit code 0. Raises: AdapterError for one that cannot be read."""
    one, two = (read_shelved(find_adapter(name)) for name in (first, second))
    from mlx_lora.lora.adapter import read_adapter

    adapters = [read_adapter(shelved.folder) for shelved in (one, two)]
    if one.folder.resolve() == two.folder.resolve():
        raise AdapterError(f"{first} and {second} are the same adapter", "a comparison needs two")
    for shelved in (one, two):
        if shelved.run is None:
            raise AdapterError(shelved.fault or f"{shelved.folder}: its run's files cannot be read")
    settings = _differing(one, two)
    scores = _scores(one, two)
    modules, whole, notes = _weights(adapters)
    notes += [
        f"{shelved.folder}: has no run file, so its run's settings and data are not compared"
        for shelved in (one, two)
        if shelved.run is not None and not shelved.run.settings
    ]
    if json_output:
        value = {
            "adapters": [str(shelved.folder) for shelved in (one, two)],
            "settings": {name: cells for name, *cells in settings},
            "scores": [{"data": name, "scores": cells} for name, *cells in scores],
            "all": asdict(whole),
            "modules": {path: asdict(likeness) for path, likeness in modules.items()},
            "notes": notes,
        }
        sys.stdout.write(json.dumps(value) + "\n")
        return 0
    if settings:
        print_table(["differs", one.label, two.label], settings)
    else:
        print("the same settings, data and base")
    if scores:
        print_table(["score on", one.label, two.label], scores)
    for note in notes:
        talk.print(f"note: {note}", markup=False, soft_wrap=True)
    columns = ["update", "distance", "cosine", "inputs shared", "outputs shared"]
    print_table(columns, [*_module_rows(modules), ["all", *_cells(whole)]], right=columns[1:])
    return 0


def _differing(one: Shelved, two: Shelved) -> list[list[str]]:
    """[name, value, value] of the settings, data hashes, base and shape that are not the same."""
    from mlx_lora.report.comparison import different_settings

    assert one.run is not None
    assert two.run is not None
    shapes = [(shelved.parameters, shelved) for shelved in (one, two)]
    rows = [["base", one.base, two.base], ["method, rank", one.method, two.method]]
    rows.append(["scale", *(f"{parameters.scale:g}" if parameters else "–" for parameters, _ in shapes)])
    if one.run.settings and two.run.settings:  # else every setting of the one would be a row
        rows += [list(row) for row in different_settings([one.run, two.run]).rows]
    return [row for row in rows if row[1] != row[2]]


def _scores(one: Shelved, two: Shelved) -> list[list[str]]:
    """[data, score, score] for every set of questions that one of them was asked."""
    from mlx_lora.report.results import same_questions

    found: dict[Any, list[str]] = {}
    for place, shelved in enumerate((one, two), start=1):
        for result in shelved.run.results if shelved.run else ():
            row = found.setdefault(same_questions(result), [result.data.name, "–", "–"])
            row[place] = shelved.score_text(result)
    return list(found.values())


def _weights(adapters: Any) -> tuple[dict[str, Likeness], Likeness, list[str]]:
    from mlx_lora.lora.factors import add, inner, norm, overlap, read_factors

    one, two = (read_factors(adapter) for adapter in adapters)
    notes = [f"{adapter.folder}: DoRA: only its direction is compared" for adapter in adapters if _is_dora(adapter)]
    notes += [
        f"{adapter.folder}: alone adapts {len(only)} modules, such as {min(only)}"
        for adapter, only in zip(adapters, (one.keys() - two.keys(), two.keys() - one.keys()), strict=True)
        if only
    ]
    modules: dict[str, Likeness] = {}
    apart = product = first = second = 0.0
    for path in [path for path in one if path in two]:
        if one[path].shape != two[path].shape:
            raise AdapterError(
                f"{path} is of shape {one[path].shape[1:]} in one and {two[path].shape[1:]} in the other",
                "adapters of different bases have no weights to compare",
            )
        difference = norm(add([(1.0, two[path]), (-1.0, one[path])]))
        sizes, dot = (norm(one[path]), norm(two[path])), inner(one[path], two[path])
        shared = overlap(one[path], two[path]) if all(sizes) else (None, None)
        modules[path] = Likeness(_ratio(difference, sizes[0]), _ratio(dot, sizes[0] * sizes[1]), *shared)
        apart, product = apart + difference**2, product + dot
        first, second = first + sizes[0] ** 2, second + sizes[1] ** 2
    for path, factors in [*one.items(), *two.items()]:
        if path not in modules:
            square = norm(factors) ** 2
            apart, first, second = apart + square, first + square * (path in one), second + square * (path in two)
    whole = Likeness(_ratio(apart**0.5, first**0.5), _ratio(product, (first * second) ** 0.5))
    return modules, whole, notes


def _is_dora(adapter: Any) -> bool:
    return bool(adapter.parameters.method == "dora")


def _ratio(value: float, whole: float) -> float | None:
    return value / whole if whole else None


def _module_rows(modules: dict[str, Likeness]) -> list[list[str]]:
    """A row for each kind of module: the means over its layers."""
    kinds: dict[str, list[Likeness]] = {}
    for path, likeness in modules.items():
        parts = path.split(".")
        place = next((index for index, part in enumerate(parts) if part.isdigit()), -1)
        kinds.setdefault(".".join(parts[place + 1 :]), []).append(likeness)
    return [[kind, *_cells(_mean(found))] for kind, found in kinds.items()]


def _mean(found: list[Likeness]) -> Likeness:
    columns = zip(*(asdict(one).values() for one in found), strict=True)
    known = [[value for value in column if value is not None] for column in columns]
    return Likeness(*(sum(values) / len(values) if values else None for values in known))


def _cells(likeness: Likeness) -> list[str]:
    return ["–" if value is None else f"{value:.3f}" for value in asdict(likeness).values()]
