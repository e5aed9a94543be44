"""Adapters: the layers, where they go, their folder on disk, and merging into a base. Imports MLX, never mlx_lm."""
