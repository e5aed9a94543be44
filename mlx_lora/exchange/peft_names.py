"""Which module of MLX's model is which of Hugging Face's. Knows nothing of tensors or files.

Held against transformers itself by tests/exchange/test_with_peft.py, family by family.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlx_lora.errors import AdapterError


@dataclass(frozen=True)
class Naming:
    """How one family's module paths differ: a first part that is exchanged, and parts that PEFT cannot adapt.

    layers: the name of the list of layers. transposed: Hugging Face stores the weights as (D_in, D_out) (its Conv1D).
    """

    ours: str = ""
    theirs: str = ""
    layers: str = "layers"
    transposed: bool = False
    without: tuple[str, ...] = ()

    def to_peft(self, path: str) -> str:
        """Hugging Face's path of the module that MLX has at `path`. Raises: AdapterError where PEFT has no equal."""
        if stranger := set(path.split(".")) & set(self.without):
            raise AdapterError(
                f"{path}: Hugging Face has no linear layer for it ({', '.join(sorted(stranger))} is one tensor there), "
                "so PEFT has no equal",
                "train with lora.target_modules: attention",
            )
        return self.theirs + path.removeprefix(self.ours) if path.startswith(self.ours) else path

    def from_peft(self, path: str) -> str:
        """MLX's path of the module that Hugging Face has at `path`."""
        return self.ours + path.removeprefix(self.theirs) if path.startswith(self.theirs) else path


_SAME = Naming()
_EXPERTS = Naming(without=("switch_mlp", "gate"))
NAMINGS: dict[str, Naming] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma", "gemma2", "gemma3_text"), _SAME),
    **dict.fromkeys(("phi", "phi3", "olmo2", "olmo3", "granite", "cohere", "starcoder2", "stablelm"), _SAME),
    **dict.fromkeys(("helium", "ernie4_5", "mamba"), _SAME),
    **dict.fromkeys(("mixtral", "qwen3_moe"), _EXPERTS),
    "gpt2": Naming("model.h.", "transformer.h.", layers="h", transposed=True),
}


def naming_of(config: Mapping[str, Any]) -> Naming:
    """The naming for a base with this config.json. Raises: AdapterError for a family that is not known here."""
    family = config.get("model_type")
    if family not in NAMINGS:
        raise AdapterError(
            f"model_type {family!r}: how its modules are called in PEFT is not known here",
            f"it is for {', '.join(sorted(NAMINGS))}",
        )
    return NAMINGS[str(family)]
