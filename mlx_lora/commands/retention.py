"""The end of a run: what the trained model forgot (train.retention), asked of base and adapter in one load."""

import time
from typing import TYPE_CHECKING, Any

from mlx_lora.config import RunConfig
from mlx_lora.console import talk
from mlx_lora.files import typed_path
from mlx_lora.screen import counted_rows

if TYPE_CHECKING:
    from mlx_lora.evaluation.subjects import Source
    from mlx_lora.model.load import LoadedModel
    from mlx_lora.model.tokenizer import Tokenizer
    from mlx_lora.training.session import Session


def read_retention(config: RunConfig, tokenizer: "Tokenizer") -> "Source | None":
    """The questions of the run, None where it watches none. Raises: DataError now, not after the last step."""
    from mlx_lora.evaluation.retention import read_retention_set

    name = config.train.retention
    return None if name is None else read_retention_set(name, tokenizer, config.data)


def watch_retention(
    config: RunConfig, base: "LoadedModel", session: "Session", source: "Source | None"
) -> dict[str, Any] | None:
    """Ask the adapter that the run's folder keeps, and the base, the questions of `source`; say what was forgotten."""
    if source is None:
        return None
    from mlx_lora.evaluation.asking import Asker
    from mlx_lora.evaluation.retention import MAX_TOKENS, compare_retention, remedy
    from mlx_lora.lora.adapter import read_adapter
    from mlx_lora.lora.inject import set_adapter_enabled
    from mlx_lora.lora.rendering import rendering_of
    from mlx_lora.model.load import reload_layers

    started = time.perf_counter()
    model = session.model
    session.restore_layers(lambda count: reload_layers(base, config.compute, count))
    adapter = read_adapter(typed_path(config.output_dir))
    session.stepper.trainable.assign(adapter.tensors)
    model.eval()
    asker = Asker(base, max_tokens=MAX_TOKENS, batch_size=32, numbers=False, progress=counted_rows)
    rendering = rendering_of(adapter.config, adapter.folder)
    set_adapter_enabled(model, False)
    before, _ = asker.ask("base", rendering, source)
    set_adapter_enabled(model, True)
    after, _ = asker.ask("adapter", rendering, source)
    outcome = compare_retention(source.name, before, after)
    talk.print(outcome.line, markup=False, soft_wrap=True)
    if outcome.forgot:
        talk.print(
            f"warning: the model forgot: {outcome.lost} answers that were right are wrong, {outcome.gained} the other "
            f"way round (p = {outcome.p:.2g})",
            markup=False,
            soft_wrap=True,
        )
        talk.print(f"hint: {remedy(config.data.replay)}", markup=False, soft_wrap=True)
    return {**outcome.as_dict(), "seconds": round(time.perf_counter() - started, 1)}
