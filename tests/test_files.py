"""Files and folders that appear whole or not at all."""

import errno
import fcntl
import hashlib
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path

import pytest

from mlx_lora.errors import MlxLoraError
from mlx_lora.files import (
    refuse_unwritable,
    remove_leftovers,
    sha256_file,
    typed_path,
    whole_file,
    whole_folder,
    write_json,
    write_whole,
)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_writing_makes_the_folders_and_leaves_no_other_file(tmp_path: Path) -> None:
    write_whole(tmp_path / "a" / "b.txt", "häll\n")
    assert (tmp_path / "a" / "b.txt").read_bytes() == b"h\xc3\xa4ll\n"
    assert _names(tmp_path / "a") == ["b.txt"]


def test_a_written_file_has_the_permissions_that_the_umask_says(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        write_whole(tmp_path / "file", b"x")
        with whole_folder(tmp_path / "folder") as folder:
            (folder / "inner").write_text("x")
    finally:
        os.umask(old)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o755


def test_json_is_indented_ends_with_a_newline_and_refuses_what_is_not_json(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"größe": [1]})
    assert (tmp_path / "x.json").read_text() == '{\n  "größe": [\n    1\n  ]\n}\n'
    with pytest.raises(ValueError):
        write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert (tmp_path / "x.json").read_text().startswith('{\n  "größe"')


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "permissions"),
        (errno.EPERM, "permissions"),
        (errno.EDQUOT, "quota"),
    ],
)
def test_a_failing_disk_leaves_the_old_file_and_names_place_fact_and_remedy(
    number: int, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_whole(tmp_path / "x", "old")

    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(MlxLoraError) as caught:
        write_whole(tmp_path / "x", "new")
    assert caught.value.message == f"{tmp_path / 'x'}: {os.strerror(number)}"
    assert remedy in str(caught.value.hint)
    with pytest.raises(MlxLoraError), whole_folder(tmp_path / "f") as folder:
        (folder / "inner").write_text("x")
    assert _names(tmp_path) == ["x"]
    assert (tmp_path / "x").read_text() == "old"


def test_on_a_mac_the_drives_own_cache_is_written_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fsync(2) of macOS leaves it there, so that a power cut may take what a checkpoint says is written."""
    flushed = []
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", lambda descriptor, call: flushed.append(call))
    write_whole(tmp_path / "x", "y")
    assert flushed == [51, 51]  # the file, and the folder that has its name
    for number, refused in ((errno.ENOTSUP, False), (errno.EIO, True)):

        def fail(descriptor: int, call: int, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, "fcntl", fail)
        with pytest.raises(MlxLoraError) if refused else nullcontext():
            write_whole(tmp_path / "x", f"{number}")
    assert (tmp_path / "x").read_text() == f"{errno.ENOTSUP}"


def test_a_file_where_a_folder_is_needed_is_named(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("x")
    for path in (tmp_path / "plain" / "x", tmp_path / "plain" / "deeper" / "x"):
        with pytest.raises(MlxLoraError) as caught:
            write_whole(path, "y")
        assert caught.value.message.startswith(str(path))
        assert "a file stands where a folder is needed" in str(caught.value.hint)


def test_a_folder_where_a_file_is_wanted_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(MlxLoraError, match="Is a directory"):
        write_whole(tmp_path / "folder", "y")
    assert _names(tmp_path) == ["folder"]


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def write_half_a_file() -> None:
        with whole_file(tmp_path / "x.safetensors") as temporary:
            temporary.write_bytes(b"half")
            assert temporary.suffix == ".safetensors"  # mx.save_safetensors appends it otherwise
            raise ZeroDivisionError

    def write_half_a_folder() -> None:
        with whole_folder(tmp_path / "f") as folder:
            (folder / "half").write_bytes(b"half")
            raise ZeroDivisionError

    for write in (write_half_a_file, write_half_a_folder):
        with pytest.raises(ZeroDivisionError):
            write()
    assert _names(tmp_path) == []


def test_a_folder_appears_only_when_its_block_ends(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "f") as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "x").write_text("1")
        assert not (tmp_path / "f").exists()
    assert (tmp_path / "f" / "deep" / "x").read_text() == "1"
    assert _names(tmp_path) == ["f"]


def test_a_folder_with_something_in_it_is_kept_unless_told(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    with whole_folder(tmp_path / "f") as folder:  # an empty one is no loss
        (folder / "old").write_text("1")
    with pytest.raises(MlxLoraError, match="exists already") as caught, whole_folder(tmp_path / "f"):
        pytest.fail("the work is not begun")
    assert "nothing was overwritten" in str(caught.value.hint)
    with whole_folder(tmp_path / "f", overwrite=True) as folder:
        (folder / "new").write_text("2")
    assert _names(tmp_path / "f") == ["new"]
    assert _names(tmp_path) == ["f"]


@pytest.mark.parametrize("there", [None, [], ["old"]])
def test_a_link_to_a_folder_keeps_leading_to_what_was_written(tmp_path: Path, there: list[str] | None) -> None:
    """Found by a review in session 15: the work was done, and then no folder could take the link's place."""
    real, link = tmp_path / "disk" / "real", tmp_path / "link"
    link.symlink_to(real)
    if there is not None:
        real.mkdir(parents=True)
    for name in there or []:
        (real / name).write_text("old")
        with pytest.raises(MlxLoraError, match="exists already"), whole_folder(link):
            pass
    with whole_folder(link, overwrite=True) as temporary:
        (temporary / "new").write_text("new")
    assert link.is_symlink()
    assert [path.name for path in real.iterdir()] == ["new"]


def test_the_current_folder_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder `-o .` did all the work, and then nothing could be renamed to it."""
    (tmp_path / "here").mkdir()
    (tmp_path / "link").symlink_to("here")
    monkeypatch.chdir(tmp_path / "here")
    for name in (".", "", tmp_path / "here", "../here", tmp_path / "link"):
        with pytest.raises(MlxLoraError, match="is the folder you are in"), whole_folder(name):
            raise AssertionError("the work has begun")
    with pytest.raises(MlxLoraError, match="/: has no name"), whole_folder("/"):
        raise AssertionError("the work has begun")
    assert _names(tmp_path) == ["here", "link"]


def test_a_folder_that_appeared_meanwhile_is_kept(tmp_path: Path) -> None:
    def write() -> None:
        with whole_folder(tmp_path / "f") as folder:
            (folder / "mine").write_text("1")
            write_whole(tmp_path / "f" / "theirs", "2")

    with pytest.raises(MlxLoraError, match="exists already"):
        write()
    assert _names(tmp_path / "f") == ["theirs"]
    assert _names(tmp_path) == ["f"]


def test_leftovers_of_killed_writers_can_be_removed_and_nothing_else_is(tmp_path: Path) -> None:
    writers = [whole_file(tmp_path / "x.json"), whole_folder(tmp_path / "f"), whole_file(tmp_path / "y.json")]
    for writer in writers:  # entered and never left, as by a process that was killed
        path = writer.__enter__()
        (path / "half" if path.is_dir() else path).write_text("half")
    remove_leftovers(tmp_path / "x.json")
    remove_leftovers(tmp_path / "f")
    assert [name.split(".partial-")[0] for name in _names(tmp_path)] == [".y"]


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    contents = [b"a" * 300_000, b"b" * 200_000]
    write_whole(path, contents[0])
    seen: set[bytes] = set()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.add(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(20):
        write_whole(path, contents[turn % 2])
    done.set()
    reader.join()
    assert seen
    assert seen <= set(contents)


def test_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc" * 100_000)
    assert sha256_file(tmp_path / "x") == hashlib.sha256(b"abc" * 100_000).hexdigest()
    with pytest.raises(MlxLoraError, match="No such file"):
        sha256_file(tmp_path / "none")


@pytest.mark.parametrize("make", [whole_file, whole_folder])
def test_folders_that_were_made_for_what_was_never_written_are_gone_again(
    make: Callable[[Path], AbstractContextManager[Path]], tmp_path: Path
) -> None:
    (tmp_path / "there").mkdir()
    with suppress(KeyboardInterrupt), make(tmp_path / "there" / "new" / "newer" / "x"):
        assert (tmp_path / "there" / "new" / "newer").is_dir()
        raise KeyboardInterrupt
    assert _names(tmp_path) == ["there"]
    assert _names(tmp_path / "there") == []


def test_a_folder_that_somebody_else_put_something_in_stays(tmp_path: Path) -> None:
    with suppress(KeyboardInterrupt), whole_file(tmp_path / "new" / "x"):
        (tmp_path / "new" / "theirs").touch()
        raise KeyboardInterrupt
    assert _names(tmp_path / "new") == ["theirs"]


def test_leftovers_of_a_name_with_stars_and_brackets_are_found(tmp_path: Path) -> None:
    path = tmp_path / "a**[1].json"
    (tmp_path / ".a**[1].partial-00.json").touch()
    (tmp_path / ".aXX1.partial-00.json").touch()
    remove_leftovers(path)
    assert _names(tmp_path) == [".aXX1.partial-00.json"]


def test_a_typed_path_is_expanded_and_may_lead_to_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert typed_path("~/rows.jsonl") == tmp_path / "rows.jsonl"
    (tmp_path / "file").touch()
    assert typed_path(tmp_path / "file" / "below") == tmp_path / "file" / "below"


@pytest.mark.parametrize(
    ("name", "fact", "hint"),
    [
        ("~nobody-of-this-name/x", "there is no such home folder", "write the whole path"),
        ("x" * 300, "File name too long", "choose a shorter one"),
        ("loop/x", "Too many levels of symbolic links", "a link leads back to itself"),
        ("rows\0.jsonl", "holds a NUL character", "no file can be called so"),
        ("~ann\0/rows.jsonl", "holds a NUL character", "no file can be called so"),
    ],
)
def test_a_path_that_cannot_lead_anywhere_is_refused(
    name: str, fact: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    for ask in (typed_path, refuse_unwritable):
        with pytest.raises(MlxLoraError) as caught:
            ask(name)
        assert caught.value.message == f"{name}: {fact}"
        assert hint in str(caught.value.hint)


def test_what_cannot_be_written_is_known_before_it_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    for fine in ("file", "new", "new/deep", "."):
        refuse_unwritable(fine)
    with pytest.raises(MlxLoraError, match="file/new/deep: file is a file, not a folder"):
        refuse_unwritable("file/new/deep")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(MlxLoraError, match="new: cannot be written") as caught:
        refuse_unwritable("new")
    assert "permissions" in str(caught.value.hint)
    assert _names(tmp_path) == ["file"]
