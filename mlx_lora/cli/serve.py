"""The command line of `mlx-lora serve`: options to typed parameters of its recipe."""

from pathlib import Path
from typing import Annotated

import typer

from mlx_lora.cli.options import ModelName, Revision


def serve(
    adapters: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[ADAPTER]...", help="Adapter folders, or names under adapters/.", show_default=False),
    ] = None,
    model: ModelName = None,
    revision: Revision = None,
    folder: Annotated[
        Path | None,
        typer.Option("--adapters", metavar="DIR", help="Adapters that requests may load by name.", show_default=False),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; others than this machine need a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8080,
    key_file: Annotated[
        Path | None, typer.Option("--api-key-file", help="A file with the key to ask for.", show_default=False)
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Answers generated at once.")] = 16,
    waiting: Annotated[int, typer.Option(min=0, help="Answers that may wait for their turn.")] = 64,
    cache_mib: Annotated[
        int, typer.Option("--cache-mib", min=0, help="Memory for what conversations have read, in MiB.")
    ] = 1024,
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="Write prompts into the log.")] = False,
) -> None:
    """Serve the base and its adapters with OpenAI's HTTP API."""
    from mlx_lora.commands.serve import run_serve

    raise typer.Exit(
        run_serve(
            adapters or [],
            model=model,
            revision=revision,
            folder=folder,
            host=host,
            port=port,
            key_file=key_file,
            rows=rows,
            waiting=waiting,
            cache_mib=cache_mib,
            log_prompts=log_prompts,
        )
    )
