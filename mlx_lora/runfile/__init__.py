"""The run file: YAML and `--set` to a RunConfig, and back. Knows nothing of data, models or MLX.

Relative paths in a run file stay as they are written: they count from the current directory, not from the file.
"""

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlx_lora.config import RunConfig
from mlx_lora.errors import ConfigError
from mlx_lora.runfile.faults import Fault, Source, find_faults, shown_value
from mlx_lora.runfile.fields import all_sections, config_schema
from mlx_lora.runfile.hints import hint_for_name
from mlx_lora.runfile.loader import MAX_CHARACTERS, Document, YamlError, parse_yaml
from mlx_lora.runfile.overrides import Override, OverrideError, apply_override, is_known, parse_override
from mlx_lora.runfile.writer import render_config

__all__ = ["config_schema", "dump_config", "load_config", "render_config"]

_MOST_FAULTS_SHOWN = 100
_INIT_HINT = "`mlx-lora init` writes a run file with every setting"


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The run that the YAML file at `path` describes, after `overrides` such as "lora.rank=8".

    The file is read first, then the overrides in their order: of two for one setting the last wins.

    Raises: ConfigError with every fault at once, each as `file:line: fact` and a hint.
    """
    name = str(path)
    document = _read_document(Path(path), name)
    mapping: dict[str, Any] = document.value
    faults: list[Fault] = []
    applied: list[Override] = []
    for argument in overrides:
        try:
            override = parse_override(argument)
        except OverrideError as fault:
            faults.append(Fault(fault.flag, fault.fact, fault.hint, 0))
            continue
        if apply_override(mapping, override):
            applied.append(override)
        elif not is_known(override.path):  # otherwise the fault is in the file, which has no section there
            faults.append(Fault(override.flag, f"{override.name} is not a setting", hint_for_name(override.path), 0))
    for section in all_sections():
        if section and mapping.get(section) is None:
            mapping[section] = {}  # a section whose lines are all comments; what it must hold is reported by name
    faults = [*find_faults(mapping, Source(name, document, applied)), *faults]
    if faults:
        raise _config_error(faults)
    return RunConfig.model_validate(mapping)


def dump_config(config: RunConfig) -> str:
    """`config` as YAML text, every setting in the schema's order; load_config reads the equal config back."""
    return render_config(config)


def _read_document(path: Path, name: str) -> Document:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_CHARACTERS + 1)
    except IsADirectoryError as error:
        inside = sorted(str(each) for each in path.glob("*.yaml"))
        hint = f"did you mean {inside[0]}?" if inside else "give the YAML file itself"
        raise ConfigError(f"{name}: is a folder", hint) from error
    except FileNotFoundError as error:
        raise ConfigError(f"{name}: no such file", _hint_for_file(path)) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        fact = getattr(error, "strerror", None) or error
        raise ConfigError(f"{name}: cannot be read: {fact}", "check the path and its permissions") from error
    if len(raw) > MAX_CHARACTERS:
        fact = f"larger than {MAX_CHARACTERS // 1024} KiB: no run file"
        raise ConfigError(f"{name}: {fact}", "data files are named in a run file, under data")
    try:
        document = parse_yaml(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ConfigError(f"{name}:{line}: not UTF-8 text", "save the file as UTF-8") from error
    except YamlError as fault:
        raise ConfigError(f"{name}:{fault.line}:{fault.column}: {fault.fact}", fault.hint) from fault
    if document.value is None:
        raise ConfigError(f"{name}: holds no settings", _INIT_HINT)
    if not isinstance(document.value, dict):
        raise ConfigError(f"{name}:1: expected `name: value` lines, found {shown_value(document.value)}", _INIT_HINT)
    return document


def _hint_for_file(path: Path) -> str:
    near = [path.with_suffix(suffix) for suffix in (".yaml", ".yml")]
    near += sorted(path.parent.glob(f"*{glob.escape(path.stem)}*.yaml"))
    found = next((each for each in near if each.is_file()), None)
    return f"did you mean {found}?" if found else "`mlx-lora init` writes a run file"


def _config_error(faults: Sequence[Fault]) -> ConfigError:
    if len(faults) == 1:
        return ConfigError(f"{faults[0].place}: {faults[0].fact}", faults[0].hint)
    lines = []
    for fault in faults[:_MOST_FAULTS_SHOWN]:
        lines.append(f"{fault.place}: {fault.fact}")
        if fault.hint:
            lines.append(f"  hint: {fault.hint}")
    if len(faults) > _MOST_FAULTS_SHOWN:
        lines.append(f"and {len(faults) - _MOST_FAULTS_SHOWN} more faults")
    return ConfigError("\n".join(lines))
