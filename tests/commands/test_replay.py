"""`data.replay` in a run: the rows are said, hashed, resumed and trained like any others."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from mlx_lora.commands.check import run_check
from mlx_lora.commands.train import run_train
from mlx_lora.config import OptimizerSettings
from mlx_lora.dataset import replay as built_in
from mlx_lora.errors import DataError, TrainingError
from mlx_lora.runfile import load_config
from mlx_lora.training import replay
from mlx_lora.training.fingerprint import find_differences
from tests.commands.test_train import events, interrupted_after


@pytest.fixture(autouse=True)
def few_tokens(monkeypatch):
    monkeypatch.setattr(replay, "MOST_TOKENS", 5)


@pytest.fixture
def rehearse(run_file, tmp_path):
    """A run file with data.replay: 0.4 and prompts of its own, one of them the run's: four rows join the six."""

    def write(**sections):
        (tmp_path / "prompts.txt").write_text("Who are you?\nWhat is tea?\nWhat is the sky?\nHello!\nName a bird.\n")
        data = {"replay": 0.4, "replay_prompts": str(tmp_path / "prompts.txt"), **sections.pop("data", {})}
        return run_file(data=data, **sections)

    return write


def test_replay_rows_join_every_step_and_are_told(rehearse, run_file, tmp_path, capsys):
    assert run_train(rehearse()) == 0
    said = capsys.readouterr().err
    assert "replay: 4 rows join each epoch's 6 (40% of all), drawn from 4 that the base answered" in said
    assert "6 training rows" in said
    steps = events(tmp_path / "run", "step")
    assert [event["epoch"] for event in steps][2] == 1.0  # as without replay: six rows in batches of two
    plain = run_file(output_dir=str(tmp_path / "plain"))
    assert run_train(plain) == 0
    for event, without in zip(steps, events(tmp_path / "plain", "step"), strict=True):
        assert event["learning_rate"] == without["learning_rate"]
        assert event["targets"] > without["targets"]
    facts = json.loads((tmp_path / "run" / "adapter_config.json").read_text())["mlx_lora"]
    assert set(facts["data_sha256"]) == {"train", "valid", "replay"}


def test_validation_before_the_first_step_is_that_of_a_run_without_replay(rehearse, tmp_path):
    losses = []
    for share in (None, 0.4):
        assert run_train(rehearse(data={"replay": share}, output_dir=str(tmp_path / f"{share}"))) == 0
        losses.append([event["loss"] for event in events(tmp_path / f"{share}", "validation")])
    assert losses[0][0] == losses[1][0]
    assert losses[0][-1] != losses[1][-1]


@pytest.mark.parametrize("engine", ["auto", "plain"])
def test_resume_with_replay_gives_bitwise_the_uninterrupted_weights(rehearse, tmp_path, monkeypatch, engine):
    settings = {"train": {"engine": engine}}
    assert run_train(rehearse(**settings, output_dir=str(tmp_path / "whole"))) == 0
    path = rehearse(**settings)
    with monkeypatch.context() as patch:
        interrupted_after(4, patch)
        assert run_train(path) == 130
    monkeypatch.setenv("MLX_LORA_CACHE", str(tmp_path / "empty"))  # the answers are given anew, and are the same
    assert run_train(path, resume=True) == 0
    resumed, whole = ((tmp_path / folder / "adapters.safetensors").read_bytes() for folder in ("run", "whole"))
    assert resumed == whole


def test_resume_refuses_other_replay_rows(rehearse, tmp_path, monkeypatch):
    path = rehearse()
    with monkeypatch.context() as patch:
        interrupted_after(2, patch)
        assert run_train(path) == 130
    (tmp_path / "prompts.txt").write_text("Who am I?\n")
    with pytest.raises(TrainingError, match=r"data\.replay: was "):
        run_train(path, resume=True)


def test_replay_prompts_may_move_before_a_resume(rehearse, tmp_path, monkeypatch):
    path = rehearse()
    with monkeypatch.context() as patch:
        interrupted_after(2, patch)
        assert run_train(path) == 130
    (tmp_path / "prompts.txt").rename(tmp_path / "moved.txt")
    moved = ["data.replay_prompts=" + str(tmp_path / "moved.txt")]
    assert run_train(path, moved, resume=True) == 0
    earlier = {"settings": {"data": {"replay_prompts": "prompts.txt"}}, "data": {}}  # as an earlier version told it
    assert find_differences(earlier, {"settings": {"data": {}}, "data": {}}, 2, OptimizerSettings()) == []


def test_answers_with_other_rounding_can_be_taken_for_the_same(rehearse, tmp_path, monkeypatch):
    path = rehearse()
    with monkeypatch.context() as patch:
        interrupted_after(2, patch)
        assert run_train(path) == 130
    monkeypatch.setenv("MLX_LORA_CACHE", str(tmp_path / "empty"))
    packed = replay._packed

    def rounded(answers):
        for answer in answers:
            answer.expected.shares[:] *= np.float32(1 - 1e-6)
        return packed(answers)

    monkeypatch.setattr(replay, "_packed", rounded)
    with pytest.raises(
        TrainingError, match=r"data\.replay: was .* \(--force allows it: the base answered the same p"
    ) as no:
        run_train(path, resume=True)
    assert no.value.hint.endswith("--resume --force")
    assert run_train(path, resume=True, force=True) == 0


def test_what_watches_forgetting_is_not_rehearsed_from_a_file_of_ones_own(rehearse, tmp_path, capsys):
    (tmp_path / "watched.jsonl").write_text('{"question": "What is tea?", "answer": "A drink"}\n')
    assert run_train(rehearse()) == 0
    assert "replay: 1 of 5 prompts are left out: the run's rows or train.retention ask them" in capsys.readouterr().err
    watching = {"train": {"retention": str(tmp_path / "watched.jsonl")}}
    assert run_train(rehearse(**watching), overwrite=True) == 0
    said = capsys.readouterr().err
    assert "replay: 2 of 5 prompts are left out" in said
    assert "drawn from 3 that the base answered" in said
    path = rehearse(**watching)
    (tmp_path / "prompts.txt").write_text("what is TEA?\n")
    with pytest.raises(DataError, match=r"prompts\.txt: the run's rows and train\.retention ask all of its prompts$"):
        run_train(path, overwrite=True)


def test_the_base_writes_what_the_built_in_prompts_lack(run_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(built_in, "BUILTIN_PROMPTS", tmp_path / "few.txt")
    (tmp_path / "few.txt").write_text("Who was Otto?\nName a bird or two.\n")
    settings = {"data": {"replay": 0.6}}  # 27 rows
    assert run_train(run_file(**settings, output_dir=str(tmp_path / "whole"))) == 0
    written = int(re.search(r"replay: the base wrote (\d+) of the prompts itself", capsys.readouterr().err)[1])
    (kept,) = (Path(os.environ["MLX_LORA_CACHE"]) / "replay").glob("*.json")
    drawn = json.loads(kept.read_text())
    assert len(drawn) == 25 + 25 // 3
    assert 0 < written <= len({text for text in drawn if text})
    path = run_file(**settings)
    with monkeypatch.context() as patch:
        interrupted_after(4, patch)
        assert run_train(path) == 130
    monkeypatch.setenv("MLX_LORA_CACHE", str(tmp_path / "empty"))  # they are written anew, and are the same
    assert run_train(path, resume=True) == 0
    resumed, whole = ((tmp_path / folder / "adapters.safetensors").read_bytes() for folder in ("run", "whole"))
    assert resumed == whole


def test_a_longer_run_that_rehearses_other_prompts_is_not_taken_for_the_same(run_file, tmp_path, monkeypatch):
    monkeypatch.setattr(built_in, "BUILTIN_PROMPTS", tmp_path / "few.txt")
    (tmp_path / "few.txt").write_text("Who was Otto?\nName a bird or two.\n")
    path = run_file(data={"replay": 0.6}, optimizer={"schedule": "constant", "warmup_ratio": 0.0})
    assert run_train(path) == 0
    with pytest.raises(TrainingError) as refused:
        run_train(path, ["train.epochs=5"], resume=True, force=True)
    places = [line.split(": was")[0].strip() for line in refused.value.message.splitlines()[1:]]
    assert places == ["data.replay", "data.replay_written", "total_steps"]
    assert "  data.replay_written: was '25', is '43'\n" in refused.value.message


def test_a_checkpoint_that_does_not_tell_how_many_prompts_were_written_is_not_another_run():
    then, now = {"data": {"replay": "a"}}, {"data": {"replay": "a", "replay_written": "25"}}
    assert find_differences(then, now, 1, OptimizerSettings()) == []
    (found,) = find_differences(now, {"data": {"replay": "a", "replay_written": "0"}}, 1, OptimizerSettings())
    assert str(found) == "data.replay_written: was '25', is '0'"


def test_the_engine_and_the_plain_way_rehearse_alike(rehearse, tmp_path, capsys):
    losses = []
    for engine in ("plain", "auto"):
        assert run_train(rehearse(train={"engine": engine}, output_dir=str(tmp_path / engine))) == 0
        losses.append([event["loss"] for event in events(tmp_path / engine, "step")])
    assert "the lower 2 of 4 layers ran once for 14 rows" in capsys.readouterr().err  # 6 + 4 + 4 validation rows
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_check_counts_the_rows_that_replay_adds(rehearse, capsys):
    assert run_check(load_config(rehearse()), json_output=True, show=0) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["replay_rows"], report["steps_per_epoch"], report["steps"]) == (4, 3, 9)
    assert run_check(load_config(rehearse()), json_output=False, show=0) == 0
    assert "4 replay rows join each epoch" in capsys.readouterr().out


def test_a_missing_prompt_file_ends_the_run_before_it_begins(rehearse, tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.txt: No such file"):
        run_train(rehearse(data={"replay_prompts": str(tmp_path / "nowhere.txt")}))
