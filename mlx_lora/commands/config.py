"""`mlx-lora config schema` and `mlx-lora config show`: what a run file may hold, and what one comes to."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from mlx_lora.runfile import config_schema, load_config, render_config


def run_config_schema() -> int:
    """Print the JSON Schema of the run file on stdout; return the exit code 0."""
    sys.stdout.write(json.dumps(config_schema(), indent=2, ensure_ascii=False) + "\n")
    return 0


def run_config_show(path: Path, overrides: Sequence[str], json_output: bool) -> int:
    """Print the resolved run (file, overrides, defaults) as commented YAML or as one JSON object; return 0.

    Raises: ConfigError with every fault of the run file.
    """
    config = load_config(path, overrides)
    if json_output:
        sys.stdout.write(json.dumps(config.model_dump(), indent=2, ensure_ascii=False) + "\n")
    else:
        sys.stdout.write(render_config(config, comments=True))
    return 0
