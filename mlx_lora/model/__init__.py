"""The base model: finding, fetching, reading and identifying it. The only room that imports mlx_lm and transformers."""

import os

# Importing transformers without torch prints an advice on stderr that does not concern us: MLX does the computing.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
