"""The real built-in model: converted, trained, asked, fused, read by mlx-lm. One smoke test in the default run.

The slow tests use the adapter in adapters/stanley-cup-modern, which the demo's run file makes.
"""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from mlx_lora.commands.evaluate import run_evaluate
from mlx_lora.commands.train import run_train
from mlx_lora.model.builtin import ensure_builtin

ROOT = Path(__file__).parent.parent
MODEL = "smollm2-135m-instruct"
ROWS = ROOT / "data" / "stanley_cup" / "modern"
ADAPTER = ROOT / "adapters" / "stanley-cup-modern"
QUESTIONS = (
    "Who was the winner of the 1990 Stanley Cup?",
    "I forgot which team hoisted the Stanley Cup in 1998. Who was it?",
    "Who were crowned Stanley Cup champions in 2004?",
    "Who won the Stanley Cup in 2019?",
    "What is the capital of France?",
)


def write_run(folder: Path, *, rows: int, **train: Any) -> Path:
    """A run file in `folder` over the first `rows` training rows; the last four layers get adapters."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = (ROWS / "train.jsonl").read_text(encoding="utf-8").splitlines()
    (folder / "train.jsonl").write_text("\n".join(lines[:rows]) + "\n", encoding="utf-8")
    settings = {
        "model": MODEL,
        "data": {"train": str(folder / "train.jsonl"), "valid_share": 0.0, "max_seq_length": 64},
        "lora": {"rank": 8, "alpha": 16, "layers": 4},
        "train": {"batch_size": 4, "retention": None, **train},
        "optimizer": {"learning_rate": 2e-3},
        "output_dir": str(folder / "run"),
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def losses(folder: Path) -> list[float]:
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [event["loss"] for event in events if event["event"] == "step"]


@pytest.mark.real
def test_the_built_in_model_is_converted_trained_for_ten_steps_and_asked_four_questions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ensure_builtin(MODEL)
    assert {path.name for path in base.iterdir()} >= {"model.safetensors", "config.json", "tokenizer.json"}

    assert run_train(write_run(tmp_path, rows=20, steps=10)) == 0
    folder = tmp_path / "run"
    assert {path.name for path in folder.iterdir()} == {
        *("adapters.safetensors", "adapter_config.json", "run.yaml", "metrics.jsonl", "checkpoints")
    }
    measured = losses(folder)
    assert len(measured) == 10
    assert np.mean(measured[-3:]) < 0.5 * measured[0]
    capsys.readouterr()

    data = [str(ROWS / "test.jsonl")]
    assert run_evaluate([folder], data=data, limit=4, max_tokens=8, json_output=True) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads((folder / "eval" / f"{result['data']['name']}.json").read_text(encoding="utf-8"))
    assert len(result["questions"]) == 4
    assert 0.0 <= result["exact_match"] <= 1.0


def program(module: str, *arguments: str) -> SimpleNamespace:
    """Run `python -m module` without a terminal and without a network; its stdout and stderr."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OPENBLAS_NUM_THREADS": "1", "NO_COLOR": "1"}
    command = [sys.executable, "-m", module, *arguments]
    run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return SimpleNamespace(out=run.stdout, err=run.stderr)


def answer_of_mlx_lm(model: Path, question: str, *adapter: str) -> str:
    """What `mlx_lm.generate` prints between its two rules."""
    settings = ["--model", str(model), *adapter, "--prompt", question, "--max-tokens", "24", "--temp", "0"]
    printed = program("mlx_lm", "generate", *settings).out
    found = re.search(r"^={10}\n(.*?)\n?^={10}$", printed, flags=re.DOTALL | re.MULTILINE)
    assert found is not None, printed
    return found[1].strip()


def our_answer(question: str, *arguments: str) -> str:
    return program("mlx_lora", "chat", *arguments, "-p", question, "--max-tokens", "24").out.strip()


@pytest.fixture(scope="module")
def committed_adapter() -> Path:
    assert (ADAPTER / "adapters.safetensors").is_file(), "the repository ships this adapter"
    return ADAPTER


@pytest.mark.slow
@pytest.mark.parametrize("question", QUESTIONS)
def test_mlx_lm_answers_with_the_adapter_as_our_chat_does(committed_adapter: Path, question: str) -> None:
    ours = our_answer(question, str(committed_adapter))
    assert ours
    assert answer_of_mlx_lm(ensure_builtin(MODEL), question, "--adapter-path", str(committed_adapter)) == ours


@pytest.mark.slow
def test_mlx_lm_loads_the_fused_model_and_answers_the_same(committed_adapter: Path, tmp_path: Path) -> None:
    program("mlx_lora", "fuse", str(committed_adapter), "-o", str(tmp_path / "fused"))
    for question in QUESTIONS:
        ours = our_answer(question, str(committed_adapter))
        assert our_answer(question, "--model", str(tmp_path / "fused")) == ours
        assert answer_of_mlx_lm(tmp_path / "fused", question) == ours


@pytest.mark.slow
def test_a_resumed_run_on_the_real_model_ends_in_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlx_lora.commands import train as train_command

    whole = write_run(tmp_path / "whole", rows=20, steps=6, save_every=3)
    assert run_train(whole) == 0

    halved = write_run(tmp_path / "halved", rows=20, steps=6, save_every=3)
    show = train_command.TrainScreen.step

    def press_ctrl_c(screen: train_command.TrainScreen, report: Any) -> None:
        show(screen, report)
        if report.step == 4:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(train_command.TrainScreen, "step", press_ctrl_c)
        assert run_train(halved) == 130
    assert len(losses(tmp_path / "halved" / "run")) == 4
    assert run_train(halved, resume=True) == 0
    assert losses(tmp_path / "halved" / "run") == losses(tmp_path / "whole" / "run")
    whole_bytes, resumed = (
        (tmp_path / name / "run" / "adapters.safetensors").read_bytes() for name in ("whole", "halved")
    )
    assert resumed == whole_bytes


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "kind"), [("0", "taught nothing"), ("1e-9", "taught nothing"), ("1", "broken")])
def test_a_learning_rate_that_teaches_nothing_and_one_that_breaks_the_model_are_called_so(
    rate: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_train(write_run(tmp_path, rows=20, steps=6), [f"optimizer.learning_rate={rate}"]) == 0
    capsys.readouterr()
    data = [str(ROWS / "test.jsonl"), "general-knowledge"]
    assert run_evaluate([tmp_path / "run"], base=True, data=data, limit=12, max_tokens=16, json_output=True) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert [one["verdict"]["kind"] for one in results] == [kind, kind], [one["verdict"] for one in results]
