"""`--set lora.rank=8` on the mapping of a run file, before validation. Knows nothing of types and limits."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_lora.runfile.fields import all_sections, all_settings
from mlx_lora.runfile.loader import Document, KeyPath, YamlError, parse_yaml
from mlx_lora.runfile.writer import render_value


@dataclass(frozen=True)
class Override:
    """One `--set path=value` with its value read as YAML."""

    path: tuple[str, ...]
    document: Document
    text: str  # the value as written

    @property
    def name(self) -> str:
        return ".".join(self.path)

    @property
    def flag(self) -> str:
        return f"--set {self.name}"


class OverrideError(Exception):
    """A `--set` that cannot be read or applied."""

    def __init__(self, flag: str, fact: str, hint: str | None = None) -> None:
        super().__init__(fact)
        self.flag, self.fact, self.hint = flag, fact, hint


def parse_override(argument: str) -> Override:
    """`lora.rank=8` as a path and a YAML value; nothing after the = is null.

    Raises: OverrideError where the form is not path=value, or the value is no YAML, a section or not kept whole.
    """
    name, equals, text = argument.partition("=")
    path = tuple(name.strip().split("."))
    if not equals or not all(path):
        raise OverrideError(f"--set {argument}", "expected setting=value", "for example --set lora.rank=8")
    try:
        document = parse_yaml(text)
    except YamlError as fault:
        hint = f"text with YAML's signs needs quotes of its own: --set '{'.'.join(path)}=\"…\"'"
        raise OverrideError(f"--set {'.'.join(path)}", fault.fact, hint) from fault
    fact = _lost(text, document)
    if fact is not None:
        meant = shlex.quote(f"{'.'.join(path)}={render_value(_unquoted(text.strip()))}")
        raise OverrideError(f"--set {'.'.join(path)}", fact, f"quotes of its own keep a text whole: --set {meant}")
    if len(path) == 1 and path[0] in all_sections() and isinstance(document.value, Mapping) and document.value:
        fact = "would replace the whole section, and what the file says of its other settings"
        first, value = next(iter(document.value.items()))
        hint = f"a setting at a time, such as --set {shlex.quote(f'{path[0]}.{first}={render_value(value)}')}"
        raise OverrideError(f"--set {path[0]}", fact, hint)
    return Override(path, document, text.strip())


def _lost(text: str, document: Document) -> str | None:
    """What YAML would leave out of a value of `text`, which a shell passes whole; None where it keeps all."""
    comment = _comment(text, document)
    if comment is not None:
        return f"{comment[:40]!r} is a comment to YAML, and would be dropped"
    written = text.strip()
    if isinstance(document.value, str) and "\n" in written and not written.startswith(("|", ">")):
        return "YAML would join its lines into one"
    if written.startswith("&"):
        return f"{written.split()[0][:40]!r} is a mark of YAML's for the value after it, and would be dropped"
    return None


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def _comment(text: str, document: Document) -> str | None:
    """What YAML takes for a comment at the end of `text`: the value is the same without it."""
    for mark in re.finditer(r"(?:^|\s)#", text):
        try:
            if parse_yaml(text[: mark.start()]).value == document.value:
                return text[mark.start() :].strip()
        except YamlError:  # a sign within quotes or brackets
            continue
    return None


def apply_override(mapping: dict[str, Any], override: Override) -> bool:
    """Put the value into `mapping`, with the sections above it; False where a plain value is in the way."""
    current = mapping
    for name in override.path[:-1]:
        if current.get(name) is None:
            current[name] = {}
        if not isinstance(current[name], dict):
            return False
        current = current[name]
    current[override.path[-1]] = override.document.value
    return True


def is_known(path: Sequence[str | int]) -> bool:
    """Whether the schema has this path: a section, a setting, or an entry of a setting that is itself a mapping."""
    names = [str(part) for part in path]
    if ".".join(names) in all_settings() or (len(names) == 1 and names[0] in all_sections()):
        return True
    owner = all_settings().get(".".join(names[:-1]))
    return owner is not None and owner.schema.get("type") == "object"


def overriding(path: KeyPath, overrides: Sequence[Override]) -> Override | None:
    """The last override that set the value at `path`, or None where the file did."""
    return next((each for each in reversed(overrides) if path[: len(each.path)] == each.path), None)


def merged_plain(document: Document, overrides: Sequence[Override]) -> Mapping[KeyPath, str]:
    """The unquoted scalars of the file with those of the overrides over them, by path."""
    plain = dict(document.plain)
    for override in overrides:
        plain = {path: text for path, text in plain.items() if path[: len(override.path)] != override.path}
        plain.update({(*override.path, *path): text for path, text in override.document.plain.items()})
    return plain
