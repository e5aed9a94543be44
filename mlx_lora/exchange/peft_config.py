"""PEFT's adapter_config.json: written for what we have, and read with a refusal by name of what we have not.

Knows nothing of tensors or models. Source: peft 0.21, src/peft/tuners/lora/config.py.
"""

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeGuard

from mlx_lora.errors import AdapterError
from mlx_lora.exchange.peft_names import Naming
from mlx_lora.files import named_errors
from mlx_lora.lora.adapter_config import LARGEST_SCALE

# Settings that change what the adapter computes, with the values under which they change nothing.
_WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "bias": ("none", None),
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),  # others change the base's weights
    "layer_replication": (None, []),
    "lora_bias": (False, None),
}
# What says how it was trained or how it is to be loaded, and what is read below.
_PASSED_OVER = {
    *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "fan_in_fan_out"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "megatron_core"),
    *("loftq_config", "eva_config", "runtime_config", "qalora_group_size", "ensure_weight_tying"),
}
_REASONS = {
    "bias": "its biases were trained too",
    "modules_to_save": "whole modules were trained and saved with it",
    "rank_pattern": "its modules have different ranks",
    "alpha_pattern": "its modules have different scales",
    "layer_replication": "it repeats the base's layers",
    "init_lora_weights": "it changes the base's own weights",
    "trainable_token_indices": "tokens' embeddings were trained too",
    "target_parameters": "it adapts parameters that are no linear layers",
}
_WHOLE_WEIGHTS = "train it again without, or merge it into its base with PEFT's merge_and_unload"


@dataclass(frozen=True)
class PeftParameters:
    """What a PEFT config says: method, shape, scale, and the base by name and revision (None where it does not say)."""

    method: Literal["lora", "dora"]
    rank: int
    alpha: float
    use_rslora: bool
    dropout: float
    base: str | None
    revision: str | None

    @property
    def scale(self) -> float:
        """Factor on B·A·x; below 0 it takes the update away, in PEFT as here."""
        return self.alpha / (self.rank**0.5 if self.use_rslora else self.rank)


def build_peft_config(
    parameters: PeftParameters, adapted: Iterable[str], present: Iterable[str], naming: Naming
) -> dict[str, Any]:
    """The adapter_config.json for modules `adapted` of those `present` (both Hugging Face's paths)."""
    targets, layers = choose_targets(set(adapted), list(present), naming.layers)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": parameters.base,
        "revision": parameters.revision,
        "inference_mode": True,
        "r": parameters.rank,
        "lora_alpha": parameters.alpha,
        "lora_dropout": parameters.dropout,
        "use_rslora": parameters.use_rslora,
        "use_dora": parameters.method == "dora",
        "target_modules": targets,
        "layers_to_transform": layers,
        "layers_pattern": None if layers is None else naming.layers,
        "fan_in_fan_out": naming.transposed,
        "bias": "none",
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "init_lora_weights": True,
    }


def choose_targets(adapted: set[str], present: list[str], layers_name: str) -> tuple[list[str], list[int] | None]:
    """The shortest target_modules, and layers_to_transform where needed, with which PEFT adapts exactly `adapted`.

    Module names where they choose no more than is adapted; else the names within these layers; else whole paths.
    """
    names = sorted({path.rpartition(".")[2] for path in adapted})
    chosen = {path for path in present if path.rpartition(".")[2] in names}
    if chosen == adapted:
        return names, None
    numbers = {path: _layer_number(path, layers_name) for path in present}
    layers = sorted({number for path in adapted if (number := numbers[path]) is not None})
    if {path for path in chosen if numbers[path] in layers} == adapted:
        return names, layers
    return sorted(adapted), None


def _layer_number(path: str, layers_name: str) -> int | None:
    parts = path.split(".")
    after = [later for name, later in pairwise(parts) if name == layers_name]
    return int(after[0]) if after and after[0].isdecimal() else None


def read_peft_config(path: Path) -> PeftParameters:
    """What PEFT's adapter_config.json at `path` says.

    Raises: AdapterError naming every setting that mlx-lora has no equal for, or a value that is not what it must be.
    """
    with named_errors(path):
        content = path.read_bytes()
    try:
        config = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{path}: no JSON: {error}", "copy the adapter again") from error
    if not isinstance(config, dict):
        raise AdapterError(f"{path}: holds no JSON object", "copy the adapter again")
    if "lora_parameters" in config:
        raise AdapterError(f"{path}: an adapter of MLX, not of PEFT", "it needs no import: use its folder as it is")
    kind = str(config.get("peft_type")).removeprefix("PeftType.")
    if kind != "LORA":
        raise AdapterError(f"{path}: peft_type is {kind}, expected LORA", "only LoRA and DoRA adapters can be imported")
    if faults := [fault for key, value in config.items() if (fault := _fault(key, value))]:
        raise AdapterError(f"{path}: {'; '.join(faults)}", _WHOLE_WEIGHTS)
    return _parameters(path, config)


def _fault(key: str, value: Any) -> str | None:
    """What stands against importing this setting; a setting that is unknown may be off, but not on."""
    # A number is the size of something that has a switch beside it: new ones come with every version of PEFT.
    if key in _PASSED_OVER or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        return None
    without_effect = value in _WITHOUT_EFFECT[key] if key in _WITHOUT_EFFECT else not value
    if without_effect:
        return None
    reason = _REASONS.get(key, "mlx-lora has no equal for it")
    return f"{key} is {json.dumps(value)[:80]}: {reason}"


def _parameters(path: Path, config: Mapping[str, Any]) -> PeftParameters:
    rank, alpha, dropout = config.get("r"), config.get("lora_alpha"), config.get("lora_dropout", 0.0)
    if not _is_number(rank) or not isinstance(rank, int) or rank < 1:
        raise _wrong(path, "r", rank, "a whole number ≥ 1")
    if not _is_number(alpha):
        raise _wrong(path, "lora_alpha", alpha, "a number other than 0")
    if alpha == 0:
        raise AdapterError(
            f"{path}: lora_alpha is 0, by which its update is multiplied: it changes nothing",
            "train it again with another lora_alpha",
        )
    if not _is_number(dropout) or not 0 <= dropout < 1:
        raise _wrong(path, "lora_dropout", dropout, "a number from 0 up to, not including, 1")
    switches = {name: config.get(name, False) for name in ("use_rslora", "use_dora")}
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise _wrong(path, name, value, "true or false")
    names = {name: config.get(name) for name in ("base_model_name_or_path", "revision")}
    for name, value in names.items():
        if value is not None and not isinstance(value, str):
            raise _wrong(path, name, value, "text or null")
    parameters = PeftParameters(
        "dora" if switches["use_dora"] else "lora",
        rank,
        float(alpha),
        switches["use_rslora"],
        float(dropout),
        names["base_model_name_or_path"] or None,
        names["revision"] or None,
    )
    if not 0 < abs(parameters.scale) <= LARGEST_SCALE:
        raise AdapterError(
            f"{path}: lora_alpha {alpha:g} with r {rank:g} is a scale of {parameters.scale:g}, "
            f"expected -{LARGEST_SCALE:g} to {LARGEST_SCALE:g}, not 0",
            "copy the adapter again",
        )
    return parameters


def _is_number(value: Any) -> TypeGuard[float]:
    # Not math.isfinite: a whole number in JSON may be one that no float holds.
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and abs(value) <= sys.float_info.max


def _wrong(path: Path, key: str, value: Any, expected: str) -> AdapterError:
    shown = "missing" if value is None else json.dumps(value)[:80]
    return AdapterError(f"{path}: {key} is {shown}, expected {expected}", "copy the adapter again")
