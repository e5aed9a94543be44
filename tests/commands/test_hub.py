"""`mlx-lora push` and `pull` against a stand-in for the Hub: what goes out, what comes in, and every refusal."""

import errno
import json
import os
import socket
from dataclasses import asdict
from pathlib import Path
from typing import Any

import huggingface_hub
import mlx.core as mx
import pytest

from mlx_lora.commands.adapters import run_adapters_show
from mlx_lora.commands.pull import run_pull
from mlx_lora.commands.push import run_push
from mlx_lora.config import LoraSettings
from mlx_lora.errors import AdapterError, MlxLoraError, ModelError
from mlx_lora.lora.adapter import read_adapter, save_adapter
from mlx_lora.lora.inject import inject_lora, iter_lora_modules
from mlx_lora.model.load import load_base
from tests.hub_stand_in import TOKEN, Hub, hub_stand_in
from tests.report.run_folders import result
from tests.tiny import save_tiny_folder

NAME = "anna/my-adapter"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    with hub_stand_in() as running:
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", running.address)
        template = running.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield running


@pytest.fixture
def adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """adapters/one: with a run file, metrics and a result, all of which name paths of this machine."""
    monkeypatch.chdir(tmp_path)
    base = save_tiny_folder(tmp_path / "base", "llama")
    loaded = load_base(str(base))
    settings = LoraSettings(rank=2, layers=1)
    inject_lora(loaded.model, settings, seed=0)
    for _, layer in iter_lora_modules(loaded.model):
        layer.lora_b = mx.ones(layer.lora_b.shape)
    facts = {"model": str(base), "identity": asdict(loaded.identity), "system_prompt": "Look in /etc/motd/x first."}
    folder = tmp_path / "adapters/one"
    save_adapter(folder, loaded.model, settings=settings, metadata=facts)
    run = f"model: {base}\ndata: {{train: {tmp_path}/rows/train.jsonl}}\ntrain: {{steps: 2}}\noutput_dir: one\n"
    (folder / "run.yaml").write_text(run.replace("{train: ", "\n  train: ").replace("}\ntrain", "\ntrain"))
    start = {"event": "start", "step": 0, "model": str(base), "note": f"in {tmp_path}/rows/train.jsonl"}
    (folder / "metrics.jsonl").write_text(json.dumps(start) + '\n{"event": "st')
    (folder / "eval").mkdir()
    (folder / "eval/data-test.json").write_text(result(source=f"{tmp_path}/rows/test.jsonl").model_dump_json())
    (folder / "checkpoints/2").mkdir(parents=True)
    (folder / "checkpoints/2/state.json").write_text("{}")
    return folder


def _pushed(hub: Hub, name: str = NAME) -> dict[str, bytes]:
    repo = hub.repos[name]
    return repo.commits[repo.head]


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_what_is_pushed_is_private_and_holds_no_path_or_token_of_this_machine(hub, adapter, tmp_path, capsys):
    assert run_push("one", NAME, json_output=True) == 0
    report = json.loads(capsys.readouterr().out)
    files = _pushed(hub)
    assert hub.repos[NAME].private
    assert report["commit"] == hub.repos[NAME].head
    expected = {"adapters.safetensors", "adapter_config.json", "run.yaml", "metrics.jsonl", "README.md"}
    assert set(files) == expected | {"eval/data-test.json"}
    assert files["adapters.safetensors"] == (adapter / "adapters.safetensors").read_bytes()
    for path, content in files.items():
        for secret in (str(tmp_path), TOKEN):
            assert secret.encode() not in content, path
    config = json.loads(files["adapter_config.json"])
    assert config["mlx_lora"]["system_prompt"] == "Look in /etc/motd/x first.", "what the model reads stays as it is"
    assert config["mlx_lora"]["model"].startswith("…/")
    assert b"Question 0" not in files["eval/data-test.json"], "questions are data"


def test_the_card_has_base_data_scores_and_run_file(hub, adapter, capsys):
    run_push("one", NAME, public=True)
    card = _pushed(hub)["README.md"].decode()
    assert not hub.repos[NAME].private
    assert card.startswith("---\nlibrary_name: mlx\n")
    for text in (
        "3 of 5, 60 %",
        "2 of 5, 40 %",
        "## Run file",
        "```yaml",
        "…/rows/train.jsonl",
        f"mlx-lora pull {NAME}",
    ):
        assert text in card


def test_a_dry_run_sends_nothing_and_needs_no_token(hub, adapter, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN")
    assert run_push("one", NAME, dry_run=True) == 0
    said = capsys.readouterr()
    assert said.out.startswith("---\n")
    assert "adapters.safetensors" in said.err
    assert "(private) would get" in said.err
    assert hub.requests == []


def test_what_was_pushed_comes_back_whole_with_its_commit(hub, adapter, tmp_path, capsys):
    run_push("one", NAME)
    first = hub.repos[NAME].head
    hub.repos[NAME].commit({"model.py": b"evil()", "pytorch_model.bin": b"pickle", "eval/../../x.json": b"{}"})
    assert run_pull(NAME) == 0
    folder = tmp_path / "adapters/my-adapter"
    assert _files(folder) == set(_pushed(hub)) - {"model.py", "pytorch_model.bin", "eval/../../x.json"} | {"hub.json"}
    assert json.loads((folder / "hub.json").read_text())["commit"] == hub.repos[NAME].head
    one, two = read_adapter(adapter), read_adapter(folder)
    assert all(mx.array_equal(two.tensors[name], tensor) for name, tensor in one.tensors.items())
    capsys.readouterr()
    run_adapters_show("my-adapter")
    assert f"{NAME} at {hub.repos[NAME].head[:12]}" in capsys.readouterr().out
    run_pull(NAME, tmp_path / "old", revision=first)
    assert json.loads((tmp_path / "old/hub.json").read_text()) == {
        "repository": NAME,
        "commit": first,
        "revision": first,
    }


def test_an_update_adds_a_commit_and_nothing_is_overwritten_unasked(hub, adapter, tmp_path):
    run_push("one", NAME)
    with pytest.raises(ModelError, match="exists already"):
        run_push("one", NAME)
    (adapter / "run.yaml").unlink()
    run_push("one", NAME, update=True)
    assert len(hub.repos[NAME].commits) == 2
    run_pull(NAME)
    with pytest.raises(MlxLoraError, match="exists already"):
        run_pull(NAME)


@pytest.mark.parametrize(
    ("failure", "fact", "remedy"),
    [
        ({"POST /api/repos/create": 401}, "HTTP 401", "hf auth login"),
        ({"POST /api/repos/create": 403}, "HTTP 403", "right to write"),
        ({"/commit/main": 403}, "HTTP 403", "--update fills it"),
        ({"POST /api/repos/create": 418}, "HTTP 418", "try again later"),
    ],
)
def test_a_refusal_of_a_push_is_one_line_with_a_remedy(hub, adapter, failure, fact, remedy):
    hub.failures = failure
    with pytest.raises(ModelError) as raised:
        run_push("one", NAME)
    assert fact in raised.value.message
    assert remedy in (raised.value.hint or "")
    assert "\n" not in raised.value.message
    assert TOKEN not in raised.value.message


@pytest.mark.parametrize("name", ["anna/größe", "anna/cup-", "anna/cup.git", "anna./cup", "anna/a..b", "a/b/c"])
def test_a_name_that_the_hub_does_not_take_is_no_matter_of_the_network(hub, adapter, name):
    """Some of these were asked for, and "cannot be reached: Repo id must …" was said, with "check the network"."""
    for attempt in (lambda: run_push("one", name), lambda: run_pull(name)):
        with pytest.raises(ModelError) as raised:
            attempt()
        assert raised.value.message == f"{name}: not the name of a repository"
    assert hub.requests == []


def test_somebody_elses_name_and_no_token_and_no_name_are_refused(hub, adapter, monkeypatch):
    with pytest.raises(ModelError, match="may not do that"):
        run_push("one", "bert/my-adapter")
    with pytest.raises(ModelError, match="not the name of a repository"):
        run_push("one", "my-adapter")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ModelError, match="no token"):
        run_push("one", NAME)
    assert hub.repos == {}


def test_a_secret_in_a_prompt_is_never_sent(hub, adapter):
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text())
    config["mlx_lora"]["system_prompt"] = "Use ghp_" + "y" * 30
    path.write_text(json.dumps(config))
    with pytest.raises(MlxLoraError, match="system_prompt holds what looks like an access token"):
        run_push("one", NAME)
    assert hub.repos == {}


@pytest.mark.parametrize(
    ("name", "revision", "failure", "fact"),
    [
        ("anna/nothing", None, {}, "HTTP 404|does not accept the token"),
        (NAME, "v9", {}, "no revision 'v9'"),
        (NAME, None, {"GET /api/models": 403}, "HTTP 403"),
        (NAME, None, {"GET /api/models": 401}, "HTTP 401"),
    ],
)
def test_a_refusal_of_a_pull_is_one_line_and_leaves_nothing(hub, adapter, tmp_path, name, revision, failure, fact):
    run_push("one", NAME)
    hub.failures = failure
    before = set(tmp_path.rglob("*"))
    with pytest.raises(ModelError, match=fact) as raised:
        run_pull(name, revision=revision)
    assert raised.value.hint
    assert set(tmp_path.rglob("*")) - before <= {tmp_path / "hub-cache"}


def test_what_is_damaged_or_no_adapter_is_not_put_in_place(hub, adapter, tmp_path):
    run_push("one", NAME)
    hub.damaged = {"adapters.safetensors"}
    with pytest.raises(ModelError, match=r"adapters\.safetensors is not what the Hub says"):
        run_pull(NAME)
    hub.damaged = set()
    for files, fact in (
        ({"adapters.safetensors": b"no tensors"}, f"{NAME}.*nothing was kept"),
        ({"adapters.safetensors": (adapter / "adapters.safetensors").read_bytes()[:-9]}, "nothing was kept"),
    ):
        hub.repos[NAME].commit(files)
        with pytest.raises(AdapterError, match=fact):
            run_pull(NAME)
    hub.repos[NAME].commits[hub.repos[NAME].head].pop("adapters.safetensors")
    hub.repos[NAME].commit({"adapter_model.safetensors": b""})
    with pytest.raises(AdapterError, match="a PEFT adapter"):
        run_pull(NAME)
    assert not (tmp_path / "adapters/my-adapter").exists()


def test_a_network_that_is_down_is_named(adapter, tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set"):
        run_pull(NAME)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    for attempt in (lambda: run_push("one", NAME), lambda: run_pull(NAME)):
        with pytest.raises(ModelError, match="cannot be reached") as raised:
            attempt()
        assert raised.value.hint == "check the network, and try again"


def test_every_result_goes_out_and_comes_back(hub, adapter, tmp_path):
    """Of two results of one data set the second was sent over the first; a name with a blank stayed on the Hub."""
    for file, name, tokens in (("data-test-48", "data-test", 48), ("my test", "my test", 64)):
        one = result(name=name, max_tokens=tokens)
        (adapter / f"eval/{file}.json").write_text(one.model_dump_json())
    run_push("one", NAME)
    assert run_pull(NAME) == 0
    folder = tmp_path / "adapters/my-adapter"
    found = [json.loads(path.read_text()) for path in sorted((folder / "eval").iterdir())]
    asked = [(one["data"]["name"], one["settings"]["max_tokens"]) for one in found]
    assert sorted(asked) == [("data-test", 48), ("data-test", 64), ("my test", 64)]


@pytest.mark.parametrize(
    ("number", "fact", "remedy"),
    [(errno.ENOSPC, "not enough disk space", "free some space"), (errno.EROFS, "cannot be written", "HF_HOME")],
)
def test_a_disk_that_takes_nothing_is_not_called_a_network(hub, adapter, monkeypatch, number, fact, remedy):
    run_push("one", NAME)

    def refuse(*_: Any, **__: Any) -> str:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(huggingface_hub.HfApi, "hf_hub_download", refuse)
    with pytest.raises(ModelError, match=fact) as raised:
        run_pull(NAME)
    assert remedy in str(raised.value.hint)
    assert "cannot be reached" not in raised.value.message


def test_no_row_and_no_answer_is_sent_in_an_event_or_a_sign(hub, adapter):
    """Found by reading: warnings on data quote both answers of a contradiction, signs of damage the common answer."""
    said = 'rows.jsonl:3: "secret 1" contradicts "secret 2" at rows.jsonl:1: the same question'
    data = {"train": {"rows": 2, "notes": ["secret 3"]}}
    start = {"event": "start", "step": 0, "run": {"total_steps": 2, "data_warnings": [said], "data": data}}
    (adapter / "metrics.jsonl").write_text(f"{json.dumps(start)}\n{json.dumps({**start, 'event': 'resume'})}\n")
    sign = '5 of 5 answers are one and the same: "secret 4"'
    one = result()
    told = one.verdict.model_copy(update={"signs": [sign], "sentence": f"it broke ({sign})"})
    one = one.model_copy(update={"signs": [sign], "verdict": told})
    (adapter / "eval/data-test.json").write_text(one.model_dump_json())
    assert run_push("one", NAME) == 0
    files = _pushed(hub)
    for path, content in files.items():
        assert b"secret" not in content, path
    sent = [json.loads(line) for line in files["metrics.jsonl"].splitlines()]
    assert [event["run"] for event in sent] == [{"total_steps": 2, "data": {"train": {"rows": 2}}}] * 2
    assert json.loads(files["eval/data-test.json"])["signs"] == ["5 of 5 answers are one and the same"]
