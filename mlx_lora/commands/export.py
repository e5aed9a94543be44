"""`mlx-lora export`: an adapter, or base and adapter in one, in the files of another program; whole or not at all."""

import json
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_lora.commands.exportgguf import write_gguf, write_gguf_lora, write_ollama
from mlx_lora.commands.exportjob import Job, say_note, say_prompt_notes
from mlx_lora.console import talk
from mlx_lora.errors import MlxLoraError
from mlx_lora.files import refuse_unwritable, typed_path, whole_file, whole_folder, write_whole
from mlx_lora.lora.rendering import choose_base, model_of, rendering_of
from mlx_lora.screen import format_bytes

if TYPE_CHECKING:
    from mlx_lora.exchange.gguf_file import Kind
    from mlx_lora.exchange.peft_config import PeftParameters
    from mlx_lora.lora.adapter import AdapterFolder
    from mlx_lora.model.load import LoadedModel

_FILES = ("gguf", "gguf-lora")  # the others are folders


def run_export(
    adapter: Path,
    output: Path,
    *,
    to: str,
    model: str | None = None,
    revision: str | None = None,
    kind: "Kind" = "F16",
    base_name: str | None = None,
    ollama_base: str | None = None,
    json_output: bool = False,
) -> int:
    """Write `adapter` to `output` in the format `to`; return exit code 0.

    model, revision: the base, by default the one that the adapter names. kind: how a whole model's matrices are stored.
    base_name: how PEFT's config calls the base. ollama_base: a model of Ollama's to put the adapter on, in place of a
    whole model. json_output: one JSON object on stdout.
    Raises: MlxLoraError when the adapter does not fit its base, the format has no equal for it, or `output` exists.
    """
    from mlx_lora.chat.places import find_adapter
    from mlx_lora.lora.adapter import read_adapter

    folder = read_adapter(find_adapter(str(adapter)))
    rendering = rendering_of(folder.config, folder.folder)
    output = typed_path(output)
    refuse_unwritable(output)
    _check_name(output, to, folder.folder.resolve().name)
    with whole_file(output, overwrite=False) if to in _FILES else whole_folder(output) as temporary:
        job = Job(folder, _load(folder, model, revision), rendering, kind, base_name, ollama_base)
        facts = _WRITERS[to](temporary, job)
        sizes = {str(output / place): size for place, size in _sizes(temporary)}
    for name, size in sizes.items():
        talk.print(f"{name}: {format_bytes(size)}", markup=False, soft_wrap=True)
    if json_output:
        report = {"adapter": str(folder.folder), "to": to, "output": str(output), **facts, "bytes": sizes}
        sys.stdout.write(json.dumps(report) + "\n")
    return 0


def _check_name(output: Path, to: str, name: str) -> None:
    """Refuse a name that is not one of a file or a folder, as `to` wants it. name: the adapter's, for a suggestion."""
    if (output.suffix == ".gguf") != (to in _FILES):
        wanted = "a file name that ends in .gguf" if to in _FILES else "the name of a folder"
        suffix = ".gguf" if to in _FILES else ""
        instead = output.with_suffix(suffix) if output.name else output / f"{name}{suffix}"
        raise MlxLoraError(f"--output {output}: {to} needs {wanted}", f"such as {instead}")


def _sizes(written: Path) -> list[tuple[Path, int]]:
    if written.is_file():
        return [(Path(), written.stat().st_size)]
    return [(file.relative_to(written), file.stat().st_size) for file in sorted(written.iterdir())]


def _load(folder: "AdapterFolder", model: str | None, revision: str | None) -> "LoadedModel":
    """The base as stored with the adapter on it: what does not fit is refused here, before anything is written."""
    from mlx_lora.lora.adapter import apply_adapter
    from mlx_lora.model.load import load_base

    name, chosen = choose_base(model, revision, lambda: model_of(folder.config, folder.folder))
    loaded = load_base(name, revision=chosen, compute="quantized")
    applied = apply_adapter(loaded.model, folder, asdict(loaded.identity))
    for note in applied.notes:
        say_note(note)
    talk.print(f"{applied.line}; base {loaded.identity.name}", markup=False, soft_wrap=True)
    return loaded


def _write_peft(target: Path, job: Job) -> dict[str, Any]:
    from mlx_lora.exchange.peft_folder import TEMPLATE_FILE, write_peft_folder
    from mlx_lora.exchange.peft_names import naming_of
    from mlx_lora.lora.adapter_config import WEIGHTS_FILE
    from mlx_lora.lora.inject import iter_modules, remove_lora
    from mlx_lora.lora.layer import can_adapt
    from mlx_lora.lora.tensor_file import read_tensors

    parameters = _peft_parameters(job)
    remove_lora(job.base.model)
    present = [path for path, module in iter_modules(job.base.model) if can_adapt(module)]
    # In the file's own dtype: what was read for the base's sake is float32.
    tensors = read_tensors(job.folder.folder / WEIGHTS_FILE)
    write_peft_folder(target, tensors, parameters, present, naming_of(job.base.config), _portable_facts(job.folder))
    template = job.rendering.chat_template
    if template is not None:
        write_whole(target / TEMPLATE_FILE, template.encode("utf-8"))
        say_note(f"{TEMPLATE_FILE} is the adapter's own: PEFT does not read it by itself, give it to the tokenizer")
    say_prompt_notes(job, "PEFT's format", template=True)
    return {"modules": len(job.folder.modules), "base": parameters.base, "revision": parameters.revision}


def _peft_parameters(job: Job) -> "PeftParameters":
    """The adapter's shape and scale as PEFT says them, and the base by the name that PEFT's users find it under."""
    from pydantic import ValidationError

    from mlx_lora.config import LoraSettings
    from mlx_lora.exchange.peft_config import PeftParameters
    from mlx_lora.model.builtin import BUILTIN_MODELS

    own, identity = job.folder.parameters, job.base.identity
    alpha, use_rslora = own.scale * own.rank, False  # for an adapter of mlx-lm's, which has a scale only
    with suppress(ValidationError):
        settings = LoraSettings.model_validate(job.folder.facts.get("lora"))
        if (settings.scale, settings.rank) == (own.scale, own.rank):
            alpha, use_rslora = settings.alpha, settings.use_rslora
    built_in = BUILTIN_MODELS.get(identity.name)
    parameters = PeftParameters(
        own.method,
        own.rank,
        alpha,
        use_rslora,
        own.dropout,
        job.base_name or (identity.name if built_in is None else built_in.original),
        None if job.base_name else identity.revision,
    )
    if job.base.quantization is not None:
        say_note(
            f"it was trained on quantized weights; with {parameters.base} in full precision its answers may differ a "
            "little" + ("" if job.base_name else " (another name for the base: --base-name)")
        )
    return parameters


def _portable_facts(folder: "AdapterFolder") -> dict[str, Any]:
    """Our part of the config, but no path of this machine outside of what the model reads."""
    from mlx_lora.report.privacy import short_path, without_paths
    from mlx_lora.report.publication import PROMPTS

    facts, model = folder.facts, str(folder.facts.get("model"))
    if typed_path(model).exists() or short_path(model) != model:
        facts.pop("model", None)
    return {**without_paths(facts), **{name: facts[name] for name in PROMPTS if name in facts}}


_WRITERS = {"peft": _write_peft, "gguf-lora": write_gguf_lora, "gguf": write_gguf, "ollama": write_ollama}
