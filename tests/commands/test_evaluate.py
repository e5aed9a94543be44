"""`mlx-lora eval`: base beside adapters on tiny models, the files it leaves, its verdicts and its exit code."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from mlx_lora.commands.evaluate import run_evaluate
from mlx_lora.config import DataSettings
from mlx_lora.dataset.records import read_records
from mlx_lora.dataset.rendering import record_prompt
from mlx_lora.errors import AdapterError, ConfigError, DataError
from mlx_lora.evaluation.result_format import read_result
from mlx_lora.lora.adapter import apply_adapter, read_adapter
from mlx_lora.model.generate import iter_answers
from mlx_lora.model.load import load_base
from tests.commands.workshop import SYSTEM, TOKENS, evaluate
from tests.divergence import plain_divergence


def test_an_adapter_that_learned_is_said_to_have_learned(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = evaluate(workshop, "good", base=True, capsys=capsys)
    rows = [json.loads(line) for line in (workshop / "quiz.jsonl").read_text().splitlines()]
    count = len(rows)
    # Dropout of the adapter is 0.5: left on, the answers would not come out alike.
    assert (result["exact_match"], result["base"]["exact_match"], result["count"]) == (1.0, 0.0, count)
    assert result["verdict"]["kind"] == "learned"
    assert result["verdict"]["sentence"] == (
        f"the adapter answers {count} of {count} (100 %), the base 0 of {count} (0 %): it learned"
    )
    assert result["verdict"]["gained"] == ["exact_match", "contains"]
    assert result["verdict"]["lost"] == result["verdict"]["signs"] == result["signs"] == []
    assert result["comparison"]["exact_match"] == {
        "p": pytest.approx(2 / 2**count),
        "p_by_fact": 2 / 2**12,
        "facts_higher": 12,
        "facts_lower": 0,
        "fixed": count,
        "broken": 0,
        "kept_right": 0,
        "kept_wrong": 0,
    }
    ups = result["comparison"]["token_f1"]
    assert (ups["higher"], ups["lower"], ups["equal"]) == (count, 0, 0)
    assert result["interval"]["exact_match"][1] == 1.0
    assert result["base"]["interval"]["exact_match"][0] == 0.0
    assert set(result["per_category"]) == {"even", "odd"}
    assert sum(group["count"] for group in result["per_category"].values()) == count
    assert {name: (fact["exact_match"], fact["base"]["exact_match"]) for name, fact in result["per_fact"].items()} == {
        row["fact"]: (1.0, 0.0) for row in rows
    }
    assert result["settings"]["system_prompt"] == SYSTEM
    assert result["settings"]["adapter_step"] == 7
    assert result["settings"]["base"]["name"] == "base"
    assert set(result["versions"]) == {"mlx-lora", "mlx", "mlx-lm", "transformers"}


def test_drift_is_how_far_the_adapter_moved_what_the_base_says(
    workshop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = evaluate(workshop, "good", "nothing", base=True, capsys=capsys)["results"]
    base = load_base(str(workshop / "base"))
    settings = DataSettings.model_validate({"train": "x", "system_prompt": SYSTEM})
    records = read_records(str(workshop / "quiz.jsonl"))
    prompts = [record_prompt(record, base.tokenizer, settings) for record in records]
    answers = dict(iter_answers(base.model, base.tokenizer, prompts, max_tokens=TOKENS, likeliest=32))
    apply_adapter(base.model, read_adapter(workshop / "good"))
    base.model.eval()
    nats = sum(plain_divergence(base.model, prompts[place], answer) for place, answer in answers.items())
    places = sum(len(answer.likeliest.tokens) for answer in answers.values())
    assert found[0]["drift"] == pytest.approx(nats / places, rel=1e-3)
    assert found[0]["drift"] > 0.1
    assert found[1]["drift"] == pytest.approx(0.0, abs=1e-6)
    assert evaluate(workshop, "good", capsys=capsys)["drift"] is None
    assert evaluate(workshop, "wrecked", base=True, capsys=capsys)["drift"] is None  # no number


def test_the_base_is_taken_at_the_revision_that_is_asked_for(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlx_lora.model import load

    def loaded(name: str, *, revision: str | None, compute: str) -> Any:
        raise DataError(f"{Path(name).name} at {revision}")

    monkeypatch.setattr(load, "load_base", loaded)
    for adapters, model, wanted in (([workshop / "good"], None, "base"), ([], "other/model", "model")):
        for revision in ("abc", None):
            with pytest.raises(DataError, match=f"^{wanted} at {revision}$"):
                run_evaluate(adapters, base=True, model=model, revision=revision, data=[str(workshop / "quiz.jsonl")])


def test_the_results_lie_beside_the_adapter(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = evaluate(workshop, "good", base=True, capsys=capsys)
    folder = workshop / "good" / "eval"
    assert [file.name for file in folder.glob("quiz*")] == ["quiz.json"]
    assert json.loads((folder / "quiz.json").read_text()) == printed
    result = read_result(folder / "quiz.json")
    rows = [json.loads(line) for line in (workshop / "quiz.jsonl").read_text().splitlines()]
    assert [(one.question, one.answers) for one in result.questions] == [
        (row["question"], [row["answer"]]) for row in rows
    ]
    assert result.questions[0].place == f"{workshop / 'quiz.jsonl'}:1"
    for one in result.questions:
        assert one.scores == {"exact_match": True, "contains": True, "token_f1": 1.0}
        assert one.change == "fixed"
        assert one.base is not None
        assert one.base.scores["exact_match"] is False
    assert result.answer_tokens == sum(one.tokens for one in result.questions)
    assert result.metrics == ["exact_match", "contains", "token_f1"]


def test_an_adapter_that_changes_no_answer_is_said_to_have_taught_nothing(
    workshop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = evaluate(workshop, "nothing", base=True, capsys=capsys)
    assert result["verdict"]["kind"] == "taught nothing"
    assert result["perplexity"] == pytest.approx(result["base"]["perplexity"])


def test_an_adapter_with_b_zero_is_refused(workshop: Path) -> None:
    with pytest.raises(AdapterError, match="zero: teaches nothing: B of all 28 modules is zero"):
        run_evaluate([workshop / "zero"], data=[str(workshop / "quiz.jsonl")])


def test_the_active_modules_are_said_of_every_adapter(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = [str(workshop / "quiz.jsonl")]
    assert run_evaluate([workshop / "good", workshop / "other"], data=data, max_tokens=1, limit=1) == 0
    said = capsys.readouterr().err
    for name in ("good", "other"):
        assert re.search(rf"{workshop / name}: adapter active: 28/28 modules, ‖ΔW‖/‖W‖ = [\d.]+\n", said)


@pytest.mark.parametrize(("output", "file"), [("rows.json", "rows.json"), (".", "rows.json")])
def test_results_are_never_written_over_the_questions(
    workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, file: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / file).write_text('[{"question": "Who?", "answer": "Ann"}]')
    with pytest.raises(ConfigError, match=f"--output {file}: holds what is asked"):
        run_evaluate([workshop / "good"], data=[str(tmp_path / file)], output=Path(output))


def test_an_adapter_of_a_tiny_learning_rate_is_said_to_have_taught_nothing(
    workshop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = evaluate(workshop, "faint", base=True, capsys=capsys)
    assert result["verdict"]["kind"] == "taught nothing"
    assert 0 < abs(result["nats_per_token"] - result["base"]["nats_per_token"]) < 1e-3


def test_an_adapter_that_broke_the_model_is_called_so(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # What a far too large learning rate leads to: logits that are no numbers.
    result = evaluate(workshop, "wrecked", base=True, limit=12, capsys=capsys)
    assert result["verdict"]["kind"] == "broken"
    assert (
        "the adapter broke the model (perplexity of the right answers infinite against "
        f"{result['base']['perplexity']:,.0f}; the likelihood of 12 of 12 right answers is no finite number; "
        "12 of 12 answers never end and repeat themselves"
    ) in result["verdict"]["sentence"]
    assert (result["perplexity"], result["non_finite"], result["looping"]) == (None, 12, 12)
    assert result["questions"][0]["reference_nats"] is None
    alone = evaluate(workshop, "wrecked", limit=12, capsys=capsys)
    assert alone["signs"] == result["signs"] == result["verdict"]["signs"]


def test_several_adapters_share_one_base_that_is_asked_once(
    workshop: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlx_lora.evaluation import asking

    labels = []
    ask = asking.Asker.ask
    monkeypatch.setattr(
        asking.Asker,
        "ask",
        lambda self, label, *rest, **more: (labels.append(label), ask(self, label, *rest, **more))[1],
    )
    more = workshop / "more.jsonl"
    more.write_text('{"question": "Who?", "answer": "Ann"}\n')
    data = [str(workshop / "quiz.jsonl"), str(more)]
    result = evaluate(workshop, "other", "good", base=True, data=data, capsys=capsys)
    assert labels.count("base") == 2
    found = [(Path(one["label"]).name, one["data"]["name"], one["exact_match"]) for one in result["results"]]
    assert [(label, name) for label, name, _ in found] == [
        ("other", "quiz"),
        ("other", "more"),
        ("good", "quiz"),
        ("good", "more"),
    ]
    # The second adapter answers as it does alone: the first one was taken off.
    assert found[2][2] == 1.0
    assert (workshop / "other" / "eval" / "more.json").is_file()
    alone = evaluate(workshop, "other", data=data[:1], capsys=capsys)
    assert alone["exact_match"] == found[0][2]
    assert alone["base"] is None
    assert alone["verdict"] is None


def test_a_base_alone_is_evaluated_without_a_system_prompt(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = evaluate(workshop, base=True, model=str(workshop / "base"), capsys=capsys, output=workshop / "out.json")
    assert result["label"] == "base"
    assert result["settings"]["base"]["name"] == "base"
    assert json.loads((workshop / "out.json").read_text()) == result
    assert len(result["questions"]) == result["count"]
    assert (result["base"], result["verdict"], result["comparison"]) == (None, None, None)


def test_an_output_folder_takes_the_results_in_place_of_the_adapters(
    workshop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(workshop.rglob("*"))
    evaluate(workshop, "good", "other", capsys=capsys, limit=2, output=tmp_path / "results")
    assert sorted(file.name for file in (tmp_path / "results").iterdir()) == [
        "good-quiz.json",
        "other-quiz.json",
    ]
    assert sorted(workshop.rglob("*")) == before
    with pytest.raises(ConfigError, match="several results do not fit one file"):
        run_evaluate(
            [workshop / "good", workshop / "other"],
            data=[str(workshop / "quiz.jsonl")],
            output=tmp_path / "one.json",
        )


def test_too_few_right_answers_fail(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(workshop, "good", capsys=capsys, fail_under=1.0)
    data = {"data": [str(workshop / "quiz.jsonl")], "max_tokens": TOKENS}
    assert run_evaluate([workshop / "other"], fail_under=0.95, **data) == 1  # type: ignore[arg-type]
    error = capsys.readouterr().err
    assert f"failed: {workshop / 'other'}, quiz: exact match " in error
    assert error.rstrip().endswith("is under 0.95")


def test_the_screen_shows_table_questions_and_verdict(
    workshop: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    capsys.readouterr()
    quiz = str(workshop / "quiz.jsonl")
    assert run_evaluate([workshop / "nothing"], base=True, data=[quiz], max_tokens=TOKENS, limit=10) == 0
    lines = capsys.readouterr().out.splitlines()
    total = len((workshop / "quiz.jsonl").read_text().splitlines())
    assert lines[0] == f"{quiz}: 10 questions of {total}; 95 % intervals in brackets"
    assert lines[1].split() == ["base", str(workshop / "nothing")]
    table = {line[:18].strip(): line[18:].split() for line in lines[2:]}
    assert table["exact match"] == ["0/10", "0", "%", "(0–28)"] * 2
    assert table["fixed / broken"] == ["0", "/", "0"]
    assert table["p (exact, paired)"] == ["1.0000"]
    assert f"{workshop / 'nothing'}, wrong, 5 of 10" in lines
    assert lines[-1].endswith("every answer is the base's own, the adapter taught nothing")


def test_without_data_the_run_file_says_what_to_ask(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_file = workshop / "good" / "run.yaml"
    run_file.write_text(
        f"model: {workshop / 'base'}\ndata: {{train: nowhere.jsonl, test: {workshop / 'quiz.jsonl'}}}\n"
        "train: {epochs: 1}\noutput_dir: x\n"
    )
    try:
        assert evaluate(workshop, "good", data=(), capsys=capsys)["data"]["name"] == "quiz"
        run_file.write_text(run_file.read_text().replace(", test: ", ", valid: "))
        assert evaluate(workshop, "good", data=(), capsys=capsys)["exact_match"] == 1.0
        run_file.write_text(
            f"model: m\ndata: {{train: {workshop / 'quiz.jsonl'}}}\ntrain: {{epochs: 1}}\noutput_dir: x\n"
        )
        held_out = evaluate(workshop, "good", data=(), capsys=capsys)
        assert held_out["data"]["rows"] == round(0.1 * len((workshop / "quiz.jsonl").read_text().splitlines()))
        assert held_out["data"]["trained_on"] is False
        run_file.write_text(run_file.read_text().replace("}\ntrain", ", valid_share: 0}\ntrain"))
        with pytest.raises(DataError, match=r"data\.test and data\.valid are null"):
            run_evaluate([workshop / "good"])
    finally:
        run_file.unlink()
    with pytest.raises(DataError, match=r"no run\.yaml says what to ask"):
        run_evaluate([workshop / "good"])


def test_an_interrupt_leaves_no_files(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlx_lora.evaluation import asking

    iterate = asking.iter_scored

    def interrupted(*arguments: Any, **options: Any) -> Any:
        yield next(iterate(*arguments, **options))
        raise KeyboardInterrupt

    monkeypatch.setattr(asking, "iter_scored", interrupted)
    (workshop / "late.jsonl").write_text('{"question": "Who?", "answer": "Ann"}\n' * 2)
    before = sorted(workshop.rglob("*"))
    with pytest.raises(KeyboardInterrupt):
        run_evaluate([workshop / "good"], data=[str(workshop / "late.jsonl")], max_tokens=2)
    assert sorted(workshop.rglob("*")) == before


def test_rows_that_were_trained_on_are_pointed_out(
    workshop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlx_lora.dataset.records import read_records
    from mlx_lora.dataset.splits import records_sha256  # what `train` keeps in the adapter

    config = json.loads((workshop / "good" / "adapter_config.json").read_text())
    config["mlx_lora"]["data_sha256"] = {"train": records_sha256(read_records(str(workshop / "quiz.jsonl")))}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "adapters.safetensors").write_bytes((workshop / "good" / "adapters.safetensors").read_bytes())
    assert run_evaluate([tmp_path], data=[str(workshop / "quiz.jsonl")], max_tokens=2) == 0
    said = capsys.readouterr().err
    assert "this shows memory, not learning" in said
    assert read_result(tmp_path / "eval" / "quiz.json").data.trained_on
    assert "right answers are longer than --max-tokens 2, so none can be written whole" in said


def test_what_was_answered_is_kept_where_something_later_fails(
    workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlx_lora.evaluation.asking import Asker

    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    for file in (first, second):
        file.write_text('{"question": "Who?", "answer": "Ann"}\n')
    ask = Asker.ask

    def fails_late(asker: Asker, label: str, rendering: Any, source: Any) -> Any:
        if source.name == "second":
            raise KeyboardInterrupt
        return ask(asker, label, rendering, source)

    monkeypatch.setattr(Asker, "ask", fails_late)
    with pytest.raises(KeyboardInterrupt):
        run_evaluate([workshop / "good"], data=[str(first), str(second)], max_tokens=2, output=tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["first.json"]


def test_results_of_one_place_are_refused_before_anything_is_loaded(workshop: Path, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    shutil.copytree(workshop / "good", tmp_path / "deep" / "good")
    both = [workshop / "good", tmp_path / "deep" / "good"]
    with pytest.raises(
        ConfigError, match=r"--output .*: the results of .*good and .*good would both be good-quiz\.json"
    ):
        run_evaluate(both, data=[str(workshop / "quiz.jsonl")], output=tmp_path / "results")


def test_a_run_file_of_another_version_is_no_obstacle_where_the_questions_are_named(
    workshop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(workshop / "good", tmp_path / "good")
    run = "model: m\ndata: {train: x}\nlora: {bits: 3}\ntrain: {epochs: 1}\noutput_dir: x\n"
    (folder / "run.yaml").write_text(run)
    with pytest.raises(ConfigError, match=r"lora\.bits is not a setting"):
        run_evaluate([folder])
    assert run_evaluate([folder], data=[str(workshop / "quiz.jsonl")], max_tokens=2, limit=2) == 0
    said = f"note: {folder / 'run.yaml'}:3: lora.bits is not a setting: what {folder} was trained on is not known\n"
    assert said in capsys.readouterr().err


def test_an_earlier_result_that_was_asked_in_another_way_is_named_before_it_is_written_over(
    workshop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "few.jsonl"
    data.write_text('{"question": "Who?", "answer": "Ann"}\n')
    folder = shutil.copytree(workshop / "good", tmp_path / "good")
    place = folder / "eval" / "few.json"

    def asked(**options: Any) -> list[str]:
        assert run_evaluate([folder], data=[str(data)], **options) == 0
        return [line for line in capsys.readouterr().err.splitlines() if "written over" in line]

    assert asked(max_tokens=2, base=True) == []
    was = f"note: {place} will be written over: it was asked with"
    elsewhere = "(--output FOLDER writes elsewhere)"
    assert asked(max_tokens=3, limit=1) == [f"{was} max_tokens 2, limit none, the base beside it {elsewhere}"]
    assert asked(max_tokens=3, limit=1) == []
    assert asked(max_tokens=3, limit=1, temperature=0.5, seed=4) == [f"{was} temperature 0, seed none {elsewhere}"]
    assert asked(max_tokens=2, output=tmp_path / "other") == []
    config = json.loads((folder / "adapter_config.json").read_text())
    config["mlx_lora"]["step"] = 10**6  # trained on: the result is of another adapter
    (folder / "adapter_config.json").write_text(json.dumps(config))
    assert asked(max_tokens=2) == []
    place.write_text("{")
    assert asked(max_tokens=2) == []


def test_other_questions_and_other_answers_are_not_written_over_unsaid(
    workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two files of one name, two adapters into one file, a custom metric gone: each was replaced without a word."""
    monkeypatch.chdir(tmp_path)
    for sport in ("hockey", "soccer"):
        Path(sport).mkdir()
        Path(sport, "quiz.jsonl").write_text(f'{{"question": "Who won in {sport}?", "answer": "Ann"}}\n')
    for name in ("good", "other"):
        shutil.copytree(workshop / name, name, ignore=shutil.ignore_patterns("eval"))

    def asked(name: str, data: str, **options: Any) -> list[str]:
        assert run_evaluate([Path(name)], data=[data], max_tokens=2, **options) == 0
        said = capsys.readouterr().err.replace("note: ", "").replace(" (--output FOLDER writes elsewhere)", "")
        return [line for line in said.splitlines() if "written over" in line]

    assert asked("good", "hockey/quiz.jsonl") == []
    over = "good/eval/quiz.json will be written over: it holds"
    assert asked("good", "soccer/quiz.jsonl") == [f"{over} answers to hockey/quiz.jsonl"]
    Path("soccer/quiz.jsonl").write_text('{"question": "Who lost?", "answer": "Bob"}\n')
    assert asked("good", "soccer/quiz.jsonl") == [f"{over} answers to other rows of soccer/quiz.jsonl"]
    Path("soccer/quiz.jsonl").write_text('{"question": "Who lost?", "answer": "Bob", "answers": ["Rob"]}\n')
    over = "good/eval/quiz.json will be written over: it was scored"
    assert asked("good", "soccer/quiz.jsonl") == [f"{over} by other accepted answers"]
    assert asked("good", "soccer/quiz.jsonl", output=Path("o.json")) == []
    assert asked("other", "soccer/quiz.jsonl", output=Path("o.json")) == [
        "o.json will be written over: it holds the answers of good"
    ]
    Path("unlost.py").write_text("def says(answer, accepted):\n    return True\n")
    assert asked("other", "soccer/quiz.jsonl", output=Path("o.json"), metrics=["unlost:says", "contains"]) == []
    result = json.loads(Path("o.json").read_text())
    Path("o.json").write_text(
        json.dumps({**result, "settings": {**result["settings"], "custom_metrics": {"my": "m:f"}}})
    )
    assert asked("other", "soccer/quiz.jsonl", output=Path("o.json")) == [
        "o.json will be written over: it was asked with --metric my"
    ]


def test_options_that_choices_do_not_have_are_no_other_way_to_ask(
    workshop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "picked.jsonl").write_text('{"question": "Who?", "answer": "Ann", "choices": ["Ann", "Bob"]}\n' * 2)
    folder = shutil.copytree(workshop / "good", tmp_path / "good")
    for options in ({"max_tokens": 64}, {"max_tokens": 2, "numbers": True}):
        assert run_evaluate([folder], data=[str(tmp_path / "picked.jsonl")], **options) == 0
        assert "written over" not in capsys.readouterr().err
    assert run_evaluate([folder], data=[str(tmp_path / "picked.jsonl")], limit=1) == 0
    assert "it was asked with limit none" in capsys.readouterr().err


@pytest.mark.parametrize("content", ['{"name": "my-package"}', '[{"question": "Who?", "answer": "Ann"}]', "not JSON"])
def test_a_file_that_is_no_result_is_never_replaced(workshop: Path, tmp_path: Path, content: str) -> None:
    data, output = tmp_path / "asked.jsonl", tmp_path / "package.json"
    data.write_text('{"question": "Who?", "answer": "Ann"}\n')
    output.write_text(content)
    with pytest.raises(ConfigError, match=r"--output .*package\.json: exists and is no result of mlx-lora eval"):
        run_evaluate([workshop / "good"], data=[str(data)], max_tokens=2, output=output)
    assert output.read_text() == content


@pytest.mark.parametrize(
    ("names", "options", "words"),
    [
        ([], {}, "nothing to evaluate"),
        ([], {"base": True}, "which base?"),
        (["good"], {"limit": 0}, "--limit 0"),
        (["good"], {"batch_size": 0}, "--batch-size 0"),
        (["good"], {"fail_under": 95.0}, "--fail-under 95"),
        (["good"], {"metrics": ["bleu"]}, "--metric bleu: no such metric"),
        (["good"], {"temperature": -1.0}, "--temperature -1"),
    ],
)
def test_requests_that_make_no_sense_are_refused(
    workshop: Path, names: list[str], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError) as error:
        run_evaluate([workshop / name for name in names], **options)
    assert words in error.value.message


def test_adapters_of_different_bases_are_refused_before_anything_is_loaded(workshop: Path, tmp_path: Path) -> None:
    config = json.loads((workshop / "good" / "adapter_config.json").read_text())
    config["mlx_lora"]["model"] = "another-base"
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "adapters.safetensors").write_bytes((workshop / "good" / "adapters.safetensors").read_bytes())
    with pytest.raises(AdapterError, match=r"different bases: .* and another-base"):
        run_evaluate([workshop / "good", tmp_path], data=[str(workshop / "quiz.jsonl")])


def test_an_adapter_under_two_names_is_asked_once(
    workshop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found in session 11: `--output None: the results … would both be`, or two columns of one adapter."""
    (tmp_path / "best").symlink_to(workshop / "good")
    more = tmp_path / "more.jsonl"
    more.write_text('{"question": "Who?", "answer": "Ann"}\n')
    names = [workshop / "other", workshop / "good", tmp_path / "best", workshop / "other"]
    output = tmp_path / "out"
    assert run_evaluate(names, data=[str(more)], max_tokens=2, json_output=True, output=output) == 0
    printed = capsys.readouterr()
    assert [one["label"] for one in json.loads(printed.out)["results"]] == [str(name) for name in names[:2]]
    assert "note: an adapter that is named twice is asked once" in printed.err


def test_an_adapter_that_does_not_fit_is_met_before_anything_is_asked(
    workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found in session 11: after the base, and the adapters before it, had answered everything."""
    from mlx_lora.evaluation.asking import Asker

    monkeypatch.setattr(Asker, "ask", lambda *_, **__: pytest.fail("asked"))
    names = [workshop / "good", workshop / "zero"]
    with pytest.raises(AdapterError, match="zero"):
        run_evaluate(names, base=True, data=[str(workshop / "quiz.jsonl")], output=tmp_path / "out")


def test_questions_that_the_run_trained_are_counted(
    workshop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found in session 11: only the very rows of the training were pointed out, a part of them was not."""
    from mlx_lora.dataset.records import read_records
    from mlx_lora.dataset.splits import records_sha256

    train, asked = tmp_path / "train.jsonl", tmp_path / "asked.jsonl"
    train.write_text("".join(f'{{"question": "Who won in {year}?", "answer": "Ann"}}\n' for year in range(1990, 1999)))
    asked.write_text(
        '{"question": "who  won in 1991?", "answer": "Ann"}\n{"question": "Who?", "answer": "Ann"}\n'
        '{"question": "Who won in 1995?", "answer": "Bob"}\n'
    )
    config = json.loads((workshop / "good" / "adapter_config.json").read_text())
    config["mlx_lora"]["data_sha256"] = {"train": records_sha256(read_records(str(train)))}
    shutil.copytree(workshop / "good", tmp_path / "run", ignore=shutil.ignore_patterns("eval"))
    (tmp_path / "run" / "adapter_config.json").write_text(json.dumps(config))
    run = f"model: {workshop / 'base'}\ndata: {{train: {train}, valid_share: 0}}\ntrain: {{epochs: 1}}\noutput_dir: x\n"
    (tmp_path / "run" / "run.yaml").write_text(run)

    def counted() -> tuple[Any, str]:
        assert run_evaluate([tmp_path / "run"], data=[str(asked)], max_tokens=2) == 0
        data = read_result(tmp_path / "run" / "eval" / "asked.json").data
        return (data.trained_questions, data.trained_on), capsys.readouterr().err

    found, said = counted()
    assert found == (2, False)
    assert f"note: 2 of the 3 questions of {asked} were asked in the training of {tmp_path / 'run'} too: " in said
    train.write_text(train.read_text() + '{"question": "Who else?", "answer": "Bob"}\n')  # no longer what was trained
    found, said = counted()
    assert found == (None, False)
    assert "in the training of" not in said
