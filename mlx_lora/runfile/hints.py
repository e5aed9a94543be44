"""Remedies: the setting that a wrong name means, and the value that a wrong value means. Knows nothing of files."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from mlx_lora.runfile.fields import JsonSchema, Setting, all_sections, all_settings, literals
from mlx_lora.runfile.loader import KeyPath, YamlError, parse_yaml
from mlx_lora.runfile.peers import OTHER_NAMES, REMARKS
from mlx_lora.runfile.writer import render_value

_TRUE_WORDS = frozenset({"yes", "on", "y", "1"})
_FALSE_WORDS = frozenset({"no", "off", "n", "0"})


def hint_for_name(path: KeyPath) -> str:
    """The setting that an unknown name probably means; else the names that its place has."""
    name = str(path[-1]).lower().replace("-", "_")
    elsewhere = [setting.path for setting in all_settings().values() if setting.name == name]
    if elsewhere:
        return _did_you_mean(elsewhere)
    if name in OTHER_NAMES:
        return _did_you_mean([OTHER_NAMES[name]])
    if name in REMARKS:
        return REMARKS[name]
    section = str(path[0]) if len(path) == 2 and path[0] in all_sections() else ""
    near = _near_in_section(name, section) or _near_anywhere(name, path)
    if near:
        return _did_you_mean([near])
    names = [setting.name for setting in all_settings().values() if setting.section == section]
    if section:
        return f"the settings of {section} are {', '.join(names)}"
    return f"at the top stand {', '.join([*names, *filter(None, all_sections())])}"


def _did_you_mean(paths: Sequence[str]) -> str:
    return f"did you mean {' or '.join(paths)}?"


def _near_in_section(name: str, section: str) -> str | None:
    paths = {setting.name: setting.path for setting in all_settings().values() if setting.section == section}
    if not section:
        paths |= {each: each for each in all_sections() if each}
    return _nearest(name, paths)


def _near_anywhere(name: str, path: KeyPath) -> str | None:
    paths = {setting.name: setting.path for setting in all_settings().values()}
    dotted = {setting.path: setting.path for setting in all_settings().values()}
    return _nearest(name, paths) or _nearest(".".join(map(str, path)), dotted)


def _nearest(name: str, paths: Mapping[str, str]) -> str | None:
    found = difflib.get_close_matches(name[:80], list(paths), n=1, cutoff=0.7)
    return paths[found[0]] if found else None


def hint_for_section(section: str, value: Any) -> str:
    """How to write `value` inside the section that stands in its place, or what the section holds."""
    names = [setting.name for setting in all_settings().values() if setting.section == section]
    if value is not None and not isinstance(value, bool | list) and _accepts(section, names[0], value):
        return f"write {section}: {{{names[0]}: {render_value(value)}}}"
    return f"the settings of {section} are {', '.join(names)}"


def value_meant(setting: Setting, whole: Any, inner: KeyPath, value: Any, written: str | None) -> str | None:
    """The first value near `value` that the setting accepts, as YAML; None where there is none.

    whole: the setting's value; inner: the way to `value` in it, () for itself; written: its unquoted text in the file.
    """
    for candidate in _candidates(setting, value, written):
        if _accepts(setting.section, setting.name, _replaced(whole, inner, candidate)):
            return render_value(candidate)
    return None


def _candidates(setting: Setting, value: Any, written: str | None) -> Iterator[Any]:
    if isinstance(value, str):
        yield from _meant_by_text(setting, value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if isinstance(value, float) and value.is_integer():
            yield int(value)
        if value == -1:
            yield "all"
        if value <= 0:
            yield None
        if 1 < value <= 100:
            yield value / 100  # per cent
    if written and not isinstance(value, str):
        yield written  # a commit such as 0123456 reads as a number


def _meant_by_text(setting: Setting, text: str) -> Iterator[Any]:
    word = text.strip().lower()
    try:
        unquoted = parse_yaml(text.replace("_", "")).value
    except YamlError:
        unquoted = None
    if isinstance(unquoted, int | float):
        yield unquoted
        yield from _candidates(setting, unquoted, None)
    if word in _TRUE_WORDS:
        yield True
    if word in _FALSE_WORDS:
        yield False
    if word in ("", "none", "null"):
        yield None
    yield from _near_literals(setting.schema, word)
    yield [part.strip() for part in text.split(",") if part.strip()]


def _near_literals(schema: JsonSchema, word: str) -> Iterator[str]:
    words = literals(schema)
    word = word.replace("_", "-") if word.replace("_", "-") in words else word
    yield from difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    yield from (literal for literal in words if word and literal.startswith(word))


def _replaced(whole: Any, inner: KeyPath, value: Any) -> Any:
    """`whole` with `value` in the place that `inner` leads to."""
    if not inner:
        return value
    if isinstance(whole, list):
        return [_replaced(each, inner[1:], value) if index == inner[0] else each for index, each in enumerate(whole)]
    return {key: _replaced(each, inner[1:], value) if key == inner[0] else each for key, each in whole.items()}


def _accepts(section: str, name: str, value: Any) -> bool:
    try:
        all_sections()[section].model.model_validate({name: value})
    except ValidationError as error:
        return all(each["loc"][:1] != (name,) for each in error.errors())
    return True
