"""The command line of what a run left: eval, report, fuse, chat. Knows nothing of how the commands work."""

from pathlib import Path
from typing import Annotated

import typer

from mlx_lora.cli.options import LARGEST_SEED, JsonOutput, ModelName, Revision


def evaluate(
    adapters: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[ADAPTER]...", help="Adapter folders, or names under adapters/.", show_default=False),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Questions: a file (.jsonl, .json, .csv), a folder, a Hugging Face data set, general-knowledge or "
            "general-knowledge-choices; the run's test rows otherwise. May be given again.",
            show_default=False,
        ),
    ] = None,
    base: Annotated[
        bool, typer.Option("--base", help="Also ask the base, and compare; with --model alone, only it.")
    ] = False,
    model: ModelName = None,
    revision: Revision = None,
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
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Of sampled answers.")] = 0,
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
            revision=revision,
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


def fuse(
    adapters: Annotated[
        list[Path],
        typer.Argument(
            metavar="ADAPTER...",
            help="Adapter folders, or names under adapters/; several are added.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The model folder to write.", show_default=False)],
    weights: Annotated[
        str | None, typer.Option(help="One for each, such as 0.7,0.3; equal shares of 1 otherwise.", show_default=False)
    ] = None,
    model: ModelName = None,
    revision: Revision = None,
    bits: Annotated[
        int | None, typer.Option(help="Quantize touched layers to these bits, and to no others.", show_default=False)
    ] = None,
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
        str | None,
        typer.Option("--prompt", "-p", help="Answer once and leave; - takes all of stdin.", show_default=False),
    ] = None,
    system: Annotated[
        str | None, typer.Option(help="System prompt in place of the adapter's own; '' for none.", show_default=False)
    ] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token each time.")] = 0.0,
    top_p: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Sample from the likeliest tokens of this share, more than 0.")
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
