"""Model cards: README.md of a fused model and of an adapter on the Hub, from a run's files. Knows nothing of the Hub.

What a Run holds is cleaned of absolute paths and secrets already; what comes from elsewhere is cleaned here.
"""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from mlx_lora.evaluation.result_format import EvaluationResult
from mlx_lora.files import typed_path
from mlx_lora.report.answers import metric_name, share_text
from mlx_lora.report.asking import changed_since
from mlx_lora.report.events import number
from mlx_lora.report.facts import Table, adapter_facts, base_facts, data_table, environment
from mlx_lora.report.privacy import short_path, without_answers, without_paths
from mlx_lora.report.runs import Run

_HUB_NAMES = {"smollm2-135m-instruct": "HuggingFaceTB/SmolLM2-135M-Instruct"}  # built in here, and where it comes from


def adapter_card(run: Run, *, name: str, licence: str | None = None) -> str:
    """The card of an adapter: base, data, scores, run file, and how to use it. name: as people will ask for it."""
    model, hub, folder = _model_of(run), _hub_name_of(run), shlex.quote(f"adapters/{run.name}")
    use = f"    mlx-lora pull {shlex.quote(name)} -o {folder}\n    mlx-lora chat {shlex.quote(run.name)}"
    if hub == model:  # what is built in here is a packing of its own of the model on the Hub
        use += f"\n    mlx_lm.generate --model {shlex.quote(model)} --adapter-path {folder} --prompt …"
    return _card(
        _front(hub, licence, ["lora", "adapter"], "adapter"),
        f"# {run.name}",
        f"A {run.setting('lora.method') or 'lora'} adapter for {_base_link(model, hub)}, trained with mlx-lora on MLX.",
        f"## Use\n\n{use}",
        *_run_parts(run),
    )


def fused_card(
    runs: Sequence[Run],
    weights: Sequence[float],
    *,
    model: str,
    licence: str | None,
    layers: str,
    prompts: str,
    table: tuple[list[str], list[list[str]]],
) -> str:
    """The card of a fused model: what went into it, how near it is to base and adapter, and each run's facts.

    layers: how many are stored in which form. table: columns and rows of the comparison on `prompts`.
    """
    names = [run.name for run in runs]
    parts = [name if len(runs) == 1 else f"{weight:g} · {name}" for name, weight in zip(names, weights, strict=True)]
    sections = [part for run in runs for part in ([f"# {run.name}"] if len(runs) > 1 else []) + _run_parts(run)]
    base, hub = short_path(model), _hub_name(model)
    return _card(
        _front(hub, licence, ["fused"], "merge" if len(runs) > 1 else "finetune"),
        f"# {' and '.join(names)}, fused",
        f"{_base_link(base, hub)} with the adapter{'s' if len(runs) > 1 else ''} {' + '.join(parts)} merged into its "
        "weights by mlx-lora. It is a plain MLX model: mlx-lm loads it, and no adapter is needed.",
        f"## Fidelity\n\nTouched layers: {layers}. Every form was written, loaded again and compared with base and "
        f"adapter on the adapter's own answers to {without_paths(prompts)}; the first that kept them was taken.\n\n"
        + _table(Table(*table)),
        *sections,
    )


def _run_parts(run: Run) -> list[str]:
    found = []
    if run.results:
        columns = ["questions", "metric", "adapter", "base"]
        rows = [
            [
                _asked(run, one),
                metric_name(one.metric),
                share_text(one, one.metric),
                "–" if one.base is None else share_text(one.base, one.metric),
            ]
            for one in run.results
        ]
        found.append(f"## Scores\n\nOf the adapter on its base, with 95 % intervals.\n\n{_table(Table(columns, rows))}")
        told = [[changed_since(run, one) or _verdict(one), run.memory_remark(one)] for one in run.results]
        found += [" ".join(filter(None, texts)) for texts in told if any(texts)]
    else:
        found.append("## Scores\n\nIt was not evaluated: nobody knows yet what it learned.")
    if (origin := merged_from(run)) is not None:
        found.append(f"Merged from {origin}.")
    pairs = [*base_facts(run), *adapter_facts(run), *environment(run)]
    found.append("## Facts\n\n" + _table(Table(["", ""], [list(pair) for pair in dict(pairs).items()])))
    data = data_table(run)
    if data is not None:
        found.append(f"## Data\n\n{_table(data)}")
    if run.run_file is not None:
        found.append(f"## Run file\n\n```yaml\n{run.run_file.rstrip()}\n```")
    return found


def merged_from(run: Run) -> str | None:
    """Such as "0.7 · a + 0.3 · b (linear)"; None for an adapter that was trained."""
    merged = run.adapter.get("merged_from")
    if not isinstance(merged, Mapping):
        return None
    parts = merged.get("adapters")
    if not isinstance(parts, list) or not all(isinstance(one, Mapping) for one in parts):
        return "adapters that its file does not name"
    named = [f"{number(one, 'weight'):g} · {one.get('name')}" for one in parts]
    return f"{' + '.join(named)} ({merged.get('method')})"


def _asked(run: Run, result: EvaluationResult) -> str:
    """Such as "modern-test (70)", with the step where it is not that of the adapter in the file."""
    step = run.other_step(result)
    return f"{result.data.name} ({result.data.asked}){'' if step is None else f', at step {step}'}"


def _verdict(result: EvaluationResult) -> str:
    return "" if result.verdict is None else f"{result.data.name}: {without_answers(result.verdict.sentence)}."


def _front(hub: str | None, licence: str | None, tags: Sequence[str], relation: str) -> str:
    """The YAML that the Hub reads. hub: the base's name there; without one it is left out."""
    lines = ["library_name: mlx", "pipeline_tag: text-generation"]
    lines += [f"license: {licence}"] if licence else []
    lines += [f"base_model: {hub}", f"base_model_relation: {relation}"] if hub else []
    lines += ["tags:", *(f"- {tag}" for tag in ("mlx", "mlx-lora", *tags))]
    return "---\n" + "\n".join(lines) + "\n---"


def _hub_name(model: str) -> str | None:
    """A model's name on the Hub; None for a folder of one's own, as which what is there by that name is taken."""
    if model in _HUB_NAMES:
        return _HUB_NAMES[model]
    if typed_path(model).exists():
        return None
    parts = model.split("/")
    own = len(parts) == 2 and all(parts) and not model.startswith((".", "~", "…"))
    return model if own and not any(character.isspace() for character in model) else None


def _hub_name_of(run: Run) -> str | None:
    """The same of a run's base: where the run knows it without a commit it was a folder, wherever the card is made."""
    model, known = _model_of(run), run.origin.get("identity")
    identity: Mapping[str, Any] = known if isinstance(known, Mapping) else {}
    was_folder = bool(identity.get("name")) and not identity.get("revision") and model not in _HUB_NAMES
    return None if was_folder else _hub_name(model)


def _base_link(model: str, hub: str | None) -> str:
    return f"[{model}](https://huggingface.co/{hub})" if hub else f"`{model}`"


def _model_of(run: Run) -> str:
    return short_path(str(run.origin.get("model") or run.setting("model") or "a base that its files do not name"))


def _table(table: Table) -> str:
    lines = [list(table.columns), ["---"] * len(table.columns), *(list(row) for row in table.rows)]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def _card(*parts: str) -> str:
    return "\n\n".join(parts) + "\n"
