"""`train.retention`: what the model forgot is said at the end of a run, with a remedy."""

import json
import os
import signal
import time

import mlx.core as mx
import pytest

from mlx_lora.commands.train import run_train
from mlx_lora.config import DataSettings
from mlx_lora.dataset.examples import render_prompt
from mlx_lora.errors import DataError
from mlx_lora.lora.adapter import apply_adapter, read_adapter
from mlx_lora.model.generate import generate_answers
from mlx_lora.model.load import load_base
from tests.commands.test_train import events


@pytest.fixture
def known(base, tmp_path):
    """A file of eight questions with the answers that the base gives, and their number."""
    loaded = load_base(str(base))
    settings = DataSettings(train="rows")
    questions = [f"What is number {n}{n}?" for n in range(1, 9)]
    prompts = [render_prompt([{"role": "user", "content": one}], loaded.tokenizer, settings) for one in questions]
    answers = generate_answers(loaded.model, loaded.tokenizer, prompts, max_tokens=32)
    rows = [{"question": one, "answer": answer.text} for one, answer in zip(questions, answers, strict=True)]
    (tmp_path / "known.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return tmp_path / "known.jsonl"


BREAKING = {"optimizer": {"learning_rate": 0.05}, "lora": {"alpha": 32}}


def test_a_run_that_forgets_says_so_with_the_remedy(run_file, known, tmp_path, capsys):
    train = {"retention": str(known), "engine": "auto"}
    assert run_train(run_file(train=train, **BREAKING), json_output=True) == 0
    shown = capsys.readouterr()
    assert "known 8/8 → 0/8 (contains)" in shown.err
    assert "warning: the model forgot: 8 answers that were right are wrong, 0 the other way round" in shown.err
    assert "hint: data.replay: 0.2 rehearses what the base knew; fewer epochs" in shown.err
    retention = json.loads(shown.out)["retention"]
    assert retention.pop("seconds") > 0
    assert retention == {
        **{"data": "known", "questions": 8, "base": 8, "adapter": 0, "lost": 8, "gained": 0, "p": 2 / 2**8},
        **{"metric": "contains", "forgot": True},
    }
    (event,) = events(tmp_path / "run", "retention")
    assert event["step"] == 9
    assert {key: event[key] for key in retention} == retention


def test_a_run_that_teaches_nothing_forgets_nothing(run_file, known, tmp_path, capsys):
    path = run_file(train={"retention": str(known)}, optimizer={"learning_rate": 0.0})
    assert run_train(path) == 0
    shown = capsys.readouterr().err
    assert "known 8/8 → 8/8 (contains)" in shown
    assert "forgot" not in shown
    assert run_train(path, resume=True) == 0  # nothing is left to do: asked again, written once
    assert len(events(tmp_path / "run", "retention")) == 1


def test_an_interrupt_leaves_out_the_questions_and_not_the_run(run_file, known, tmp_path, monkeypatch, capsys):
    from mlx_lora.evaluation.asking import Asker

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    monkeypatch.setattr(Asker, "ask", interrupted)
    assert run_train(run_file(train={"retention": str(known)}), json_output=True) == 0
    shown = capsys.readouterr()
    assert "train.retention: its questions were left out; the run is whole" in shown.err
    assert "stopping after this step" not in shown.err
    summary = json.loads(shown.out)
    assert (summary["ended_by"], summary["steps"], summary["retention"]) == ("steps", 9, None)
    assert read_adapter(tmp_path / "run").tensors


def test_without_a_retention_set_nothing_is_asked(run_file, tmp_path, capsys):
    assert run_train(run_file(), json_output=True) == 0
    assert json.loads(capsys.readouterr().out)["retention"] is None
    assert events(tmp_path / "run", "retention") == []


def test_the_built_in_questions_are_asked_unless_a_run_file_says_otherwise(run_file, tmp_path, capsys):
    path = run_file(train={"retention": "general-knowledge", "epochs": 1})
    assert load_default(path) == "general-knowledge"
    assert run_train(path) == 0
    assert "general knowledge 0/50 → 0/50 (contains)" in capsys.readouterr().err


def load_default(path):
    from mlx_lora.runfile import load_config

    path.write_text("".join(line for line in path.read_text().splitlines(True) if "retention" not in line))
    return load_config(path).train.retention


def test_a_retention_set_that_cannot_be_asked_stops_the_run_before_the_first_step(run_file, tmp_path):
    (tmp_path / "texts.jsonl").write_text('{"text": "no question"}\n')
    with pytest.raises(DataError, match="a row of plain text asks nothing"):
        run_train(run_file(train={"retention": str(tmp_path / "texts.jsonl")}))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_what_is_asked_at_the_end_is_the_adapter_that_was_kept(run_file, known, tmp_path, monkeypatch):
    """The best step's, with its numbers as saved, in the whole model: as a fresh load of base and adapter answers."""
    from mlx_lora.evaluation.asking import Asker

    heard = []
    ask = Asker.ask

    def listen(self, label, rendering, source):
        logits = self.loaded.model(mx.array([list(range(5, 25))]))
        mx.eval(logits)
        heard.append((label, logits))
        return ask(self, label, rendering, source)

    monkeypatch.setattr(Asker, "ask", listen)
    train = {"retention": str(known), "engine": "auto", "gradient_checkpointing": True}
    assert run_train(run_file(train=train, lora={"save_dtype": "float16", "dropout": 0.1})) == 0
    settings = json.loads((tmp_path / "run" / "adapter_config.json").read_text())["mlx_lora"]
    fresh = load_base(settings["model"])
    tokens = mx.array([list(range(5, 25))])
    plain = fresh.model(tokens)
    apply_adapter(fresh.model, read_adapter(tmp_path / "run"))
    fresh.model.eval()
    (one, of_base), (two, of_adapter) = heard
    assert (one, two) == ("base", "adapter")
    assert mx.array_equal(of_base, plain)
    assert mx.array_equal(of_adapter, fresh.model(tokens))
    assert not mx.array_equal(of_base, of_adapter)
