"""The data sets that come with mlx-lora, by name. Knows nothing of what a row must hold."""

from pathlib import Path

_FOLDER = Path(__file__).resolve().parent.parent / "data"

# Name that users give -> file in mlx_lora/data, which is packed into the wheel.
BUILTIN_DATA_SETS = {
    "general-knowledge": "general_knowledge.jsonl",
    "general-knowledge-choices": "general_knowledge_choices.jsonl",  # the same questions, each with four choices
}


def builtin_path(source: str) -> Path | None:
    """The file of the built-in data set called `source`; None where there is none of that name."""
    name = BUILTIN_DATA_SETS.get(source)
    return None if name is None else _FOLDER / name
