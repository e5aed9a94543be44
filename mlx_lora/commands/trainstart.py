"""What the adapter is before the first step: of another run (`lora.start_from`), or chosen from the rows (`lora.init`).

(`--resume` goes on with the same run.)
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mlx_lora.chat.places import find_adapter
from mlx_lora.config import RunConfig
from mlx_lora.console import talk
from mlx_lora.errors import ConfigError
from mlx_lora.files import sha256_file, typed_path
from mlx_lora.screen import RowsBar

if TYPE_CHECKING:
    from mlx_lora.dataset.examples import Example
    from mlx_lora.lora.adapter import AdapterFolder
    from mlx_lora.lora.inject import Injection
    from mlx_lora.model.load import LoadedModel
    from mlx_lora.training.checkpoint import Checkpoint
    from mlx_lora.training.distributed import Group


def read_start(config: RunConfig) -> "AdapterFolder | None":
    """The adapter, compared with the run's settings; None where it starts from nothing.

    Raises: AdapterError, ConfigError: now, not after the base is loaded.
    """
    from mlx_lora.lora.adapter import read_adapter
    from mlx_lora.lora.start import require_shape

    if config.lora.start_from is None:
        return None
    folder = find_adapter(config.lora.start_from)
    if folder.resolve() == typed_path(config.output_dir).resolve():
        raise ConfigError(
            f"lora.start_from: {folder} is the folder that this run writes", "give output_dir another name"
        )
    adapter = read_adapter(folder)
    require_shape(adapter, config.lora)
    return adapter


def start_from(adapter: "AdapterFolder", base: "LoadedModel", injection: "Injection", config: RunConfig) -> None:
    """Put it into the base that has new adapters. Raises: AdapterError."""
    from dataclasses import asdict

    from mlx_lora.lora.start import put_start

    notes = put_start(base.model, adapter, config.lora, injection.modules, asdict(base.identity))
    talk.print(f"starts from {adapter.folder}", markup=False, soft_wrap=True)
    for note in notes:
        talk.print(f"warning: {note}", markup=False, soft_wrap=True)


def start_facts(adapter: "AdapterFolder | None", facts: Mapping[str, Any]) -> dict[str, Any]:
    """What the new adapter tells of it; says where its prompts were written in another way than `facts`, the run's."""
    if adapter is None:
        return {}
    from mlx_lora.lora.combined_adapter import different_prompts

    for name in different_prompts([facts, {**facts, **adapter.facts}]):  # what it does not tell is not judged
        talk.print(f"warning: {name} was another where {adapter.folder} was trained", markup=False, soft_wrap=True)
    return {
        "started_from": {
            "name": adapter.folder.resolve().name,
            "weights_sha256": sha256_file(adapter.folder / adapter.weights),
        }
    }


def choose_a(
    base: "LoadedModel", rows: "Sequence[Example]", config: RunConfig, group: "Group", checkpoint: "Checkpoint | None"
) -> None:
    """With `lora.init: contrastive`, the A of each adapter: that of the checkpoint, or one chosen from `rows`.

    Before the steps are compiled, which take it for a constant. Raises: TrainingError.
    """
    import mlx.core as mx

    from mlx_lora.lora.inject import iter_lora_modules
    from mlx_lora.training.contrast import contrast_adapters

    if config.lora.init != "contrastive":
        return
    adapters = dict(iter_lora_modules(base.model))
    if checkpoint is not None:
        arrays, _ = checkpoint.read_arrays()
        for path, adapter in adapters.items():
            kept = arrays.get(f"{path}.lora_a")
            if kept is not None and kept.shape == adapter.lora_a.shape:  # else it is another run, which is refused
                adapter.lora_a = kept
        return
    with RowsBar("lora.init: contrastive", unit="adapter") as bar:
        found = bar.follow(contrast_adapters(base.model, rows, config.train.seed))
    group.same("A is chosen", {}, patient=True)  # a slower host takes longer than the ranks wait within a step
    chosen = {
        path: adapter.lora_a if group.leads else mx.zeros_like(adapter.lora_a) for path, adapter in adapters.items()
    }
    for path, array in group.sum_arrays(chosen).items():  # other ranks' rounding may be another
        adapters[path].lora_a = array
    ratio = statistics.median(one.ratio for one in found)
    line = f"lora.init: contrastive: A reads the taught rows {ratio:.1f} times as strongly as the base's own answers"
    talk.print(f"{line} (median of {len(found)} modules; random: 1.0)", markup=False, soft_wrap=True)
