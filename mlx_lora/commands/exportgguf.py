"""`mlx-lora export` for llama.cpp and Ollama: an adapter, or base and adapter in one, as GGUF, with a Modelfile."""

from datetime import date
from pathlib import Path
from typing import Any

from mlx_lora.commands.exportjob import Job, say_note, say_prompt_notes
from mlx_lora.console import talk
from mlx_lora.errors import AdapterError
from mlx_lora.files import write_whole

_LEAST_KEPT = 0.9  # of the update, in the rounded weights
_OLLAMA = ", or take --to ollama"


def write_gguf_lora(target: Path, job: Job) -> dict[str, Any]:
    facts = _write_adapter(target, job)
    say_prompt_notes(job, "a GGUF adapter", instead=_OLLAMA)
    return facts


def _write_adapter(target: Path, job: Job) -> dict[str, Any]:
    from mlx_lora.exchange.gguf_adapter import write_gguf_adapter
    from mlx_lora.exchange.gguf_model import layout_of

    layout = layout_of(job.base.model, job.base.config["model_type"])
    write_gguf_adapter(target, job.folder.tensors, job.folder.parameters, layout, name=job.folder.folder.resolve().name)
    return {"modules": len(job.folder.modules), "architecture": layout.architecture}


def write_gguf(target: Path, job: Job) -> dict[str, Any]:
    facts = _write_model(target, job)
    say_prompt_notes(job, "a GGUF file", template=True, instead=_OLLAMA)
    return facts


def _write_model(target: Path, job: Job) -> dict[str, Any]:
    """Base and adapter in one GGUF file. Raises: AdapterError when rounding loses the adapter."""
    from mlx_lora.exchange.gguf_model import layout_of, write_gguf_model
    from mlx_lora.exchange.gguf_vocabulary import read_vocabulary

    model: Any = job.base.model
    layout = layout_of(model, job.base.config["model_type"])
    vocabulary = read_vocabulary(job.base.path, job.tokenizer, rows=model.args.vocab_size)
    name = f"{job.base.identity.name} with {job.folder.folder.resolve().name}"
    kept = write_gguf_model(target, model, layout, vocabulary, kind=job.kind, name=name).share
    talk.print(f"{job.kind}: {kept:.1%} of the update is in the rounded weights", markup=False)
    if kept < _LEAST_KEPT:
        raise AdapterError(
            f"{job.folder.folder}: {job.kind} rounds the adapter away ({kept:.1%} of the update is kept)",
            "take --type f16, or --to gguf-lora",
        )
    return {"architecture": layout.architecture, "type": job.kind, "pre_tokenizer": vocabulary.pre, "update_kept": kept}


def write_ollama(target: Path, job: Job) -> dict[str, Any]:
    from mlx_lora.exchange.ollama import Turns, build_modelfile, find_frame, written_system

    tokenizer, args = job.tokenizer, job.rendering.chat_template_args
    bos = tokenizer.decode([tokenizer.bos_id]) if tokenizer.adds_bos and tokenizer.bos_id is not None else ""

    def render(turns: Turns, follows: bool) -> str:
        return tokenizer.render_chat(turns, add_generation_prompt=follows, template_args=args)

    frame, system = find_frame(render, bos), job.rendering.system_prompt
    if frame is not None and system is not None:
        system = written_system(render, bos, frame, system)
    whole = job.ollama_base is None
    if frame is None:
        theirs = "the one in the GGUF file" if whole else f"that of {job.ollama_base}"
        say_note(f"no TEMPLATE is in the Modelfile: the chat template has no plain frame; Ollama goes by {theirs}")
    elif "strftime_now" in str(tokenizer.chat_template):
        own = frame.default_system or "" if system is None else ""
        if str(date.today().year) in frame.go_template() + own:
            say_note("the chat template writes the date: the Modelfile keeps that of today")
    # TEMPLATE is what the template writes with its switches set; without it, the file of a whole model has that one.
    written = frame is not None
    say_prompt_notes(job, "the Modelfile", system_prompt=True, template=written or whole, switches=written)
    if job.ollama_base is None:
        facts, source, adapter = _write_model(target / "model.gguf", job), "./model.gguf", None
    else:
        facts, source, adapter = _write_adapter(target / "adapter.gguf", job), job.ollama_base, "./adapter.gguf"
    modelfile = build_modelfile(
        source,
        adapter=adapter,
        frame=frame,
        system_prompt=system,
        stops=[tokenizer.decode([token]) for token in sorted(tokenizer.eos_ids)],
    )
    write_whole(target / "Modelfile", modelfile)
    return {**facts, "template": frame is not None}
