"""The YAML loader: places of faults, the scalars of YAML 1.2, and no way out but ConfigError."""

import errno
import math
import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_lora.errors import ConfigError
from mlx_lora.runfile import load_config
from mlx_lora.runfile.fields import all_sections, all_settings
from mlx_lora.runfile.loader import MAX_CHARACTERS, YamlError, parse_yaml

SCALARS = [
    ("1e-5", 1e-5),
    ("1.0e-3", 1e-3),
    ("1E5", 1e5),
    ("-.5", -0.5),
    ("1.", 1.0),
    ("010", 10),
    ("-3", -3),
    ("0x10", 16),
    ("0o17", 15),
    ("1_000", "1_000"),
    ("12:30:45", "12:30:45"),
    ("2026-11-22", "2026-11-22"),
    ("=", "="),
    ("true", True),
    ("False", False),
    ("yes", "yes"),
    ("no", "no"),
    ("on", "on"),
    ("off", "off"),
    ("null", None),
    ("~", None),
    ("", None),
    ("None", "None"),
    ("e5", "e5"),
    ("'8'", "8"),
    ("!!str 8", "8"),
    ("!!float 8", 8.0),
    ("-.inf", float("-inf")),
    (".Inf", float("inf")),
    ("+.INF", float("inf")),
    ("-.Inf", float("-inf")),
]


@pytest.mark.parametrize(("written", "value"), SCALARS)
def test_scalars_follow_the_core_schema_of_yaml_1_2(written: str, value: object) -> None:
    found = parse_yaml(f"a: {written}\n").value["a"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("written", [".nan", ".NaN", ".NAN"])
def test_every_spelling_of_nan_is_one(written: str) -> None:
    """Found in session 12: .NaN, as .Inf, ended in a traceback of float()."""
    assert math.isnan(parse_yaml(f"a: {written}\n").value["a"])


def test_names_are_text_as_written() -> None:
    assert parse_yaml("{1: a, true: b, null: c, 1e5: d}").value == {"1": "a", "true": "b", "null": "c", "1e5": "d"}


def test_pyyaml_itself_is_left_as_it_was() -> None:
    assert yaml.safe_load("{a: 1e-5, b: yes, c: 010, d: 2026-11-22}") == {
        "a": "1e-5",
        "b": True,
        "c": 8,
        "d": yaml.safe_load("2026-11-22"),
    }
    assert "d" not in yaml.SafeLoader.__dict__  # no attribute of our subclass has leaked


def test_lines_of_keys_and_items_count_from_one() -> None:
    document = parse_yaml("# a comment\na:\n  b: 1\n\n  c:\n    - x\n    - y\n")
    assert document.lines == {("a",): 2, ("a", "b"): 3, ("a", "c"): 5, ("a", "c", 0): 6, ("a", "c", 1): 7}


def test_equal_keys_are_reported_with_both_lines_and_the_first_is_kept() -> None:
    document = parse_yaml("a: 1\nb:\n  c: 2\n  'c': 3\na: 4\n")
    assert document.value == {"a": 1, "b": {"c": 2}}
    assert [(each.path, each.first_line, each.line) for each in document.repeated] == [
        (("b", "c"), 3, 4),
        (("a",), 1, 5),
    ]


def test_aliases_are_followed() -> None:
    assert parse_yaml("a: &x [1, 2]\nb: *x\n").value == {"a": [1, 2], "b": [1, 2]}


PLACES = [
    ("a: b: c", "1:5: not YAML: mapping values are not allowed here"),
    ("a:\n\tb: 1", "2:1: not YAML: while scanning for the next token, found character '\\t'"),
    ("a: [1, 2", "1:9: not YAML: while parsing a flow sequence, expected ',' or ']'"),
    ("a: 1\n b: 2", "2:3: not YAML: mapping values are not allowed here"),
    ("a: *b", "1:4: not YAML: found undefined alias 'b'"),
    ("a: 1\n---\nb: 2", "2:1: not YAML: expected a single document in the stream, but found another document"),
    ("a: 1\nb: \x01", "2:4: holds the control character U+0001"),
    ("a: !!python/object/apply:os.system [ls]", "1:4: the tag !!python/object/apply:os.system is not accepted"),
    ("a: !!timestamp 2026-11-22", "1:4: the tag !!timestamp is not accepted"),
    ("a: !!int x", "1:4: 'x' is no int"),
    ("? [a, b]\n: c", "1:3: a name is one word, not a list or a mapping"),
    ("a: " + "9" * 5000, "1:4: a number of 5000 characters"),
    ("a: 9007199254740993", "1:4: a number beyond 9007199254740992"),
    ('a: "x\\0"', "1:4: holds U+0000"),
    ('"\\ud83d": a', "1:1: holds U+D83D"),
    ("[" * 100_000, "1:21: nested more than 20 levels deep"),
    ("&a [*a]", "1:1: unfolds into more values than a run file holds"),
    ('a: "\\UFFFFFFFF"', "1:7: not YAML: Python int too large"),
]


@pytest.mark.parametrize(("text", "message"), PLACES)
def test_text_that_cannot_be_read_is_an_error_with_line_and_column(text: str, message: str) -> None:
    with pytest.raises(YamlError) as caught:
        parse_yaml(text)
    assert str(caught.value).startswith(message)


def test_a_small_file_cannot_unfold_into_a_large_value() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    with pytest.raises(YamlError, match="unfolds into more values"):
        parse_yaml("\n".join(lines))


def message_for(path: Path) -> tuple[str, str | None]:
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    return caught.value.message.replace(f"{path.parent}/", ""), caught.value.hint


def test_a_syntax_error_names_file_line_and_column(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: m\n\tdata: x\n")
    message, hint = message_for(path)
    assert message.startswith("run.yaml:2:1: not YAML:")
    assert hint == "YAML indents with spaces: replace the tab"


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        (b"", "run.yaml: holds no settings", "mlx-lora init"),
        (b"# only a comment\n", "run.yaml: holds no settings", "mlx-lora init"),
        (b"- a\n- b\n", "run.yaml:1: expected `name: value` lines, found a list", "mlx-lora init"),
        (b"model\n", 'run.yaml:1: expected `name: value` lines, found the text "model"', "mlx-lora init"),
        (b"model: m\nx: \xff\xfe\n", "run.yaml:2: not UTF-8 text", "UTF-8"),
        ("model: m".encode("utf-16"), "run.yaml:1: not UTF-8 text", "UTF-8"),
        (b"x" * (MAX_CHARACTERS + 1), "run.yaml: larger than 256 KiB: no run file", "data files"),
    ],
)
def test_a_file_that_is_no_run_file_says_why(tmp_path: Path, content: bytes, message: str, hint: str | None) -> None:
    (tmp_path / "run.yaml").write_bytes(content)
    said, remedy = message_for(tmp_path / "run.yaml")
    assert said == message
    assert remedy is None if hint is None else hint in str(remedy)


def test_a_byte_order_mark_and_windows_line_ends_are_no_faults(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(b"\xef\xbb\xbfmodel: m\r\ndata: {train: t}\r\ntrain: {steps: 1}\r\noutput_dir: o\r\n")
    assert load_config(path).output_dir == "o"


def test_a_missing_file_leads_to_one_with_nearly_that_name(tmp_path: Path) -> None:
    (tmp_path / "stanley_cup.yaml").touch()
    for name in ("stanley_cup", "stanley_cup.yml", "stanley"):
        assert message_for(tmp_path / name) == (f"{name}: no such file", f"did you mean {tmp_path}/stanley_cup.yaml?")
    assert message_for(tmp_path / "other.yaml")[1] == "`mlx-lora init` writes a run file"


def test_a_folder_leads_to_the_run_file_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    assert message_for(folder) == ("run: is a folder", "give the YAML file itself")
    (folder / "run.yaml").touch()
    assert message_for(folder)[1] == f"did you mean {folder}/run.yaml?"


def test_a_file_without_permission_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.yaml"
    path.touch()

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))  # root would be let in

    for way in ("read_text", "read_bytes", "open"):
        monkeypatch.setattr(Path, way, refuse)
    assert message_for(path)[0] == "run.yaml: cannot be read: Permission denied"


def test_a_name_that_no_file_can_have_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="cannot be read: embedded null byte"):
        load_config("a\0b")


NAMES = [*(setting.name for setting in all_settings().values()), *filter(None, all_sections()), "rnak", "scale", "<<"]
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["all", "1e5"])
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=4), inner),
    max_leaves=20,
)
SIGNS = st.text(st.sampled_from("ab01:- \n\t\"'[]{},&*!|>#%@`?~.\\Ux\x85\ufeff"), max_size=40)


def check_loads_or_faults(folder: Path, content: bytes, overrides: list[str]) -> None:
    path = folder / "fuzzed.yaml"
    path.write_bytes(content)
    message = ""
    try:
        load_config(path, overrides)
    except ConfigError as error:
        message = error.message
    assert not message or message.startswith((str(path), "--set"))


@settings(deadline=None)
@given(content=st.binary(max_size=60) | st.text(max_size=60).map(str.encode) | SIGNS.map(str.encode))
def test_arbitrary_bytes_give_nothing_but_a_config_error(content: bytes, scratch: Path) -> None:
    check_loads_or_faults(scratch, content, [])


@settings(deadline=None)
@given(
    value=st.dictionaries(st.sampled_from(NAMES), VALUES), overrides=st.lists(st.text(max_size=9) | SIGNS, max_size=2)
)
def test_arbitrary_settings_give_nothing_but_a_config_error(value: object, overrides: list[str], scratch: Path) -> None:
    content = yaml.safe_dump(value).encode("utf-8", errors="surrogatepass")
    check_loads_or_faults(scratch, content, overrides)


@settings(deadline=None)
@given(path=st.sampled_from([*all_settings(), *all_sections(), "lora.x"]), value=VALUES)
def test_arbitrary_overrides_give_nothing_but_a_config_error(path: str, value: object, scratch: Path) -> None:
    text = yaml.safe_dump(value, default_flow_style=True)
    content = b"model: m\ndata: {train: t}\ntrain: {steps: 1}\noutput_dir: o\n"
    check_loads_or_faults(scratch, content, [f"{path}={text}"])
