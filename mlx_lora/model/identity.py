"""Which base this is: a name and four fingerprints, equal on all machines and for all compute types. Imports no MLX."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_lora.errors import ModelError
from mlx_lora.files import named_errors
from mlx_lora.model.sources import TOKENIZER_FILES, Source
from mlx_lora.model.weights import fingerprint_weights, weight_files


@dataclass(frozen=True)
class Identity:
    """Names a base; stored in adapters. All hashes are SHA-256 in hexadecimal.

    `name` is a built-in name, a Hugging Face id (`revision`: its commit) or a folder's own name, never a whole path.
    `weights_sha256` covers a sample (see model/weights.py); the others cover everything.
    """

    name: str
    revision: str | None
    config_sha256: str
    weights_sha256: str
    tokenizer_sha256: str
    chat_template_sha256: str | None


def identify(source: Source, chat_template: str | None) -> Identity:
    """The identity of the model in `source`, whose tokenizer's own template is `chat_template`. Raises: ModelError."""
    return Identity(
        name=source.name,
        revision=source.revision,
        config_sha256=canonical_sha256(read_json_object(source.path / "config.json")),
        weights_sha256=fingerprint_weights(weight_files(source.path)),
        tokenizer_sha256=_fingerprint_tokenizer(source.path),
        chat_template_sha256=None if chat_template is None else hashlib.sha256(chat_template.encode()).hexdigest(),
    )


def canonical_sha256(value: Any) -> str:
    """The SHA-256 of a JSON value, whatever the order of its keys and its white space."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a model's file. Raises: ModelError when it is missing or holds anything else."""
    try:
        with named_errors(path):
            value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: is not JSON: {error}", "download or copy the file again") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: holds no JSON object", "download or copy the file again")
    return value


def _fingerprint_tokenizer(folder: Path) -> str:
    if (folder / "tokenizer.json").is_file():
        content = read_json_object(folder / "tokenizer.json")
        # Saving a tokenizer writes the truncation and padding of its last call into the file: no part of what it is.
        return canonical_sha256({key: part for key, part in content.items() if key not in ("truncation", "padding")})
    digest = hashlib.sha256()
    for file in sorted(path for pattern in (*TOKENIZER_FILES, "merges.txt") for path in folder.glob(pattern)):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()
