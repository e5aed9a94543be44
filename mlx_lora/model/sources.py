"""A model's name to a folder on this disk: built in, a folder, or a Hugging Face id. Reads no weights."""

import difflib
import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_lora.errors import ModelError
from mlx_lora.files import typed_path
from mlx_lora.model.builtin import BUILTIN_MODELS, ensure_builtin
from mlx_lora.model.gguf_cache import ensure_gguf

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tiktoken.model", "vocab.json", "vocab.txt", "*.tiktoken")
# Never code (*.py), never pickles (*.bin, *.pt): what is not on the disk cannot be run.
_TEXT_PATTERNS = ["*.json", "*.jinja", "merges.txt", *TOKENIZER_FILES]
_WEIGHT_PATTERNS = ["model*.safetensors"]
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_FILE_KINDS = {
    ".gguf": "a GGUF file",
    ".bin": "a torch file",
    ".pt": "a torch file",
    ".pth": "a torch file",
    ".ckpt": "a torch file",
    ".safetensors": "one weights file",
    ".npz": "a NumPy archive",
}
_CONVERT = "look for an MLX version on Hugging Face (mlx-community/…), or convert the original with `mlx_lm.convert`"


@dataclass(frozen=True)
class Source:
    """Where a model was found: the folder, and the name and revision by which other machines find it too."""

    path: Path
    name: str
    revision: str | None


def resolve_model(name: str, *, revision: str | None = None) -> Path:
    """The folder of model `name`, fetched or converted first where needed. Raises: ModelError."""
    return find_source(name, revision=revision).path


def find_source(name: str, *, revision: str | None = None, weights: bool = True) -> Source:
    """Find model `name`: a built-in name, else a folder, else a Hugging Face id (without `weights`, its text).

    Raises: ModelError with place, fact and remedy.
    """
    if not name.strip():
        raise ModelError("model: the name is empty", f"such as {next(iter(BUILTIN_MODELS))}")
    path = typed_path(name)
    if name in BUILTIN_MODELS or path.exists():
        if revision is not None:
            raise ModelError(
                f"model {name}: revision {revision!r} is set, but only Hugging Face models have revisions",
                "remove `revision`",
            )
        if name in BUILTIN_MODELS:
            return Source(ensure_builtin(name), name, None)
        if _is_gguf(path):
            return Source(ensure_gguf(path), path.resolve().name, None)
        return Source(_checked_folder(path, name), path.resolve().name, None)
    _refuse_file_name(name, path)
    if _looks_like_path(name) or _HUB_ID.fullmatch(name) is None:
        address = re.match(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)", name)
        hint = f"write the id alone: {address[1]}" if address else _suggestion(name)
        raise ModelError(
            f"model {name}: no such folder",
            hint or "check the spelling of the path; --model names the base of an adapter anew",
        )
    if "/" not in name and (suggestion := _suggestion(name)):
        raise ModelError(f"model {name}: neither a built-in model nor a folder", suggestion)
    return _fetch(name, revision, weights)


def _is_gguf(path: Path) -> bool:
    return path.suffix.lower() == ".gguf" and path.is_file()


def _checked_folder(path: Path, name: str) -> Path:
    _refuse_file_name(name, path)
    if not path.is_dir():
        raise ModelError(f"model {name}: is a file, expected a folder", "give the folder that holds config.json")
    if (path / "config.json").is_file():
        return path
    if (path / "adapter_config.json").is_file():
        raise ModelError(
            f"model {name}: is an adapter, not a model",
            "give its base as the model; adapters go to chat, eval and fuse",
        )
    for kind in ("gguf", "bin", "pt", "pth"):
        if any(path.glob(f"*.{kind}")):
            hint = "give the .gguf file itself" if kind == "gguf" else _CONVERT
            raise ModelError(f"model {name}: holds {_FILE_KINDS['.' + kind]} and no config.json", hint)
    raise ModelError(f"model {name}: has no config.json", "give the folder that holds config.json and *.safetensors")


def _refuse_file_name(name: str, path: Path) -> None:
    kind = _FILE_KINDS.get(path.suffix.lower())
    if kind is not None and not path.is_dir():
        missing = "" if path.exists() else " (and there is no such file)"
        if path.suffix.lower() == ".gguf":
            raise ModelError(f"model {name}: no such file", "check the spelling of the path")
        hint = "give the folder that holds it" if path.suffix == ".safetensors" else _CONVERT
        raise ModelError(f"model {name}: is {kind}{missing}, expected a folder with safetensors weights", hint)


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "~", os.sep)) or name.count("/") > 1 or name.endswith("/") or "\\" in name


def _suggestion(name: str) -> str | None:
    lowered = {known.lower(): known for known in BUILTIN_MODELS}
    near = difflib.get_close_matches(name.lower().rpartition("/")[2], lowered, n=1, cutoff=0.7)
    return f"did you mean the built-in model {lowered[near[0]]}?" if near else None


def _fetch(name: str, revision: str | None, weights: bool) -> Source:
    import huggingface_hub
    import huggingface_hub.errors as hub

    network_error: Any = hub.HfHubHTTPError.__mro__[1]  # httpx's base class, whichever httpx the hub library uses
    patterns = _TEXT_PATTERNS + (_WEIGHT_PATTERNS if weights else [])
    try:
        with _progress_bars(weights and sys.stderr.isatty()):
            folder = Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=patterns))
    except hub.GatedRepoError as error:
        raise ModelError(
            f"model {name}: access is gated",
            f"accept its terms at https://huggingface.co/{name}, then log in with `hf auth login`",
        ) from error
    except hub.RepositoryNotFoundError as error:
        raise ModelError(
            f"model {name}: not found on Hugging Face",
            _suggestion(name) or "check the spelling; for a private model, log in with `hf auth login`",
        ) from error
    except hub.RevisionNotFoundError as error:
        raise ModelError(
            f"model {name}: has no revision {revision!r}", f"see https://huggingface.co/{name}/commits/main"
        ) from error
    except hub.HFValidationError as error:
        hint = _suggestion(name) or "check the spelling: an id reads owner/name"
        raise ModelError(f"model {name}: neither a folder nor a Hugging Face id", hint) from error
    except (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled) as error:
        raise _unreachable(name, error) from error
    except (OSError, RuntimeError, hub.XetDownloadError, network_error) as error:
        raise _interrupted(name, error) from error
    commit = folder.name if folder.parent.name == "snapshots" else revision or "main"
    if not (folder / "config.json").is_file():
        raise ModelError(f"model {name}: the repository has no config.json", _CONVERT)
    return Source(folder, name, commit)


@contextmanager
def _progress_bars(shown: bool) -> Iterator[None]:
    """Bars for gigabytes and a person who watches, none for a few small files."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if shown or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _unreachable(name: str, error: Exception) -> ModelError:
    from huggingface_hub import constants

    instead = _suggestion(name)
    if (status := _status(error.__cause__)) is not None:
        return ModelError(
            f"model {name}: not in the local cache, and huggingface.co answered HTTP {status}",
            instead or ("log in with `hf auth login`" if status in (401, 403) else "try again later"),
        )
    if constants.HF_HUB_OFFLINE:
        return ModelError(
            f"model {name}: not in the local cache, and HF_HUB_OFFLINE is set",
            instead or "unset HF_HUB_OFFLINE to download it, or give a folder",
        )
    return ModelError(
        f"model {name}: not in the local cache, and huggingface.co cannot be reached",
        instead or "check the network, or give a folder; smollm2-135m-instruct is built in and needs no network",
    )


def _interrupted(name: str, error: Exception) -> ModelError:
    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC) in str(error):
        return ModelError(
            f"model {name}: not enough disk space to download it",
            "free some space, or let HF_HOME name a folder on another disk; the download goes on where it stopped",
        )
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return ModelError(
            f"model {name}: the cache folder cannot be written: {error}", "let HF_HOME name a folder that you own"
        )
    status = _status(error)
    if status in (401, 403):
        return ModelError(
            f"model {name}: Hugging Face refused access (HTTP {status})",
            "log in with `hf auth login`, and accept its terms",
        )
    first_line = (str(error).splitlines() or [type(error).__name__])[0]
    return ModelError(
        f"model {name}: the download failed: {first_line}", "run it again: the download goes on where it stopped"
    )


def _status(error: BaseException | None) -> int | None:
    """The HTTP status that an error of the hub library carries."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None
