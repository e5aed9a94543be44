"""A PEFT adapter folder: tensors and config, written from an adapter of ours and read back, bit for bit.

Knows nothing of bases or of the terminal.
"""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import mlx.core as mx

from mlx_lora.errors import AdapterError
from mlx_lora.exchange.peft_config import PeftParameters, build_peft_config, read_peft_config
from mlx_lora.exchange.peft_names import Naming
from mlx_lora.files import named_errors, write_json, write_whole
from mlx_lora.lora.adapter_config import CONFIG_FILE, PEFT_WEIGHTS_FILE, WEIGHTS_FILE
from mlx_lora.lora.tensor_file import encode_tensors, read_tensors

TEMPLATE_FILE = "chat_template.jinja"  # beside an adapter, as transformers saves it
_PREFIX = "base_model.model."
_ENDINGS = {"lora_a": ".lora_A.weight", "lora_b": ".lora_B.weight", "m": ".lora_magnitude_vector"}
_PARTS = {"lora": ("lora_a", "lora_b"), "dora": ("lora_a", "lora_b", "m")}
_FACTS = "mlx_lora"  # our key in the metadata of the safetensors file, which PEFT passes over


@dataclass(frozen=True)
class PeftFolder:
    """A PEFT adapter as read: config, tensors under PEFT's names in the file's dtype, and our facts if we wrote it."""

    weights: Path
    parameters: PeftParameters
    tensors: dict[str, mx.array]
    facts: dict[str, Any]


def write_peft_folder(
    folder: Path,
    tensors: Mapping[str, mx.array],
    parameters: PeftParameters,
    present: list[str],
    naming: Naming,
    facts: Mapping[str, Any],
) -> None:
    """Write adapter_model.safetensors and adapter_config.json into `folder`.

    tensors: ours by name, lora_a (D_in, R), lora_b (R, D_out), m (D_out,). present: MLX's paths of every linear module
    of the base. facts: what PEFT has no place for, kept in the file's metadata for our own import.
    Raises: AdapterError where PEFT has no equal, MlxLoraError when the files cannot be written.
    """
    written: dict[str, mx.array] = {}
    for name, value in tensors.items():
        path, _, part = name.rpartition(".")
        if value.ndim > 2:
            raise AdapterError(
                f"{path}: holds an adapter for each expert: PEFT has no equal",
                "train with lora.target_modules: attention",
            )
        written[f"{_PREFIX}{naming.to_peft(path)}{_ENDINGS[part]}"] = value.T
    adapted = {naming.to_peft(name.rpartition(".")[0]) for name in tensors}
    config = build_peft_config(parameters, adapted, [naming.to_peft(path) for path in _named(present, naming)], naming)
    metadata = {"format": "pt", _FACTS: json.dumps(facts, ensure_ascii=False)}
    write_whole(folder / PEFT_WEIGHTS_FILE, encode_tensors(written, metadata))
    write_json(folder / CONFIG_FILE, config)


def _named(present: list[str], naming: Naming) -> list[str]:
    return [path for path in present if not set(path.split(".")) & set(naming.without)]


def read_peft_folder(path: Path) -> PeftFolder:
    """Read and check the PEFT adapter at `path`, a folder or its .safetensors file; no model needed.

    Raises: AdapterError for a missing or damaged file, a pickle, a config that says what we have no equal for.
    """
    folder = _find_folder(path)
    weights = folder / PEFT_WEIGHTS_FILE
    parameters = read_peft_config(folder / CONFIG_FILE)
    tensors = read_tensors(weights)
    if not tensors:
        raise AdapterError(f"{weights}: holds no tensors", "is this the adapter's own file?")
    return PeftFolder(weights, parameters, tensors, _own_facts(weights))


def our_tensors(peft: PeftFolder, naming: Naming) -> dict[str, mx.array]:
    """The tensors under MLX's names, in MLX's shapes, bits unchanged.

    Raises: AdapterError for a foreign or missing tensor, or a rank other than the config's.
    """
    weights, method, wanted_rank = peft.weights, peft.parameters.method, peft.parameters.rank
    found: dict[str, mx.array] = {}
    foreign: list[str] = []
    for name, value in peft.tensors.items():
        part = next((part for part in _PARTS[method] if name.endswith(_ENDINGS[part])), None)
        if part is None or not name.startswith(_PREFIX) or value.ndim != (1 if part == "m" else 2):
            foreign.append(f"{name} {value.shape}")
            continue
        rank = {"lora_a": value.shape[0], "lora_b": value.shape[-1]}.get(part, wanted_rank)
        if rank != wanted_rank:
            raise AdapterError(
                f"{weights}: {name} has rank {rank} (shape {value.shape}), {CONFIG_FILE} says r = {wanted_rank}",
                "one of the two files belongs to another adapter",
            )
        module = naming.from_peft(name[len(_PREFIX) : -len(_ENDINGS[part])])
        found[f"{module}.{part}"] = mx.contiguous(value.T)
    if foreign:
        raise AdapterError(
            f"{weights}: no part of a {method} adapter on linear layers: {_some(foreign)}",
            "PEFT saved the base's own layer too: save it again with save_pretrained(…, save_embedding_layers=False)"
            if all(".base_layer." in name for name in foreign)
            else "what holds biases, embeddings, experts or whole modules cannot be imported",
        )
    modules = dict.fromkeys(name.rpartition(".")[0] for name in found)
    missing = [
        f"{_PREFIX}{naming.to_peft(module)}{_ENDINGS[part]}"
        for module in modules
        for part in _PARTS[method]
        if f"{module}.{part}" not in found
    ]
    if missing:
        raise AdapterError(f"{weights}: missing: {_some(missing)}", "copy the adapter again")
    return found


def _find_folder(path: Path) -> Path:
    if path.is_file() and path.suffix == ".safetensors":
        if path.name != PEFT_WEIGHTS_FILE:
            raise AdapterError(f"{path}: expected the name {PEFT_WEIGHTS_FILE}", "rename it, as PEFT writes it")
        path = path.parent
    if not path.is_dir():
        fact = "is no PEFT adapter" if path.exists() else "no such folder"
        raise AdapterError(f"{path}: {fact}", f"give a folder with {PEFT_WEIGHTS_FILE} and {CONFIG_FILE}")
    if not (path / CONFIG_FILE).is_file():
        raise AdapterError(f"{path}: has no {CONFIG_FILE}", "copy it too: it says by what the update is scaled")
    if not (path / PEFT_WEIGHTS_FILE).is_file():
        if (path / "adapter_model.bin").is_file():
            raise AdapterError(
                f"{path}: holds a pickle (adapter_model.bin), which could run code and is not read",
                "load it with PEFT and save it again: save_pretrained writes safetensors",
            )
        if (path / WEIGHTS_FILE).is_file():
            raise AdapterError(f"{path}: an adapter of MLX, not of PEFT", "it needs no import: use it as it is")
        raise AdapterError(f"{path}: has no {PEFT_WEIGHTS_FILE}", "is this the adapter's folder, and is it whole?")
    return path


def _own_facts(weights: Path) -> dict[str, Any]:
    """What write_peft_folder kept for us; nothing for an adapter that PEFT wrote. The file's header was checked."""
    with named_errors(weights):
        content = weights.read_bytes()
    loaded = mx.load(io.BytesIO(content), format="safetensors", return_metadata=True)
    _, metadata = cast(tuple[Any, dict[str, str]], loaded)
    try:
        facts = json.loads(metadata.get(_FACTS, "{}"))
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{weights}: its {_FACTS} metadata is no JSON: {error}", "export it again") from error
    if not isinstance(facts, dict):
        raise AdapterError(f"{weights}: its {_FACTS} metadata is no JSON object", "export it again")
    return facts


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
