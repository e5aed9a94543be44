"""Options that several commands take, described once. Imports nothing of the package."""

from pathlib import Path
from typing import Annotated

import typer

LARGEST_SEED = 2**32 - 1  # as of train.seed
Adapter = Annotated[str, typer.Argument(help="An adapter folder, or a name under adapters/.", show_default=False)]
RunFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="The run file (YAML).", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, such as lora.rank=8.")
]
JsonOutput = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
ModelName = Annotated[
    str | None, typer.Option("--model", help="The base, where it is not the one the adapter names.", show_default=False)
]
Revision = Annotated[
    str | None, typer.Option("--revision", help="Branch, tag or commit of the base.", show_default=False)
]
