"""Texts without what belongs to one machine or person: absolute paths and secrets. Knows nothing of files or pages.

Questions and answers keep their paths, since they are data; secrets go from everything.
"""

import re
from collections.abc import Mapping
from typing import Any

# Access tokens: the sign by which each kind is known, which is kept, and the rest, which is not.
_SECRETS = tuple(
    re.compile(pattern)
    for pattern in (
        r"\b(hf_)(?:[A-Za-z0-9]{16,}|(?:oauth|jwt)_[A-Za-z0-9_.-]{15,}[A-Za-z0-9_-])",  # Hugging Face
        r"\b(sk-)(?=[A-Za-z_-]*[0-9])[A-Za-z0-9_-]{16,}",  # OpenAI and others; sk-learn-contrib-extras is none
        r"\b(gh[pousr]_|github_pat_|glpat-)[A-Za-z0-9_-]{16,}",  # GitHub, GitLab
        r"\b(AKIA|ASIA)[A-Z0-9]{16}\b",  # Amazon: the key's number, and on the next line the key
        r"(?i)(aws_?secret_?access_?key[\"']?\s*[=:]\s*[\"']?)[A-Za-z0-9/+=]{40,}",
        r"\b(xox[a-z](?:\.xox[a-z])?-|xapp-)(?=[A-Za-z-]*[0-9])[A-Za-z0-9-]{10,}",  # Slack
        r"\b(AIza)[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])",  # Google
        r"\b(ya29\.)[A-Za-z0-9_.-]{15,}[A-Za-z0-9_-]",
    )
)
# A private key in PEM's form: its header, what follows up to the next line of its kind, and its end where it is there.
_PEM = re.compile(
    r"(-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----)((?:[^-]|-(?!----))*+)(-----END [A-Z0-9 ]*-----)?"
)
_PEM_LINES = re.compile(
    r"(?:\s|\\[nr]|[A-Z][A-Za-z-]+: [^\n\\]*)*+[A-Za-z0-9+/=]{40,}(?:(?:\s|\\[nr])+[A-Za-z0-9+/=]{16,})*"
)
_CREDENTIALS = re.compile(r"(?<=://)[^\s/@:]+:[^\s/@]+@")
# From a slash that begins a word (not the one in nats/token or https://) through at least one folder.
_PATH = re.compile(
    r"(?<![\w.…~)}\]/-])(?!(?<=:)//)(?:file://|~|[A-Za-z]:)?"
    r"[/\\](?:[^\s/\\'\":,;()<>]+[/\\])+[^\s/\\'\":,;()<>]*"
)
# With blanks in it: a path in quotes, or one that is the whole text.
_QUOTED_PATH = re.compile(r"""(['"])((?:~|[A-Za-z]:)?[/\\][^'"\n]*[/\\][^'"\n]*)\1""")
_PATH_ALONE = re.compile(r"(?:~|[A-Za-z]:)?[/\\][^\n:;,\"'()<>]*[/\\][^\n:;,\"'()<>]+")
_WHOLE_PATH = re.compile(r"(?:~|[A-Za-z]:)?[/\\].*", re.DOTALL)
_QUOTED_ANSWER = re.compile(r"(answers are one and the same): \".*\"", re.DOTALL)
_KEPT_PARTS = 2
_HOMES = ("home", "Users")  # the folders in them are called after persons


def without_secrets(value: Any) -> Any:
    """`value` (text, or JSON of it) with access tokens, private keys and passwords in addresses blotted out."""
    return _each_text(value, _blotted)


def without_paths(value: Any) -> Any:
    """`value` (text, or JSON of it) without secrets and with every absolute path cut to its last two parts.

    Of a path in somebody's home folder only what is inside it is kept.
    """
    return _each_text(value, _cut)


def without_answers(value: Any) -> Any:
    """`value` without the answer that a sign of damage quotes ("are one and the same: …", evaluation/damage.py)."""
    return _each_text(value, lambda text: _QUOTED_ANSWER.sub(r"\1", text))


def short_path(path: str) -> str:
    """A path as a page shows it: relative ones as they are, absolute ones as "…/folder/file"."""
    return _blotted(_short(path) if _WHOLE_PATH.fullmatch(path) else path)


def yaml_without_paths(text: str) -> str:
    """A run file's text with the absolute paths among its values cut, those with blanks in them too."""
    value = re.compile(r"""(?m)^(\s*(?:- )?[\w-]+: +)(["']?)((?:~|[A-Za-z]:)?[/\\].*?)\2[ ]*$""")
    shortened = value.sub(lambda found: f"{found[1]}{found[2]}{_short(found[3])}{found[2]}", text)
    cleaned: str = without_paths(shortened)
    return cleaned


def _cut(text: str) -> str:
    text = _blotted(text)
    if _PATH_ALONE.fullmatch(text):
        return _short(text)
    text = _QUOTED_PATH.sub(lambda found: f"{found[1]}{_short(found[2])}{found[1]}", text)
    return _PATH.sub(lambda found: _short(found[0]), text)


def _blotted(text: str) -> str:
    for secret in _SECRETS:
        text = secret.sub(r"\1…", text)
    return _CREDENTIALS.sub("…@", _PEM.sub(_without_key, text))


def _without_key(found: re.Match[str]) -> str:
    """A PEM block with its key blotted out; a header alone, as in a question about it, stays."""
    header, body, end = found.groups()
    lines = _PEM_LINES.match(body)
    if lines is None:
        return found[0]
    return f"{header}…" if end else f"{header}…{body[lines.end() :]}"


def _short(path: str) -> str:
    parts = [part for part in re.split(r"[/\\]", path) if part and part != "~"]
    home = next((place for place, part in enumerate(parts) if part in _HOMES), None)
    inside = parts if home is None else parts[home + 2 :]
    return "/".join(["…", *inside[-_KEPT_PARTS:]])


def _each_text(value: Any, change: Any) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _each_text(each, change) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_each_text(each, change) for each in value]
    return value
