"""Files to records, examples and batches. numpy only: knows nothing of MLX."""
