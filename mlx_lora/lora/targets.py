"""Presets and names to module paths: which linear modules of a layer get an adapter. Knows nothing of whole models."""

import difflib
from collections.abc import Callable, Mapping, Sequence

import mlx.nn as nn

from mlx_lora.errors import AdapterError
from mlx_lora.lora.layer import is_switch, linear_dims

# Whole path components that mark what chooses experts or steers other modules; a preset never adapts these.
_ROUTERS = {"gate", "router", "shared_expert_gate", "modality_router", "indexer", "altup"}
# Where the enclosing block's name does not tell attention from MLP, the module's own does.
_ATTENTION_NAMES = {
    "q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "query_key_value", "c_attn", "att_proj", "attn_out"
}  # fmt: skip
_MLP_NAMES = {"gate_proj", "up_proj", "down_proj", "gate_up_proj", "c_fc", "fc1", "fc2", "ff_proj", "ff_out"}


def match_targets(layers: Sequence[Mapping[str, nn.Module]], wanted: str | list[str]) -> set[str]:
    """Paths relative to a layer that a preset or a list of names chooses.

    layers: what can be adapted in each layer, path → module. A name matches a whole path, or its end after a dot:
    `c_proj` and `attn.c_proj` both match `attn.c_proj`.
    Raises: AdapterError naming the preset, or every name, that matches nothing, with what there is.
    """
    present = list(dict.fromkeys(path for modules in layers for path in modules))
    if isinstance(wanted, str):
        routers = {path for modules in layers for path in _routers(modules)}
        keys = {path for path in present if path not in routers and _PRESETS[wanted](path)}
        unmatched = [] if keys else [wanted]
    else:
        matches = {name: {path for path in present if path == name or path.endswith(f".{name}")} for name in wanted}
        keys = set().union(*matches.values())
        unmatched = [name for name, found in matches.items() if not found]
    if unmatched or not keys:
        there_is = ", ".join(present) or "no linear modules at all"
        raise AdapterError(
            f"lora.target_modules: nothing matches {', '.join(unmatched) or 'an empty list'}",
            f"{_near(unmatched, present)}the layers of this model have {there_is}; presets are {', '.join(_PRESETS)}",
        )
    return keys


def _near(unmatched: Sequence[str], present: Sequence[str]) -> str:
    """Such as "did you mean q_proj? "; empty where no name is near."""
    names = list(dict.fromkeys([*(path.rpartition(".")[2] for path in present), *present]))
    near = [name for wrong in unmatched for name in difflib.get_close_matches(wrong, names, n=1)]
    return f"did you mean {' and '.join(dict.fromkeys(near))}? " if near else ""


def _routers(modules: Mapping[str, nn.Module]) -> set[str]:
    """Paths of what chooses experts: by name, or a sibling of experts with one output an expert (or a single one)."""
    experts = {path: int(module.num_experts) for path, module in modules.items() if is_switch(module)}
    found = {path for path in modules if _ROUTERS & set(path.split("."))}
    for path, module in modules.items():
        block = path.rpartition(".")[0]
        counts = {count for expert, count in experts.items() if expert.startswith(f"{block}.")}
        if counts and not is_switch(module) and linear_dims(module)[1] in counts | {1}:
            found.add(path)
    return found


def _is_attention(path: str) -> bool:
    *parents, name = path.split(".")
    if any("attn" in parent or "attention" in parent for parent in parents):
        return True
    return name in _ATTENTION_NAMES and not _in_mlp(parents)


def _is_mlp(path: str) -> bool:
    *parents, name = path.split(".")
    return not _is_attention(path) and (_in_mlp(parents) or name in _MLP_NAMES)


def _in_mlp(parents: list[str]) -> bool:
    return any(mark in parent for parent in parents for mark in ("mlp", "ffn", "feed_forward", "moe", "expert"))


_PRESETS: dict[str, Callable[[str], bool]] = {
    "all-linear": lambda path: True,
    "attention": _is_attention,
    "mlp": _is_mlp,
}
