"""One answer against the accepted ones: SQuAD's normalization and its scores. Knows nothing of models or data files.

Source: the official SQuAD evaluation script (Rajpurkar et al. 2016, arXiv 1606.05250); Unicode punctuation is removed
as well, letters in two parts (e and its accent) are the letter in one (NFC), and an answer that normalization would
erase ("A", "+") is compared less normalized.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

from mlx_lora.evaluation.numbers import normalize_numbers


def score_answer(prediction: str, answers: Sequence[str], *, numbers: bool = False) -> dict[str, float]:
    """Each score against the accepted answer that suits it best: exact_match and contains as bools, token_f1 0 to 1.

    `numbers` makes number words, digits and dates alike first.
    """
    return {
        "exact_match": exact_match(prediction, answers, numbers=numbers),
        "contains": contains_answer(prediction, answers, numbers=numbers),
        "token_f1": token_f1(prediction, answers, numbers=numbers),
    }


def normalize_answer(text: str) -> str:
    """`text` in lower case without punctuation, the articles a, an, the, and spare white space."""
    return " ".join(re.sub(r"\b(?:a|an|the)\b", " ", _bare(text)).split())


def exact_match(prediction: str, answers: Sequence[str], *, numbers: bool = False) -> bool:
    """Whether the normalized prediction is one of the accepted answers."""
    return any(given == wanted for given, wanted in _pairs(prediction, answers, numbers))


def contains_answer(prediction: str, answers: Sequence[str], *, numbers: bool = False) -> bool:
    """Whether an accepted answer stands in the prediction, as whole words."""
    return any(wanted and f" {wanted} " in f" {given} " for given, wanted in _pairs(prediction, answers, numbers))


def token_f1(prediction: str, answers: Sequence[str], *, numbers: bool = False) -> float:
    """The best harmonic mean of word precision and recall over the accepted answers, 0 to 1."""
    return max(
        (_f1(given.split(), wanted.split()) for given, wanted in _pairs(prediction, answers, numbers)), default=0.0
    )


def _f1(given: list[str], wanted: list[str]) -> float:
    common = sum((Counter(given) & Counter(wanted)).values())
    if not given or not wanted:
        return float(given == wanted)
    return 2 * common / (len(given) + len(wanted))


def _pairs(prediction: str, answers: Sequence[str], numbers: bool) -> list[tuple[str, str]]:
    pairs = []
    for answer in answers:
        normalize = next((form for form in _FORMS if form(answer)), _spaced)
        prepare: Callable[[str], str] = normalize_numbers if numbers else str
        pairs.append((normalize(prepare(prediction)), normalize(prepare(answer))))
    return pairs


def _lower(text: str) -> str:
    text = text.replace("−", "-")  # U+2212 is a symbol to Unicode, and a dash to who types 4−2
    return unicodedata.normalize("NFC", text.lower())


def _bare(text: str) -> str:
    return "".join(
        character
        for character in _lower(text)
        if character not in string.punctuation and not unicodedata.category(character).startswith("P")
    )


def _with_articles(text: str) -> str:
    return " ".join(_bare(text).split())


def _spaced(text: str) -> str:
    return " ".join(_lower(text).split())


_FORMS = (normalize_answer, _with_articles, _spaced)
