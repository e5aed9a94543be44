"""Rotary settings as transformers 5 writes them give the logits of the same settings under their old names."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_lora.model.load import load_base
from tests.tiny import FAMILIES, save_tiny_folder

pytestmark = pytest.mark.usefixtures("on_the_cpu")

TOKENS = mx.array([[5, 9, 200, 17, 3, 60, 61, 62]])
# Of each family: the class's own default, or none at all, is another share.
PARTIAL: dict[str, dict[str, Any]] = {
    "phi": {"model_type": "phi", "num_key_value_heads": 4, "layer_norm_eps": 1e-5},
    "glm4": {"model_type": "glm4", "attention_bias": False, "head_dim": 16},
    "stablelm": {"model_type": "stablelm", "layer_norm_eps": 1e-5, "use_qkv_bias": False},
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64}
LLAMA3 |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
LINEAR = {"rope_type": "linear", "factor": 8.0}


def _logits(folder: Path, config: dict[str, Any]) -> mx.array:
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return load_base(str(folder)).model(TOKENS)


def _wrap(folder: Path) -> dict[str, Any]:
    """The weights become those of a wrapper's language model; returns its text_config."""
    weights = mx.load(str(folder / "model.safetensors"))
    inner = {f"language_model.{name}": value for name, value in weights.items()}
    mx.save_safetensors(str(folder / "model.safetensors"), inner, {"format": "mlx"})
    text: dict[str, Any] = json.loads((folder / "config.json").read_text())
    for key in ("rope_theta", "rope_local_base_freq"):
        text.pop(key, None)
    return text


@pytest.mark.parametrize(
    ("wrapper", "family", "moved", "plain"),
    [
        (
            "gemma3",
            "gemma3",
            {"full_attention": {"rope_theta": 777.0, **LINEAR}, "sliding_attention": {"rope_theta": 55.0}},
            {"rope_theta": 777.0, "rope_scaling": LINEAR, "rope_local_base_freq": 55.0},
        ),
        ("mistral3", "llama", {"rope_theta": 777.0, **LLAMA3}, {"rope_theta": 777.0, "rope_scaling": LLAMA3}),
    ],
)
def test_the_text_model_of_a_wrapper_gets_its_rotary_settings(
    wrapper: str, family: str, moved: dict[str, Any], plain: dict[str, Any], tmp_path: Path
) -> None:
    """Found by reading: only the top level's rope_parameters were read, and the logits were of a default frequency."""
    folder = save_tiny_folder(tmp_path / "m", family)
    text = _wrap(folder)
    outer = {"model_type": wrapper, "vocab_size": 320, "eos_token_id": [2, 4]}
    wanted = _logits(folder, {**outer, "text_config": {**text, **plain}})
    found = _logits(folder, {**outer, "text_config": {**text, "rope_parameters": moved}})
    assert mx.array_equal(found, wanted)
    default = _logits(folder, {**outer, "text_config": text})
    assert not mx.array_equal(found, default)
    own = _logits(folder, {**outer, "text_config": {**text, **plain, "rope_parameters": {"rope_theta": 3.0}}})
    assert mx.array_equal(own, wanted)  # what stands under the old names is kept


@pytest.mark.parametrize("family", PARTIAL)
def test_the_share_of_a_head_that_turns_is_found_under_rope_parameters(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers 5 takes partial_rotary_factor from the top level: phi computed with its default, glm4 not at all."""
    shares = {"rope_theta": 777.0, "partial_rotary_factor": 0.25}
    monkeypatch.setitem(FAMILIES, family, {**PARTIAL[family], **shares})
    folder = save_tiny_folder(tmp_path / "m", family)
    config = json.loads((folder / "config.json").read_text())
    wanted = _logits(folder, config)
    bare = {**config, "rope_theta": None, "partial_rotary_factor": None}
    assert mx.array_equal(_logits(folder, {**bare, "rope_parameters": {**shares, "rope_type": "default"}}), wanted)
    assert not mx.array_equal(_logits(folder, {**config, "partial_rotary_factor": 0.5}), wanted)
    assert mx.array_equal(_logits(folder, {**config, "rope_parameters": {"partial_rotary_factor": 0.5}}), wanted)
