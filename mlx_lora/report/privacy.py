"""Texts without what belongs to one machine or person: absolute paths and secrets. Knows nothing of files or pages.

Questions and answers keep their paths, since they are data; secrets go from everything.
"""

import re
from collections.abc import Mapping
from typing import Any

_SECRETS = re.compile(r"\b(hf_|sk-|ghp_|github_pat_|glpat-)[A-Za-z0-9_-]{16,}")
_CREDENTIALS = re.compile(r"(?<=://)[^\s/@:]+:[^\s/@]+@")
# From a slash that begins a word (not the one in nats/token or https://) through at least one folder.
_PATH = re.compile(r"(?<![\w.…~)}\]:/-])(?:~|[A-Za-z]:)?[/\\](?:[^\s/\\'\":,;()<>]+[/\\])+[^\s/\\'\":,;()<>]*")
_WHOLE_PATH = re.compile(r"(?:~|[A-Za-z]:)?[/\\].*", re.DOTALL)
_KEPT_PARTS = 2


def without_secrets(value: Any) -> Any:
    """`value` (text, or JSON of it) with access tokens and passwords in addresses blotted out."""
    return _each_text(value, _blotted)


def without_paths(value: Any) -> Any:
    """`value` (text, or JSON of it) without secrets and with every absolute path cut to its last two parts."""
    return _each_text(value, lambda text: _PATH.sub(lambda found: _short(found[0]), _blotted(text)))


def short_path(path: str) -> str:
    """A path as a page shows it: relative ones as they are, absolute ones as "…/folder/file"."""
    return _blotted(_short(path) if _WHOLE_PATH.fullmatch(path) else path)


def yaml_without_paths(text: str) -> str:
    """A run file's text with the absolute paths among its values cut, those with blanks in them too."""
    value = re.compile(r"""(?m)^(\s*(?:- )?[\w-]+: +)(["']?)((?:~|[A-Za-z]:)?[/\\].*?)\2[ ]*$""")
    shortened = value.sub(lambda found: f"{found[1]}{found[2]}{_short(found[3])}{found[2]}", text)
    cleaned: str = without_paths(shortened)
    return cleaned


def _blotted(text: str) -> str:
    return _CREDENTIALS.sub("…@", _SECRETS.sub(r"\1…", text))


def _short(path: str) -> str:
    parts = [part for part in re.split(r"[/\\]", path) if part and part != "~"]
    return "…/" + "/".join(parts[-_KEPT_PARTS:])


def _each_text(value: Any, change: Any) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _each_text(each, change) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_each_text(each, change) for each in value]
    return value
