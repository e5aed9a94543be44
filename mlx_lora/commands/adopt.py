"""`mlx-lora import`: a PEFT adapter as an adapter folder of ours, checked against its base first."""

import hashlib
import json
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_lora.chat.places import ADAPTERS
from mlx_lora.console import talk
from mlx_lora.errors import AdapterError
from mlx_lora.files import named_errors, refuse_unwritable, sha256_file, typed_path, whole_folder

if TYPE_CHECKING:
    import mlx.core as mx

    from mlx_lora.config import LoraSettings
    from mlx_lora.exchange.peft_folder import PeftFolder
    from mlx_lora.lora.adapter import AdapterFolder
    from mlx_lora.model.load import LoadedModel


def run_import(
    source: Path,
    output: str,
    *,
    model: str | None = None,
    revision: str | None = None,
    json_output: bool = False,
) -> int:
    """Write the PEFT adapter at `source` as the adapter folder `output`; return exit code 0.

    output: a folder, or a plain name for one under adapters/. model, revision: the base, by default the one that the
    adapter names. json_output: one JSON object on stdout.
    Raises: MlxLoraError naming what cannot be imported, a base that it does not fit, or an `output` that exists.
    """
    import mlx.core as mx

    from mlx_lora.exchange.peft_folder import our_tensors, read_peft_folder
    from mlx_lora.exchange.peft_names import naming_of
    from mlx_lora.lora.adapter import apply_adapter, read_adapter, write_adapter
    from mlx_lora.lora.rendering import choose_base
    from mlx_lora.model.load import load_base

    place = typed_path(output)
    place = ADAPTERS / place if place.name == output else place
    refuse_unwritable(place)
    with whole_folder(place) as temporary:
        peft = read_peft_folder(typed_path(source))
        name, chosen = choose_base(model, revision, lambda: _base_of(peft))
        base = load_base(name, revision=chosen, compute="quantized")
        tensors = our_tensors(peft, naming_of(base.config))
        adapter = _as_adapter(peft, tensors)
        applied = apply_adapter(base.model, adapter, asdict(base.identity))
        template = None if peft.facts else _template_beside(peft.weights.parent, base)
        config = _config(peft, adapter, base, {"model": name, "revision": chosen}, template)
        dtypes = {tensor.dtype for tensor in tensors.values()}
        dtype = dtypes.pop() if len(dtypes) == 1 else mx.float32  # float32 holds the others' values exactly
        write_adapter(temporary, {name: tensor.astype(dtype) for name, tensor in tensors.items()}, config)
        read_adapter(temporary)
    for note in applied.notes:
        talk.print(f"note: {note}", markup=False, soft_wrap=True)
    talk.print(
        f"{place}: {applied.active_modules} modules active on {base.identity.name}, rank {peft.parameters.rank}, "
        f"scale {peft.parameters.scale:.4g}, ‖ΔW‖/‖W‖ = {applied.delta_ratio:.3g}",
        markup=False,
        soft_wrap=True,
    )
    if json_output:
        report = {"source": str(source), "output": str(place), "modules": len(applied.modules), "model": name}
        sys.stdout.write(json.dumps(report) + "\n")
    return 0


def _base_of(peft: "PeftFolder") -> tuple[str, str | None]:
    """Name and revision of the base: as our own export keeps them, else as PEFT's config says."""
    own = peft.facts.get("model")
    if isinstance(own, str):
        revision = peft.facts.get("revision")
        return own, revision if isinstance(revision, str) else None
    if peft.parameters.base is None:
        raise AdapterError(f"{peft.weights.parent}: does not say which base it was trained on", "name it with --model")
    return peft.parameters.base, peft.parameters.revision


def _as_adapter(peft: "PeftFolder", tensors: "dict[str, mx.array]") -> "AdapterFolder":
    """The same adapter as read from a folder of ours, so that it meets the same checks."""
    import mlx.core as mx

    from mlx_lora.lora.adapter import AdapterFolder
    from mlx_lora.lora.adapter_config import AdapterParameters

    own = peft.parameters
    paths = tuple(dict.fromkeys(name.rpartition(".")[0] for name in tensors))
    parameters = AdapterParameters(own.method, own.rank, own.scale, own.dropout, num_layers=1, keys=paths)
    plain = {name: tensor.astype(mx.float32) for name, tensor in tensors.items()}
    return AdapterFolder(peft.weights.parent, {"mlx_lora": peft.facts}, parameters, plain, peft.weights.name)


def _config(
    peft: "PeftFolder", adapter: "AdapterFolder", base: "LoadedModel", source: dict[str, Any], template: str | None
) -> dict[str, Any]:
    """The adapter_config.json of the import. source: name and revision of the base, as it was found. template: the
    adapter's own chat template, None for the base's.

    A scale below 0, which no run has, is in no settings: it stands where mlx-lm and all of ours read it.
    """
    from mlx_lora.lora.adapter import describe_adapter

    config = describe_adapter(base.model, _settings(peft, adapter), {**_facts(peft, base, template), **source})
    if peft.parameters.scale < 0:
        config["lora_parameters"]["scale"] = peft.parameters.scale
        del config["mlx_lora"]["lora"]
        if "lora" in peft.facts:
            config["mlx_lora"]["lora"] = peft.facts["lora"]
    return config


def _settings(peft: "PeftFolder", adapter: "AdapterFolder") -> "LoraSettings":
    """The settings with which our own training would have given it, alpha without its sign; if it was ours, its own."""
    from pydantic import ValidationError

    from mlx_lora.config import LoraSettings

    own = peft.parameters
    settings = LoraSettings(
        method=own.method,
        rank=own.rank,
        alpha=abs(own.alpha),
        use_rslora=own.use_rslora,
        dropout=own.dropout,
        target_modules=sorted({path.rpartition(".")[2] for path in adapter.modules}),
    )
    try:
        kept = LoraSettings.model_validate(peft.facts.get("lora"))
    except ValidationError:  # not ours, or of another version: what PEFT's config says holds
        return settings
    # What PEFT's config says; the names of modules, the layers, the dtype and the start are only in ours.
    own_words = {"target_modules", "layers", "save_dtype", "start_from"}
    return kept if kept.model_dump(exclude=own_words) == settings.model_dump(exclude=own_words) else settings


def _template_beside(folder: Path, base: "LoadedModel") -> str | None:
    """The chat template that PEFT's trainers save with the tokenizer beside an adapter, where it is not the base's.

    Raises: ModelError for a file that cannot be read, or a template that no conversation can be written with.
    """
    from mlx_lora.exchange.peft_folder import TEMPLATE_FILE
    from mlx_lora.model.identity import read_json_object

    file, settings = folder / TEMPLATE_FILE, folder / "tokenizer_config.json"
    template: Any = None
    if file.is_file():
        with named_errors(file):
            template = file.read_text(encoding="utf-8", errors="replace")
    elif settings.is_file():
        file, template = settings, read_json_object(settings).get("chat_template")
        if isinstance(template, list):  # several by name
            named = [one for one in template if isinstance(one, dict) and one.get("name") == "default"]
            template = named[0].get("template") if named else None
    own = base.tokenizer.chat_template or ""
    if not isinstance(template, str) or template.removesuffix("\n") == own.removesuffix("\n"):  # Jinja drops the last
        return None
    base.tokenizer.with_chat_template(template, str(file))
    told = f"note: {file}: prompts are written with this chat template, not with the base's"
    talk.print(told, markup=False, soft_wrap=True)
    return template


def _facts(peft: "PeftFolder", base: "LoadedModel", template: str | None) -> dict[str, Any]:
    """What the new adapter tells of its origin: everything that our own export kept, or where it came from."""
    kept = {name: value for name, value in peft.facts.items() if name not in ("lora", "format_version")}
    identity = asdict(base.identity)
    if kept:
        return {**kept, "identity": identity}
    digest = identity["chat_template_sha256"] if template is None else hashlib.sha256(template.encode()).hexdigest()
    return {
        "identity": identity,
        "system_prompt": None,
        "chat_template": template,
        "chat_template_sha256": digest,
        "chat_template_args": {},
        "imported": {"format": "peft", "base": peft.parameters.base, "sha256": sha256_file(peft.weights)},
        "versions": {name: version(name) for name in ("mlx", "mlx-lm", "mlx-lora")},
    }
