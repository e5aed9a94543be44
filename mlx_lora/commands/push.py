"""`mlx-lora push`: an adapter to the Hugging Face Hub, private unless asked, cleaned of what is this machine's."""

import json
import sys
from pathlib import Path

from mlx_lora.chat.places import find_adapter
from mlx_lora.console import talk
from mlx_lora.errors import ModelError
from mlx_lora.screen import format_bytes


def run_push(
    name: str,
    repository: str,
    *,
    public: bool = False,
    update: bool = False,
    dry_run: bool = False,
    json_output: bool = False,
) -> int:
    """Send an adapter with a model card to the repository user/name in one commit; return exit code 0.

    public: for everybody to see. update: add a commit where the repository is there already. dry_run: list the files
    and print the card, and send nothing.
    Raises: AdapterError for an adapter that cannot be read, ModelError for what the Hub refuses.
    """
    from mlx_lora.lora.adapter import read_adapter
    from mlx_lora.model.hub import check_repository_name, commit_files, create_repository, own_token
    from mlx_lora.report.publication import publication
    from mlx_lora.report.runs import read_run

    check_repository_name(repository)
    folder = find_adapter(name)
    read_adapter(folder)  # what cannot be loaded is not sent
    run = read_run(folder)
    card = _card(folder, repository)
    token = "" if dry_run else own_token()
    files = publication(folder, run, card, (token,))
    sizes = {
        path: len(content) if isinstance(content, bytes) else content.stat().st_size for path, content in files.items()
    }
    visible = "public" if public else "private"
    if dry_run:
        talk.print(f"{repository} ({visible}) would get:", markup=False, soft_wrap=True)
    for path, size in sizes.items():
        talk.print(f"  {path}  {format_bytes(size)}", markup=False, soft_wrap=True)
    if dry_run:
        sys.stdout.write(
            json.dumps({"repository": repository, "files": sizes, "card": card}) + "\n" if json_output else card
        )
        return 0
    create_repository(repository, private=not public, existing=update)
    try:
        address, commit = commit_files(repository, files, f"Add {run.name}, trained with mlx-lora")
    except ModelError as error:
        left = "" if update else f"; {repository} was made and is empty: --update fills it"
        raise ModelError(error.message, f"{error.hint}{left}") from error
    talk.print(f"{repository}: {len(files)} files, {visible}: {address}", markup=False, soft_wrap=True)
    if json_output:
        value = {"repository": repository, "commit": commit, "address": address, "public": public, "files": sizes}
        sys.stdout.write(json.dumps(value) + "\n")
    return 0


def _card(folder: Path, repository: str) -> str:
    from mlx_lora.lora.adapter_config import read_adapter_config
    from mlx_lora.lora.rendering import model_of
    from mlx_lora.model.builtin import BUILTIN_MODELS
    from mlx_lora.model.licence import base_licence
    from mlx_lora.report.card import adapter_card
    from mlx_lora.report.runs import read_run

    model, revision = model_of(read_adapter_config(folder)[0], folder)
    here = model in BUILTIN_MODELS or Path(model).expanduser().is_dir()  # else nothing is asked of the network for it
    return adapter_card(read_run(folder), name=repository, licence=base_licence(model, revision) if here else None)
