"""More bad input than anybody writes down: whatever comes, the program succeeds or says what is wrong."""

import json
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_lora.__main__ import main
from mlx_lora.commands.report import run_report
from mlx_lora.config import DataSettings
from mlx_lora.dataset.examples import build_examples
from mlx_lora.dataset.records import read_records
from mlx_lora.errors import MlxLoraError
from mlx_lora.lora.adapter import apply_adapter, read_adapter
from mlx_lora.lora.inject import remove_lora
from mlx_lora.model.load import LoadedModel, load_base
from mlx_lora.model.tokenizer import Tokenizer
from mlx_lora.model.weights import read_header
from mlx_lora.runfile.fields import all_settings
from tests.bad_inputs.cases import ROWS, RUN, Prepared
from tests.bad_inputs.test_corpus import snapshot
from tests.report.run_folders import result, whole_run, write_run

# What breaks programs: edges of number types, names that lead elsewhere, texts that are no text.
NUMBERS = [0, 1, -1, 3, 2**31, 2**32, 2**53, 2**63, 10**30, 0.5, 1e-320, 1e308, float("nan"), float("inf")]
TEXTS = [
    "",
    " ",
    "all",
    "epoch",
    "none",
    "..",
    "/",
    "~nobody-of-this-name",
    "x" * 300,
    "rows.jsonl",
    "model",
    "é\u202e",
]
TEXTS += ["a\0b", "\ud83d", "{{ x }}", "{% for %}", "null", "1e5", "\x1b[2J"]
LEAVES = st.sampled_from([None, True, False, *NUMBERS, *TEXTS])
VALUES = LEAVES | st.lists(LEAVES, max_size=3) | st.dictionaries(st.sampled_from(TEXTS), LEAVES, max_size=2)
TEXT_OF_ALL_KINDS = st.text(max_size=12) | st.sampled_from(TEXTS)
JSON = st.recursive(
    LEAVES | TEXT_OF_ALL_KINDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT_OF_ALL_KINDS, inner, max_size=3),
    max_leaves=8,
)
ONE_FOLDER = [HealthCheck.function_scoped_fixture]  # what one example leaves, the next one overwrites


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return Prepared(tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="module")
def base(prepared: Prepared) -> LoadedModel:
    return load_base(str(prepared.folder / "model"))


@pytest.fixture(scope="module")
def tokenizer(base: LoadedModel) -> Tokenizer:
    return base.tokenizer


@settings(max_examples=60, suppress_health_check=ONE_FOLDER)
@given(changes=st.dictionaries(st.sampled_from(sorted(all_settings())), VALUES, min_size=1, max_size=3))
def test_a_run_of_any_settings_is_checked_or_refused_and_nothing_is_written(
    changes: dict[str, Any], prepared: Prepared, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(prepared.folder)
    run = yaml.safe_load(RUN)
    for path, value in changes.items():
        section, _, name = path.rpartition(".")
        (run.setdefault(section, {}) if section else run)[name] = value
    text = yaml.safe_dump(run, allow_unicode=False)
    (prepared.folder / "run.yaml").write_text(text, encoding="utf-8")
    before = snapshot(prepared.folder)
    monkeypatch.setattr(sys, "argv", ["mlx-lora", "check", "run.yaml", "--show", "1"])
    with pytest.raises(SystemExit) as end:
        main()
    printed = capsys.readouterr()
    assert end.value.code in (0, 1)
    assert ("error: " in printed.err + printed.out) == (end.value.code == 1)
    assert snapshot(prepared.folder) == before


KEYS = ["messages", "question", "answer", "answers", "prompt", "completion", "text", "conversations", "tools", "system"]
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system", "tool"]) | JSON, "content": JSON})
    | st.fixed_dictionaries({"from": st.sampled_from(["human", "gpt"]) | JSON, "value": JSON})
    | st.dictionaries(st.sampled_from(["role", "content", "tool_calls", "weight", "name"]), JSON)
    | JSON,
    max_size=4,
)
ROW_VALUES = st.dictionaries(st.sampled_from(KEYS), JSON | MESSAGES, max_size=4) | JSON
LINES = st.lists(ROW_VALUES.map(json.dumps), min_size=1, max_size=3).map("\n".join).map(str.encode)


@st.composite
def torn(draw: st.DrawFn, whole: bytes) -> bytes:
    """`whole` with a piece cut out, other bytes in its place."""
    start = draw(st.integers(0, len(whole)))
    end = draw(st.integers(start, min(len(whole), start + 40)))
    return whole[:start] + draw(st.binary(max_size=8)) + whole[end:]


@settings(max_examples=200, suppress_health_check=ONE_FOLDER)
@given(
    content=LINES | LINES.flatmap(torn) | torn(ROWS.encode()) | st.binary(max_size=40),
    suffix=st.sampled_from([".jsonl", ".json", ".csv"]),
    train_on=st.sampled_from(["completion", "all"]),
)
def test_rows_of_any_kind_become_examples_or_faults(
    content: bytes, suffix: str, train_on: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(b"question,answer\n" + content if suffix == ".csv" else content)
    data = DataSettings.model_validate({"train": str(path), "train_on": train_on})
    with suppress(MlxLoraError):
        records = read_records(str(path))
        built = build_examples(records, tokenizer, data, stop_on_fault=False)
        assert len(built.examples) + len(built.faults) == len(records)
        assert all(fault.startswith(f"{path}") for fault in built.faults)


FACTS = ["fine_tune_type", "num_layers", "lora_parameters", "mlx_lora", "model"]
FACTS += ["lora_parameters.rank", "lora_parameters.scale", "lora_parameters.dropout", "lora_parameters.keys"]
FACTS += ["mlx_lora.identity", "mlx_lora.format_version", "mlx_lora.lora"]


@settings(max_examples=40, suppress_health_check=ONE_FOLDER)
@given(changes=st.dictionaries(st.sampled_from(FACTS), VALUES, min_size=1, max_size=2))
def test_an_adapter_of_any_config_is_put_on_or_refused(
    changes: dict[str, Any], base: LoadedModel, prepared: Prepared, tmp_path: Path
) -> None:
    config = json.loads((prepared.folder / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    for path, value in sorted(changes.items()):
        section, _, name = path.rpartition(".")
        part = config[section] if section else config
        if isinstance(part, dict):
            part[name] = value
    (tmp_path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = prepared.folder / "adapter" / "adapters.safetensors"
    (tmp_path / "adapters.safetensors").write_bytes(weights.read_bytes())
    with suppress(MlxLoraError):
        applied = apply_adapter(base.model, read_adapter(tmp_path), vars(base.identity))
        assert applied.active_modules == "28/28"
    remove_lora(base.model)


@settings(max_examples=150, suppress_health_check=ONE_FOLDER)
@given(data=st.data())
def test_a_torn_file_of_tensors_is_read_whole_or_refused(
    data: st.DataObject, prepared: Prepared, tmp_path: Path
) -> None:
    whole = (prepared.folder / "adapter" / "adapters.safetensors").read_bytes()
    header = int.from_bytes(whole[:8], "little") + 8
    content = data.draw(torn(whole[:header])) + whole[header:]
    (tmp_path / "adapters.safetensors").write_bytes(content)
    (tmp_path / "adapter_config.json").write_bytes((prepared.folder / "adapter" / "adapter_config.json").read_bytes())
    with suppress(MlxLoraError):
        sizes = [tensor.nbytes for tensor in read_adapter(tmp_path).tensors.values()]
        assert sum(sizes) == len(whole) - header
    with suppress(MlxLoraError):
        tensors = read_header(tmp_path / "adapters.safetensors").values()
        assert max(tensor.start + tensor.size for tensor in tensors) == len(content)


@st.composite
def spoiled(draw: st.DrawFn, whole: Any) -> Any:
    """`whole` with another value somewhere in it."""
    keys = list(whole) if isinstance(whole, dict) else list(range(len(whole))) if isinstance(whole, list) else []
    if not keys or not draw(st.integers(0, 4)):
        return draw(JSON)
    key = draw(st.sampled_from(keys))
    part = draw(spoiled(whole[key]))
    return {**whole, key: part} if isinstance(whole, dict) else [*whole[:key], part, *whole[key + 1 :]]


RESULT = json.loads(result().model_dump_json())
START, *EVENTS = whole_run()


@settings(max_examples=25, suppress_health_check=ONE_FOLDER)
@given(events=spoiled(EVENTS), asked=spoiled(RESULT), facts=JSON)
def test_a_report_of_files_of_any_kind_is_written_or_refused(
    events: Any, asked: Any, facts: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path / "run", [START, *events] if isinstance(events, list) else [events])
    (folder / "adapter_config.json").write_text(json.dumps({"mlx_lora": facts}), encoding="utf-8")
    (folder / "eval").mkdir(exist_ok=True)
    (folder / "eval" / "one.json").write_text(json.dumps(asked), encoding="utf-8")
    with suppress(MlxLoraError):
        assert run_report([str(folder)]) == 0
        assert (folder / "report.html").read_text(encoding="utf-8").rstrip().endswith("</html>")
    shutil.rmtree(folder)
    capsys.readouterr()
