"""adapter_config.json: what it says of the adapter's shape, read with checks. Lenient about keys it does not know.

Knows the keys of mlx-lm's adapters and our own; nothing of tensors or models.
"""

import json
import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeGuard

from mlx_lora.errors import AdapterError
from mlx_lora.files import named_errors

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapters.safetensors"
PEFT_WEIGHTS_FILE = "adapter_model.safetensors"
FORMAT_VERSION = 1
LARGEST_SCALE = 1e4  # of B·A: mlx-lm's default is 20, and float32 must hold the update's square


@dataclass(frozen=True)
class AdapterParameters:
    """What an adapter's config says: method, rank, effective scale, dropout, and where the adapters sit.

    num_layers: how many of the last layers (all where it is not positive, as in mlx-lm). keys: module paths relative
    to a layer, or full paths; None for every linear module of those layers.
    """

    method: Literal["lora", "dora"]
    rank: int
    scale: float
    dropout: float
    num_layers: int
    keys: tuple[str, ...] | None


def read_adapter_config(folder: Path) -> tuple[dict[str, Any], AdapterParameters]:
    """The whole config of an adapter folder, and its checked parameters.

    Raises: AdapterError when the folder or a file is missing, of another kind, or a value is not what it must be.
    """
    path = folder / CONFIG_FILE
    _check_files(folder)
    config = _read_object(path)
    facts = config.get("mlx_lora")
    if facts is not None and not isinstance(facts, dict):
        _refuse(path, "mlx_lora", facts, "an object")
    version = (facts or {}).get("format_version", FORMAT_VERSION)
    if not _is_whole(version) or version > FORMAT_VERSION:
        raise AdapterError(
            f"{path}: format_version {version!r}, this mlx-lora reads up to {FORMAT_VERSION}", "update mlx-lora"
        )
    return config, _parameters(path, config)


def _parameters(path: Path, config: dict[str, Any]) -> AdapterParameters:
    method = config.get("fine_tune_type", "lora")
    if method not in ("lora", "dora"):
        _refuse(path, "fine_tune_type", method, '"lora" or "dora"')
    lora = config.get("lora_parameters")
    if not isinstance(lora, dict):
        _refuse(path, "lora_parameters", lora, "an object with rank and scale")
    rank, scale, dropout = lora.get("rank"), lora.get("scale"), lora.get("dropout", 0.0)
    if not _is_whole(rank) or rank < 1:
        _refuse(path, "lora_parameters.rank", rank, "a whole number ≥ 1")
    if not _is_number(scale) or scale == 0 or abs(scale) > LARGEST_SCALE:
        hint = "; this file gives alpha instead" if scale is None and "alpha" in lora else ""
        _refuse(
            path, "lora_parameters.scale", scale, f"a number from -{LARGEST_SCALE:g} to {LARGEST_SCALE:g}, not 0{hint}"
        )
    if not _is_number(dropout) or not 0 <= dropout < 1:
        _refuse(path, "lora_parameters.dropout", dropout, "a number from 0 up to, not including, 1")
    keys = lora.get("keys")
    if keys is not None and not (isinstance(keys, list) and keys and all(isinstance(key, str) and key for key in keys)):
        _refuse(path, "lora_parameters.keys", keys, "a list of module paths")
    num_layers = config.get("num_layers")
    if not _is_whole(num_layers):
        _refuse(path, "num_layers", num_layers, "a whole number")
    return AdapterParameters(
        method, rank, float(scale), float(dropout), num_layers, None if keys is None else tuple(dict.fromkeys(keys))
    )


def _check_files(folder: Path) -> None:
    if not folder.is_dir():
        fact = "is a file, not an adapter folder" if folder.exists() else "no such adapter folder"
        raise AdapterError(f"{folder}: {fact}", f"an adapter is a folder with {WEIGHTS_FILE} and {CONFIG_FILE}")
    for name in (WEIGHTS_FILE, CONFIG_FILE):
        if (folder / name).is_file():
            continue
        if (folder / PEFT_WEIGHTS_FILE).is_file():
            raise AdapterError(
                f"{folder}: a PEFT adapter ({PEFT_WEIGHTS_FILE}), not one of MLX",
                f"take it over with `mlx-lora import {shlex.quote(str(folder))} -o NAME`",
            )
        raise AdapterError(f"{folder}: no {name} in it", "is this the adapter's folder, and did its training finish?")


def _read_object(path: Path) -> dict[str, Any]:
    with named_errors(path):
        content = path.read_bytes()
    try:
        value = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise AdapterError(
            f"{path}: no JSON: {error}", "the file is damaged: copy or train the adapter again"
        ) from error
    if not isinstance(value, dict):
        raise AdapterError(f"{path}: holds no JSON object", "the file is damaged: copy or train the adapter again")
    return value


def _is_whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> TypeGuard[float]:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number of hundreds of digits
        return False


def _refuse(path: Path, key: str, value: Any, expected: str) -> NoReturn:
    shown = "missing" if value is None else json.dumps(value)[:80]
    raise AdapterError(
        f"{path}: {key} is {shown}, expected {expected}", "the file was changed or damaged: copy or train it again"
    )
