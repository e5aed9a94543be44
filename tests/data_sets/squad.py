"""SQuAD's comparison, written apart from the program's scorer: these tests must not share its faults."""

import re
import string


def squad_normal(text: str) -> str:
    """The text without case, ASCII punctuation, articles and extra spaces."""
    bare = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())
