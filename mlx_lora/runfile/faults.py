"""What is wrong with a run file, fault by fault, each with its place. Knows neither files nor YAML's grammar."""

import copy
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from mlx_lora.config import RunConfig
from mlx_lora.runfile.fields import Setting, all_sections, all_settings, kind_in_words
from mlx_lora.runfile.hints import hint_for_name, hint_for_section, value_meant
from mlx_lora.runfile.loader import Document, KeyPath, Repeated
from mlx_lora.runfile.overrides import Override, merged_plain, overriding
from mlx_lora.runfile.writer import render_value

_LAST = 10**9  # faults of the command line stand after those of the file

# What YAML 1.1 took for truth is text here; of a template's switches nobody means the word.
_SWITCHES = {
    **dict.fromkeys(("yes", "on", "y"), "true"),
    **dict.fromkeys(("no", "off", "n"), "false"),
    "none": "null",
}


@dataclass(frozen=True)
class Fault:
    """One line for the user: place and fact, and a remedy where we know one."""

    place: str
    fact: str
    hint: str | None
    order: int


@dataclass(frozen=True)
class Source:
    """Where the values of a run come from: the file's document and the overrides applied to it."""

    name: str
    document: Document
    overrides: Sequence[Override]

    def fault(self, path: KeyPath, fact: str, hint: str | None) -> Fault:
        override = overriding(path, self.overrides)
        if override is None and (path not in self.document.lines or shown_path(path) in all_settings()):
            # What an override made by setting something in it, or a setting that it would have hold something.
            override = next((each for each in self.overrides if each.path[: len(path)] == path), None)
        if override is not None:
            return Fault(override.flag, fact, hint, _LAST)
        known = (path[:length] for length in range(len(path), 0, -1) if path[:length] in self.document.lines)
        line = next((self.document.lines[each] for each in known), None)
        return Fault(f"{self.name}:{line}" if line else self.name, fact, hint, line or 0)

    def written(self, path: KeyPath) -> str | None:
        """The text behind the value at `path`: of an unquoted scalar, or of a whole override."""
        override = overriding(path, self.overrides)
        if override is not None and override.path == path:
            return override.text
        return merged_plain(self.document, self.overrides).get(path)

    def how_to_write(self, path: KeyPath, value: str) -> str:
        """`write 8`, or for an override the whole flag as a shell takes it."""
        override = overriding(path, self.overrides)
        if override is None or override.path != path:
            return f"write {value}"
        return f"write --set {shlex.quote(f'{override.name}={value}')}"


@dataclass(frozen=True)
class _Problem:
    """What pydantic objects to at one path."""

    path: KeyPath
    kind: str
    message: str


def find_faults(mapping: Mapping[str, Any], source: Source) -> list[Fault]:
    """Every fault of `mapping` as a run, in the order of the file's lines; empty for a valid one."""
    faults = [_repeated_in_file(each, source.name) for each in source.document.repeated]
    faults += [_repeated_in_override(override) for override in source.overrides if override.document.repeated]
    problems = _problems(mapping)
    if problems:
        problems += _problems_behind(mapping, problems)
    faults += [_describe(problem, mapping, source) for problem in problems]
    faults += _words_for_nothing(source)
    return sorted(faults, key=lambda fault: fault.order)


def _repeated_in_file(repeated: Repeated, name: str) -> Fault:
    fact = f"{shown_path(repeated.path)} is given twice, first in line {repeated.first_line}"
    return Fault(f"{name}:{repeated.line}", fact, "keep one of the two lines", repeated.line)


def _repeated_in_override(override: Override) -> Fault:
    names = ", ".join(shown_path((*override.path, *each.path)) for each in override.document.repeated)
    return Fault(override.flag, f"{names} is given twice", "keep one", _LAST)


def _problems(mapping: Mapping[str, Any]) -> list[_Problem]:
    """pydantic's errors, one a path: the branches of a union count once, the deepest place wins."""
    try:
        RunConfig.model_validate(mapping)
    except ValidationError as error:
        found: dict[KeyPath, _Problem] = {}
        for each in error.errors(include_url=False):
            path = _path_in(mapping, each["loc"], missing=each["type"] == "missing")
            cause = each.get("ctx", {}).get("error")
            found.setdefault(path, _Problem(path, each["type"], str(cause) if cause else each["msg"]))
        outer = {path[:length] for path in found for length in range(2, len(path))}
        return [problem for path, problem in found.items() if path not in outer]
    return []


def _path_in(mapping: Any, location: Sequence[str | int], *, missing: bool) -> KeyPath:
    """The keys and indexes of an error's location, without the names that pydantic gives to a union's branches."""
    path: list[str | int] = []
    current = mapping
    for part in location:
        try:
            current = current[part]
        except (KeyError, IndexError, TypeError):  # a branch's name: no key of this value
            continue
        path.append(part)
    if missing:
        path.append(location[-1])
    return tuple(path)


def _problems_behind(mapping: Mapping[str, Any], problems: Sequence[_Problem]) -> list[_Problem]:
    """Objections to a section as a whole, which pydantic keeps to itself while one of its settings is faulty.

    A rule that names a faulty setting is left out: it would only repeat that fault.
    """
    pruned = copy.deepcopy(dict(mapping))
    concerned: set[str] = set()
    for problem in problems:
        *sections, name = [str(part) for part in problem.path[:2]] or [""]
        section = pruned.get(sections[0], {}) if sections else pruned
        if isinstance(section, dict):
            section.pop(name, None)
        concerned |= _words(f"{name} {hint_for_name(problem.path) if problem.kind == 'extra_forbidden' else ''}")
    seen = {problem.path for problem in problems}
    behind = [each for each in _problems(pruned) if each.kind == "value_error" and each.path not in seen]
    return [each for each in behind if not _words(each.message) & concerned]


def _describe(problem: _Problem, mapping: Mapping[str, Any], source: Source) -> Fault:
    path, name = problem.path, shown_path(problem.path)
    if problem.kind == "extra_forbidden":
        return source.fault(path, f"{name} is not a setting", hint_for_name(path))
    if problem.kind == "missing":
        setting = all_settings()[name]
        return source.fault(path, f"{name} is missing", f"{setting.name}: {setting.description}")
    if problem.kind == "value_error":
        return _rule_fault(problem, mapping, source)
    value = _value_at(mapping, path)
    if len(path) == 1 and path[0] in all_sections():
        fact = f"{name} should be a section of settings, not {shown_value(value)}"
        return source.fault(path, fact, hint_for_section(str(path[0]), value))
    setting, schema = _schema_at(path)
    fact = f"{name} should be {kind_in_words(schema)}, not {shown_value(value)}"
    inner = path[2:] if setting.section else path[1:]
    whole = _value_at(mapping, path[: len(path) - len(inner)])
    meant = value_meant(setting, whole, inner, value, source.written(path))
    hint = source.how_to_write(path, meant) if meant else f"{setting.path}: {setting.description}"
    return source.fault(path, fact, hint)


def _rule_fault(problem: _Problem, mapping: Mapping[str, Any], source: Source) -> Fault:
    """A rule over several settings: said of the override that broke it, if one did."""
    fact = f"{shown_path(problem.path)}: {problem.message}" if problem.path else problem.message
    section = _value_at(mapping, problem.path)
    named = [(*problem.path, name) for name in section if name in _words(problem.message) and section[name] is not None]
    overridden = [path for path in named if overriding(path, source.overrides)]
    if not overridden:
        given = [shown_path(path) for path in named]
        return source.fault(problem.path, fact, f"keep one of {' and '.join(given)}" if given else _choice(problem))
    flags = " ".join(f"--set {shown_path(path)}=null" for path in named if path not in overridden)
    return source.fault(overridden[0], fact, f"the file gives the other one: add {flags}" if flags else None)


def _choice(problem: _Problem) -> str:
    """The settings that a broken rule speaks of, to choose from."""
    words = _words(problem.message)
    paths = [each.path for each in all_settings().values() if each.name in words and each.section in problem.path]
    return f"add {' or '.join(sorted(paths))}"


def _words_for_nothing(source: Source) -> list[Fault]:
    """`system_prompt: None` is the text "None" in YAML, and a template's switch `no` the text "no": nobody means it."""
    faults = []
    for path, text in merged_plain(source.document, source.overrides).items():
        setting = all_settings().get(shown_path(path))
        if text.lower() == "none" and setting is not None and setting.kind == "text or null":
            fact = f'{setting.path} is the text "{text}"'
            faults.append(source.fault(path, fact, f'write null for nothing, or "{text}" in quotes for the word'))
        if path[:2] == ("data", "chat_template_args") and text.lower() in _SWITCHES:
            fact = f'{shown_path(path)} is the text "{text}"'
            meant = _SWITCHES[text.lower()]
            faults.append(source.fault(path, fact, f'write {meant}, or "{text}" in quotes for the word'))
    return faults


def _value_at(mapping: Any, path: KeyPath) -> Any:
    for part in path:
        mapping = mapping[part]
    return mapping


def _schema_at(path: KeyPath) -> tuple[Setting, Mapping[str, Any]]:
    """The setting that holds `path`, and the schema of that very place (an item of a list, an entry of a mapping)."""
    depth = 2 if path[0] in all_sections() else 1
    setting = all_settings()[shown_path(path[:depth])]
    schema = setting.schema
    for part in path[depth:]:
        inner = "items" if isinstance(part, int) else "additionalProperties"
        branches = [branch for branch in [schema, *schema.get("anyOf", [])] if inner in branch]
        if branches:
            schema = branches[0][inner]
    return setting, schema


def shown_path(path: KeyPath) -> str:
    """`train.engine[0]` for ("train", "engine", 0); names that are no plain words stand in quotes."""
    shown = ""
    for part in path:
        if isinstance(part, int):
            shown += f"[{part}]"
        else:
            word = part if re.fullmatch(r"[\w<-]{1,60}", part) else repr(part[:60])
            shown += f".{word}" if shown else word
    return shown


def shown_value(value: Any) -> str:
    """A value as a fault names it: `the text "8"`, `-1`, `a list`."""
    if isinstance(value, str):
        return f'the text "{value}"' if len(value) <= 60 and value.isprintable() else f"the text {value[:60]!r}…"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return render_value(value)[:60]


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text))
