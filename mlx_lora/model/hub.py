"""Repositories of adapters on the Hugging Face Hub: create, commit, look, fetch. Knows nothing of what is in the files.

Its address is HF_ENDPOINT where that is set, the token that of `hf auth login` or HF_TOKEN; neither is ever shown.
"""

import errno
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_lora.errors import ModelError
from mlx_lora.files import named_errors

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"  # neither - nor . at an end
_NAME = re.compile(f"{_PART}/{_PART}")
_LOGIN = "log in with `hf auth login`, or set HF_TOKEN"


@dataclass(frozen=True)
class Repository:
    """A model repository as it is at one commit: path → size in bytes, and the SHA-256 where the Hub knows one."""

    name: str
    commit: str
    private: bool
    sizes: Mapping[str, int]
    sha256: Mapping[str, str]


def check_repository_name(name: str) -> None:
    """Raises: ModelError when `name` is not of the form user/name, as the Hub takes it."""
    if _NAME.fullmatch(name) is None or ".." in name or "--" in name or name.endswith(".git"):
        raise ModelError(f"{name}: not the name of a repository", "write user/name, such as anna/my-adapter")


def own_token() -> str:
    """The token to write with. Raises: ModelError where nobody is logged in."""
    from huggingface_hub import get_token

    token = get_token()
    if token is None:
        raise ModelError("no token for Hugging Face on this machine", _LOGIN)
    return str(token)


def create_repository(name: str, *, private: bool, existing: bool = False) -> None:
    """Make the model repository. Raises: ModelError, also when it is there already and not `existing`."""
    check_repository_name(name)
    with _hub_errors(name):
        _api().create_repo(name, private=private, exist_ok=existing)


def commit_files(name: str, files: Mapping[str, bytes | Path], message: str) -> tuple[str, str]:
    """Add or replace files in one commit: all of them or none; its address and its hash. Raises: ModelError."""
    from huggingface_hub import CommitOperationAdd

    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    with _hub_errors(name), _quietly():
        info = _api().create_commit(name, operations, commit_message=message)
    return str(info.commit_url), str(info.oid)


def describe_repository(name: str, revision: str | None = None) -> Repository:
    """What is in the repository at a branch, tag or commit. Raises: ModelError."""
    check_repository_name(name)
    with _hub_errors(name, revision):
        info = _api().model_info(name, revision=revision, files_metadata=True)
    siblings = info.siblings or []
    return Repository(
        name,
        str(info.sha),
        bool(info.private),
        {one.rfilename: int(one.size or 0) for one in siblings},
        {one.rfilename: str(one.lfs.sha256) for one in siblings if one.lfs is not None},
    )


def fetch_files(repository: Repository, paths: Sequence[str], folder: Path) -> None:
    """Copy files of that commit into `folder`, each held against its size and hash. Raises: ModelError."""
    for path in paths:
        with _hub_errors(repository.name, repository.commit), _quietly():
            cached = Path(_api().hf_hub_download(repository.name, path, revision=repository.commit))
        target = folder / path
        with named_errors(target):
            content = cached.read_bytes()
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        expected = repository.sha256.get(path, "")
        digest = hashlib.sha256(content).hexdigest()
        if len(content) != repository.sizes[path] or (expected and digest != expected):
            raise ModelError(
                f"{repository.name}: {path} is not what the Hub says it is ({len(content)} bytes)",
                f"remove {cached.resolve()} and pull again",
            )


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi()


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the library's own bars and remarks: what matters is said by the command."""
    import logging
    import warnings

    from huggingface_hub.utils import logging as hub_logging
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    before = are_progress_bars_disabled()
    verbosity = hub_logging.get_verbosity()
    disable_progress_bars()
    hub_logging.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        hub_logging.set_verbosity(verbosity)
        if not before:
            enable_progress_bars()


@contextmanager
def _hub_errors(name: str, revision: str | None = None) -> Iterator[None]:
    """Turn what the hub library raises into a ModelError of one line, with its remedy."""
    import huggingface_hub.errors as hub

    network_error: Any = hub.HfHubHTTPError.__mro__[1]  # httpx's base class, whichever httpx the hub library uses
    try:
        yield
    except hub.GatedRepoError as error:
        raise ModelError(f"{name}: access is gated", f"accept its terms at {_address()}/{name}") from error
    except hub.RevisionNotFoundError as error:
        raise ModelError(f"{name}: has no revision {revision!r}", f"see {_address()}/{name}/commits/main") from error
    except (hub.OfflineModeIsEnabled, hub.LocalEntryNotFoundError) as error:
        offline = isinstance(error, hub.OfflineModeIsEnabled)
        fact = "HF_HUB_OFFLINE is set" if offline else f"{_address()} cannot be reached"
        raise ModelError(f"{name}: {fact}", "unset it" if offline else "check the network, and try again") from error
    except (hub.HfHubHTTPError, network_error, OSError, RuntimeError, ValueError, hub.XetDownloadError) as error:
        raise _explained(name, error) from error


def _explained(name: str, error: Exception) -> ModelError:
    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT):
        return ModelError(
            f"{name}: not enough disk space", "free some space, or let HF_HOME name a folder on another disk"
        )
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return ModelError(f"{name}: the cache folder cannot be written: {error}", "let HF_HOME name a folder you own")
    status = getattr(getattr(error, "response", None), "status_code", None)
    told = getattr(error, "server_message", None) or (str(error).splitlines() or [type(error).__name__])[0]
    if status == 401:
        return ModelError(f"{name}: the Hub does not accept the token, or hides the repository (HTTP 401)", _LOGIN)
    if status == 403:
        return ModelError(
            f"{name}: this token may not do that (HTTP 403: {told})",
            f"give it the right to write, at {_address()}/settings/tokens, or use a name of your own",
        )
    if status == 404:
        return ModelError(f"{name}: no such repository (HTTP 404)", f"check the spelling; if it is private, {_LOGIN}")
    if status == 409:
        return ModelError(f"{name}: exists already", "--update adds a commit to it; or choose another name")
    if status is None:
        return ModelError(f"{name}: {_address()} cannot be reached: {told}", "check the network, and try again")
    return ModelError(f"{name}: the Hub answered HTTP {status}: {told}", "try again later")


def _address() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)
