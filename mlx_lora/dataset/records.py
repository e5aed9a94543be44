"""A source of data to records: built in, a file, a folder, a Hugging Face data set. Knows no tokenizers and no MLX."""

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from mlx_lora.dataset.builtin import BUILTIN_DATA_SETS, builtin_path
from mlx_lora.dataset.formats import FORMATS_HINT, RowError, record_from_row
from mlx_lora.dataset.hub import is_hub_name, iter_hub_rows
from mlx_lora.dataset.record import Message, Record
from mlx_lora.dataset.rows import SUFFIXES, RawRow, iter_rows
from mlx_lora.errors import DataError
from mlx_lora.files import named_errors, typed_path

__all__ = ["Message", "Record", "read_records", "read_split_if_present"]

FAULTS_SHOWN = 10
_SPLIT_NAMES = {"train": ("train",), "valid": ("valid", "validation", "val", "dev"), "test": ("test",)}


def read_records(source: str, split: str = "train") -> list[Record]:
    """All rows of a built-in data set (`general-knowledge`), of a file, or of the split of a folder or of a Hugging
    Face data set (`owner/name:configuration`).

    Raises: DataError with up to ten faults, each `file:line: what`; where there is nothing; where there are no rows.
    """
    rows = _find_rows(source, split)
    if rows is None:
        raise DataError(f"{source}: there is no {split} split", _missing_split_hint(source, split))
    return _to_records(rows, source)


def read_split_if_present(source: str, split: str) -> list[Record] | None:
    """The rows of another split of the same folder or data set; None where there is none, or `source` is a file.

    Raises: DataError as read_records.
    """
    if builtin_path(source) is not None or typed_path(source).is_file():
        return None
    rows = _find_rows(source, split)
    return None if rows is None else _to_records(rows, source)


def _find_rows(source: str, split: str) -> Iterable[RawRow] | None:
    built_in = builtin_path(source)
    if built_in is not None:
        return _iter_builtin(built_in, source)
    path = typed_path(source)
    names = _SPLIT_NAMES.get(split, (split,))
    if path.is_file():
        return iter_rows(path)
    if path.is_dir():
        files = [path / (name + suffix) for name in names for suffix in SUFFIXES if (path / (name + suffix)).is_file()]
        if len(files) > 1:
            found = " and ".join(file.name for file in files)
            raise DataError(f"{source}: which file is the {split} split, {found}?", "keep one of them in the folder")
        return iter_rows(files[0]) if files else None
    if path.is_symlink() and not path.exists():
        raise DataError(f"{source}: a link to {path.readlink()}, which is not there", "mend the link, or remove it")
    if path.exists():
        raise DataError(f"{source}: neither a file nor a folder", "write the rows into a .jsonl file first")
    near_names = difflib.get_close_matches(source.lower(), BUILTIN_DATA_SETS, n=1, cutoff=0.85)
    if near_names:
        raise DataError(f"{source}: no such file or folder", f"did you mean the built-in {near_names[0]}?")
    if path.suffix.lower() in SUFFIXES or not is_hub_name(source):
        raise DataError(f"{source}: no such file or folder", _near_hint(path))
    return iter_hub_rows(source, names)


def _iter_builtin(path: Path, name: str) -> Iterator[RawRow]:
    """The rows, each placed by the data set's name: where the package lies says nothing to anybody."""
    for row in iter_rows(path):
        yield replace(row, place=f"{name}:{row.place.rpartition(':')[2]}")


def _to_records(rows: Iterable[RawRow], source: str) -> list[Record]:
    records: list[Record] = []
    faults: list[str] = []
    hints: list[str] = []
    for row in rows:
        try:
            if row.fault is not None:
                raise RowError(row.fault, row.hint or FORMATS_HINT)
            records.append(record_from_row(row.value, row.place))
        except RowError as error:
            faults.append(f"{row.place}: {error}")
            hints.append(error.hint)
    if faults:
        raise DataError(joined_faults(faults), hints[0])
    if not records:
        raise DataError(f"{source}: no rows", FORMATS_HINT)
    return records


def joined_faults(faults: list[str]) -> str:
    """Up to ten faults, one a line, and how many more there are."""
    more = len(faults) - FAULTS_SHOWN
    return "\n".join(faults[:FAULTS_SHOWN] + ([f"… and {more} more"] if more > 0 else []))


def _missing_split_hint(source: str, split: str) -> str:
    path = Path(source).expanduser()
    if not path.is_dir():
        return f"its splits should include one of {', '.join(_SPLIT_NAMES.get(split, (split,)))}"
    found = ", ".join(_names_in(path)[:8]) or "nothing"
    return f"expected {split}.jsonl, {split}.json or {split}.csv in the folder; it holds {found}"


def _near_hint(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"there is no folder {folder} either; paths count from the folder you are in"
    near_names = difflib.get_close_matches(path.name, _names_in(folder), n=1)
    if near_names:
        return f"did you mean {folder / near_names[0]}?"
    return f"look into {folder}; paths count from the folder you are in"


def _names_in(folder: Path) -> list[str]:
    """Raises: MlxLoraError where the folder may not be listed."""
    with named_errors(folder):
        return sorted(file.name for file in folder.iterdir())
