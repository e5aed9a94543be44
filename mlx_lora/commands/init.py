"""`mlx-lora init`: a run file with every setting explained, and a small data set that trains as it is."""

import shlex
from importlib import resources
from pathlib import Path

from mlx_lora.config import DataSettings, OptimizerSettings, RunConfig, TrainSettings
from mlx_lora.console import talk
from mlx_lora.errors import ConfigError
from mlx_lora.files import refuse_unwritable, typed_path, write_whole
from mlx_lora.runfile import render_config

RUN_FILE = "run.yaml"
SPLITS = ("train", "valid", "test")

_HEADER = """\
# A run of mlx-lora: `mlx-lora train run.yaml` in this folder. Relative paths count from the current directory.
# A setting with a default may be left out; `mlx-lora config show run.yaml` prints what the file comes to.
"""


def run_init(folder: Path, *, model: str, force: bool) -> int:
    """Write run.yaml and data/{train,valid,test}.jsonl into `folder`, print the next commands, return 0.

    The rows are questions about a company that does not exist: the base cannot know the answers.

    Raises: ConfigError where a file is there already and `force` is false.
    """
    if not model.strip():
        raise ConfigError("--model: the name is empty", "leave --model out for smollm2-135m-instruct")
    sample = _sample_run(_found_from(folder, model))
    contents = {folder / RUN_FILE: _HEADER + "\n" + render_config(sample, comments=True)}
    for split in SPLITS:
        rows = resources.files("mlx_lora").joinpath("templates", f"{split}.jsonl").read_text(encoding="utf-8")
        contents[folder / "data" / f"{split}.jsonl"] = rows
    present = [str(path) for path in contents if path.exists()]
    if present and not force:
        raise ConfigError(f"{', '.join(present)}: there already", "choose another folder, or pass --force to overwrite")
    for path in contents:
        refuse_unwritable(path)
    for path, content in contents.items():
        write_whole(path, content)
    _print_next(folder, list(contents))
    return 0


def _found_from(folder: Path, model: str) -> str:
    """`model` as runs in `folder` find it: one that lies here by its whole path, where they start elsewhere."""
    from mlx_lora.model.builtin import BUILTIN_MODELS

    path = typed_path(model)
    if model in BUILTIN_MODELS or folder.resolve() == Path.cwd() or path.is_absolute() or not path.exists():
        return model
    return str(path.resolve())


def _sample_run(model: str) -> RunConfig:
    """The settings of the sample, those of docs/RECIPES.md: minutes on two CPU cores, far less on a Mac's GPU."""
    return RunConfig(
        model=model,
        data=DataSettings(
            train="data/train.jsonl",
            valid="data/valid.jsonl",
            test="data/test.jsonl",
            max_seq_length=256,
            replay=0.25,
        ),
        train=TrainSettings(epochs=6),
        optimizer=OptimizerSettings(learning_rate=1.5e-3, schedule="wsd"),
        output_dir="adapters/sample",
    )


def _print_next(folder: Path, written: list[Path]) -> None:
    for path in written:
        talk.print(f"wrote {path}", markup=False, soft_wrap=True)
    talk.print("next:")
    if folder.resolve() != Path.cwd():
        talk.print(f"  cd {shlex.quote(str(folder))}", markup=False, soft_wrap=True)
    for command in (
        f"check {RUN_FILE}",
        f"train {RUN_FILE}",
        "eval adapters/sample --data data/test.jsonl --base",
        "chat adapters/sample",
    ):
        talk.print(f"  mlx-lora {command}", markup=False, soft_wrap=True)
