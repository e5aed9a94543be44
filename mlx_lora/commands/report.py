"""`mlx-lora report`: what a run did, or several, as one HTML file that needs nothing else."""

import webbrowser
from collections.abc import Sequence
from pathlib import Path

from mlx_lora.console import talk
from mlx_lora.errors import AdapterError, MlxLoraError
from mlx_lora.files import named_errors, refuse_unwritable, typed_path, write_whole

COMPARISON = Path("comparison.html")


def run_report(names: Sequence[str], *, output: Path | None = None, show: bool = False) -> int:
    """Write the page of the runs to `output`, else to report.html in the run's folder, or comparison.html here.

    A report that lies there is replaced, any other file is kept. The path goes to stdout; the return value is the exit
    code. Raises: MlxLoraError when a run cannot be found or read, or the page cannot be written.
    """
    from mlx_lora.report.comparison import comparison_page
    from mlx_lora.report.pages import run_page
    from mlx_lora.report.runs import read_run

    folders: dict[Path, Path] = {}
    for name in dict.fromkeys(names):
        folder = _find_run(name)
        if folder.resolve() in folders:
            fact = f"{name}: the same run is named twice, also as {folders[folder.resolve()]}"
            raise MlxLoraError(fact, "a comparison needs different runs")
        folders[folder.resolve()] = folder
    runs = [read_run(folder) for folder in folders.values()]
    path = typed_path(output or (next(iter(folders.values())) / "report.html" if len(runs) == 1 else COMPARISON))
    _refuse_foreign(path)
    refuse_unwritable(path)
    page = run_page(runs[0]) if len(runs) == 1 else comparison_page(runs)
    write_whole(path, page.encode("utf-8", "replace"))  # JSON can spell half of a surrogate pair
    print(path)
    if show and not webbrowser.open(path.resolve().as_uri()):
        talk.print("note: no browser could be started here: open the file yourself", markup=False)
    return 0


def _find_run(name: str) -> Path:
    """The run's folder: a path, or a name under adapters/."""
    from mlx_lora.chat.places import ADAPTERS, find_adapter
    from mlx_lora.report.runs import is_run

    path = typed_path(name)
    for folder in (path, path.parent) if path.is_file() else (path, ADAPTERS / path):
        if is_run(folder):
            return folder
    if path.is_dir():
        return path  # its own message says what is missing
    try:
        return find_adapter(name)
    except AdapterError as error:
        raise AdapterError(
            f"{name}: no such run folder, and none of that name under {ADAPTERS}/", error.hint
        ) from error


def _refuse_foreign(path: Path) -> None:
    """Nothing but a report of ours is replaced."""
    from mlx_lora.report.pages import GENERATOR

    with named_errors(path):
        if path.is_dir():
            raise MlxLoraError(f"{path}: is a folder", "give the name of a file, such as report.html")
        if path.exists() and GENERATOR not in path.read_bytes()[:4096]:
            raise MlxLoraError(f"{path}: exists and is no report", "choose another name; nothing was overwritten")
