"""How much the server takes on, in one place. Knows nothing of requests or models."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds of memory, time and work; all of them refuse or wait aloud, none of them shortens an answer unsaid."""

    rows: int = 16  # answers generated at once
    waiting: int = 64  # further answers that wait for a row
    batch_tokens: int = 65_536  # prompts and longest answers of all rows at once
    answer_tokens: int = 8_192  # the largest max_tokens of a request
    default_answer_tokens: int = 512  # where a request does not say, as `chat` has it
    choices: int = 8  # the largest n, times the prompts of one request
    cache_bytes: int = 1 << 30  # keys and values kept of finished answers
    request_seconds: float = 300.0  # from arrival to the last token
    body_seconds: float = 30.0  # until a request's body has come
    body_bytes: int = 4 << 20
    json_depth: int = 16
    stops: int = 16  # stop texts in a request
    stop_characters: int = 256  # in each of them
