"""mlx-lora: fine-tune a quantized language model on a Mac, and prove that it learned.

What a program uses: LoraModel, Reply, train, RunResult, RunConfig, load_config, MlxLoraError. docs/API.md shows them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mlx_lora._blas import load_openblas

load_openblas()

__version__ = "0.1.0"

# Found when they are asked for: `import mlx_lora` takes milliseconds, and `mlx-lora --help` loads no MLX.
_PLACES = {
    "LoraModel": "mlx_lora.lora_model",
    "MlxLoraError": "mlx_lora.errors",
    "Reply": "mlx_lora.lora_model",
    "RunConfig": "mlx_lora.config",
    "RunResult": "mlx_lora.run",
    "load_config": "mlx_lora.runfile",
    "train": "mlx_lora.run",
}
__all__ = ["LoraModel", "MlxLoraError", "Reply", "RunConfig", "RunResult", "load_config", "train"]

if TYPE_CHECKING:
    from mlx_lora.config import RunConfig
    from mlx_lora.errors import MlxLoraError
    from mlx_lora.lora_model import LoraModel, Reply
    from mlx_lora.run import RunResult, train
    from mlx_lora.runfile import load_config
else:

    def __getattr__(name: str) -> Any:
        if name not in _PLACES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_PLACES[name]), name)

    def __dir__() -> list[str]:
        return sorted([*globals(), *_PLACES])
