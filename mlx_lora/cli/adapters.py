"""The command line of `mlx-lora adapters`, push and pull: options to typed parameters of the recipes in commands/."""

from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

from mlx_lora.cli.options import LARGEST_SEED, Adapter, JsonOutput


class AdapterCommands(TyperGroup):
    """The subcommands; anything else that is typed first is the folder to list, unless it is a misspelled one."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Put `list` before options and before a folder."""
        if not args or (args[0] not in ctx.help_option_names and self._is_listing(args)):
            args = ["list", *args]
        return super().parse_args(ctx, args)

    def _is_listing(self, args: list[str]) -> bool:
        first, *others = args
        if first in self.commands:
            return False
        if first.startswith("-") or Path(first).exists():
            return True
        return all(word.startswith("-") for word in others) and not get_close_matches(first, self.commands)


adapters_app = typer.Typer(
    cls=AdapterCommands, help="The adapters in a folder: list, show, compare, merge and remove them."
)


@adapters_app.command("list")
def list_adapters(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Where to look.")] = Path("adapters"),
    json_output: JsonOutput = False,
) -> None:
    """List the adapters of a folder with size, base, score and age (also without the word list)."""
    from mlx_lora.commands.adapters import run_adapters_list

    raise typer.Exit(run_adapters_list(folder, json_output=json_output))


@adapters_app.command("show")
def show_adapter(adapter: Adapter, json_output: JsonOutput = False) -> None:
    """Print all that is known of an adapter, with its scores and the size of its update."""
    from mlx_lora.commands.adapters import run_adapters_show

    raise typer.Exit(run_adapters_show(adapter, json_output=json_output))


@adapters_app.command("diff")
def diff_adapters(
    first: Adapter,
    second: Annotated[str, typer.Argument(help="The other one.", show_default=False)],
    json_output: JsonOutput = False,
) -> None:
    """Print in what two adapters differ: settings, data, scores, weights."""
    from mlx_lora.commands.adapterdiff import run_adapters_diff

    raise typer.Exit(run_adapters_diff(first, second, json_output=json_output))


@adapters_app.command("rm")
def remove_adapter(
    adapter: Adapter,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete an adapter's folder."""
    from mlx_lora.commands.adapterremove import run_adapters_remove

    raise typer.Exit(run_adapters_remove(adapter, yes=yes))


@adapters_app.command("merge")
def merge_adapters(
    adapters: Annotated[
        list[str], typer.Argument(help="Adapter folders, or names under adapters/.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The adapter folder to write.", show_default=False)],
    method: Annotated[str, typer.Option(help="linear, svd, ties or dare.")] = "linear",
    weights: Annotated[
        str | None, typer.Option(help="One for each, such as 0.7,0.3; equal shares of 1 otherwise.", show_default=False)
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(help="Of the result (svd, ties, dare); the largest of theirs otherwise.", show_default=False),
    ] = None,
    density: Annotated[
        float | None,
        typer.Option(help="Share of the entries that stay: ties 0.2, dare 0.5 otherwise.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Of the entries that dare drops.")] = 0,
    json_output: JsonOutput = False,
) -> None:
    """Merge adapters of one base into one adapter, and say what that lost."""
    from mlx_lora.commands.adaptermerge import run_adapters_merge

    raise typer.Exit(
        run_adapters_merge(
            adapters,
            output,
            method=method,
            weights=weights,
            rank=rank,
            density=density,
            seed=seed,
            json_output=json_output,
        )
    )


Repository = Annotated[str, typer.Argument(metavar="USER/NAME", help="The repository.", show_default=False)]


def push(
    adapter: Adapter,
    repository: Repository,
    public: Annotated[bool, typer.Option("--public", help="Let everybody see it.")] = False,
    update: Annotated[bool, typer.Option("--update", help="Add a commit where the repository exists.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the files, print the card, send nothing.")] = False,
    json_output: JsonOutput = False,
) -> None:
    """Send an adapter with a model card to the Hugging Face Hub, without paths and tokens of this machine."""
    from mlx_lora.commands.push import run_push

    raise typer.Exit(
        run_push(adapter, repository, public=public, update=update, dry_run=dry_run, json_output=json_output)
    )


def pull(
    repository: Repository,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The folder to write; adapters/NAME otherwise.", show_default=False),
    ] = None,
    revision: Annotated[
        str | None, typer.Option("--revision", help="Branch, tag or commit.", show_default=False)
    ] = None,
    json_output: JsonOutput = False,
) -> None:
    """Fetch an adapter from the Hugging Face Hub: whole, checked, its commit recorded."""
    from mlx_lora.commands.pull import run_pull

    raise typer.Exit(run_pull(repository, output, revision=revision, json_output=json_output))
