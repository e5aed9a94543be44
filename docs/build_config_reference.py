"""Build docs/CONFIG.md and configs/schema.json from the schema. Run: python docs/build_config_reference.py"""

import json
from pathlib import Path

from mlx_lora.runfile import config_schema
from mlx_lora.runfile.fields import Setting, all_sections, all_settings
from mlx_lora.runfile.writer import render_value

ROOT = Path(__file__).resolve().parent.parent

_OPENING = """\
# The run file

Built by `docs/build_config_reference.py` from `mlx_lora/config.py`: change the settings there.

A run is one YAML file. `mlx-lora init` writes one with every setting, `mlx-lora config show FILE` prints what a file
comes to with all defaults, `mlx-lora config schema` prints the JSON Schema. A first line
`# yaml-language-server: $schema=./schema.json` makes editors complete and check the file.

- **Paths** stay as they are written: a relative one counts from the current directory, not from the file.
- **Overrides**: `--set lora.rank=8` changes the mapping before it is checked, so the flag and the file meet the same
  rules. The value is YAML: `--set data.valid=null`, `--set 'lora.target_modules=[q_proj, v_proj]'`,
  `--set 'data.system_prompt="Answer: in one word."'`. Of two for one setting the last wins.
- **YAML** is read by the rules of YAML 1.2: `1e-5` is a number, only `true` and `false` are booleans, `010` is ten. A
  name that stands twice in a section is a fault, with both line numbers.
- **Faults** come all at once, each with its line and, where we know one, a remedy:

  ```text
  error: run.yaml:12: lora.rnak is not a setting
    hint: did you mean lora.rank?
  run.yaml:14: lora.layers should be all or a positive integer, not -1
    hint: write all
  ```
"""


def build_reference() -> str:
    """docs/CONFIG.md: a table of settings for every section."""
    parts = [_OPENING]
    for section in all_sections().values():
        title = f"`{section.name}`" if section.name else "At the top"
        rows = [_row(setting) for setting in all_settings().values() if setting.section == section.name]
        intro = f"{section.description}\n\n" if section.name else ""
        parts.append(
            f"## {title}\n\n{intro}| setting | type | default | what it does |\n|---|---|---|---|\n" + "".join(rows)
        )
    return "\n".join(parts)


def build_schema() -> str:
    """configs/schema.json: what `mlx-lora config schema` prints."""
    return json.dumps(config_schema(), indent=2, ensure_ascii=False) + "\n"


def _row(setting: Setting) -> str:
    default = "required" if setting.required else f"`{render_value(setting.default)}`"
    return f"| `{setting.path}` | {setting.kind} | {default} | {setting.description.replace('|', chr(92) + '|')} |\n"


def main() -> None:
    (ROOT / "docs" / "CONFIG.md").write_text(build_reference(), encoding="utf-8")
    (ROOT / "configs" / "schema.json").write_text(build_schema(), encoding="utf-8")


if __name__ == "__main__":
    main()
