"""A run as YAML text: our own writer, for comments from the schema and one exact form. Knows nothing of files.

What it writes is read back equal by our loader and by YAML 1.1 readers such as PyYAML's SafeLoader.
"""

import re
import textwrap
from collections.abc import Mapping
from typing import Any

import yaml

from mlx_lora.config import RunConfig
from mlx_lora.runfile.fields import Setting, all_sections, all_settings, literals
from mlx_lora.runfile.loader import YamlError, parse_yaml

_PLAIN = re.compile(r"[A-Za-z0-9_/.][A-Za-z0-9_/.+@-]*(?: [A-Za-z0-9_/.+@-]+)*")
_COMMENT_WIDTH = 116


def render_config(config: RunConfig, *, comments: bool = False) -> str:
    """Every setting of `config` as YAML in the order of the schema; with `comments`, what each is above its line."""
    lines: list[str] = []
    values = config.model_dump()
    section = ""
    for setting in all_settings().values():
        if setting.section != section:
            section = setting.section
            lines += [""] if comments else []
            if section:
                lines += _comment(all_sections()[section].description, "") if comments else []
                lines += [f"{section}:"]
        indent = "  " if setting.section else ""
        if comments:
            lines += _comment(_description(setting), indent)
        value = values[setting.section][setting.name] if setting.section else values[setting.name]
        lines.append(f"{indent}{setting.name}: {render_value(value)}")
    return "\n".join(lines) + "\n"


def _description(setting: Setting) -> str:
    return f"{setting.description} [{setting.kind}]" if literals(setting.schema) else setting.description


def _comment(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, _COMMENT_WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}#   ")


def render_value(value: Any) -> str:
    """One value on one line, as it stands behind `name: `."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return _render_number(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{render_value(key)}: {render_value(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(render_value(each) for each in value) + "]"
    return _render_text(str(value))


def _render_number(value: float) -> str:
    mantissa, exponent, power = repr(value).partition("e")
    if exponent and "." not in mantissa:
        mantissa += ".0"  # YAML 1.1 reads 1e-05 as text
    return mantissa + exponent + power


def _render_text(text: str) -> str:
    meant = text.lower() != "none"  # the loader refuses it unquoted, as a wish for nothing
    if meant and _PLAIN.fullmatch(text) and _is_text_here(text) and _is_text_in_yaml_1_1(text):
        return text
    quoted: str = yaml.safe_dump(text, default_style='"', width=float("inf"), allow_unicode=True)
    return quoted.removesuffix("\n")


def _is_text_here(word: str) -> bool:
    try:
        return bool(parse_yaml(word).value == word)
    except YamlError:  # a number that is too large
        return False


def _is_text_in_yaml_1_1(word: str) -> bool:
    resolvers = yaml.SafeLoader.yaml_implicit_resolvers.get(word[0], [])
    return not any(pattern.match(word) for _, pattern in resolvers)
