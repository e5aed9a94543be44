"""Files to rows with their line numbers: .jsonl, .json and .csv. Knows nothing of what a row must hold."""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_lora.dataset.formats import KNOWN_KEYS
from mlx_lora.errors import DataError

SUFFIXES = (".jsonl", ".json", ".csv")
_BOM = b"\xef\xbb\xbf"
_WHITESPACE = " \t\r\n"
# A cell of these columns that begins like JSON is read as JSON.
_JSON_COLUMNS = ("messages", "conversations", "tools", "answers", "choices")
_ENCODING_HINT = "save the file as UTF-8"


@dataclass(frozen=True)
class RawRow:
    """A row as the file has it, or the reason why it could not be read."""

    place: str  # "data/train.jsonl:17"
    value: Any = None
    fault: str | None = None


def iter_rows(path: Path) -> Iterator[RawRow]:
    """The rows of a file in order, blank lines left out.

    Raises: DataError where the file as a whole cannot be read.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"{path}: unknown kind of file", f"the name must end in {', '.join(SUFFIXES)}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}", "check the path and its permissions") from error
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{path}:1: not UTF-8, but UTF-16", _ENCODING_HINT)
    content = content.removeprefix(_BOM)
    if suffix == ".jsonl":
        return _iter_jsonl(content, path)
    text = _decoded(content, path)
    return _iter_json(text, path) if suffix == ".json" else _iter_csv(text, path)


def _iter_jsonl(content: bytes, path: Path) -> Iterator[RawRow]:
    # Only line feeds end a row: JSON text may hold U+2028 and other separators that splitlines cuts at.
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            yield RawRow(place, json.loads(line.decode()))
        except UnicodeDecodeError as error:
            yield RawRow(place, fault=f"not UTF-8 (byte 0x{line[error.start]:02x} at column {error.start + 1})")
        except json.JSONDecodeError as error:
            yield RawRow(place, fault=f"not JSON: {error.msg} at column {error.colno}")
        except RecursionError:
            yield RawRow(place, fault="not JSON that can be read: nested too deeply")


def _decoded(content: bytes, path: Path) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: not UTF-8 (byte 0x{content[error.start]:02x})", _ENCODING_HINT) from error


def _iter_json(text: str, path: Path) -> Iterator[RawRow]:
    if not text.strip():
        return
    try:
        whole = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            # One object a line under the name .json, as many published data sets have it.
            yield from _iter_jsonl(text.encode(), path)
            return
        raise DataError(f"{path}:{error.lineno}: not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise DataError(f"{path}: not JSON that can be read: nested too deeply") from error
    if isinstance(whole, dict) and not isinstance(whole.get("data"), list):
        yield RawRow(f"{path}:1", whole)
        return
    if not isinstance(whole, list | dict):
        raise DataError(f"{path}:1: neither a list of rows nor an object", 'write [row, …] or {"data": [row, …]}')
    start = _skip(text, 0) if isinstance(whole, list) else _list_start(text, "data")
    line, counted = 1, 0
    for position, item in _iter_items(text, start):
        line, counted = line + text.count("\n", counted, position), position
        yield RawRow(f"{path}:{line}", item)


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position] in _WHITESPACE:
        position += 1
    return position


def _list_start(text: str, wanted: str) -> int:
    """Where the value of the key `wanted` of a valid JSON object begins: the last one, as in json.loads."""
    decoder, position, found = json.JSONDecoder(), _skip(text, 0), -1
    while text[position] != "}":
        position = _skip(text, position + 1)  # past "{" or ","
        if text[position] == "}":
            break
        key, position = decoder.raw_decode(text, position)
        position = _skip(text, _skip(text, position) + 1)  # past ":"
        found = position if key == wanted else found
        _, position = decoder.raw_decode(text, position)
        position = _skip(text, position)
    return found


def _iter_items(text: str, start: int) -> Iterator[tuple[int, Any]]:
    """(position, value) of each item of the valid JSON list that begins at `start`."""
    decoder, position = json.JSONDecoder(), start
    while text[position] != "]":
        position = _skip(text, position + 1)  # past "[" or ","
        if text[position] == "]":
            break
        item, end = decoder.raw_decode(text, position)
        yield position, item
        position = _skip(text, end)


def _iter_csv(text: str, path: Path) -> Iterator[RawRow]:
    delimiter = _delimiter(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    line = 1
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{path}:{line}: not CSV: {error}", 'put texts with commas or quotes into "…"') from error
        place, line = f"{path}:{line}", reader.line_num + 1
        if not any(cell.strip() for cell in cells):
            continue
        if header is None:
            header = [cell.strip() for cell in cells]
            if not KNOWN_KEYS & set(header):
                columns = ", ".join(header)[:80]
                raise DataError(
                    f"{place}: the first line must name the columns, but it has: {columns}",
                    "begin the file with a line such as question,answer",
                )
        elif len(cells) != len(header):
            yield RawRow(place, fault=f"{len(cells)} cells where the header has {len(header)} columns")
        else:
            yield _csv_row(dict(zip(header, cells, strict=True)), place)


def _csv_row(row: dict[str, Any], place: str) -> RawRow:
    for column in _JSON_COLUMNS:
        cell = row.get(column)
        if cell is None:
            continue
        if not cell.strip():
            del row[column]
            continue
        if column in ("answers", "choices") and not cell.lstrip().startswith("["):
            row[column] = [variant.strip() for variant in cell.split("|")]
            continue
        try:
            row[column] = json.loads(cell)
        except (json.JSONDecodeError, RecursionError):
            return RawRow(place, fault=f'the cell "{column}" is not JSON')
    return RawRow(place, row)


def _delimiter(text: str) -> str:
    """The separator under which the header has the most known columns: comma, or what spreadsheets write elsewhere."""
    header = next((line for line in text.splitlines() if line.strip()), "")
    return max(",;\t", key=lambda mark: len(KNOWN_KEYS & {name.strip(' "') for name in header.split(mark)}))
