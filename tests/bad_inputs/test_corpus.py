"""Bad input, case by case: exit code, place, fact and remedy, no traceback, and nothing written. See cases.py."""

import hashlib
import io
import shlex
import sys
from collections import Counter
from pathlib import Path

import pytest

from mlx_lora.__main__ import main
from tests.bad_inputs.cases import Case, Prepared, read_cases

CASES = read_cases()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return Prepared(tmp_path_factory.mktemp("prepared"))


def snapshot(folder: Path) -> dict[str, str]:
    """Every file, folder and link below `folder`, with what it holds."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            held = f"→ {path.readlink()}"
        elif path.is_file():
            held = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            held = "folder" if path.is_dir() else "neither file nor folder"
        found[str(path.relative_to(folder))] = held
    return found


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bad_input_ends_with_place_fact_and_remedy_and_nothing_written(
    case: Case,
    prepared: Prepared,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    prepared.lay_out(case, folder)
    monkeypatch.chdir(folder)
    for name, value in {"HOME": "home", "MLX_LORA_CACHE": "cache"}.items():
        monkeypatch.setenv(name, str(tmp_path / value))
    for name, value in {"COLUMNS": "400", "NO_COLOR": "1"}.items():  # so that no line of an error is broken in two
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MLX_LORA_DEBUG", raising=False)
    monkeypatch.setattr("mlx_lora.model.template_limits.LONGEST_SECONDS", 0.5)
    monkeypatch.setattr("mlx_lora.model.template_limits.LONGEST_TEXT", 1_000_000)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # the variable was read at the first import
    monkeypatch.setattr(sys, "path", [*sys.path])  # eval adds the folder it is in
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # of metrics that lie beside the data
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    monkeypatch.setattr(sys, "argv", ["mlx-lora", *shlex.split(case.command)])
    before = snapshot(tmp_path)
    capsys.readouterr()

    with pytest.raises(SystemExit) as end:  # any other exception would be a traceback
        main()

    printed = capsys.readouterr()
    said = printed.err + printed.out
    assert end.value.code == case.code, said
    assert any(case.place in line and case.fact in line for line in said.splitlines()), said
    assert case.remedy in (said if case.code == 2 else said.partition("hint: ")[2]), said
    assert "Traceback" not in said
    assert snapshot(tmp_path) == before


def test_the_corpus_is_large_and_no_case_stands_twice() -> None:
    assert len(CASES) >= 150
    names = Counter(map(str, CASES))
    assert [name for name, count in names.items() if count > 1] == []
    inputs = Counter(repr((case.command, case.given, case.add, case.files, case.change)) for case in CASES)
    assert [input for input, count in inputs.items() if count > 1] == []
    assert [str(case) for case in CASES if not (case.place and case.fact and case.remedy)] == []
