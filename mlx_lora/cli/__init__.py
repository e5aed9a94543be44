"""The command line: one app of all commands, in the order of `--help`. Imports neither MLX nor transformers."""

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mlx_lora import __version__
from mlx_lora.cli.adapters import adapters_app, pull, push
from mlx_lora.cli.exchange import adopt, export
from mlx_lora.cli.results import chat, evaluate, fuse, report
from mlx_lora.cli.runs import check, config_app, init, plan, train
from mlx_lora.cli.serve import serve


class Commands(TyperGroup):
    """The subcommands. An end of file where none is expected is a bug: Typer would print "Aborted!" and hide it."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        """Run the subcommand that was typed."""
        try:
            return super().invoke(ctx)
        except EOFError as error:
            raise RuntimeError("a file or an input ended too early") from error


app = typer.Typer(
    name="mlx-lora",
    cls=Commands,
    help="Fine-tune a language model on a Mac: one YAML file, one command, and proof that it learned.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for name, command in (
    *(("init", init), ("check", check), ("plan", plan), ("train", train)),
    *(("eval", evaluate), ("report", report), ("chat", chat), ("serve", serve)),
    *(("fuse", fuse), ("export", export), ("import", adopt), ("push", push), ("pull", pull)),
):
    app.command(name)(command)
app.add_typer(adapters_app, name="adapters")
app.add_typer(config_app, name="config")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mlx-lora {__version__}")
        raise typer.Exit()


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
