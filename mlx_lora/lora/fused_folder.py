"""A fused model as a plain MLX model folder. Copies what the adapter did not touch; runs and loads nothing."""

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_lora.files import named_errors
from mlx_lora.lora.inject import iter_modules
from mlx_lora.lora.layer import AdapterLayer, dense_weight, is_quantized
from mlx_lora.lora.merge import merged_weight
from mlx_lora.lora.storage import Attempt, restore, store, stored_form

SHARD_BYTES = 4 * 10**9
# What a tokenizer, a chat template and generation read, and the base's terms of use; never code (*.py) nor pickles.
_COPIED = (
    "tokenizer.json", "tokenizer.model", "tiktoken.model", "*.tiktoken", "vocab.json", "vocab.txt", "merges.txt",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.json", "*.jinja",
    "generation_config.json", "LICENSE*", "NOTICE*", "USE_POLICY*",
)  # fmt: skip


_ROTARY = ("rope_theta", "rope_scaling", "rope_local_base_freq", "partial_rotary_factor")


@dataclass(frozen=True)
class Written:
    """What was written.

    weight_bytes: size of all tensors. update_kept: ⟨W' - W, ΔW⟩ / ‖ΔW‖² over the touched modules, 1 when all is kept.
    """

    weight_bytes: int
    update_kept: float


def write_fused_folder(
    folder: Path, model: nn.Module, source: Path, config: dict[str, Any], attempt: Attempt, chat_template: str | None
) -> Written:
    """Write base plus adapter into `folder` (empty) in the attempt's form.

    model: the base as stored, with adapters applied. source: the base's folder. config: its config.json as mlx_lm
    resolved it. chat_template: the adapter's own, None for the tokenizer's.
    Raises: MlxLoraError when the files cannot be written.
    """
    sums = _UpdateSums()
    with named_errors(folder):
        weight_bytes = _write_shards(folder, _fused_tensors(model, attempt, sums))
        _write_config(folder, source, config, attempt)
        _copy_texts(folder, source, chat_template)
    return Written(weight_bytes, sums.kept)


@dataclass
class _UpdateSums:
    product: float = 0.0
    square: float = 0.0

    @property
    def kept(self) -> float:
        return self.product / self.square if self.square else 1.0

    def add(self, base: mx.array, merged: mx.array, stored: mx.array) -> None:
        update = merged - base
        self.product += float(((stored - base) * update).sum())
        self.square += float(mx.square(update).sum())


def _fused_tensors(model: nn.Module, attempt: Attempt, sums: _UpdateSums) -> Iterator[tuple[str, mx.array]]:
    """Every tensor of the fused model with its name, made one module at a time."""
    for path, module in [("", model), *iter_modules(model)]:
        if isinstance(module, AdapterLayer):
            storage = attempt.storages[path]
            merged = merged_weight(module)
            tensors = store(merged, storage)
            sums.add(dense_weight(module.linear), merged, restore(tensors, storage))
            own = {name: value for name, value in module.linear.items() if name == "bias"}
            tensors |= own
        else:
            tensors = {
                name: value
                for name, value in module.items()
                if isinstance(value, mx.array) and not name.startswith("_")  # what nn.Module counts as parameters
            }
            if attempt.dequantize_others and is_quantized(module):
                plain = {"weight": dense_weight(module).astype(stored_form(module).dtype)}
                tensors = plain | {name: value for name, value in tensors.items() if name == "bias"}
        for name, value in tensors.items():
            yield f"{path}.{name}" if path else name, value


def _write_shards(folder: Path, tensors: Iterator[tuple[str, mx.array]]) -> int:
    places: dict[str, int] = {}
    shard: dict[str, mx.array] = {}
    total = shard_bytes = count = 0

    def flush() -> None:
        nonlocal shard, shard_bytes, count
        count += 1
        _save(folder / f"shard-{count}.safetensors", shard)
        shard, shard_bytes = {}, 0

    for name, value in tensors:
        if shard and shard_bytes + value.nbytes > SHARD_BYTES:
            flush()
        mx.eval(value)
        shard[name] = value
        places[name] = count + 1
        shard_bytes += value.nbytes
        total += value.nbytes
    flush()
    names = {
        number: "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
        for number in range(1, count + 1)
    }
    for number, final in names.items():
        (folder / f"shard-{number}.safetensors").rename(folder / final)
    index = {
        "metadata": {"total_size": total},
        "weight_map": {name: names[number] for name, number in sorted(places.items())},
    }
    _write_json(folder / "model.safetensors.index.json", index)
    return total


def _save(path: Path, tensors: dict[str, mx.array]) -> None:
    """Raises: OSError where the disk does not take them."""
    try:
        mx.save_safetensors(str(path), tensors, {"format": "mlx"})
    except RuntimeError:  # says only that it could not write: what the disk says to one more MiB tells why
        with path.open("ab", buffering=0) as file:
            left = 2**20
            while left:
                left -= file.write(bytes(left))
        raise


def _write_config(folder: Path, source: Path, config: dict[str, Any], attempt: Attempt) -> None:
    written: dict[str, Any] = json.loads((source / "config.json").read_text(encoding="utf-8"))
    for key in ("quantization", "quantization_config"):
        written.pop(key, None)
        (written.get("text_config") or {}).pop(key, None)
    _fill_rotary(written, config)
    if isinstance(written.get("text_config"), dict):
        _fill_rotary(written["text_config"], config.get("text_config") or {})
    entries = {path: storage.config for path, storage in attempt.storages.items()}
    quantization = None if attempt.dequantize_others else config.get("quantization")
    if quantization is None:
        quantization = next((entry for entry in entries.values() if isinstance(entry, dict)), None)
    if quantization is not None:
        written["quantization"] = written["quantization_config"] = {**quantization, **entries}
    _write_json(folder / "config.json", written)


def _fill_rotary(written: dict[str, Any], resolved: Mapping[str, Any]) -> None:
    """Write what the loader of bases takes out of transformers 5's rope_parameters: mlx-lm's own does not."""
    for key in _ROTARY:
        if written.get(key) is None and resolved.get(key) is not None:
            written[key] = resolved[key]


def _copy_texts(folder: Path, source: Path, chat_template: str | None) -> None:
    for file in sorted({file for pattern in _COPIED for file in source.glob(pattern) if file.is_file()}):
        shutil.copyfile(file, folder / file.name)
    if chat_template is None:
        return
    (folder / "chat_template.json").unlink(missing_ok=True)
    (folder / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
    settings = folder / "tokenizer_config.json"
    if settings.is_file():
        content = json.loads(settings.read_text(encoding="utf-8"))
        content.pop("chat_template", None)
        _write_json(settings, content)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
