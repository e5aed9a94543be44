"""The command line of runs: init, check, plan, train, and config. Knows nothing of how the commands work."""

from pathlib import Path
from typing import Annotated

import typer

from mlx_lora.cli.options import JsonOutput, Overrides, RunFile

config_app = typer.Typer(help="Look at run files and their schema.", no_args_is_help=True)


def init(
    folder: Annotated[Path, typer.Argument(help="Where to write the run file and the sample data.")] = Path("."),
    model: Annotated[str, typer.Option(help="The base model of the run file.")] = "smollm2-135m-instruct",
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that are there.")] = False,
) -> None:
    """Write a commented run file and a small data set to start from."""
    from mlx_lora.commands.init import run_init

    raise typer.Exit(run_init(folder, model=model, force=force))


def check(
    config: RunFile,
    overrides: Overrides = None,
    show: Annotated[int, typer.Option(min=0, help="Rows to show with the trained tokens marked.")] = 2,
    json_output: JsonOutput = False,
) -> None:
    """Validate a run file and its data without loading weights."""
    from mlx_lora.commands.check import run_check_file

    raise typer.Exit(run_check_file(config, overrides or [], json_output=json_output, show=show))


def plan(config: RunFile, overrides: Overrides = None, json_output: JsonOutput = False) -> None:
    """Predict the memory of a run without loading weights; exit 1 when it does not fit."""
    from mlx_lora.commands.plan import run_plan
    from mlx_lora.runfile import load_config

    raise typer.Exit(run_plan(load_config(config, overrides or []), json_output=json_output))


def train(
    config: RunFile,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin again where output_dir holds a run.")] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="With --resume: pass over the differences it calls safe."),
    ] = False,
    json_output: JsonOutput = False,
) -> None:
    """Train an adapter as the run file says."""
    from mlx_lora.commands.train import run_train

    if resume and overwrite:
        raise typer.BadParameter("--resume continues a run and --overwrite begins it again: give one of them")
    if force and not resume:
        raise typer.BadParameter("--force goes with --resume; to begin again where there is a run: --overwrite")
    raise typer.Exit(
        run_train(config, overrides or [], resume=resume, overwrite=overwrite, force=force, json_output=json_output)
    )


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON Schema of run files."""
    from mlx_lora.commands.config import run_config_schema

    raise typer.Exit(run_config_schema())


@config_app.command("show")
def config_show(config: RunFile, overrides: Overrides = None, json_output: JsonOutput = False) -> None:
    """Print a run file with every default filled in."""
    from mlx_lora.commands.config import run_config_show

    raise typer.Exit(run_config_show(config, overrides or [], json_output=json_output))
