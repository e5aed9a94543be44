"""More than a run can possibly need, from shapes alone, in milliseconds: where even that fits, nothing is measured."""

import math
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from mlx_lora.config import RunConfig
from mlx_lora.dataset.batches import padded_length
from mlx_lora.lora.inject import iter_layers
from mlx_lora.memory.asking import COLUMNS
from mlx_lora.memory.rows import Asked, RunRows
from mlx_lora.model.batching import PREFILL_TOKENS, row_limit
from mlx_lora.model.compute import computed_bytes
from mlx_lora.model.likelihood import LOGIT_POSITIONS
from mlx_lora.model.outline import outline_base
from mlx_lora.training.contrast import contrast_bytes
from mlx_lora.training.frozen import POSITIONS_AT_ONCE, ROWS_AT_ONCE

# float32 numbers that a step may hold for each number that goes into or comes out of a matrix, for each logit and for
# each score of attention: values, gradients and copies. On all configurations of docs/BENCHMARKS.md the bound is more
# than twice what was measured.
_COPIES = 6
_LEAST_HEAD = 16  # width of an attention head; narrower ones would make more scores


@dataclass(frozen=True)
class Bounds:
    """Bytes between which a run stays."""

    least: int  # the base's weights, as the run computes with them
    most: int
    working: int  # the part of `most` that comes and goes with a step


def find_bounds(config: RunConfig, run: RunRows) -> Bounds:
    """What the run of `config` on these rows needs at least and at most. Raises: ModelError."""
    model, _ = outline_base(config.model, revision=config.revision)
    matrices = [module for module in model.modules() if _has_matrix(module)]
    widths = sum(_inputs_and_outputs(module) for module in matrices)
    vocabulary, width = max((module.weight.shape[-2], module.weight.shape[-1]) for module in matrices)
    depth = len(iter_layers(model))
    heads = depth * width / _LEAST_HEAD  # of all layers
    length = padded_length(max(len(example.tokens) for example in run.train))
    rows = config.train.batch_rows
    if config.lora.layers != "all":  # the lower layers may run once, for many rows together
        rows = max(rows, ROWS_AT_ONCE, POSITIONS_AT_ONCE // length)
    numbers = rows * length * (widths + vocabulary + length * heads) + config.lora.rank * widths
    # Keys and values, and a copy of them, are less than all that goes into and out of matrices. Prompts go through
    # in portions, a layer at a time; logits are of few positions.
    portion = PREFILL_TOKENS * widths / depth + LOGIT_POSITIONS * vocabulary
    asking = max((_answered(one) * widths + _COPIES * portion for one in run.asked), default=0)
    working = max(int(4 * max(_COPIES * numbers, asking)), find_contrast(config, run))
    stored, plain = computed_bytes(model, "quantized"), computed_bytes(model, "float32")
    return Bounds(computed_bytes(model, config.compute), stored + plain + working, working)


def find_contrast(config: RunConfig, run: RunRows) -> int:
    """Bytes that `lora.init: contrastive` takes at most, beyond the model: 0 where the run has another."""
    if config.lora.init != "contrastive":
        return 0
    model, _ = outline_base(config.model, revision=config.revision)
    layers = iter_layers(model)
    sizes = [(_inputs(one), _inputs_and_outputs(one)) for one in layers[-1].module.modules() if _has_matrix(one)]
    widest = max(width for width, _ in sizes)
    heads = getattr(getattr(model, "args", None), "num_attention_heads", None) or widest // _LEAST_HEAD
    longest = padded_length(max(len(example.tokens) for example in run.train))
    return contrast_bytes(widest, sum(both for _, both in sizes), heads, longest)


def _answered(asked: Asked) -> int:
    """Tokens whose keys and values are there together, at most."""
    longest = max(map(len, asked.prompts)) + max([asked.max_tokens, *map(len, asked.references or ())])
    return row_limit(asked.rows, longest) * (longest + COLUMNS)


def _has_matrix(module: nn.Module) -> bool:
    return isinstance(module.get("weight"), mx.array) and module.weight.ndim >= 2


def _inputs_and_outputs(module: nn.Module) -> int:
    """Numbers in and out for a position, of all experts where there are some."""
    shape: tuple[int, ...] = module.weight.shape
    *experts, outputs, _ = shape
    return math.prod(experts) * (outputs + _inputs(module))


def _inputs(module: nn.Module) -> int:
    inputs = int(module.weight.shape[-1])
    return inputs * 32 // int(module.bits) if "scales" in module else inputs
