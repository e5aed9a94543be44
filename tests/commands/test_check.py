"""`check` reads tokenizer and data, never weights: the model folders of these tests have none."""

import json
from pathlib import Path
from typing import Any

import pytest

from mlx_lora.commands.check import run_check, run_check_file
from mlx_lora.config import DataSettings, RunConfig, TrainSettings
from mlx_lora.errors import MlxLoraError
from tests.tiny import tiny_config, tiny_tokenizer

ROWS = [{"question": f"Question {number}?", "answer": "Paris"} for number in range(20)]


@pytest.fixture(autouse=True)
def _plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def model(tmp_path: Path) -> str:
    folder = tmp_path / "model"
    tiny_tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(tiny_config("llama")))
    return str(folder)


def configuration(model: str, tmp_path: Path, rows: list[Any], **data: Any) -> RunConfig:
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return RunConfig(
        model=model,
        data=DataSettings(train=str(file), **data),
        train=TrainSettings(epochs=2, batch_size=8),
        output_dir=str(tmp_path / "out"),
    )


def test_good_data_is_reported_and_the_trained_tokens_are_marked(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_check(configuration(model, tmp_path, ROWS), json_output=False, show=1) == 0
    printed = capsys.readouterr()
    assert "<|im_start|>assistant\n⟦Paris<|im_end|>⟧\n" in printed.out
    assert "3 steps an epoch, 6 in all" in printed.out
    assert "The data can be trained on." in printed.out
    assert printed.err == ""
    assert not (tmp_path / "out").exists()


def test_in_colour_the_marks_are_colours(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    config = configuration(model, tmp_path, ROWS)
    run_check(config, json_output=False, show=1)
    coloured = capsys.readouterr().out
    assert "⟦" not in coloured
    assert "\x1b[1;30;42mParis<|im_end|>\x1b[0m" in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    run_check(config, json_output=False, show=1)
    assert "⟦Paris<|im_end|>⟧" in capsys.readouterr().out


def test_no_row_can_steer_the_terminal(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configuration(model, tmp_path, [{"question": "Who?", "answer": "Ann\x1b]0;title\x07"}])
    run_check(config, json_output=False, show=1)
    assert "Ann␛]0;title␇<|im_end|>" in capsys.readouterr().out
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    run_check(config, json_output=False, show=1)
    assert "Ann␛]0;title␇<|im_end|>" in capsys.readouterr().out


def test_texts_that_look_like_markup_or_emoji_codes_are_printed_as_they_are(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"question": "[bold]Is :cat: fine?[/bold]", "answer": "[red]:dog:"}]
    assert run_check(configuration(model, tmp_path, rows), json_output=False, show=1) == 0
    assert "[bold]Is :cat: fine?[/bold]<|im_end|>\n<|im_start|>assistant\n⟦[red]:dog:<|im_end|>⟧" in (
        capsys.readouterr().out
    )


def test_json_is_one_object_with_everything(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_check(configuration(model, tmp_path, ROWS + ROWS[:1]), json_output=True, show=1) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["splits"]["train"]["rows"], report["splits"]["valid"]["rows"]) == (19, 2)
    assert report["splits"]["train"]["trained_tokens"] == 19 * len("Paris!")
    assert report["warnings"] == ["train: 1 row repeating an earlier one exactly"]
    assert report["faults"] == []
    assert report["shown"][0]["text"].endswith("⟦Paris<|im_end|>⟧")


def test_one_step_is_one(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_check(configuration(model, tmp_path, ROWS[:1]), json_output=False, show=0)
    assert "1 step an epoch, 2 in all" in capsys.readouterr().out


@pytest.mark.parametrize("json_output", [False, True])
def test_rows_that_cannot_be_read_end_in_1(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], json_output: bool
) -> None:
    config = configuration(model, tmp_path, [{"question": "Q"}, {"text": ""}])
    assert run_check(config, json_output=json_output, show=1) == 1
    printed = capsys.readouterr()
    faults = [
        f'{config.data.train}:1: the question/answer row has no "answer" (its keys: question)',
        f'{config.data.train}:2: "text" is empty',
    ]
    if json_output:
        assert json.loads(printed.out)["faults"] == faults
    else:
        assert printed.err.startswith(f"error: {faults[0]}\n{faults[1]}\nhint: a row has one of: messages (chat)")
        assert printed.out == ""


@pytest.mark.parametrize("json_output", [False, True])
def test_rows_over_the_limit_end_in_1_and_the_rest_is_still_reported(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], json_output: bool
) -> None:
    rows = [*ROWS, {"question": "long " * 40, "answer": "A"}]
    config = configuration(model, tmp_path, rows, max_seq_length=100, valid_share=0.0)
    assert run_check(config, json_output=json_output, show=0) == 1
    printed = capsys.readouterr().out
    if json_output:
        report = json.loads(printed)
        assert report["splits"]["train"]["over_limit"] == 1
        assert report["faults"][0].startswith(f"{config.data.train}:21: ")
    else:
        assert f"error: {config.data.train}:21: " in printed
        assert "hint: raise data.max_seq_length" in printed
        assert "can be trained" not in printed


def test_warnings_do_not_change_the_exit_code(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"question": "Q", "answer": "A"}, {"question": "Q", "answer": "B"}]
    config = configuration(model, tmp_path, rows)
    assert run_check(config, json_output=False, show=0) == 0
    place = config.data.train
    assert f'warning: {place}:2: "B" contradicts "A" at {place}:1: the same question' in capsys.readouterr().out


def test_another_template_brings_its_own_end_token(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    template = tmp_path / "own.jinja"
    template.write_text("{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}")
    config = configuration(model, tmp_path, ROWS, chat_template=str(template))
    assert run_check(config, json_output=False, show=1) == 0
    assert "⟦<s>Paris</s>⟧" in capsys.readouterr().out


@pytest.mark.parametrize("batch_size", [8, "auto"])
def test_what_the_run_asks_beside_its_rows_is_read_too(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], batch_size: Any
) -> None:
    """It said that the data can be trained on where train stops: no such retention set, no such replay prompts."""
    good = configuration(model, tmp_path, ROWS, valid_share=0.0)
    gone, asked = str(tmp_path / "gone.jsonl"), tmp_path / "asked.txt"
    asked.write_text("Question 3?\n")
    train = good.train.model_copy(update={"batch_size": batch_size})
    for changes, fault in (
        ({"train": train.model_copy(update={"retention": gone})}, f"{gone}: no such file or folder"),
        (
            {"train": train, "data": good.data.model_copy(update={"replay": 0.5, "replay_prompts": str(asked)})},
            f"data.replay_prompts: {asked}: the run's rows and train.retention ask all of its prompts",
        ),
    ):
        assert run_check(good.model_copy(update=changes), json_output=True, show=0) == 1
        assert json.loads(capsys.readouterr().out)["faults"] == [fault]
    gone_config = good.model_copy(update={"train": train.model_copy(update={"retention": gone})})
    assert run_check(gone_config, json_output=False, show=0) == 1
    printed = capsys.readouterr()
    assert f"error: {gone}: no such file" in printed.out + printed.err
    assert "can be trained on" not in printed.out
    assert ("3 steps an epoch" in printed.out) == (batch_size == 8)


def test_in_json_every_fault_is_in_the_object_and_nothing_beside_it(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Reported in session 11: of a faulty run file, or a base that is not there, stdout had nothing at all."""
    data = configuration(model, tmp_path, ROWS).data.train
    run = tmp_path / "run.yaml"
    good = f"model: {model}\ndata: {{train: {data}}}\ntrain: {{steps: 2}}\noutput_dir: {tmp_path / 'out'}\n"
    Path(model, "tokenizer.json").unlink()  # what the last case meets
    for text, overrides, faults, hints in (
        (None, [], [f"{run}: no such file"], ["`mlx-lora init` writes a run file"]),
        (good + "rank: 8\n", [], [f"{run}:5: rank is not a setting"], ["did you mean lora.rank?"]),
        (
            good + "rank: 8\nlora: {layers: -1}\n",
            ["lora.rnak=3"],
            [
                f"{run}:5: rank is not a setting",
                f"{run}:6: lora.layers should be all or a positive integer, not -1",
                "--set lora.rnak: lora.rnak is not a setting",
            ],
            ["did you mean lora.rank?", "write all"],
        ),
        (
            good,
            [],
            [f"{model}: has no tokenizer (tokenizer.json, tokenizer.model, …)"],
            ["copy the tokenizer files of the original model into it"],
        ),
    ):
        if text is not None:
            run.write_text(text)
        with pytest.raises(MlxLoraError):
            run_check_file(run, overrides, json_output=False, show=1)
        assert capsys.readouterr() == ("", "")  # __main__ prints it
        assert run_check_file(run, overrides, json_output=True, show=1) == 1
        printed = capsys.readouterr()
        assert json.loads(printed.out) == {"faults": faults, "hints": hints}
        assert printed.err == ""
