"""Rows of a Hugging Face data set, through the optional package `datasets`. Knows nothing of what a row must hold."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from mlx_lora.dataset.rows import RawRow
from mlx_lora.errors import DataError

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(:[\w.-]+)?")


def is_hub_name(source: str) -> bool:
    """Whether `source` could be `name`, `owner/name` or `owner/name:configuration`."""
    return _NAME.fullmatch(source) is not None


def iter_hub_rows(source: str, names: tuple[str, ...]) -> Iterator[RawRow] | None:
    """The rows of the first split that is called one of `names`; None where the data set has none of them.

    Raises: DataError without the package, or with the words of `datasets` when it cannot load the data set.
    """
    splits = _load(source)
    name = next((name for name in names if name in splits), None)
    return None if name is None else _iter_rows(splits[name], f"{source}[{name}]")


def _iter_rows(rows: Any, source: str) -> Iterator[RawRow]:
    for number, row in enumerate(rows, 1):
        yield RawRow(f"{source}:{number}", row)


def _load(source: str) -> Mapping[str, Any]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise DataError(
            f"{source}: no such file or folder; to read it as a Hugging Face data set the package datasets is needed",
            "check the path, or pip install 'mlx-lora[datasets]'",
        ) from error
    name, _, configuration = source.partition(":")
    try:
        splits: Mapping[str, Any] = load_dataset(name, configuration or None)
    except Exception as error:  # `datasets` has no exception of its own: network, missing name, script, all kinds
        words = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(
            f"{source}: no such file or folder, and Hugging Face says: {words[0]}",
            "check the path or the name; a configuration is given as owner/name:configuration",
        ) from error
    return splits
