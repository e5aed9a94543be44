"""Where adapters are found, and where rows and the history go."""

import fcntl
import json
import resource
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_lora.chat.places import (
    adapter_label,
    adapter_names,
    append_row,
    find_adapter,
    history_path,
    open_history,
)
from mlx_lora.dataset.records import read_records
from mlx_lora.errors import AdapterError, MlxLoraError


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("stanley-cup", "support", "elsewhere/medical"):
        folder = Path(name if "/" in name else f"adapters/{name}")
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text("{}")
    Path("adapters/unfinished/checkpoints").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize(
    ("named", "folder"),
    [
        ("support", "adapters/support"),
        ("adapters/support", "adapters/support"),
        ("adapters/support/", "adapters/support"),
        ("./elsewhere/medical", "elsewhere/medical"),
        ("adapters/support/adapter_config.json", "adapters/support"),
    ],
)
def test_an_adapter_is_found_by_name_and_by_path(root: Path, named: str, folder: str) -> None:
    assert find_adapter(named) == Path(folder)


def test_adapters_are_named_by_what_finds_them(root: Path) -> None:
    assert adapter_names() == ["stanley-cup", "support"]
    assert adapter_label(Path("adapters/support")) == "support"
    assert adapter_label(Path("elsewhere/medical")) == "elsewhere/medical"


def test_suggested_commands_can_be_pasted_where_a_name_has_a_space(root: Path) -> None:
    Path("adapters/my run").mkdir()
    Path("adapters/my run/metrics.jsonl").touch()
    with pytest.raises(AdapterError) as none:
        find_adapter("my run")
    assert none.value.hint == "mlx-lora report 'adapters/my run' says how it ended"
    Path("adapters/my run/adapter_config.json").write_text("{}")
    with pytest.raises(AdapterError) as mix:
        find_adapter("my run+support")
    assert mix.value.hint is not None
    assert "mlx-lora adapters merge 'my run' support --weights 1,1 -o DIR" in mix.value.hint


@pytest.mark.parametrize(
    ("named", "fact", "hint"),
    [
        ("stanly-cup", "adapter stanly-cup: no such folder", "did you mean stanley-cup?"),
        ("stanley", "adapter stanley: no such folder", "did you mean stanley-cup?"),
        (
            "support+./elsewhere/medical:0.3",
            "support+./elsewhere/medical:0.3: is a mix, and one adapter is expected",
            "chat takes mixes; here: mlx-lora adapters merge support ./elsewhere/medical --weights 1,0.3 -o DIR",
        ),
        ("support:0.3+zzz", "adapter support:0.3+zzz: no such folder", "did you mean support?"),
        ("zzz", "adapter zzz: no such folder", "there are stanley-cup, support"),
        ("unfinished", "adapters/unfinished: has no adapter_config.json", "there are stanley-cup, support"),
        ("adapters", "adapters: has no adapter_config.json", "it holds the adapters adapters/stanley-cup, adapt"),
    ],
)
def test_a_wrong_name_is_refused_with_what_there_is(root: Path, named: str, fact: str, hint: str) -> None:
    with pytest.raises(AdapterError) as caught:
        find_adapter(named)
    assert fact in caught.value.message
    assert caught.value.hint is not None
    assert hint in caught.value.hint


def test_without_any_adapters_the_hint_says_how_they_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AdapterError) as caught:
        find_adapter("x")
    assert caught.value.hint == "adapters/ holds no adapters yet: `mlx-lora train` makes them"


ROW = {"messages": [{"role": "user", "content": "Wer?\n„Ich“ 🐉"}, {"role": "assistant", "content": "Du."}]}


def test_rows_are_appended_and_read_records_reads_them_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "chats.jsonl"
    assert append_row(path, ROW) == 1
    assert append_row(path, ROW) == 2
    records = read_records(str(path))
    assert [list(record.messages) for record in records] == [ROW["messages"]] * 2
    assert [record.answers for record in records] == [("Du.",)] * 2
    assert {record.format for record in records} == {"chat"}


def test_a_row_begins_on_a_line_of_its_own_where_the_last_line_has_no_end(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps(ROW))
    assert append_row(path, ROW) == 2
    assert len(read_records(str(path))) == 2


@given(content=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives_in_one_line(content: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("rows") / "chats.jsonl"
    append_row(path, {"messages": content})
    assert [json.loads(line)["messages"] for line in path.read_bytes().splitlines()] == [content]


@pytest.mark.parametrize("size", [10, 100_000])  # within a buffer, and beyond
def test_nothing_is_left_of_a_row_that_the_disk_takes_only_a_part_of(tmp_path: Path, size: int) -> None:
    path = tmp_path / "chats.jsonl"
    append_row(path, ROW)
    before = path.read_bytes()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 5, limit[1]))
    try:
        with pytest.raises(MlxLoraError, match=r"chats\.jsonl: File too large"):
            append_row(path, {"messages": "x" * size})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert path.read_bytes() == before
    assert append_row(path, ROW) == 2


def test_on_a_mac_a_saved_row_reaches_the_disk_and_not_its_cache_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", lambda descriptor, call: flushed.append(call))
    append_row(tmp_path / "chats.jsonl", ROW)
    append_row(tmp_path / "chats.jsonl", ROW)
    assert flushed == [51, 51]


def test_rows_go_into_jsonl_files_only(tmp_path: Path) -> None:
    with pytest.raises(MlxLoraError, match=r"a \.jsonl file") as caught:
        append_row(tmp_path / "chat.txt", ROW)
    assert caught.value.hint == f"/save {tmp_path / 'chat.jsonl'}"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("typed", "hint"), [(".", "chats.jsonl"), ("..", "../chats.jsonl"), ("/", "/chats.jsonl")])
def test_a_place_without_a_name_is_refused_with_a_file_in_it(typed: str, hint: str) -> None:
    """Found by reading: `/save .` ended the chat with a traceback."""
    with pytest.raises(MlxLoraError, match=r"a \.jsonl file") as caught:
        append_row(Path(typed), ROW)
    assert caught.value.hint == f"/save {hint}"


def test_a_folder_in_place_of_the_file_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "chats.jsonl"
    folder.mkdir()
    with pytest.raises(MlxLoraError, match=r"chats\.jsonl: Is a directory"):
        append_row(folder, ROW)


def test_the_history_lies_in_the_cache_folder_and_is_its_owners_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLX_LORA_CACHE", str(tmp_path / "cache"))
    path = history_path()
    assert path == tmp_path / "cache" / "chat_history"
    open_history(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_cache_folder_may_be_named_from_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MLX_LORA_CACHE", "~/cache")
    assert history_path() == tmp_path / "cache" / "chat_history"


def test_a_history_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MlxLoraError, match=r"Not a directory|File exists"):
        open_history(tmp_path / "file" / "chat_history")
