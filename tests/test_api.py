"""The Python API on a tiny base: lazy names, the pages' own code, answers as in chat, refusals, a run's result."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

import mlx_lora
from mlx_lora import LoraModel, MlxLoraError, RunConfig, train
from mlx_lora.chat.sampling import Sampling
from mlx_lora.chat.voice import load_voice
from mlx_lora.errors import AdapterError, DataError, ModelError
from mlx_lora.lora.inject import remove_lora
from mlx_lora.model.load import load_base
from tests.chat.test_voice import write_adapter
from tests.tiny import save_tiny_folder

ROOT = Path(__file__).parent.parent
NAMES = ("support", "code", "medical")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny base, three adapters on it and data to train on, as the pages suppose."""
    root = tmp_path_factory.mktemp("api")
    base = load_base(str(save_tiny_folder(root / "base")))
    for rank, name in enumerate(NAMES, 2):
        write_adapter(root / "adapters" / name, base, rank=rank, system_prompt=f"You are {name}.")
        remove_lora(base.model)
    (root / "data").mkdir()
    rows = "".join(f'{{"question": "What is {word}?", "answer": "{word}"}}\n' for word in ("one", "two", "six"))
    for name in ("train", "valid"):
        (root / "data" / f"{name}.jsonl").write_text(rows)
    return root


@pytest.fixture
def model(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> LoraModel:
    monkeypatch.chdir(workspace)
    loaded = LoraModel.load("base")
    for name in NAMES:
        loaded.add_adapter(name, f"adapters/{name}")
    return loaded


def python_blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("page", ["docs/API.md", "README.md"])
def test_the_code_on_the_page_runs(
    page: str, workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workspace)
    blocks = python_blocks(page)
    assert blocks
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block.replace('"smollm2-135m-instruct"', '"base"'), page, "exec"), names)
    assert "LoraModel" in names
    assert capsys.readouterr().out.strip()
    if page == "docs/API.md":
        assert names["model"].adapters == ("support", "medical", "mine")
        assert names["result"].steps == 4


def test_importing_the_package_loads_neither_mlx_nor_transformers_and_names_are_found_when_asked_for() -> None:
    code = (
        "import sys, mlx_lora; heavy = {'mlx', 'mlx_lm', 'transformers', 'pydantic', 'typer', 'rich'};"
        "print(sorted(heavy & set(sys.modules))); mlx_lora.RunConfig; print(sorted(heavy & set(sys.modules)));"
        "mlx_lora.load_config, mlx_lora.train; print('mlx' in sys.modules);"
        "mlx_lora.LoraModel; print('mlx' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == ["[]", "['pydantic']", "False", "True"]


def test_every_name_that_is_offered_is_there_and_no_other() -> None:
    for name in mlx_lora.__all__:
        assert getattr(mlx_lora, name).__name__ == name
        assert name in dir(mlx_lora)
    with pytest.raises(AttributeError, match="no attribute 'Trainer'"):
        mlx_lora.Trainer  # type: ignore[attr-defined]  # noqa: B018
    assert (ROOT / "mlx_lora" / "py.typed").is_file()


def test_answers_are_those_of_chat_for_each_adapter_and_the_base(model: LoraModel) -> None:
    for name in (None, *NAMES, "support"):
        reply = model.use(name).generate("Who?", max_tokens=8)
        voice = load_voice([] if name is None else [f"adapters/{name}"], model="base", revision=None)
        system = voice.rendering.system_prompt
        messages = [{"role": "user", "content": "Who?"}]
        messages = messages if system is None else [{"role": "system", "content": system}, *messages]
        prompt = voice.render(messages)
        text = "".join(piece.text for piece in voice.stream(prompt, Sampling(max_tokens=8), 0))
        assert reply.text == text.strip() == str(reply)
        assert (reply.by, reply.prompt_tokens) == (name or "base", len(prompt))
    assert system == "You are support."


def test_a_stream_is_the_answer_in_pieces_and_returns_the_reply(model: LoraModel) -> None:
    model.use("code:0.5+medical")
    whole = model.generate("Who?", max_tokens=8)
    replies = []

    def answered() -> Iterator[str]:
        replies.append((yield from model.stream([{"role": "user", "content": "Who?"}], max_tokens=8)))

    assert "".join(answered()) == whole.text
    assert replies == [whole]
    assert whole.by == model.active == "code:0.5+medical"
    assert not whole.complete
    assert whole.ending == "cut at max_tokens"


def test_a_system_message_stands_in_place_of_the_adapters_own(model: LoraModel) -> None:
    model.use("support")
    own, mine = (
        model.generate([*system, {"role": "user", "content": "Who?"}], max_tokens=1).prompt_tokens
        for system in ([], [{"role": "system", "content": "Hm."}])
    )
    assert own - mine == len("You are support.") - len("Hm.")  # a token is a byte


def test_nothing_changes_under_an_answer_that_is_still_coming(model: LoraModel) -> None:
    pieces = model.use("code").stream("Who?", max_tokens=8)
    next(pieces)
    for act in (
        lambda: model.use("support"),
        lambda: model.remove_adapter("code"),
        lambda: model.generate("And?"),
    ):
        with pytest.raises(MlxLoraError, match="an answer is still being streamed"):
            act()
    pieces.close()
    assert model.use("support").generate("And?", max_tokens=1).by == "support"


@pytest.mark.parametrize(
    "asked",
    ["", [], [{"role": "user"}], [{"role": "nobody", "content": "x"}], [{"role": "system", "content": "x"}], ["text"]],
)
def test_what_cannot_be_asked_is_refused_before_the_model_runs(model: LoraModel, asked: Any) -> None:
    with pytest.raises(DataError, match="what is asked: "):
        model.generate(asked)
    with pytest.raises(MlxLoraError, match="temperature is -1"):
        model.generate("Who?", temperature=-1.0)


def test_a_type_to_compute_in_that_there_is_not_is_refused_before_the_base_is_looked_for() -> None:
    with pytest.raises(ModelError) as caught:
        LoraModel.load("no/such-base", compute="fp16")
    assert caught.value.message == "compute: there is no fp16"
    kinds = get_args(RunConfig.model_fields["compute"].annotation)
    assert caught.value.hint == f"one of {', '.join(kinds)}"


def test_names_are_checked_and_removing_who_answers_leaves_the_base(model: LoraModel) -> None:
    with pytest.raises(AdapterError, match="support: there is an adapter of this name already"):
        model.add_adapter("support", "adapters/code")
    with pytest.raises(AdapterError) as caught:
        model.use("medcal")
    assert caught.value.hint == "did you mean medical?"
    with pytest.raises(AdapterError, match="no such adapter folder"):
        model.add_adapter("other", "adapters/other")
    model.use("code+support").remove_adapter("code")
    assert (model.active, model.adapters) == ("base", ("support", "medical"))


def test_a_run_gives_its_folder_its_steps_its_best_score_and_what_was_warned_of(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workspace)
    data = {"train": "data/train.jsonl", "valid": "data/valid.jsonl"}
    settings = {"model": "base", "data": data, "lora": {"rank": 2}, "output_dir": str(tmp_path / "run")}
    config = RunConfig.model_validate({**settings, "train": {"epochs": 2, "batch_size": 3, "retention": None}})
    result = train(config, quiet=True)
    assert result is not None
    assert capsys.readouterr().err == ""
    assert (result.folder, result.steps, result.ended_by) == (tmp_path / "run", 2, "steps")
    assert result.best_validation_loss == result.summary["best_validation_loss"] < result.base_validation_loss
    assert any("3 questions in both" in warning for warning in result.warnings)
    with pytest.raises(MlxLoraError, match="holds a run already"):
        train(config, quiet=True)


def test_a_developers_message_is_a_system_message(model: LoraModel) -> None:
    model.use("support")
    replies = [
        model.generate([{"role": role, "content": "Hm."}, {"role": "user", "content": "Who?"}], max_tokens=4)
        for role in ("system", "developer")
    ]
    assert replies[0] == replies[1]
    own = model.generate("Who?", max_tokens=4)
    assert own.prompt_tokens - replies[1].prompt_tokens == len("You are support.") - len("Hm.")
