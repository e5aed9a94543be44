"""PEFT's names, shapes and values, written and read back; and every tensor or setting that is refused by name."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_lora.errors import AdapterError
from mlx_lora.exchange.peft_config import PeftParameters, choose_targets, read_peft_config
from mlx_lora.exchange.peft_folder import our_tensors, read_peft_folder, write_peft_folder
from mlx_lora.exchange.peft_names import NAMINGS, Naming, naming_of
from mlx_lora.lora.tensor_file import encode_tensors

LLAMA = NAMINGS["llama"]
PLAIN = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": ["q_proj"]}
Q = "base_model.model.model.layers.0.self_attn.q_proj"


def _parameters(**changes: Any) -> PeftParameters:
    facts = {"method": "lora", "rank": 2, "alpha": 3.0, "use_rslora": False, "dropout": 0.0}
    return PeftParameters(**{**facts, "base": "a/b", "revision": None, **changes})


def _tensors(path: str = "model.layers.0.self_attn.q_proj", dtype: mx.Dtype = mx.float32) -> dict[str, mx.array]:
    values = {"lora_a": (5, 2), "lora_b": (2, 7)}
    return {
        f"{path}.{part}": mx.random.normal(shape, key=mx.random.key(len(part) + shape[0])).astype(dtype)
        for part, shape in values.items()
    }


def _peft(folder: Path, config: dict[str, Any] | None = None, **tensors: tuple[int, ...]) -> Path:
    """A folder with PEFT's two files; keyword arguments add tensors of these shapes, `__` for a dot."""
    folder.mkdir()
    shapes = {f"{Q}.lora_A.weight": (2, 5), f"{Q}.lora_B.weight": (7, 2)}
    shapes |= {name.replace("__", "."): shape for name, shape in tensors.items()}
    arrays = {name: mx.ones(shape) for name, shape in shapes.items() if shape}
    (folder / "adapter_model.safetensors").write_bytes(encode_tensors(arrays, {"format": "pt"}))
    (folder / "adapter_config.json").write_text(json.dumps({**PLAIN, **(config or {})}))
    return folder


def test_names_and_shapes_are_pefts_and_the_update_is_the_same_product(tmp_path: Path) -> None:
    tensors = _tensors()
    write_peft_folder(tmp_path, tensors, _parameters(), ["model.layers.0.self_attn.q_proj"], LLAMA, {})
    written: Any = mx.load(str(tmp_path / "adapter_model.safetensors"))
    assert {name: value.shape for name, value in written.items()} == {
        f"{Q}.lora_A.weight": (2, 5),
        f"{Q}.lora_B.weight": (7, 2),
    }
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    x = np.arange(5, dtype=np.float32)
    ours = 1.5 * (x @ np.array(tensors[f"{Q[17:]}.lora_a"])) @ np.array(tensors[f"{Q[17:]}.lora_b"])
    lora_a, lora_b = (np.array(written[f"{Q}.lora_{part}.weight"]) for part in "AB")
    # peft/tuners/lora/layer.py: result + lora_B(lora_A(x)) * scaling, with scaling = lora_alpha / r.
    assert np.allclose(ours, config["lora_alpha"] / config["r"] * (lora_b @ (lora_a @ x)), rtol=1e-5)
    assert (config["peft_type"], config["target_modules"], config["bias"]) == ("LORA", ["q_proj"], "none")
    assert config["layers_to_transform"] is None


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_was_written_reads_back_bit_for_bit(tmp_path: Path, dtype: mx.Dtype, family: str) -> None:
    naming = NAMINGS[family]
    path = "model.h.1.attn.c_attn" if family == "gpt2" else "model.layers.0.mlp.up_proj"
    tensors = {**_tensors(path, dtype), f"{path}.m": mx.arange(7).astype(dtype)}
    facts = {"system_prompt": "Größe „x“", "step": 3}
    parameters = _parameters(method="dora", use_rslora=True)
    write_peft_folder(tmp_path, tensors, parameters, [path], naming, facts)
    assert any(f"base_model.model.transformer.{path[6:]}.lora_A" in name for name in _names(tmp_path)) == (
        family == "gpt2"
    )
    read = read_peft_folder(tmp_path)
    back = our_tensors(read, naming)
    assert (read.parameters, read.facts) == (parameters, facts)
    assert back.keys() == tensors.keys()
    for name, value in tensors.items():
        assert back[name].dtype == dtype
        assert mx.array_equal(back[name], value)


def _names(folder: Path) -> list[str]:
    loaded: Any = mx.load(str(folder / "adapter_model.safetensors"))
    return list(loaded)


def test_a_file_given_for_its_folder_is_found(tmp_path: Path) -> None:
    folder = _peft(tmp_path / "peft")
    assert read_peft_folder(folder / "adapter_model.safetensors").parameters.rank == 2


layers = st.integers(0, 3)
modules = st.sampled_from(["self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj"])
PRESENT = [f"model.layers.{layer}.{name}" for layer in range(4) for name in ("self_attn.q_proj", "self_attn.k_proj")]
PRESENT += [f"model.layers.{layer}.mlp.up_proj" for layer in range(4)] + ["lm_head"]


def _chosen_by_peft(targets: list[str], only: list[int] | None) -> set[str]:
    """What peft/tuners/tuners_utils.py, check_target_module_exists, finds in PRESENT."""
    found = {path for path in PRESENT if path in targets}
    for path in PRESENT:
        numbers = [int(part) for part in path.split(".") if part.isdecimal()]
        if any(path.endswith(f".{target}") for target in targets) and (only is None or set(numbers) & set(only)):
            found.add(path)
    return found


@given(st.sets(st.sampled_from(PRESENT), min_size=1))
def test_the_targets_choose_exactly_the_adapted_modules(adapted: set[str]) -> None:
    targets, only = choose_targets(adapted, PRESENT, "layers")
    assert _chosen_by_peft(targets, only) == adapted


def test_all_layers_need_no_numbers_and_the_last_ones_do() -> None:
    every = {path for path in PRESENT if path.endswith("q_proj")}
    assert choose_targets(every, PRESENT, "layers") == (["q_proj"], None)
    last = {path for path in every if ".2." in path or ".3." in path}
    assert choose_targets(last, PRESENT, "layers") == (["q_proj"], [2, 3])


REFUSED = [
    ({"bias": "lora_only"}, 'bias is "lora_only": its biases were trained too'),
    ({"modules_to_save": ["lm_head"]}, 'modules_to_save is ["lm_head"]: whole modules were trained'),
    ({"rank_pattern": {"q_proj": 4}}, 'rank_pattern is {"q_proj": 4}: its modules have different ranks'),
    ({"alpha_pattern": {"q_proj": 4}}, "alpha_pattern is"),
    ({"lora_bias": True}, "lora_bias is true"),
    ({"use_qalora": True}, "use_qalora is true: mlx-lora has no equal for it"),
    ({"init_lora_weights": "pissa"}, "it changes the base's own weights"),
    ({"layer_replication": [[0, 4], [2, 5]]}, "layer_replication is [[0, 4], [2, 5]]"),
    ({"target_parameters": ["mlp.experts.down_proj"]}, "adapts parameters that are no linear layers"),
    ({"use_new_thing": True}, "use_new_thing is true: mlx-lora has no equal for it"),
    ({"peft_type": "IA3"}, "peft_type is IA3, expected LORA"),
    ({"r": 0}, "r is 0, expected a whole number ≥ 1"),
    ({"lora_alpha": None}, "lora_alpha is missing, expected a number other than 0"),
    ({"lora_alpha": 0}, "lora_alpha is 0, by which its update is multiplied: it changes nothing"),
    ({"lora_alpha": -1e6}, "lora_alpha -1e+06 with r 2 is a scale of -500000, expected -10000 to 10000, not 0"),
    ({"lora_alpha": 10**400}, "lora_alpha is 1000"),
    ({"r": 10**400}, "r is 1000"),
    ({"use_dora": "yes"}, 'use_dora is "yes", expected true or false'),
    ({"lora_parameters": {}}, "an adapter of MLX, not of PEFT"),
]


@pytest.mark.parametrize(("config", "message"), REFUSED)
def test_a_setting_without_an_equal_is_refused_by_name(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    folder = _peft(tmp_path / "peft", config)
    with pytest.raises(AdapterError) as raised:
        read_peft_folder(folder)
    assert message in raised.value.message
    assert raised.value.message.startswith(str(folder / "adapter_config.json"))


@pytest.mark.parametrize(("alpha", "rslora", "scale"), [(-3, False, -1.5), (-3, True, -3 / 2**0.5), (3, False, 1.5)])
def test_a_scale_has_the_sign_of_alpha_as_in_peft(tmp_path: Path, alpha: int, rslora: bool, scale: float) -> None:
    """Its update_layer: scaling = lora_alpha / r, or / sqrt(r); nothing looks at the sign."""
    folder = _peft(tmp_path / "peft", {"lora_alpha": alpha, "use_rslora": rslora})
    assert read_peft_folder(folder).parameters.scale == scale


def test_all_settings_without_an_equal_are_named_at_once(tmp_path: Path) -> None:
    folder = _peft(tmp_path / "peft", {"bias": "all", "use_qalora": True, "rank_pattern": {"k_proj": 1}})
    with pytest.raises(AdapterError) as raised:
        read_peft_config(folder / "adapter_config.json")
    assert all(name in raised.value.message for name in ("bias", "use_qalora", "rank_pattern"))


FOREIGN = [
    ({f"{Q}.lora_B.weight": ()}, f"missing: {Q}.lora_B.weight"),
    ({f"{Q}.lora_A.weight": (3, 5)}, f"{Q}.lora_A.weight has rank 3 (shape (3, 5)), adapter_config.json says r = 2"),
    ({f"{Q}.lora_B.weight": (7, 1)}, f"{Q}.lora_B.weight has rank 1"),
    ({f"{Q}.lora_B.bias": (7,)}, f"no part of a lora adapter on linear layers: {Q}.lora_B.bias (7,)"),
    ({f"{Q}.lora_magnitude_vector": (7,)}, "no part of a lora adapter"),
    ({"base_model__model__lm_head__weight": (9, 5)}, "base_model.model.lm_head.weight (9, 5)"),
    ({"base_model__model__model__embed_tokens__lora_embedding_A": (2, 9)}, "embed_tokens.lora_embedding_A (2, 9)"),
    ({f"{Q}.lora_A.weight": (2, 5, 1)}, "lora_A.weight (2, 5, 1)"),
]


@pytest.mark.parametrize(("tensors", "message"), FOREIGN)
def test_a_missing_or_foreign_tensor_is_named(tmp_path: Path, tensors: dict[str, Any], message: str) -> None:
    folder = _peft(tmp_path / "peft", None, **tensors)
    with pytest.raises(AdapterError) as raised:
        our_tensors(read_peft_folder(folder), LLAMA)
    assert message in raised.value.message
    assert raised.value.message.startswith(str(folder / "adapter_model.safetensors"))


def test_a_dora_config_without_magnitudes_names_them(tmp_path: Path) -> None:
    folder = _peft(tmp_path / "peft", {"use_dora": True})
    with pytest.raises(AdapterError, match=r"missing: .*q_proj\.lora_magnitude_vector"):
        our_tensors(read_peft_folder(folder), LLAMA)


def test_files_that_are_no_peft_adapter_are_told_apart(tmp_path: Path) -> None:
    pickle = _peft(tmp_path / "pickle")
    (pickle / "adapter_model.safetensors").rename(pickle / "adapter_model.bin")
    mlx = _peft(tmp_path / "mlx")
    (mlx / "adapter_model.safetensors").rename(mlx / "adapters.safetensors")
    bare = _peft(tmp_path / "bare")
    (bare / "adapter_config.json").unlink()
    cases = {"pickle": "holds a pickle", "mlx": "an adapter of MLX", "bare": "has no adapter_config.json"}
    for name, message in {**cases, "nowhere": "no such folder"}.items():
        with pytest.raises(AdapterError, match=message):
            read_peft_folder(tmp_path / name)


def test_a_family_that_is_not_known_is_refused_by_name() -> None:
    with pytest.raises(AdapterError, match="model_type 'llava'"):
        naming_of({"model_type": "llava"})


def test_experts_and_their_router_have_no_equal_in_peft(tmp_path: Path) -> None:
    experts = {f"model.layers.0.mlp.switch_mlp.up_proj.{part}": mx.ones((4, 2, 2)) for part in ("lora_a", "lora_b")}
    with pytest.raises(AdapterError, match="an adapter for each expert"):
        write_peft_folder(tmp_path, experts, _parameters(), [], NAMINGS["qwen3_moe"], {})
    with pytest.raises(AdapterError, match=r"mlp\.gate: Hugging Face has no linear layer"):
        write_peft_folder(tmp_path, _tensors("model.layers.0.mlp.gate"), _parameters(), [], NAMINGS["mixtral"], {})
    assert list(tmp_path.iterdir()) == []


@given(st.sampled_from(sorted(NAMINGS)), st.sampled_from(["h.3.attn.c_proj", "layers.0.self_attn.q_proj"]))
def test_a_name_comes_back(family: str, rest: str) -> None:
    naming: Naming = NAMINGS[family]
    assert naming.from_peft(naming.to_peft(f"model.{rest}")) == f"model.{rest}"
