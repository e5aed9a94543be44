"""Files to rows with their line numbers: .jsonl, .json and .csv. Knows nothing of what a row must hold."""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_lora.dataset.formats import KNOWN_KEYS
from mlx_lora.dataset.values import TWICE_HINT, RepeatedKeyError, read_json
from mlx_lora.errors import DataError

SUFFIXES = (".jsonl", ".json", ".csv")
_BOM = b"\xef\xbb\xbf"
_WHITESPACE = " \t\r\n"
_LARGEST_CELL = 2**31 - 1  # characters; Python's csv stops at 131,072 unless told otherwise
# A cell of these columns that begins like JSON is read as JSON.
_JSON_COLUMNS = ("messages", "conversations", "tools", "answers", "choices")
_ENCODING_HINT = "save the file as UTF-8"
_JSONL_HINT = 'each line is one JSON object, such as {"question": "…", "answer": "…"}'
_JSON_HINT = 'write [row, …] or {"data": [row, …]}, each row a JSON object'
_CSV_HINT = 'put texts with commas, quotes or line breaks into "…", and write a quote in them twice'


@dataclass(frozen=True)
class RawRow:
    """A row as the file has it, or the reason why it could not be read."""

    place: str  # "data/train.jsonl:17"
    value: Any = None
    fault: str | None = None
    hint: str | None = None  # the remedy of the fault


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
    if b"\0" in content:  # JSON writes it as an escape
        line = content.count(b"\n", 0, content.index(b"\0")) + 1
        raise DataError(f"{path}:{line}: a NUL byte: this is UTF-16, or no text", _ENCODING_HINT)
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
            yield RawRow(place, read_json(line.decode()))
        except UnicodeDecodeError as error:
            fact = f"not UTF-8 (byte 0x{line[error.start]:02x} at column {error.start + 1})"
            yield RawRow(place, fault=fact, hint=_ENCODING_HINT)
        except (ValueError, RecursionError) as error:
            hint = TWICE_HINT if isinstance(error, RepeatedKeyError) else _JSONL_HINT
            yield RawRow(place, fault=_json_fault(error), hint=hint)


def _json_fault(error: ValueError | RecursionError) -> str:
    """What json says of a text, in words that follow its place."""
    if isinstance(error, RecursionError):
        return "not JSON that can be read: nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg} at column {error.colno}"
    if isinstance(error, RepeatedKeyError):
        return str(error)
    return "not JSON that can be read: a number of thousands of digits"


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
    except (ValueError, RecursionError) as error:
        line = error.lineno if isinstance(error, json.JSONDecodeError) else 1
        if getattr(error, "msg", "") == "Extra data" and text.lstrip().startswith("{"):
            # One object a line under the name .json, as many published data sets have it.
            yield from _iter_jsonl(text.encode(), path)
            return
        raise DataError(f"{path}:{line}: {_json_fault(error)}", _JSON_HINT) from error
    if isinstance(whole, dict) and not isinstance(whole.get("data"), list):
        yield _checked_row(text[_skip(text, 0) :], f"{path}:1")
        return
    if not isinstance(whole, list | dict):
        raise DataError(f"{path}:1: neither a list of rows nor an object", _JSON_HINT)
    start = _skip(text, 0) if isinstance(whole, list) else _list_start(text, "data")
    line, counted = 1, 0
    for position, end in _iter_items(text, start):
        line, counted = line + text.count("\n", counted, position), position
        yield _checked_row(text[position:end], f"{path}:{line}")


def _checked_row(text: str, place: str) -> RawRow:
    """The row of a JSON text that is known to be valid but for repeated keys."""
    try:
        return RawRow(place, read_json(text))
    except RepeatedKeyError as error:
        return RawRow(place, fault=str(error), hint=TWICE_HINT)


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


def _iter_items(text: str, start: int) -> Iterator[tuple[int, int]]:
    """[start, end) of each item of the valid JSON list that begins at `start`."""
    decoder, position = json.JSONDecoder(), start
    while text[position] != "]":
        position = _skip(text, position + 1)  # past "[" or ","
        if text[position] == "]":
            break
        _, end = decoder.raw_decode(text, position)
        yield position, end
        position = _skip(text, end)


def _iter_csv(text: str, path: Path) -> Iterator[RawRow]:
    csv.field_size_limit(_LARGEST_CELL)
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
            raise DataError(f"{path}:{line}: not CSV: {error}", _CSV_HINT) from error
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
            if twice := next((name for name in header if name and header.count(name) > 1), None):
                raise DataError(f'{place}: the column "{twice[:60]}" stands twice', TWICE_HINT)
        elif len(cells) != len(header):
            counted = f"{len(cells)} cell" if len(cells) == 1 else f"{len(cells)} cells"
            yield RawRow(place, fault=f"{counted} where the header has {len(header)} columns", hint=_CSV_HINT)
        else:
            yield _csv_row(dict(zip(header, cells, strict=True)), place)


def _csv_row(row: dict[str, Any], place: str) -> RawRow:
    for column, cell in row.items():
        bare = cell.strip()
        if cell[:1].isspace() and len(bare) > 1 and bare[0] == bare[-1] == '"':
            fact = f'the cell "{column[:60]}" has a blank before its quotes, which makes them part of the text'
            return RawRow(place, fault=fact, hint="remove the blank between the separator and the quote")
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
            row[column] = read_json(cell)
        except RepeatedKeyError as error:
            return RawRow(place, fault=f'the cell "{column}": {error}', hint=TWICE_HINT)
        except (ValueError, RecursionError):
            hint = f"{column} stands in its cell as in a .jsonl file, its quotes doubled"
            return RawRow(place, fault=f'the cell "{column}" is not JSON', hint=hint)
    return RawRow(place, row)


def _delimiter(text: str) -> str:
    """The separator under which the header has the most known columns: comma, or what spreadsheets write elsewhere."""
    header = next((line for line in text.splitlines() if line.strip()), "")
    return max(",;\t", key=lambda mark: len(KNOWN_KEYS & {name.strip(' "') for name in header.split(mark)}))
