"""How llama.cpp calls and orders what an MLX model of the llama family holds, both ways. Knows nothing of files.

Source: gguf-py/gguf/tensor_mapping.py and conversion/llama.py of llama.cpp.
"""

import numpy as np

# model_type -> llama.cpp's architecture; mlx-lm runs mistral as llama too.
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
PERMUTED = ("llama",)  # these turn neighbouring rows of q and k together, the others the two halves of a head
_MODULES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_MODULES_BACK = {ours: theirs for theirs, ours in _MODULES.items()}
_TOP_BACK = {ours: theirs for theirs, ours in _TOP.items()}


def mlx_name(name: str) -> str | None:
    """MLX's name of GGUF tensor `name`, such as blk.0.attn_q.weight; None where there is none."""
    module, _, part = name.rpartition(".")
    if module in _TOP:
        return f"{_TOP[module]}.{part}"
    prefix, layer, rest = [*module.split("."), "", ""][:3]
    if prefix == "blk" and layer.isdecimal() and rest in _MODULES and part in ("weight", "bias"):
        return f"model.layers.{layer}.{_MODULES[rest]}.{part}"
    return None


def gguf_name(name: str) -> str | None:
    """GGUF's name of MLX tensor `name`, such as model.layers.0.self_attn.q_proj.weight; None where there is none."""
    module, _, part = name.rpartition(".")
    if module in _TOP_BACK:
        return f"{_TOP_BACK[module]}.{part}"
    _, _, rest = module.partition("model.layers.")
    layer, _, inner = rest.partition(".")
    if module.startswith("model.layers.") and layer.isdecimal() and inner in _MODULES_BACK:
        return f"blk.{layer}.{_MODULES_BACK[inner]}.{part}"
    return None


def rotary_heads(name: str, heads: int, key_heads: int) -> int | None:
    """The number of heads over which the rows of MLX tensor `name` are reordered; None where they stay."""
    module = name.rpartition(".")[0]
    return {"q_proj": heads, "k_proj": key_heads}.get(module.rpartition(".")[2])


def permute_rows(array: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order of q and k rows: rotary pairs side by side, per head."""
    half = array.shape[0] // heads // 2
    return np.ascontiguousarray(array.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(array.shape))


def unpermute_rows(array: np.ndarray, heads: int) -> np.ndarray:
    """Undo `permute_rows`: interleaved rotary pairs back to halves, per head."""
    half = array.shape[0] // heads // 2
    return np.ascontiguousarray(array.reshape(heads, half, 2, -1).swapaxes(1, 2).reshape(array.shape))
