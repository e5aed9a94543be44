"""mlx-lora: fine-tune a quantized language model on a Mac, and prove that it learned."""

from mlx_lora._blas import load_openblas

load_openblas()

__version__ = "0.1.0"
