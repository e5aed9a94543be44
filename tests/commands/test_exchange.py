"""`mlx-lora export --to peft` and `mlx-lora import`: there and back, and what is refused before anything is written."""

import hashlib
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_lora.commands.adopt import run_import
from mlx_lora.commands.export import run_export
from mlx_lora.commands.fuse import run_fuse
from mlx_lora.errors import AdapterError, MlxLoraError, ModelError
from mlx_lora.lora.adapter import apply_adapter, read_adapter
from mlx_lora.lora.tensor_file import encode_tensors
from mlx_lora.model.load import load_base
from tests.exchange.adapters import TOKENS, make_adapter
from tests.tiny import CHATML, save_tiny_folder

FILES = ("adapters.safetensors", "adapter_config.json")
OTHER = "{% for message in messages %}[{{ message.role }}]{{ message.content }}</s>{% endfor %}[assistant]"


def _export(root: Path, **options: Any) -> Path:
    assert run_export(root / "run", root / "peft", to="peft", **options) == 0
    return root / "peft"


def _edit(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **changes}))


def _without_facts(folder: Path) -> None:
    """As PEFT itself would have saved it."""
    weights = folder / "adapter_model.safetensors"
    tensors: Any = mx.load(str(weights))
    mx.eval(tensors)
    weights.write_bytes(encode_tensors(tensors, {"format": "pt"}))


CASES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"save_dtype": "bfloat16"}),
    ("qwen3", {"method": "dora", "use_rslora": True, "layers": 2}),
    ("phi3", {"target_modules": ["qkv_proj", "gate_up_proj"], "dropout": 0.1}),
    ("gpt2", {"save_dtype": "float16", "start_from": "an-earlier-one"}),
    ("mixtral", {"target_modules": "attention"}),
]


@pytest.mark.parametrize(("family", "lora"), CASES)
def test_export_and_import_give_the_same_two_files(tmp_path: Path, family: str, lora: dict[str, Any]) -> None:
    make_adapter(tmp_path, family, facts={"system_prompt": "Be brief."}, **lora)
    _export(tmp_path)
    assert run_import(tmp_path / "peft", str(tmp_path / "back"), model=str(tmp_path / "base")) == 0
    ours, back = ({file: (tmp_path / name / file).read_bytes() for file in FILES} for name in ("run", "back"))
    assert back["adapters.safetensors"] == ours["adapters.safetensors"]
    configs = [json.loads(files["adapter_config.json"]) for files in (ours, back)]
    assert configs[0] == configs[1]


def test_an_adapter_that_peft_wrote_answers_the_same_after_import(tmp_path: Path) -> None:
    expected = make_adapter(tmp_path, bits=4, layers=2)
    _without_facts(_export(tmp_path))
    _edit(tmp_path / "peft", base_model_name_or_path=str(tmp_path / "base"))
    assert run_import(tmp_path / "peft", str(tmp_path / "back")) == 0
    adapter = read_adapter(tmp_path / "back")
    base = load_base(str(tmp_path / "base"), compute="float32")
    apply_adapter(base.model, adapter)
    assert mx.array_equal(base.model(TOKENS), expected)
    assert adapter.facts["imported"]["format"] == "peft"
    assert adapter.facts["lora"]["target_modules"] == [
        *("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")
    ]


@pytest.mark.parametrize(
    ("files", "kept"),
    [
        ({"chat_template.jinja": OTHER}, OTHER),
        ({"chat_template.jinja": OTHER, "tokenizer_config.json": json.dumps({"chat_template": CHATML})}, OTHER),
        ({"tokenizer_config.json": json.dumps({"chat_template": OTHER})}, OTHER),
        ({"tokenizer_config.json": json.dumps({"chat_template": [{"name": "default", "template": OTHER}]})}, OTHER),
        ({"chat_template.jinja": CHATML}, None),
        ({"chat_template.jinja": CHATML + "\n"}, None),
        ({"tokenizer_config.json": "{}"}, None),
    ],
)
def test_the_chat_template_that_a_trainer_saved_beside_the_adapter_is_taken_over(
    files: dict[str, str], kept: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found by reading: prompts were written with the base's template, others than in training, without a word."""
    make_adapter(tmp_path)
    _without_facts(_export(tmp_path))
    for name, text in files.items():
        (tmp_path / "peft" / name).write_text(text)
    assert run_import(tmp_path / "peft", str(tmp_path / "back"), model=str(tmp_path / "base")) == 0
    adapter = read_adapter(tmp_path / "back")
    assert adapter.facts["chat_template"] == kept
    assert adapter.facts["chat_template_sha256"] == hashlib.sha256((kept or CHATML).encode()).hexdigest()
    told = f"{tmp_path / 'peft' / next(iter(files))}: prompts are written with this chat template, not with the base's"
    assert (told in capsys.readouterr().err) is (kept is not None)


def test_a_chat_template_that_cannot_be_used_stops_an_import(tmp_path: Path) -> None:
    make_adapter(tmp_path)
    _without_facts(_export(tmp_path))
    (tmp_path / "peft" / "chat_template.jinja").write_text("{% for message in messages %}")
    with pytest.raises(ModelError, match=r"chat_template\.jinja: line 1: Unexpected end of template"):
        run_import(tmp_path / "peft", str(tmp_path / "back"), model=str(tmp_path / "base"))
    assert not (tmp_path / "back").exists()


def test_an_adapter_of_the_first_layers_only_is_imported_and_read_by_mlx_lm(tmp_path: Path) -> None:
    from mlx_lm.utils import load

    make_adapter(tmp_path, target_modules=["q_proj"])
    peft = _export(tmp_path)
    tensors: Any = mx.load(str(peft / "adapter_model.safetensors"))
    first = {name: value for name, value in tensors.items() if ".layers.0." in name or ".layers.2." in name}
    mx.eval(first)
    (peft / "adapter_model.safetensors").write_bytes(encode_tensors(first, {}))
    _edit(peft, layers_to_transform=[0, 2])
    run_import(peft, str(tmp_path / "back"), model=str(tmp_path / "base"))
    base = load_base(str(tmp_path / "base"), compute="float32")
    applied = apply_adapter(base.model, read_adapter(tmp_path / "back"))
    assert applied.modules == ("model.layers.0.self_attn.q_proj", "model.layers.2.self_attn.q_proj")
    theirs, _ = load(str(tmp_path / "base"), adapter_path=str(tmp_path / "back"))[:2]
    assert mx.allclose(theirs(TOKENS), base.model(TOKENS), atol=1e-4)


def test_the_config_names_the_base_but_no_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_adapter(tmp_path, bits=4)
    peft = _export(tmp_path, json_output=True)
    config = json.loads((peft / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("base", None)
    assert str(tmp_path).encode() not in (peft / "adapter_model.safetensors").read_bytes()
    printed = capsys.readouterr()
    assert json.loads(printed.out)["modules"] == 28
    assert "note: it was trained on quantized weights" in printed.err
    run_export(tmp_path / "run", tmp_path / "named", to="peft", base_name="org/original")
    assert json.loads((tmp_path / "named" / "adapter_config.json").read_text())["base_model_name_or_path"] == (
        "org/original"
    )


def test_another_base_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    make_adapter(tmp_path)
    _export(tmp_path)
    other = save_tiny_folder(tmp_path / "other", seed=1)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(AdapterError, match=r"trained on base.*, the base here is other.*: other weights"):
        run_export(tmp_path / "run", tmp_path / "wrong", to="peft", model=str(other))
    with pytest.raises(AdapterError, match=r"trained on base.*, the base here is other.*: other weights"):
        run_import(tmp_path / "peft", str(tmp_path / "wrong"), model=str(other))
    _without_facts(tmp_path / "peft")
    with pytest.raises(AdapterError, match=r"modules that this base does not have: model\.layers\.0\.mlp\.down_proj"):
        run_import(tmp_path / "peft", str(tmp_path / "wrong"), model=str(save_tiny_folder(tmp_path / "gpt2", "gpt2")))
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "gpt2"])


def test_a_revision_without_a_model_is_asked_of_the_adapters_own_base(tmp_path: Path) -> None:
    """It was ignored; a folder has no revisions, and says so when it is asked for one."""
    make_adapter(tmp_path)
    peft, output = _export(tmp_path), tmp_path / "wrong"
    _edit(peft, base_model_name_or_path=str(tmp_path / "base"))
    _without_facts(peft)
    for ask in (
        lambda: run_fuse([tmp_path / "run"], output, revision="v2"),
        lambda: run_export(tmp_path / "run", output, to="peft", revision="v2"),
        lambda: run_import(peft, str(output), revision="v2"),
    ):
        with pytest.raises(MlxLoraError, match="revision 'v2' is set, but only Hugging Face models have revisions"):
            ask()


def test_nothing_is_overwritten_and_a_lost_base_is_said(tmp_path: Path) -> None:
    make_adapter(tmp_path)
    peft = _export(tmp_path)
    for again in (lambda: _export(tmp_path), lambda: run_import(peft, str(tmp_path / "run"))):
        with pytest.raises(MlxLoraError, match="exists already"):
            again()
    _without_facts(peft)
    _edit(peft, base_model_name_or_path=None)
    with pytest.raises(AdapterError, match="does not say which base it was trained on"):
        run_import(peft, str(tmp_path / "back"))


def test_experts_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    make_adapter(tmp_path, "mixtral")
    with pytest.raises(AdapterError, match="PEFT has no equal"):
        _export(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "run"]


def test_a_plain_name_goes_under_adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_adapter(tmp_path)
    peft = _export(tmp_path)
    monkeypatch.chdir(tmp_path)
    run_import(peft, "taken-over", model=str(tmp_path / "base"))
    assert (tmp_path / "adapters" / "taken-over" / "adapters.safetensors").is_file()


def test_an_adapter_of_mlx_lms_has_its_scale_as_alpha(tmp_path: Path) -> None:
    make_adapter(tmp_path)
    path = tmp_path / "run" / "adapter_config.json"
    config = json.loads(path.read_text())
    del config["mlx_lora"]
    config["lora_parameters"]["scale"] = 20.0
    path.write_text(json.dumps(config))
    peft = _export(tmp_path, model=str(tmp_path / "base"))
    written = json.loads((peft / "adapter_config.json").read_text())
    assert (written["r"], written["lora_alpha"], written["use_rslora"]) == (4, 80.0, False)


def test_what_a_run_tells_of_its_machine_does_not_go_into_pefts_file(tmp_path: Path) -> None:
    """Only the model's path was left out, and only where it was there; settings and warnings kept theirs."""
    place = "/ho" + "me/anna"
    own = {"chat_template": "{# see /etc/motd/x #}{{ messages[0]['content'] }}</s>", "system_prompt": "See /a/b/c."}
    facts = {
        "model": f"{place}/models/base",
        "run": {"data_warnings": [f"{place}/rows/train.jsonl:3: twice"], "machine": {"system": "Linux"}},
        **own,
    }
    make_adapter(tmp_path, start_from=f"{place}/adapters/before", facts=facts)
    peft = _export(tmp_path, model=str(tmp_path / "base"))
    assert (peft / "chat_template.jinja").read_text() == own["chat_template"]
    content = (peft / "adapter_model.safetensors").read_bytes()
    assert place.encode() not in content
    assert b"anna" not in content
    run_import(peft, str(tmp_path / "back"), model=str(tmp_path / "base"))
    back = read_adapter(tmp_path / "back").facts
    assert {name: back[name] for name in own} == own, "what the model reads stays as it is"
    assert back["run"]["data_warnings"] == ["…/rows/train.jsonl:3: twice"]


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_an_adapter_that_takes_its_update_away_goes_over_and_back(tmp_path: Path, method: str) -> None:
    """A negative scale was exported, as lora_alpha -6, and the import of the same folder refused it."""
    make_adapter(tmp_path, method=method)
    path = tmp_path / "run" / "adapter_config.json"
    config = json.loads(path.read_text())
    config["lora_parameters"]["scale"] = -1.5
    path.write_text(json.dumps(config))
    peft = _export(tmp_path)
    assert json.loads((peft / "adapter_config.json").read_text())["lora_alpha"] == -6.0
    run_import(peft, str(tmp_path / "back"), model=str(tmp_path / "base"))
    assert json.loads((tmp_path / "back" / "adapter_config.json").read_text()) == config
    ours, back = ((tmp_path / name / "adapters.safetensors").read_bytes() for name in ("run", "back"))
    assert back == ours
    assert not (peft / "chat_template.jinja").exists()  # it was trained with the base's own
    _without_facts(peft)
    run_import(peft, str(tmp_path / "foreign"), model=str(tmp_path / "base"))
    logits = []
    for name in ("run", "foreign"):
        adapter = read_adapter(tmp_path / name)
        assert adapter.parameters.scale == -1.5
        base = load_base(str(tmp_path / "base"), compute="float32")
        apply_adapter(base.model, adapter)
        logits.append(base.model(TOKENS))
    assert mx.array_equal(*logits)
    assert "lora" not in adapter.facts, "no run has such settings"
