"""A config's rotary settings under the names that mlx-lm's models read. Knows nothing of files or weights."""

from collections.abc import Mapping
from typing import Any


def rotary_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What transformers 5 writes under rope_parameters, as changes to the top level of `config`.

    A wrapper's text_config comes whole where anything in it changes. Without them most models of mlx-lm 0.32.2 compute
    with a default frequency, and say nothing.
    """
    found = _own_settings(config)
    text = config.get("text_config")
    if isinstance(text, dict) and (inner := _own_settings(text)):
        found["text_config"] = {**text, **inner}
    return found


def _own_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    nested = config.get("rope_parameters")
    if not isinstance(nested, dict):
        return {}
    full, sliding = nested.get("full_attention", nested), nested.get("sliding_attention")
    # Of a kind of layers alone it is no setting of the model: the families that have it read it there themselves.
    found = {"rope_theta": full.get("rope_theta"), "partial_rotary_factor": nested.get("partial_rotary_factor")}
    if full.get("rope_type", "default") != "default":
        found["rope_scaling"] = {key: value for key, value in full.items() if key != "rope_theta"}
    if isinstance(sliding, dict):
        found["rope_local_base_freq"] = sliding.get("rope_theta")
    return {key: value for key, value in found.items() if value is not None and config.get(key) is None}
