"""A run folder's files to one self-contained HTML page; reads no weights and knows nothing of MLX."""
