"""`mlx-lora pull`: an adapter from the Hugging Face Hub, checked before it is put in place, its commit recorded."""

import json
import re
import sys
from pathlib import Path

from mlx_lora.chat.places import ADAPTERS
from mlx_lora.console import talk
from mlx_lora.errors import AdapterError
from mlx_lora.files import refuse_unwritable, typed_path, whole_folder, write_json

HUB_FILE = "hub.json"  # which commit of which repository the folder is
# Only what an adapter is made of: no code, no pickles, no other weights, no folders but eval/.
_WANTED = re.compile(
    r"adapters\.safetensors|adapter_config\.json|run\.yaml|metrics\.jsonl|README\.md|eval/[^/\\:\x00-\x1f]+\.json"
)
_LARGEST_TEXT = 64_000_000  # bytes of any file but the weights


def read_origin(folder: Path) -> str | None:
    """Such as "user/name at 0123456789ab" for a folder that was pulled; None for any other."""
    try:
        found = json.loads((folder / HUB_FILE).read_text(encoding="utf-8"))
        return f"{found['repository']} at {str(found['commit'])[:12]}"
    except (OSError, ValueError, LookupError, TypeError):
        return None


def run_pull(
    repository: str, output: Path | None = None, *, revision: str | None = None, json_output: bool = False
) -> int:
    """Fetch the adapter in the repository user/name into `output` (adapters/name by default); return exit code 0.

    revision: a branch, tag or commit; whichever it is, the commit is what is fetched and recorded.
    Raises: ModelError for what the Hub refuses, AdapterError for what is no whole adapter; nothing is then left.
    """
    from mlx_lora.lora.adapter import read_adapter
    from mlx_lora.lora.adapter_config import PEFT_WEIGHTS_FILE, WEIGHTS_FILE
    from mlx_lora.model.hub import check_repository_name, describe_repository, fetch_files

    check_repository_name(repository)
    output = typed_path(output) if output is not None else ADAPTERS / repository.partition("/")[2]
    refuse_unwritable(output)
    found = describe_repository(repository, revision)
    if WEIGHTS_FILE not in found.sizes:
        peft = PEFT_WEIGHTS_FILE in found.sizes
        raise AdapterError(
            f"{repository}: holds {'a PEFT adapter' if peft else 'no adapter'}, not one of MLX ({WEIGHTS_FILE})",
            f"`hf download {repository} --local-dir DIR`, then `mlx-lora import DIR -o adapters/NAME`"
            if peft
            else "is it the right repository?",
        )
    wanted = [
        path
        for path, size in found.sizes.items()
        if _WANTED.fullmatch(path) and (size <= _LARGEST_TEXT or path == WEIGHTS_FILE)
    ]
    with whole_folder(output) as temporary:
        fetch_files(found, wanted, temporary)
        try:
            adapter = read_adapter(temporary)
        except AdapterError as error:
            message = error.message.replace(str(temporary), repository)
            raise AdapterError(f"{message}; nothing was kept", error.hint) from error
        write_json(temporary / HUB_FILE, {"repository": repository, "commit": found.commit, "revision": revision})
    model = adapter.facts.get("model") or "a base that it does not name"
    left_out = len(found.sizes) - len(wanted)
    talk.print(
        f"{output}: {adapter.parameters.method} {adapter.parameters.rank} for {model}, of {repository} at "
        f"{found.commit[:12]}; {len(wanted)} files, {left_out} left there",
        markup=False,
        soft_wrap=True,
    )
    if json_output:
        value = {"output": str(output), "repository": repository, "commit": found.commit, "files": wanted}
        sys.stdout.write(json.dumps(value) + "\n")
    return 0
