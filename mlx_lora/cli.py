"""The command line: options to typed parameters of the recipes in commands/. Imports neither MLX nor transformers."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mlx_lora import __version__
from mlx_lora.cli_adapters import adapters_app, pull, push
from mlx_lora.cli_exchange import adopt, export
from mlx_lora.cli_options import JsonOutput, ModelName, Overrides, Revision, RunFile
from mlx_lora.cli_serve import serve


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
config_app = typer.Typer(help="Look at run files and their schema.", no_args_is_help=True)
app.add_typer(config_app, name="config")
app.add_typer(adapters_app, name="adapters")
app.command()(push)
app.command()(pull)


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


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Where to write the run file and the sample data.")] = Path("."),
    model: Annotated[str, typer.Option(help="The base model of the run file.")] = "smollm2-135m-instruct",
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that are there.")] = False,
) -> None:
    """Write a commented run file and a small data set to start from."""
    from mlx_lora.commands.init import run_init

    raise typer.Exit(run_init(folder, model=model, force=force))


@app.command()
def check(
    config: RunFile,
    overrides: Overrides = None,
    show: Annotated[int, typer.Option(min=0, help="Rows to show with the trained tokens marked.")] = 2,
    json_output: JsonOutput = False,
) -> None:
    """Validate a run file and its data without loading weights."""
    from mlx_lora.commands.check import run_check
    from mlx_lora.runfile import load_config

    raise typer.Exit(run_check(load_config(config, overrides or []), json_output=json_output, show=show))


@app.command()
def plan(config: RunFile, overrides: Overrides = None, json_output: JsonOutput = False) -> None:
    """Predict the memory of a run without loading weights; exit 1 when it does not fit."""
    from mlx_lora.commands.plan import run_plan
    from mlx_lora.runfile import load_config

    raise typer.Exit(run_plan(load_config(config, overrides or []), json_output=json_output))


@app.command()
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


@app.command("eval")
def evaluate(
    adapters: Annotated[
        list[Path] | None, typer.Argument(metavar="[ADAPTER]...", help="Adapter folders.", show_default=False)
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Questions (.jsonl, .json, .csv, or general-knowledge); the run's test rows otherwise. May be given "
            "again.",
            show_default=False,
        ),
    ] = None,
    base: Annotated[bool, typer.Option("--base", help="Also ask the base, and compare.")] = False,
    model: ModelName = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Ask N questions, spread evenly over the data.", show_default=False)
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 64,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions answered at once.")] = 32,
    fail_under: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Exit 1 when an adapter scores less.", show_default=False)
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="exact_match, contains, token_f1; accuracy, accuracy_norm; or one of your own, by the name of its "
            "entry point or as package.module:function. May be given again; the first leads.",
            show_default=False,
        ),
    ] = None,
    numbers: Annotated[
        bool, typer.Option("--numbers", help="Let number words and digits, and forms of a date, count as equal.")
    ] = False,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token each time.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Of sampled answers.")] = 0,
    json_output: JsonOutput = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write results here, not under the adapter.", show_default=False),
    ] = None,
) -> None:
    """Ask questions and count right answers: base against adapter, from one load of the base."""
    from mlx_lora.commands.evaluate import run_evaluate

    raise typer.Exit(
        run_evaluate(
            adapters or [],
            data=data or [],
            base=base,
            model=model,
            limit=limit,
            max_tokens=max_tokens,
            batch_size=batch_size,
            fail_under=fail_under,
            metrics=metric or [],
            numbers=numbers,
            temperature=temperature,
            seed=seed,
            json_output=json_output,
            output=output,
        )
    )


@app.command()
def report(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Run folders, or names under adapters/.", show_default=False)
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The file; report.html in the run's folder otherwise.", show_default=False),
    ] = None,
    show: Annotated[bool, typer.Option("--open", help="Show it in the browser.")] = False,
) -> None:
    """Write a run's curves, answers and facts, or a comparison of several runs, to one HTML file."""
    from mlx_lora.commands.report import run_report

    raise typer.Exit(run_report(runs, output=output, show=show))


@app.command()
def fuse(
    adapters: Annotated[
        list[Path], typer.Argument(metavar="ADAPTER...", help="Adapter folders; several are added.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The model folder to write.", show_default=False)],
    weights: Annotated[
        str | None, typer.Option(help="One for each, such as 0.7,0.3; equal shares of 1 otherwise.", show_default=False)
    ] = None,
    model: ModelName = None,
    revision: Revision = None,
    bits: Annotated[int | None, typer.Option(help="Quantize touched layers to these bits.", show_default=False)] = None,
    dequantize: Annotated[bool, typer.Option("--dequantize", help="Write 16-bit weights, not quantized ones.")] = False,
    max_growth: Annotated[
        float, typer.Option(min=1, help="At most so many times the base's size, where bits are chosen by layer.")
    ] = 5.0,
    json_output: JsonOutput = False,
) -> None:
    """Merge adapters into a plain model folder, and compare the two on real prompts."""
    from mlx_lora.commands.fuse import run_fuse

    raise typer.Exit(
        run_fuse(
            adapters,
            output,
            weights=weights,
            model=model,
            revision=revision,
            bits=bits,
            dequantize=dequantize,
            max_growth=max_growth,
            json_output=json_output,
        )
    )


app.command()(export)
app.command("import")(adopt)


@app.command()
def chat(
    adapters: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ADAPTER]...",
            help="Adapter folders, or names under adapters/; the first answers.",
            show_default=False,
        ),
    ] = None,
    model: ModelName = None,
    revision: Revision = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="Answer once and leave.", show_default=False)
    ] = None,
    system: Annotated[
        str | None, typer.Option(help="System prompt in place of the adapter's own.", show_default=False)
    ] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token each time.")] = 0.0,
    top_p: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Sample from the likeliest tokens of this share.")
    ] = 1.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 512,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Makes sampled answers repeatable.", show_default=False)
    ] = None,
) -> None:
    """Talk to the base or to adapters on it."""
    from mlx_lora.commands.chat import run_chat

    raise typer.Exit(
        run_chat(
            adapters or [],
            model=model,
            revision=revision,
            prompt=prompt,
            system=system,
            temperature=temperature,
            top_p=top_p,
            max_tokens=max_tokens,
            seed=seed,
        )
    )


app.command()(serve)


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
