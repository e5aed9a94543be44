"""The command line of `mlx-lora export` and `mlx-lora import`: options to typed parameters of their recipes."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mlx_lora.cli.options import Adapter, JsonOutput, ModelName, Revision


class Format(StrEnum):
    """What `export` writes."""

    PEFT = "peft"
    GGUF_LORA = "gguf-lora"
    GGUF = "gguf"
    OLLAMA = "ollama"


class WeightType(StrEnum):
    """How a whole model's matrices are stored."""

    F16 = "f16"
    Q8_0 = "q8_0"


def export(
    adapter: Adapter,
    to: Annotated[
        Format,
        typer.Option(
            help="peft: for Hugging Face PEFT. gguf-lora: an adapter for llama.cpp's --lora. gguf: base and adapter in "
            "one, for llama.cpp. ollama: that with a Modelfile.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The file (gguf, gguf-lora) or folder to write.", show_default=False)
    ],
    model: ModelName = None,
    revision: Revision = None,
    weight_type: Annotated[
        WeightType | None,
        typer.Option("--type", help="Of a whole model: f16 (otherwise) or q8_0.", show_default=False),
    ] = None,
    base_name: Annotated[
        str | None,
        typer.Option(help="What PEFT's config calls the base, such as a Hugging Face id.", show_default=False),
    ] = None,
    ollama_base: Annotated[
        str | None,
        typer.Option("--from", help="A model of Ollama's to put the adapter on, not a merged one.", show_default=False),
    ] = None,
    json_output: JsonOutput = False,
) -> None:
    """Write an adapter in the files of another program."""
    from mlx_lora.commands.export import run_export

    if base_name is not None and to is not Format.PEFT:
        raise typer.BadParameter("--base-name goes with --to peft: no other format names the base")
    if ollama_base is not None and to is not Format.OLLAMA:
        raise typer.BadParameter("--from goes with --to ollama")
    if base_name is not None and not base_name.strip():
        raise typer.BadParameter("--base-name is empty: give the base's name, or leave it out")
    if ollama_base is not None and (not ollama_base or any(sign.isspace() for sign in ollama_base)):
        raise typer.BadParameter(f"--from {ollama_base!r} is no name of a model of Ollama's, such as llama3.2:1b")
    if weight_type is not None and (to in (Format.PEFT, Format.GGUF_LORA) or ollama_base is not None):
        raise typer.BadParameter("--type goes with a whole model: an adapter by itself is not rounded")
    raise typer.Exit(
        run_export(
            Path(adapter),
            output,
            to=to.value,
            model=model,
            revision=revision,
            kind="Q8_0" if weight_type is WeightType.Q8_0 else "F16",
            base_name=base_name,
            ollama_base=ollama_base,
            json_output=json_output,
        )
    )


def adopt(
    source: Annotated[
        Path,
        typer.Argument(metavar="PEFT", help="A PEFT adapter: its folder or .safetensors file.", show_default=False),
    ],
    output: Annotated[
        str,
        typer.Option("--output", "-o", help="The adapter folder to write, or its name under adapters/."),
    ],
    model: ModelName = None,
    revision: Revision = None,
    json_output: JsonOutput = False,
) -> None:
    """Take over a PEFT adapter as an adapter of MLX."""
    from mlx_lora.commands.adopt import run_import

    raise typer.Exit(run_import(source, output, model=model, revision=revision, json_output=json_output))
