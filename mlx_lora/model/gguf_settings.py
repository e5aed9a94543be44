"""What a GGUF file's metadata says of a llama's shape, each value held against what it must be. Knows no tensors.

Source: llama.cpp src/llama-model.cpp, load_hparams.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mlx_lora.errors import ModelError

MLX_VERSION = "look for an MLX version of the model on Hugging Face (mlx-community/…)"


class Metadata(Protocol):
    """What is read of a GGUF file."""

    path: Path

    def value(self, key: str, default: Any = None) -> Any:
        """The metadata value `key`."""


@dataclass(frozen=True)
class Heads:
    """The attention's heads: how many ask, how many keys they share, and the width of each (even)."""

    queries: int
    keys: int
    width: int

    def rows(self, module: str) -> int | None:
        """The rows of the MLX module q_proj or k_proj; None for any other."""
        return {"q_proj": self.queries * self.width, "k_proj": self.keys * self.width}.get(module)


def read_heads(gguf: Metadata) -> Heads:
    """The heads of a llama whose keys and values are of one width, turned as a whole.

    Raises: ModelError for any other, naming the setting.
    """
    hidden, count = whole_number(gguf, "llama.embedding_length"), whole_number(gguf, "llama.attention.head_count")
    shared = whole_number(gguf, "llama.attention.head_count_kv", count)
    given = gguf.value("llama.attention.key_length")
    if given is None and hidden % count:
        raise ModelError(
            f"{gguf.path}: llama.embedding_length {hidden} is not divisible by llama.attention.head_count {count}, "
            "and no llama.attention.key_length says how wide a head is",
            MLX_VERSION,
        )
    width = whole_number(gguf, "llama.attention.key_length", hidden // count)
    values = whole_number(gguf, "llama.attention.value_length", hidden // count)
    if values != width:
        raise ModelError(
            f"{gguf.path}: a head's keys are {width} wide, its values {values} (llama.attention.key_length, "
            "value_length): MLX's llama has one width for both",
            MLX_VERSION,
        )
    turned = whole_number(gguf, "llama.rope.dimension_count", width)
    if turned != width or width % 2:
        raise ModelError(
            f"{gguf.path}: rotary embeddings of {turned} of a head's {width} numbers (llama.rope.dimension_count): "
            "only of all of an even number are converted",
            MLX_VERSION,
        )
    return Heads(count, shared, width)


def whole_number(gguf: Metadata, key: str, default: int | None = None) -> int:
    """The metadata value `key`, 1 or more. Raises: ModelError when it is none, such as a list of one a layer."""
    value = gguf.value(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ModelError(f"{gguf.path}: {key} is {value!r:.60}, expected a whole number from 1 up", MLX_VERSION)
    return value


def positive_number(gguf: Metadata, key: str, default: float | None = None) -> float:
    """The metadata value `key`, finite and over 0. Raises: ModelError when it is none."""
    value = gguf.value(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ModelError(f"{gguf.path}: {key} is {value!r:.60}, expected a number over 0", MLX_VERSION)
    return float(value)
