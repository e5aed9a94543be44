"""Names of models to folders, and one clear error for each way in which that fails. No network: the hub is a fake."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import huggingface_hub.errors as hub
import pytest

from mlx_lora.errors import ModelError
from mlx_lora.model import sources
from mlx_lora.model.load import load_base, load_tokenizer, resolve_model
from mlx_lora.model.sources import find_source
from tests.tiny import save_tiny_folder

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def _hub(monkeypatch: pytest.MonkeyPatch, download: Callable[..., str]) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)


def _failing_hub(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def download(name: str, **settings: Any) -> str:
        raise error

    _hub(monkeypatch, download)


def _http_error(kind: type[Exception], status: int) -> Exception:
    response: Any = SimpleNamespace(status_code=status, headers={}, request=None)
    return kind("no", response=response)  # type: ignore[call-arg]


def test_a_folder_is_named_by_its_last_part_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep" / "my-model").mkdir(parents=True)
    (tmp_path / "deep" / "my-model" / "config.json").write_text("{}")
    source = find_source(str(tmp_path / "deep" / "my-model"))
    assert (source.name, source.revision, source.path) == ("my-model", None, tmp_path / "deep" / "my-model")
    monkeypatch.chdir(tmp_path / "deep" / "my-model")
    assert find_source(".").name == "my-model"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_model("~/deep/my-model") == tmp_path / "deep" / "my-model"


def test_a_hub_model_is_known_by_its_commit_and_weights_come_after_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_tiny_folder(tmp_path / "snapshots" / COMMIT)
    calls: list[tuple[str, str | None, bool]] = []

    def download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        calls.append((name, revision, any("safetensors" in pattern for pattern in allow_patterns)))
        return str(folder)

    _hub(monkeypatch, download)
    base = load_base("org/tiny", revision="v1")
    assert (base.identity.name, base.identity.revision) == ("org/tiny", COMMIT)
    assert calls == [("org/tiny", "v1", False), ("org/tiny", COMMIT, True)]
    calls.clear()
    assert load_tokenizer("org/tiny").eos_id == 4
    assert calls == [("org/tiny", None, False)]


def test_neither_code_nor_pickles_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    patterns: list[str] = []

    def download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        patterns.extend(allow_patterns)
        return str(tmp_path)

    _hub(monkeypatch, download)
    find_source("org/name")
    wanted = [
        "config.json",
        "generation_config.json",
        "chat_template.jinja",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "vocab.json",
        "merges.txt",
        "model.safetensors",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    unwanted = [
        "modeling.py",
        "pytorch_model.bin",
        "consolidated.00.pth",
        "model.pt",
        "model.gguf",
        "training_args.bin",
        "optimizer.safetensors",
        "README.md",
        "requirements.txt",
    ]
    taken = list(huggingface_hub.utils.filter_repo_objects(wanted + unwanted, allow_patterns=patterns))
    assert taken == wanted


@pytest.mark.parametrize(
    ("error", "fact", "remedy"),
    [
        (_http_error(hub.GatedRepoError, 403), "access is gated", "hf auth login"),
        (_http_error(hub.RepositoryNotFoundError, 401), "not found on Hugging Face", "check the spelling"),
        (_http_error(hub.RevisionNotFoundError, 404), "has no revision 'v9'", "commits"),
        (hub.LocalEntryNotFoundError("x"), "cannot be reached", "smollm2-135m-instruct is built in"),
        (OSError(errno.ENOSPC, "No space left on device"), "not enough disk space", "HF_HOME"),
        (RuntimeError("Io(Os { code: 28, message: No space left on device })"), "not enough disk space", "HF_HOME"),
        (PermissionError(errno.EACCES, "Permission denied"), "cannot be written", "HF_HOME"),
        (_http_error(hub.HfHubHTTPError, 403), "refused access", "hf auth login"),
        (_http_error(hub.HfHubHTTPError, 500), "the download failed: no", "run it again"),
        (ConnectionResetError("reset by peer"), "the download failed: reset by peer", "run it again"),
    ],
)
def test_each_failure_of_the_hub_is_one_error_with_a_remedy(
    error: Exception, fact: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _failing_hub(monkeypatch, error)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(ModelError) as caught:
        find_source("some-org/some-name", revision="v9")
    assert caught.value.message.startswith("model some-org/some-name: ")
    assert fact in caught.value.message
    assert remedy in str(caught.value.hint)


def test_a_hub_that_answers_with_an_error_is_not_called_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    error = hub.LocalEntryNotFoundError("x")
    error.__cause__ = _http_error(hub.HfHubHTTPError, 503)
    _failing_hub(monkeypatch, error)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(ModelError, match="answered HTTP 503") as caught:
        find_source("some-org/some-name")
    assert caught.value.hint == "try again later"


def test_offline_mode_without_the_model_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The real snapshot_download, over an empty cache: it never opens a connection in offline mode."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set") as caught:
        find_source("some-org/some-name")
    assert "unset HF_HUB_OFFLINE" in str(caught.value.hint)


def test_a_name_near_a_built_in_one_gets_a_proposal(monkeypatch: pytest.MonkeyPatch) -> None:
    _failing_hub(monkeypatch, AssertionError("the hub is not asked"))
    for name in ("smollm2-135m-instrct", "SmolLM2-135M-Instruct", "smollm2-135m", "./smollm2-135m-instruct"):
        with pytest.raises(ModelError) as caught:
            find_source(name)
        assert caught.value.hint == "did you mean the built-in model smollm2-135m-instruct?"
    _failing_hub(monkeypatch, hub.LocalEntryNotFoundError("x"))
    with pytest.raises(ModelError) as caught:
        find_source("HuggingFaceTB/SmolLM2-135M-Instruct")
    assert caught.value.hint == "did you mean the built-in model smollm2-135m-instruct?"


@pytest.mark.parametrize("name", ["./nothing", "/nothing/here", "~/nothing", "a/b/c", "models/", "what is this?"])
def test_a_path_that_is_not_there_never_goes_to_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _failing_hub(monkeypatch, AssertionError("the hub is not asked"))
    with pytest.raises(ModelError, match="no such folder"):
        find_source(name)


def test_an_empty_name_is_not_the_current_folder() -> None:
    with pytest.raises(ModelError, match="empty"):
        find_source(" ")


def test_only_hub_models_have_revisions(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for name in (str(tmp_path), "smollm2-135m-instruct"):
        with pytest.raises(ModelError, match="only Hugging Face models have revisions"):
            find_source(name, revision="main")


@pytest.mark.parametrize(
    ("name", "fact"),
    [
        ("model.gguf", "is no GGUF file, or is cut off"),
        ("model.Q4_K_M.GGUF", "is no GGUF file, or is cut off"),
        ("pytorch_model.bin", "is a torch file"),
        ("model.pt", "is a torch file"),
        ("model.safetensors", "is one weights file"),
        ("notes", "is a file, expected a folder"),
    ],
)
def test_a_file_given_as_a_model_says_what_it_is(name: str, fact: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ModelError, match=fact) as caught:
        find_source(str(tmp_path / name))
    assert caught.value.hint
    if "GGUF" in fact:
        with pytest.raises(ModelError, match="no such file"):
            find_source(str(tmp_path / "other" / name))
    elif fact.endswith("file") and "weights" not in fact:
        assert "mlx_lm.convert" in caught.value.hint
        with pytest.raises(ModelError, match="there is no such file"):
            find_source(str(tmp_path / "other" / name))


@pytest.mark.parametrize(
    ("files", "fact"),
    [
        ([], "has no config.json"),
        (["model.gguf"], "holds a GGUF file and no config.json"),
        (["pytorch_model.bin"], "holds a torch file and no config.json"),
        (["consolidated.00.pth"], "holds a torch file and no config.json"),
        (["adapter_config.json", "adapters.safetensors"], "is an adapter, not a model"),
    ],
)
def test_a_folder_that_is_no_model_says_what_it_is(files: list[str], fact: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(ModelError, match=fact) as caught:
        find_source(str(tmp_path))
    assert caught.value.message.startswith(f"model {tmp_path}")
    assert caught.value.hint


def test_a_hub_repository_without_config_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _hub(monkeypatch, lambda name, **settings: str(tmp_path))
    with pytest.raises(ModelError, match=r"has no config\.json") as caught:
        find_source("org/only-gguf")
    assert "mlx-community" in str(caught.value.hint)


def test_the_suggestion_of_the_module_is_a_built_in_model() -> None:
    assert sources._suggestion("gpt2") is None
    assert os.sep not in str(sources._suggestion("smollm2-135m-instruct"))
