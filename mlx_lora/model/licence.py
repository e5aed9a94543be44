"""The licence of a base, where its own files name it. Guesses nothing; fetches nothing."""

import re
from pathlib import Path

from mlx_lora.model.builtin import BUILTIN_MODELS
from mlx_lora.model.sources import find_source

_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)^---\s*$", re.DOTALL | re.MULTILINE)
_LICENCE = re.compile(r"^license:[ \t]*[\"']?([\w.+-]+)", re.MULTILINE)
_TEXTS = {
    "apache-2.0": r"Apache License\s+Version 2\.0",
    "mit": r"\AMIT License|Permission is hereby granted, free of charge",
}


def base_licence(model: str, revision: str | None = None) -> str | None:
    """The Hub's short name of the licence, such as apache-2.0; None where the files on this disk do not say.

    Raises: ModelError when there is no such model.
    """
    if model in BUILTIN_MODELS:
        return BUILTIN_MODELS[model].license.lower()
    return read_licence(find_source(model, revision=revision, weights=False).path)


def read_licence(folder: Path) -> str | None:
    """The licence that a model folder's README.md, a fused model's included, or its LICENSE names."""
    for file in folder.glob("README.md"):
        front = _FRONT_MATTER.match(_text(file))
        found = _LICENCE.search(front[1]) if front else None
        if found:
            return found[1].lower()
    for file in sorted(folder.glob("LICENSE*")):
        text = _text(file)
        for name, mark in _TEXTS.items():
            if re.search(mark, text):
                return name
    return None


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace")
