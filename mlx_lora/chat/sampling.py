"""How answers are drawn: temperature, top_p, max_tokens and seed, with their limits. Knows nothing of models."""

import difflib
import math
import secrets
from dataclasses import dataclass, fields, replace

from mlx_lora.errors import MlxLoraError

_SEEDS = 2**32


@dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy; top_p in (0, 1]; max_tokens is the longest answer; seed None is random.

    Raises: MlxLoraError for a value outside its limits.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 512
    seed: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise _refusal("temperature", self.temperature, "0 (greedy) or more", "such as 0.7")
        if not 0 < self.top_p <= 1:
            raise _refusal("top_p", self.top_p, "more than 0, at most 1", "such as 0.9")
        if self.max_tokens < 1:
            raise _refusal("max_tokens", self.max_tokens, "1 or more", "such as 512")
        if self.seed is not None and not 0 <= self.seed < _SEEDS:
            raise _refusal("seed", self.seed, f"0 to {_SEEDS - 1}, or random", "such as 7")

    @property
    def greedy(self) -> bool:
        """Whether every answer is the likeliest one, whatever the seed."""
        return self.temperature == 0

    @property
    def idle(self) -> tuple[str, ...]:
        """The settings that were chosen and change nothing, as greedy answers are not drawn."""
        if not self.greedy:
            return ()
        chosen = {"top_p": self.top_p != 1, "seed": self.seed is not None}
        return tuple(name for name, is_chosen in chosen.items() if is_chosen)

    def seed_of(self, answer: int) -> int:
        """The seed of the session's answer number `answer` (from 0): a session repeats, a /retry within it differs."""
        return secrets.randbelow(_SEEDS) if self.seed is None else (self.seed + answer) % _SEEDS

    def changed(self, name: str, text: str) -> "Sampling":
        """A copy with setting `name` read from `text`. Raises: MlxLoraError, with near names for an unknown one."""
        if name not in SETTING_NAMES:
            typed = name.lower().replace("-", "_")
            near = [known for known in SETTING_NAMES if known.startswith(typed)]
            near = near or difflib.get_close_matches(typed, SETTING_NAMES, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(SETTING_NAMES)}"
            raise MlxLoraError(f"{name} is not a setting", hint)
        if name == "seed":
            return replace(self, seed=None if text == "random" else _whole(name, text, f"0 to {_SEEDS - 1}, or random"))
        if name == "max_tokens":
            return replace(self, max_tokens=_whole(name, text, "1 or more"))
        try:
            number = float(text)
        except ValueError as error:
            raise _refusal(name, text, "a number", "such as 0.7") from error
        return replace(self, temperature=number) if name == "temperature" else replace(self, top_p=number)

    def described(self) -> str:
        """One line for people, such as `greedy, at most 512 tokens`."""
        length = f"at most {self.max_tokens} tokens"
        if self.greedy:
            return f"greedy, {length}"
        seed = "random" if self.seed is None else str(self.seed)
        return f"temperature {self.temperature:g}, top_p {self.top_p:g}, seed {seed}, {length}"


SETTING_NAMES = tuple(setting.name for setting in fields(Sampling))


def _whole(name: str, text: str, expected: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise _refusal(name, text, expected, "a whole number, such as 100") from error


def _refusal(name: str, value: object, expected: str, hint: str) -> MlxLoraError:
    return MlxLoraError(f"{name} is {value}, expected {expected}", hint)
