"""`mlx-lora serve`: one base and its adapters behind OpenAI's HTTP API. Talk and log go to stderr."""

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_lora.chat.places import find_adapter
from mlx_lora.console import talk
from mlx_lora.errors import MlxLoraError
from mlx_lora.files import named_errors

if TYPE_CHECKING:
    from mlx_lora.serving.engine import Engine
    from mlx_lora.serving.limits import Limits
    from mlx_lora.serving.metrics import Metrics
    from mlx_lora.serving.residents import Residents

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_KEY_CHARACTERS = 16


def run_serve(
    adapters: list[Path],
    *,
    model: str | None,
    revision: str | None,
    folder: Path | None,
    host: str,
    port: int,
    key_file: Path | None,
    rows: int,
    waiting: int,
    cache_mib: int,
    log_prompts: bool,
) -> int:
    """Serve until a signal comes; running answers are then finished.

    adapters: folders, or names under adapters/; each answers by its folder's name. model: the base, by default that
    of the first adapter or the built-in one. folder: whose adapters may be loaded by name while the server runs.
    rows: answers generated at once; waiting: further ones that may wait; cache_mib: memory for what was read before.
    Returns 0. Raises: MlxLoraError.
    """
    key = None if key_file is None else _read_key(key_file)
    if host not in _LOOPBACK and key is None:
        raise MlxLoraError(
            f"--host {host}: others could use this server, and it has no key",
            "write a key into a file that only you can read, and name it with --api-key-file",
        )
    if folder is not None and not folder.is_dir():
        raise MlxLoraError(f"--adapters {folder}: no such folder")
    folders = _folders(adapters)
    with talk.status("loading…") if talk.is_terminal else nullcontext():
        from mlx_lora.serving.app import Service, build_app
        from mlx_lora.serving.limits import Limits
        from mlx_lora.serving.listening import listen, log_to_stderr, open_socket
        from mlx_lora.serving.metrics import Metrics

        listener = open_socket(host, port)  # a port that is taken is said before gigabytes are read
        metrics = Metrics()
        limits = Limits(rows=rows, waiting=waiting, cache_bytes=cache_mib << 20)
        engine, residents = _start(folders, model, revision, limits, metrics)
    with listener:
        shown = f"[{host}]" if ":" in host else host
        _introduce(engine, residents, f"http://{shown}:{listener.getsockname()[1]}")
        log_to_stderr()
        service = Service(engine, residents, metrics, adapters=folder, log_prompts=log_prompts)
        listen(build_app(service, key=key), listener, grace_seconds=limits.request_seconds)
    engine.stop()
    talk.print("ended")
    return 0


def _start(
    folders: dict[str, Path], model: str | None, revision: str | None, limits: "Limits", metrics: "Metrics"
) -> "tuple[Engine, Residents]":
    """Load base and adapters into a running engine. Raises: MlxLoraError."""
    from mlx_lora.chat.voice import base_for
    from mlx_lora.model.load import load_base
    from mlx_lora.serving.engine import Engine
    from mlx_lora.serving.refusals import Refusal

    name, chosen = base_for(list(folders.values()), model=model, revision=revision)
    engine = Engine(partial(load_base, name, revision=chosen), limits, metrics)
    residents = engine.start()
    for name, folder in folders.items():
        try:
            engine.call(partial(residents.load, name, folder)).result()
        except Refusal as refusal:  # the base has this name
            raise MlxLoraError(f"{folder}: {refusal.message}", "rename the adapter's folder") from refusal
    metrics.gauges(adapters=len(folders))
    return engine, residents


def _introduce(engine: "Engine", residents: "Residents", address: str) -> None:
    """Say who can be asked, and where."""
    talk.print(f"{residents.base_name}: {residents.compute}", markup=False)
    for speaker in residents.speakers.values():
        if speaker.owner is not None:
            facts = speaker.facts
            talk.print(f"  {speaker.name}: rank {facts['rank']}, {facts['modules']} modules active", markup=False)
            for note in facts["notes"]:
                talk.print(f"  note: {note}", markup=False)
    if not engine.shares_batches:
        talk.print("note: this family cannot mix rows of different lengths: one answer is generated at a time")
    talk.print(
        f"serving at {address}/v1, a page to try it at {address}/ (Ctrl-C ends it)", markup=False, soft_wrap=True
    )


def _folders(adapters: list[Path]) -> dict[str, Path]:
    """Name → folder of each adapter. Raises: MlxLoraError for one that is not there, or a name that comes twice."""
    folders: dict[str, Path] = {}
    for adapter in adapters:
        folder = find_adapter(str(adapter))
        name = folder.resolve().name
        if name in folders:
            raise MlxLoraError(f"{folder}: {folders[name]} is called {name} too", "rename one of the folders")
        folders[name] = folder
    return folders


def _read_key(path: Path) -> str:
    """The key in the file. Raises: MlxLoraError when it is missing, too short, or not one line of ASCII."""
    with named_errors(path):
        key = path.read_bytes().strip()
    if len(key) < _KEY_CHARACTERS or len(key.split()) != 1 or not key.isascii():
        raise MlxLoraError(
            f"{path}: a key is one line of at least {_KEY_CHARACTERS} ASCII characters without spaces",
            f"python -c 'import secrets; print(secrets.token_urlsafe())' > {path}",
        )
    if path.stat().st_mode & 0o077:
        talk.print(f"note: {path} can be read by others: chmod 600 {path}", markup=False)
    return key.decode("ascii")
