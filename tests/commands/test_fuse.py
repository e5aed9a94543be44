"""`mlx-lora fuse`: what it writes, who can load it, and that a lost fine-tune is never kept."""

import json
import os
import re
import resource
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import pytest

from mlx_lora.commands import fuse, fuseprompts, fusetrial
from mlx_lora.commands.adaptermerge import run_adapters_merge
from mlx_lora.commands.fuse import run_fuse
from mlx_lora.config import LoraSettings
from mlx_lora.errors import AdapterError, MlxLoraError
from mlx_lora.lora.adapter import save_adapter
from mlx_lora.lora.inject import inject_lora, iter_lora_modules, iter_modules, remove_lora, replace_module
from mlx_lora.lora.layer import dense_weight
from mlx_lora.lora.merge import merged_weight
from mlx_lora.lora.rendering import Rendering
from mlx_lora.model.load import load_base
from tests.tiny import CHATML, save_tiny_folder, tiny_model

TOKENS = mx.array([[1, 7, 30, 31, 200, 9, 12, 300]])
PLAIN_PROMPTS = fuseprompts.PLAIN_PROMPTS
SMALL, LARGE = 0.008, 0.8  # standard deviation of B: below a 4-bit step of these weights, and far above


@pytest.fixture(autouse=True)
def _short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusetrial, "ANSWER_TOKENS", 10)
    monkeypatch.setattr(fuseprompts, "PLAIN_PROMPTS", PLAIN_PROMPTS[:4])


def _adapter(
    root: Path,
    size: float,
    family: str = "llama",
    bits: int | None = 4,
    facts: Any = None,
    keep_base: bool = False,
    **settings: Any,
) -> tuple[Path, mx.array]:
    """A base in `root/base`, an adapter of that size in `root/run`; return the adapter and the logits of both."""
    base = root / "base"
    if not keep_base:
        save_tiny_folder(base, family, bits=bits)
    loaded = load_base(str(base))
    chosen = LoraSettings(rank=4, alpha=8.0, **settings)
    inject_lora(loaded.model, chosen, seed=0)
    for index, (_, layer) in enumerate(iter_lora_modules(loaded.model)):
        layer.lora_b = size * mx.random.normal(layer.lora_b.shape, key=mx.random.key(index))
    metadata = {"model": str(base), "revision": None, "identity": asdict(loaded.identity), **(facts or {})}
    save_adapter(root / "run", loaded.model, settings=chosen, metadata=metadata)
    return root / "run", loaded.model(TOKENS)


def _fuse(adapter: Path, output: Path, capsys: pytest.CaptureFixture[str], **options: Any) -> dict[str, Any]:
    capsys.readouterr()
    assert run_fuse([adapter], output, json_output=True, **options) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def _stored(folder: Path) -> dict[str, mx.array]:
    tensors: dict[str, mx.array] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        tensors |= mx.load(str(file))
    return tensors


def _naive_folder(adapter: Path, folder: Path) -> Path:
    """What `mlx_lm.fuse` writes."""
    from mlx.utils import tree_unflatten
    from mlx_lm.utils import save

    model, tokenizer, config = mlx_lm.load(str(adapter.parent / "base"), adapter_path=str(adapter), return_config=True)
    fused = [(path, module.fuse()) for path, module in model.named_modules() if hasattr(module, "fuse")]
    model.update_modules(tree_unflatten(fused))
    save(folder, str(adapter.parent / "base"), model, tokenizer, config, donate_model=False)
    return folder


@pytest.mark.parametrize("kind", ["default", "linear"])
def test_rotary_settings_of_transformers_5_are_written_as_mlx_lm_reads_them(tmp_path, capsys, kind):
    """The folder was checked with repaired settings and written without: mlx-lm computed with a frequency of 10,000."""
    base = save_tiny_folder(tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    del config["rope_theta"]
    scaling = {} if kind == "default" else {"factor": 4.0}
    config["rope_parameters"] = {"rope_theta": 500.0, "rope_type": kind, **scaling}
    (base / "config.json").write_text(json.dumps(config))
    adapter, expected = _adapter(tmp_path, SMALL, bits=None, keep_base=True)
    _fuse(adapter, tmp_path / "fused", capsys)
    theirs, _ = mlx_lm.load(str(tmp_path / "fused"))
    assert mx.allclose(theirs(TOKENS), expected, atol=1e-4)
    assert mx.array_equal(theirs(TOKENS), load_base(str(tmp_path / "fused")).model(TOKENS))
    written = json.loads((tmp_path / "fused/config.json").read_text())
    assert written["rope_parameters"] == config["rope_parameters"]
    assert written["rope_theta"] == 500.0
    assert written.get("rope_scaling") == (None if kind == "default" else {"rope_type": "linear", "factor": 4.0})


def test_a_small_update_is_lost_by_naive_requantization_and_kept_by_ours(tmp_path, capsys, monkeypatch):
    """mlx-lm#1172, mlx-lm#1564: fusing into 4 bits rounds the adapter away, and nobody says so."""
    monkeypatch.setattr(fuseprompts, "PLAIN_PROMPTS", PLAIN_PROMPTS)
    adapter, expected = _adapter(tmp_path, SMALL)
    base = tiny_model(bits=4)(TOKENS)
    effect = mx.linalg.norm(expected - base).item()
    naive = load_base(str(_naive_folder(adapter, tmp_path / "naive"))).model(TOKENS)
    assert mx.linalg.norm(naive - expected).item() > effect, "the naive fusion is farther away than the base"

    report = _fuse(adapter, tmp_path / "fused", capsys)
    assert report["attempts"][0]["form"] == "4-bit"
    assert report["attempts"][0]["update_kept"] < 0.3
    assert report["attempts"][0]["distance"]["kl"] > report["base"]["kl"]
    assert report["attempts"][-1]["distance"]["kl"] < 0.05 * report["base"]["kl"]
    fused = load_base(str(tmp_path / "fused")).model(TOKENS)
    assert mx.linalg.norm(fused - expected).item() < 0.3 * effect


def test_the_written_folder_is_loaded_by_mlx_lm_and_answers_as_base_and_adapter(tmp_path, capsys):
    adapter, expected = _adapter(tmp_path, SMALL)
    _fuse(adapter, tmp_path / "fused", capsys, dequantize=True)
    model, tokenizer = mlx_lm.load(str(tmp_path / "fused"))
    assert mx.allclose(model(TOKENS), expected, atol=1e-4)
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "Who?"}], add_generation_prompt=True)
    own, own_tokenizer = mlx_lm.load(str(tmp_path / "base"), adapter_path=str(adapter))
    answers = [mlx_lm.generate(*pair, prompt, max_tokens=8) for pair in ((model, tokenizer), (own, own_tokenizer))]
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("family", "bits", "settings"),
    [
        ("gpt2", None, {}),
        ("gpt2", 4, {"method": "dora"}),
        ("mixtral", 4, {}),
        ("qwen2", 4, {"layers": 2}),
        ("phi3", None, {"method": "dora"}),
        ("gemma3", 4, {"layers": 1}),
    ],
)
def test_every_family_fuses_into_what_base_and_adapter_answer(tmp_path, capsys, family, bits, settings):
    adapter, expected = _adapter(tmp_path, 0.05, family, bits, **settings)
    report = _fuse(adapter, tmp_path / "fused", capsys)
    fused = load_base(str(tmp_path / "fused")).model(TOKENS)
    tolerance = 1e-4 if report["chosen"] == "float32" else 0.5
    assert mx.abs(fused - expected).max().item() < tolerance
    assert report["attempts"][-1]["refused"] is None
    theirs, _ = mlx_lm.load(str(tmp_path / "fused"))
    assert mx.abs(theirs(TOKENS) - fused).max().item() < 0.05


def _two_adapters(root: Path) -> tuple[list[Path], mx.array]:
    """Two adapters of one base in different layers, and the logits of 0.75 of the first and 0.5 of the second."""
    base = save_tiny_folder(root / "base", bits=4)
    loaded = load_base(str(base))
    folders, updates = [], []
    for seed, layers in ((0, "all"), (1, 2)):
        chosen = LoraSettings(rank=4, alpha=8.0, layers=layers)
        inject_lora(loaded.model, chosen, seed=seed)
        for index, (_, layer) in enumerate(iter_lora_modules(loaded.model)):
            layer.lora_b = 0.05 * mx.random.normal(layer.lora_b.shape, key=mx.random.key(10 * seed + index))
        updates.append({path: merged_weight(layer) for path, layer in iter_lora_modules(loaded.model)})
        facts = {"model": str(base), "identity": asdict(loaded.identity)}
        save_adapter(root / f"run{seed}", loaded.model, settings=chosen, metadata=facts)
        folders.append(root / f"run{seed}")
        remove_lora(loaded.model)
    for path, module in dict(iter_modules(loaded.model)).items():
        changes = [
            (weight, update[path]) for weight, update in zip((0.75, 0.5), updates, strict=True) if path in update
        ]
        if changes:
            own = dense_weight(module)
            linear = nn.Linear(own.shape[1], own.shape[0], bias=False)
            linear.weight = own + sum(weight * (merged - own) for weight, merged in changes)
            replace_module(loaded.model, path, linear)
    return folders, loaded.model(TOKENS)


def test_several_adapters_are_fused_as_their_weighted_sum(tmp_path, capsys):
    folders, expected = _two_adapters(tmp_path)
    capsys.readouterr()
    assert run_fuse(folders, tmp_path / "fused", weights="0.75,0.5", dequantize=True, json_output=True) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["adapters"] == [str(folder) for folder in folders]
    assert mx.allclose(load_base(str(tmp_path / "fused")).model(TOKENS), expected, atol=1e-3)
    card = (tmp_path / "fused/README.md").read_text()
    assert "0.75 · run0 + 0.5 · run1" in card
    with pytest.raises(AdapterError, match="1 numbers for 2 adapters"):
        run_fuse(folders, tmp_path / "again", weights="1")


def test_a_sum_says_whose_system_prompt_it_goes_by(tmp_path, capsys):
    """It named the first, also where the first (mlx-lm's) tells nothing of prompts, and the second's is kept."""
    folders, _ = _two_adapters(tmp_path)
    for folder, prompt in zip(folders, (None, "S2"), strict=True):
        config = json.loads((folder / "adapter_config.json").read_text())
        if prompt:
            config["mlx_lora"]["system_prompt"] = prompt
        else:
            del config["mlx_lora"]
        (folder / "adapter_config.json").write_text(json.dumps(config))
    run_fuse(folders, tmp_path / "fused", dequantize=True)
    assert f"note: system_prompt differs between them: that of {folders[1]} is kept\n" in capsys.readouterr().err
    assert "| system prompt | S2 |" in (tmp_path / "fused/README.md").read_text()


def test_an_adapter_that_was_merged_of_two_is_fused_as_the_one_that_it_is(tmp_path, capsys):
    """Its card wanted as many folders as it was merged from, and the whole fused folder was thrown away."""
    folders, expected = _two_adapters(tmp_path)
    run_adapters_merge([str(folder) for folder in folders], tmp_path / "merged", weights="0.75,0.5")
    report = _fuse(tmp_path / "merged", tmp_path / "fused", capsys, dequantize=True)
    assert report["adapters"] == [str(tmp_path / "merged")]
    assert mx.allclose(load_base(str(tmp_path / "fused")).model(TOKENS), expected, atol=1e-3)
    card = (tmp_path / "fused/README.md").read_text()
    assert "# merged, fused" in card
    assert "with the adapter merged merged into its weights" in card
    assert "Merged from 0.75 · run0 + 0.5 · run1 (linear)." in card


def test_layers_get_bits_of_their_own_and_mlx_lm_reads_them(tmp_path, capsys, monkeypatch):
    """As if every form of one kind lost the fine-tune: a mixture is taken, and its bits are in the config by layer."""
    monkeypatch.setattr(
        "mlx_lora.lora.fidelity.explain_loss",
        lambda fused, base, kept: "as the test wants" if len(tried) < 1 else None,
    )
    tried: list[str] = []
    say = fuse._say
    monkeypatch.setattr(fuse, "_say", lambda outcome: (tried.append(outcome.form), say(outcome))[1])
    adapter, _ = _adapter(tmp_path, SMALL)
    report = _fuse(adapter, tmp_path / "fused", capsys)
    assert tried[0] == "4-bit"
    assert report["chosen"] == tried[1] != "8-bit"
    entries = json.loads((tmp_path / "fused/config.json").read_text())["quantization"]
    bits = {path: entry["bits"] for path, entry in entries.items() if isinstance(entry, dict)}
    assert len(set(bits.values())) > 1
    counted = {f"{value}-bit": list(bits.values()).count(value) for value in set(bits.values())}
    assert report["attempts"][-1]["layers"] == counted
    model, _ = mlx_lm.load(str(tmp_path / "fused"))
    assert mx.abs(model(TOKENS) - load_base(str(tmp_path / "fused")).model(TOKENS)).max().item() < 0.05
    modules = dict(iter_modules(model))
    assert {path: modules[path].bits for path in bits} == bits


def test_the_size_is_bounded_and_what_was_left_out_is_named(tmp_path, capsys):
    adapter, _ = _adapter(tmp_path, SMALL)
    with pytest.raises(AdapterError, match="fusing lost the fine-tune") as raised:
        run_fuse([adapter], tmp_path / "fused", max_growth=1.0)
    assert "8-bit" not in raised.value.message
    # Found by reading: of the one form that was left it said to leave --bits out, which nobody had given.
    assert raised.value.hint == "keep base and adapter apart, or allow a larger model (--max-growth)"
    said = " ".join(capsys.readouterr().err.split())
    growth = [float(found) for found in re.findall(r"left out: ([\d.]+) times", said)]
    assert growth == sorted(growth)
    assert max(growth) > 3
    assert "8-bit: left out" in said
    assert not (tmp_path / "fused").exists()


def test_the_growth_that_is_foretold_is_that_of_the_files(tmp_path, capsys, monkeypatch):
    adapter, _ = _adapter(tmp_path, SMALL, layers=2)
    foretold = {}

    def within(attempts, growth, largest):
        for attempt in attempts:
            foretold[attempt.name] = growth(attempt)
            yield attempt

    monkeypatch.setattr(fuse, "_within", within)
    report = _fuse(adapter, tmp_path / "fused", capsys)
    smallest = report["attempts"][0]["weight_bytes"]
    for attempt in report["attempts"]:
        assert attempt["weight_bytes"] / smallest == pytest.approx(foretold[attempt["form"]], rel=1e-9)
    assert report["chosen"] != "4-bit"


def test_the_card_tells_base_fidelity_and_licence_and_no_path_of_this_machine(tmp_path, capsys):
    adapter, _ = _adapter(tmp_path, SMALL)
    (tmp_path / "base/LICENSE").write_text("  Apache License\n  Version 2.0, January 2004\n")
    (adapter / "run.yaml").write_text(
        f"model: {tmp_path}/base\ndata: {{train: {tmp_path}/rows.jsonl}}\ntrain: {{steps: 1}}\noutput_dir: run\n"
    )
    capsys.readouterr()
    run_fuse([adapter], tmp_path / "fused")
    table = capsys.readouterr().out
    card = (tmp_path / "fused/README.md").read_text()
    assert "license: apache-2.0" in card
    assert "## Fidelity" in card
    assert "base_model:" not in card, "a folder of one's own has no name on the Hub"
    for text in (table, card):
        assert "base alone" in text
        assert "same answers" in text
    assert str(tmp_path) not in card
    assert table.splitlines()[2].startswith("4-bit")


def test_what_the_adapter_does_not_touch_stays_bit_for_bit_and_its_form_is_in_the_config(tmp_path, capsys):
    adapter, _ = _adapter(tmp_path, SMALL, layers=1, target_modules=["q_proj", "down_proj"])
    _fuse(adapter, tmp_path / "fused", capsys, bits=8)
    before, after = _stored(tmp_path / "base"), _stored(tmp_path / "fused")
    touched = {f"model.layers.3.{name}" for name in ("self_attn.q_proj", "mlp.down_proj")}
    assert set(before) == set(after)
    for name, tensor in before.items():
        if name.rpartition(".")[0] not in touched:
            assert mx.array_equal(after[name].view(mx.uint8), tensor.view(mx.uint8)), name
    config = json.loads((tmp_path / "fused/config.json").read_text())
    raised = {"group_size": 32, "bits": 8, "mode": "affine"}
    assert config["quantization"] == {"group_size": 32, "bits": 4, **dict.fromkeys(touched, raised)}
    assert config["quantization_config"] == config["quantization"]
    stored = load_base(str(tmp_path / "fused"), compute="quantized").quantization
    assert stored is not None
    assert {path for path, form in stored.items() if form["bits"] == 8} == touched


def test_dequantize_leaves_no_quantized_layer_and_no_word_of_one(tmp_path, capsys):
    adapter, _ = _adapter(tmp_path, SMALL)
    report = _fuse(adapter, tmp_path / "fused", capsys, dequantize=True)
    assert load_base(str(tmp_path / "fused")).quantization is None
    assert "quantization" not in (tmp_path / "fused/config.json").read_text()
    assert not any(name.endswith("scales") for name in _stored(tmp_path / "fused"))
    assert report["chosen"] == "float32"


def test_a_large_update_keeps_the_bases_quantization(tmp_path, capsys):
    adapter, _ = _adapter(tmp_path, LARGE, layers=1, target_modules=["v_proj"])
    report = _fuse(adapter, tmp_path / "fused", capsys)
    assert report["chosen"] == "4-bit"
    assert (tmp_path / "fused/config.json").read_text().count('"bits": 4') == 4  # two keys: top level and the module


def test_a_lost_fine_tune_is_an_error_and_nothing_is_kept(tmp_path):
    adapter, _ = _adapter(tmp_path, SMALL)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(AdapterError, match="fusing lost the fine-tune") as raised:
        run_fuse([adapter], tmp_path / "fused", bits=4)
    assert "4-bit: " in raised.value.message
    assert "--bits" in (raised.value.hint or "")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_an_existing_folder_is_not_overwritten(tmp_path):
    adapter, _ = _adapter(tmp_path, SMALL)
    (tmp_path / "fused").mkdir()
    (tmp_path / "fused/mine.txt").write_text("mine")
    with pytest.raises(MlxLoraError, match="exists already"):
        run_fuse([adapter], tmp_path / "fused")
    assert [path.name for path in (tmp_path / "fused").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_another_base_is_refused_and_nothing_is_written(tmp_path, family):
    adapter, _ = _adapter(tmp_path, SMALL)
    other = save_tiny_folder(tmp_path / "other", family, seed=5, bits=4)
    with pytest.raises(AdapterError, match=r"trained on base .*, the base here is other "):
        run_fuse([adapter], tmp_path / "fused", model=str(other))
    assert not (tmp_path / "fused").exists()


def test_a_form_that_cannot_be_is_refused_before_anything_is_computed(tmp_path, monkeypatch):
    adapter, _ = _adapter(tmp_path, SMALL)
    monkeypatch.setattr(fuse, "measure_reference", None)
    for options in ({"bits": 7}, {"bits": 4, "dequantize": True}):
        with pytest.raises(AdapterError, match="--bits"):
            run_fuse([adapter], tmp_path / "fused", **options)


def test_an_adapter_that_names_no_base_asks_for_one(tmp_path, capsys):
    adapter, _ = _adapter(tmp_path, SMALL, facts={"model": None})
    with pytest.raises(AdapterError, match="does not say which base"):
        run_fuse([adapter], tmp_path / "fused")
    report = _fuse(adapter, tmp_path / "fused", capsys, model=str(tmp_path / "base"))
    assert report["model"] == str(tmp_path / "base")


def test_the_adapters_own_template_becomes_the_fused_models(tmp_path, capsys):
    template = "{% for message in messages %}[{{ message['content'] }}]{% endfor %}"
    facts = {"chat_template": template, "system_prompt": "Be brief."}
    adapter, _ = _adapter(tmp_path, SMALL, facts=facts)
    capsys.readouterr()
    run_fuse([adapter], tmp_path / "fused")
    captured = capsys.readouterr()
    assert "base alone" in captured.out, "the table is the command's answer"
    assert "holds no system prompt" in captured.err
    tokenizer = load_base(str(tmp_path / "fused")).tokenizer
    messages = [{"role": "user", "content": "a"}]
    assert tokenizer.render_chat(messages, add_generation_prompt=False, template_args={}) == "[a]"


@pytest.mark.parametrize("own", [None, CHATML.replace("user", "person")])
def test_the_end_token_of_the_template_is_named_where_other_programs_look(tmp_path, capsys, own):
    """Found by reading: of a base whose files name another end, mlx-lm and transformers never ended an answer."""
    base = save_tiny_folder(tmp_path / "base", chat_template="{{ messages[0].content }}</s>" if own else CHATML)
    for name, change in (("config.json", {"eos_token_id": 2}), ("tokenizer_config.json", {"eos_token": "</s>"})):
        content = json.loads((base / name).read_text())
        (base / name).write_text(json.dumps({**content, **change}))
    (base / "generation_config.json").write_text('{"eos_token_id": 2, "top_p": 0.8}')
    adapter, _ = _adapter(tmp_path, LARGE, keep_base=True, facts={"chat_template": own})
    assert run_fuse([adapter], tmp_path / "fused") == 0
    assert json.loads((tmp_path / "fused/generation_config.json").read_text()) == {"eos_token_id": [4, 2], "top_p": 0.8}
    assert mlx_lm.load(str(tmp_path / "fused"))[1].eos_token_ids == {2, 4}
    note = "note: answers end with <|im_end|>, which no file of the base names: generation_config.json does now\n"
    assert capsys.readouterr().err.count(note) == 1


def test_end_tokens_that_are_named_stay_as_they_are(tmp_path, capsys):
    adapter, _ = _adapter(tmp_path, LARGE)
    assert run_fuse([adapter], tmp_path / "fused") == 0
    assert not (tmp_path / "fused/generation_config.json").exists()
    assert "answers end with" not in capsys.readouterr().err


def test_the_runs_own_rows_are_compared_and_prompts_are_rendered_as_in_training(tmp_path, capsys, monkeypatch):
    rows = [{"question": f"Who won in {year}?", "answer": "Montreal"} for year in range(60)]
    (tmp_path / "valid.jsonl").write_text("\n".join(map(json.dumps, rows)))
    adapter, _ = _adapter(tmp_path, SMALL, facts={"system_prompt": "Be brief."})
    valid = tmp_path / "valid.jsonl"
    run = f"model: x\ndata: {{train: nowhere.jsonl, valid: {valid}}}\ntrain: {{steps: 1}}\noutput_dir: y\n"
    (adapter / "run.yaml").write_text(run)
    seen: list[list[int]] = []
    answer = fusetrial.answer_rows
    monkeypatch.setattr(
        fusetrial,
        "answer_rows",
        lambda loaded, tokenizer, prompts: (seen.extend(prompts), answer(loaded, tokenizer, prompts))[1],
    )
    report = _fuse(adapter, tmp_path / "fused", capsys)
    assert report["prompts"] == str(valid)
    assert len(seen) == 32
    tokenizer = load_base(str(tmp_path / "base")).tokenizer
    assert tokenizer.decode(seen[1]) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWho won in 1?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_rows_that_have_gone_are_replaced_by_plain_prompts_aloud(tmp_path, capsys):
    adapter, _ = _adapter(tmp_path, SMALL)
    (adapter / "run.yaml").write_text("model: x\ndata: {train: nowhere.jsonl}\ntrain: {steps: 1}\noutput_dir: y\n")
    run_fuse([adapter], tmp_path / "fused")
    assert "plain prompts are used" in capsys.readouterr().err


def _with_rows(adapter: Path, lengths: list[int]) -> Path:
    """Give the adapter's run a file of rows with questions of so many characters, a token each."""
    rows = [{"question": "x" * length, "answer": "y"} for length in lengths]
    path = adapter.parent / "valid.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    run = f"model: x\ndata: {{train: nowhere.jsonl, valid: {path}}}\ntrain: {{steps: 1}}\noutput_dir: y\n"
    (adapter / "run.yaml").write_text(run)
    return path


def test_where_all_rows_are_too_long_the_shortest_few_are_compared(tmp_path, capsys, monkeypatch):
    """It said that there were no rows, and with a long system prompt it divided by zero."""
    monkeypatch.setattr(fuseprompts, "LONGEST_PROMPT", 1100)
    monkeypatch.setattr(fuseprompts, "MOST_PROMPTS", 8)
    adapter, _ = _adapter(tmp_path, SMALL)
    path = _with_rows(adapter, [1200 - step for step in range(60)])
    report = _fuse(adapter, tmp_path / "fused", capsys)
    assert (report["prompts"], report["base"]["answers"]) == (str(path), 4)
    tokenizer, rendering = load_base(str(tmp_path / "base")).tokenizer, Rendering()
    prompts, _ = fuseprompts.choose_prompts([adapter], tokenizer, rendering)
    frame = len("user\n\nassistant\n") + 3  # and three marks
    assert [len(prompt) for prompt in prompts] == [frame + length for length in (1141, 1142, 1143, 1144)]
    said = capsys.readouterr().err
    assert f"note: all rows of {path} are longer than 1,100 tokens, as the adapter is asked: the shortest 4" in said
    assert "no rows" not in said
    # One row that no even spread meets is within the limit: it is found, and nothing need be said.
    _with_rows(adapter, [1200] * 5 + [7] + [1200] * 60)
    prompts, _ = fuseprompts.choose_prompts([adapter], tokenizer, rendering)
    assert [len(prompt) for prompt in prompts] == [frame + 7]
    assert capsys.readouterr().err == ""


def test_a_system_prompt_beyond_the_limit_leaves_plain_prompts_to_compare(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(fuseprompts, "LONGEST_PROMPT", 150)
    adapter, _ = _adapter(tmp_path, SMALL, facts={"system_prompt": "Be brief. " * 15})
    assert run_fuse([adapter], tmp_path / "fused", json_output=True) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["base"]["answers"] == 4
    assert "note: no rows of the run to compare on: plain prompts are used" in printed.err
    assert "note: all plain prompts are longer than 150 tokens, as the adapter is asked" in printed.err


def test_where_nothing_can_be_asked_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(fuseprompts, "PLAIN_PROMPTS", ())
    with pytest.raises(AdapterError, match=r"run: there is no prompt on which the fused model could be compared"):
        fuseprompts.choose_prompts([tmp_path / "run"], None, Rendering())


def test_a_large_model_is_written_in_numbered_shards_with_an_index(tmp_path, capsys, monkeypatch):
    from mlx_lora.lora import fused_folder

    monkeypatch.setattr(fused_folder, "SHARD_BYTES", 50_000)
    adapter, _ = _adapter(tmp_path, SMALL)
    report = _fuse(adapter, tmp_path / "fused", capsys)
    files = sorted(path.name for path in (tmp_path / "fused").glob("*.safetensors"))
    assert len(files) > 2
    assert files == [f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)]
    index = json.loads((tmp_path / "fused/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == report["weight_bytes"]
    assert {name for name, file in index["weight_map"].items() if file == files[1]} == set(
        mx.load(str(tmp_path / "fused" / files[1]))
    )


def test_code_and_pickles_of_the_bases_folder_are_not_copied(tmp_path, capsys):
    adapter, _ = _adapter(tmp_path, SMALL)
    for name in ("modeling_x.py", "pytorch_model.bin", "LICENSE", "notes.md"):
        (tmp_path / "base" / name).write_text("x")
    _fuse(adapter, tmp_path / "fused", capsys)
    written = {path.name for path in (tmp_path / "fused").iterdir()}
    assert "LICENSE" in written
    assert not written & {"modeling_x.py", "pytorch_model.bin", "notes.md"}


def test_a_disk_that_has_no_room_for_the_model_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    adapter, _ = _adapter(tmp_path, LARGE)
    (tmp_path / "out").mkdir()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
    try:
        with pytest.raises(MlxLoraError) as caught:
            run_fuse([adapter], tmp_path / "out" / "fused")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert caught.value.message.endswith(": File too large")
    assert str(tmp_path / "out") in caught.value.message
    assert "ulimit -f" in str(caught.value.hint)
    assert os.listdir(tmp_path / "out") == []
