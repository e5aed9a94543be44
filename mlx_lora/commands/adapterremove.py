"""`mlx-lora adapters rm`: an adapter's folder gone, and nothing else: no other folder, nothing behind a link."""

import sys
from pathlib import Path

from mlx_lora.chat.places import find_adapter
from mlx_lora.console import talk
from mlx_lora.errors import AdapterError, MlxLoraError
from mlx_lora.files import remove_folder
from mlx_lora.screen import format_bytes
from mlx_lora.training.runfolder import LOCK_FILE, claimed_folder

# All that the program writes into an adapter's folder, and what file browsers leave.
_OWN_FILES = {"adapters.safetensors", "adapter_config.json", "run.yaml", "metrics.jsonl", "report.html", "README.md"}
_OWN_FILES |= {"adapter_model.safetensors", ".gitattributes", "hub.json", ".DS_Store", LOCK_FILE}
_OWN_FOLDERS = {"checkpoints", "eval"}
_OWN_NAMES = {True: _OWN_FOLDERS, False: _OWN_FILES}


def run_adapters_remove(name: str, *, yes: bool = False) -> int:
    """Delete an adapter's folder after asking (`yes`: without); return 0, or 1 when the answer was no.

    Raises: AdapterError for what is no adapter's folder, is reached by a link, holds files of others, or is in use.
    """
    folder = find_adapter(name)
    _refuse_others(folder)
    size = sum(file.lstat().st_size for file in folder.rglob("*") if not file.is_dir())
    if not yes and not _agreed(folder, size):
        talk.print("nothing was removed", markup=False)
        return 1
    with claimed_folder(folder, resume=True, overwrite=False):  # no run trains into it
        remove_folder(folder)
    talk.print(f"removed {folder} ({format_bytes(size)})", markup=False, soft_wrap=True)
    return 0


def _refuse_others(folder: Path) -> None:
    """Nothing is deleted unless every file in it is of the kind that the program writes there."""
    if folder.is_symlink():
        raise AdapterError(
            f"{folder}: is a link to {folder.resolve()}", "remove the link itself, or name the folder that it leads to"
        )
    foreign = sorted(
        entry.name + ("/" if entry.is_dir() else "")
        for entry in folder.iterdir()
        if entry.is_symlink() or (entry.name not in _OWN_NAMES[entry.is_dir()] and ".partial-" not in entry.name)
    )
    if foreign:
        more = f" and {len(foreign) - 5} more" if len(foreign) > 5 else ""
        raise AdapterError(
            f"{folder}: holds what no adapter has: {', '.join(foreign[:5])}{more}; nothing was removed",
            "move these away first, or delete the folder yourself",
        )
    if Path.cwd().is_relative_to(folder.resolve()):
        raise AdapterError(f"{folder}: is the folder that you are in", "go to another folder first")


def _agreed(folder: Path, size: int) -> bool:
    if not sys.stdin.isatty():
        raise MlxLoraError(f"{folder}: nobody can be asked here whether to remove it", "add --yes")
    talk.print(f"Remove {folder} ({format_bytes(size)})? It cannot be undone. [y/N] ", markup=False, end="")
    return sys.stdin.readline().strip().lower() in ("y", "yes")
