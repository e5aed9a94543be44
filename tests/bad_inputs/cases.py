"""The corpus: tables of cases (*.yaml) and the files that a case needs. Knows nothing of what the program says to them.

A table has `about`, defaults for its cases, and `cases`. A case has:

    case      what is wrong, in words
    command   what is typed after `mlx-lora`
    code      the exit code, 1 unless it says 2
    place     where the fault is, as the message must name it, on one line with
    fact      what is wrong there
    remedy    part of the hint (of the whole output, for a usage error)
    given     what lies in the folder: model, adapter, rows.jsonl, run.yaml (see `Prepared`)
    add       lines added to run.yaml
    files     name → content: a text, or one of the forms of `_write`
    change    edits of what lies there, in order: the forms of `_change`
"""

import json
import os
import shutil
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx_lora  # isort: skip  # before mlx.core: it loads OpenBLAS
import mlx.core as mx
import yaml

from mlx_lora.config import LoraSettings
from mlx_lora.lora.adapter import save_adapter
from mlx_lora.lora.inject import inject_lora, iter_lora_modules
from mlx_lora.lora.tensor_file import encode_tensors
from mlx_lora.model.load import load_base
from tests.tiny import save_tiny_folder

assert mlx_lora
TABLES = sorted(Path(__file__).parent.glob("*.yaml"))
RUN = """\
model: model
data: {train: rows.jsonl, valid_share: 0.0}
train: {steps: 2, batch_size: 2}
output_dir: out
"""
ROWS = "".join(f'{{"question": "Who won in {year}?", "answer": "Ann"}}\n' for year in range(1901, 1905))
WEIGHTS = "adapter/adapters.safetensors"


@dataclass(frozen=True)
class Case:
    """One bad input and what must be said of it."""

    table: str
    case: str
    command: str
    place: str
    fact: str
    remedy: str
    code: int = 1
    given: list[str] = field(default_factory=list)
    add: str = ""
    files: dict[str, Any] = field(default_factory=dict)
    change: list[dict[str, Any]] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.table}: {self.case}"


def read_cases() -> list[Case]:
    """Every case of every table."""
    found = []
    for path in TABLES:
        table = yaml.safe_load(path.read_text(encoding="utf-8"))
        about, cases = table.pop("about"), table.pop("cases")
        assert isinstance(about, str)
        found += [Case(table=path.stem, **{**table, **case}) for case in cases]
    return found


class Prepared:
    """What cases start from, made once: a tiny model, an adapter trained on it, good rows and a good run file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        save_tiny_folder(folder / "model")
        base = load_base(str(folder / "model"))
        settings = LoraSettings(rank=4)
        inject_lora(base.model, settings, seed=0)
        for index, (_, layer) in enumerate(iter_lora_modules(base.model)):
            layer.lora_b = 0.05 * mx.random.normal(layer.lora_b.shape, key=mx.random.key(index))
        facts = {"model": "model", "identity": vars(base.identity), "system_prompt": "Be brief.", "step": 2}
        save_adapter(folder / "adapter", base.model, settings=settings, metadata=facts)
        (folder / "rows.jsonl").write_text(ROWS, encoding="utf-8")
        (folder / "run.yaml").write_text(RUN, encoding="utf-8")

    def lay_out(self, case: Case, folder: Path) -> None:
        """Put into `folder` all that the case needs."""
        for name in case.given:
            source = self.folder / name
            copy = shutil.copytree if source.is_dir() else shutil.copyfile
            copy(source, folder / name)
        for name, content in case.files.items():
            _write(folder / name, content)
        if case.add:
            with (folder / "run.yaml").open("a", encoding="utf-8") as file:
                file.write(case.add + "\n")
        for change in case.change:
            ((kind, values),) = change.items()
            _change(folder, kind, values)


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        path.unlink()
    match content:
        case str(text):
            path.write_bytes(text.encode("utf-8", "surrogateescape"))
        case {"hex": digits}:
            path.write_bytes(bytes.fromhex(digits))
        case {"text": text, "encoding": encoding}:
            path.write_bytes(text.encode(encoding))
        case {"repeat": text, "times": times, **ends}:
            path.write_text(ends.get("before", "") + text * times + ends.get("after", ""), encoding="utf-8")
        case {"link": target}:
            path.symlink_to(target)
        case {"folder": True}:
            path.mkdir()
        case {"pipe": True}:
            os.mkfifo(path)
        case {"header": header, **rest}:
            path.write_bytes(_tensor_file(header, **rest))
        case _:
            raise AssertionError(f"{path}: no form of content: {content}")


def _tensor_file(header: Any, *, body: int = 0, announced: int | None = None, times: int = 1) -> bytes:
    """A safetensors file: `header` as JSON or as it is (`times` over), its length as `announced`, then `body` zeros."""
    text = header.encode() * times if isinstance(header, str) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if announced is None else announced) + text + bytes(body)


def _change(folder: Path, kind: str, values: Any) -> None:
    match kind, values:
        case "delete", name:
            (folder / name).unlink()
        case "cut", [name, size]:
            (folder / name).write_bytes((folder / name).read_bytes()[:size])
        case "flip", [name, place]:
            content = bytearray((folder / name).read_bytes())
            content[place] ^= 1
            (folder / name).write_bytes(content)
        case (("set" | "unset"), [name, key, *value]):
            whole = json.loads((folder / name).read_text(encoding="utf-8"))
            *parents, last = key.split(".")
            part = whole
            for parent in parents:
                part = part[parent]
            if kind == "set":
                part[last] = value[0]
            else:
                del part[last]
            (folder / name).write_text(json.dumps(whole), encoding="utf-8")
        case "tensors", edits:
            tensors = dict(mx.load(str(folder / WEIGHTS)))
            for edit, name, *value in edits:
                _edit_tensors(tensors, edit, name, value)
            (folder / WEIGHTS).write_bytes(encode_tensors(tensors, {}))
        case _:
            raise AssertionError(f"no form of change: {kind}: {values}")


def _edit_tensors(tensors: dict[str, mx.array], edit: str, name: str, value: list[Any]) -> None:
    match edit, value:
        case "drop", []:
            del tensors[name]
        case "rename", [new]:
            tensors[new] = tensors.pop(name)
        case "shape", [shape]:
            tensors[name] = mx.zeros(shape)
        case "fill", [number]:  # all whose names end so
            for each in [each for each in tensors if each.endswith(name)]:
                tensors[each] = mx.full(tensors[each].shape, float(number))
        case _:
            raise AssertionError(f"no edit of tensors: {edit} {name} {value}")
