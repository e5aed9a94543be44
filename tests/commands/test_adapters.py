"""`mlx-lora adapters`: the list, all facts of one, differences, removal, and merges that are used afterwards."""

import errno
import json
import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_lora.commands.adapterdiff import run_adapters_diff
from mlx_lora.commands.adaptermerge import run_adapters_merge
from mlx_lora.commands.adapterremove import run_adapters_remove
from mlx_lora.commands.adapters import run_adapters_list, run_adapters_show
from mlx_lora.config import LoraSettings
from mlx_lora.errors import AdapterError, MlxLoraError
from mlx_lora.lora.adapter import apply_adapter, read_adapter, save_adapter
from mlx_lora.lora.bank import AdapterBank
from mlx_lora.lora.inject import inject_lora, iter_lora_modules, remove_lora
from mlx_lora.lora.layer import dense_weight
from mlx_lora.lora.merge import merged_weight
from mlx_lora.model.load import load_base
from tests.report.run_folders import result
from tests.tiny import save_tiny_folder

TOKENS = mx.array([[1, 7, 30, 31, 200, 9, 12, 300]])


def _save(folder: Path, base: Path, seed: int, **settings: Any) -> Path:
    """An adapter of the base in `folder`, its B drawn from `seed`."""
    loaded = load_base(str(base))
    chosen = LoraSettings(**{"rank": 4, "alpha": 8.0, **settings})
    inject_lora(loaded.model, chosen, seed=seed)
    for index, (_, layer) in enumerate(iter_lora_modules(loaded.model)):
        layer.lora_b = 0.1 * mx.random.normal(layer.lora_b.shape, key=mx.random.key(100 * seed + index))
    facts = {"model": str(base), "revision": None, "identity": asdict(loaded.identity), "system_prompt": f"S{seed}"}
    save_adapter(folder, loaded.model, settings=chosen, metadata=facts)
    return folder


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters a (all layers), b (rank 2, q and v of the last two layers) and dora on one base, and one of another."""
    root = tmp_path_factory.mktemp("shelf")
    base = save_tiny_folder(root / "bases" / "base", "llama")
    other = save_tiny_folder(root / "bases" / "other", "llama", seed=5)
    _save(root / "a", base, 1)
    _save(root / "b", base, 2, rank=2, layers=2, target_modules=["q_proj", "v_proj"])
    _save(root / "dora", base, 3, method="dora", layers=1)
    _save(root / "stranger", other, 4, layers=1)
    return root


def _copy(adapter: Path, folder: Path) -> None:
    (folder / "eval").mkdir(parents=True)
    for file in adapter.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())


def _json(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def _updates(folder: Path, base: Path) -> dict[str, mx.array]:
    """Path → ΔW as the model has it with the adapter on."""
    model = load_base(str(base)).model
    apply_adapter(model, read_adapter(folder))
    return {path: merged_weight(layer) - dense_weight(layer.linear) for path, layer in iter_lora_modules(model)}


def test_the_list_has_size_base_rank_score_and_age_and_names_what_is_unusable(shelf, tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for file in (shelf / name).iterdir():
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
    (tmp_path / "b/adapters.safetensors").unlink()
    (tmp_path / "a/eval").mkdir()
    (tmp_path / "a/eval/test.json").write_text(result(("fixed", "kept right", "kept wrong")).model_dump_json())
    os.utime(tmp_path / "a/adapters.safetensors", (0, 0))
    assert run_adapters_list(tmp_path, json_output=True) == 0
    broken, whole = _json(capsys)["adapters"]  # the younger first
    assert (whole["name"], whole["method"], whole["rank"], whole["fault"]) == ("a", "lora", 4, None)
    assert whole["weight_bytes"] == (shelf / "a/adapters.safetensors").stat().st_size
    assert whole["score"]["value"] == pytest.approx(2 / 3)
    assert whole["age_seconds"] > 1.7e9
    assert "no adapters.safetensors" in broken["fault"]
    run_adapters_list(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["adapter", "size", "base"]
    assert "unusable: no adapters.safetensors" in lines[1]
    assert "2 of 3, 67 %" in lines[2]


def test_a_result_of_another_steps_adapter_is_called_so_and_a_newer_one_comes_first(shelf, tmp_path, capsys):
    folder = tmp_path / "a"
    _copy(shelf / "a", folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["mlx_lora"]["step"] = 40
    (folder / "adapter_config.json").write_text(json.dumps(config))
    older = result(("fixed", "kept right", "kept wrong"), name="a-test", adapter_step=20)
    (folder / "eval/a-test.json").write_text(older.model_dump_json())
    run_adapters_list(tmp_path)
    assert "2 of 3, 67 % (21–94), at step 20" in capsys.readouterr().out
    run_adapters_show(str(folder))
    shown = capsys.readouterr()
    assert "67 % (21–94), at step 20" in shown.out
    assert "note: a-test was asked at step 20; the adapter here is of step 40." in shown.err
    newer = result(("fixed", "kept right"), name="b-test", adapter_step=40)
    (folder / "eval/b-test.json").write_text(newer.model_dump_json())
    run_adapters_list(tmp_path, json_output=True)
    score = _json(capsys)["adapters"][0]["score"]
    assert (score["data"], score["other_step"]) == ("b-test", None)
    run_adapters_show(str(folder), json_output=True)
    assert [score["other_step"] for score in _json(capsys)["results"]] == [20, None]


def test_show_says_what_the_norms_of_dora_leave_out(shelf, capsys):
    run_adapters_show(str(shelf / "dora"))
    assert "note: DoRA: ‖ΔW‖ is of the direction alone" in capsys.readouterr().err
    run_adapters_show(str(shelf / "a"), json_output=True)
    assert _json(capsys)["notes"] == []


def test_an_empty_folder_and_a_missing_one_are_told_apart(tmp_path, capsys):
    assert run_adapters_list(tmp_path) == 0
    assert "holds no adapters yet" in capsys.readouterr().err
    with pytest.raises(AdapterError, match="no such folder"):
        run_adapters_list(tmp_path / "nowhere")


def test_show_gives_the_norm_of_every_modules_update(shelf, capsys):
    assert run_adapters_show(str(shelf / "b"), json_output=True) == 0
    found = _json(capsys)["update_norm"]
    expected = _updates(shelf / "b", shelf / "bases/base")
    assert found == {path: pytest.approx(mx.linalg.norm(update).item(), rel=1e-3) for path, update in expected.items()}
    run_adapters_show(str(shelf / "b"))
    text = capsys.readouterr().out
    assert "lora 2, scale 4" in text
    assert "self_attn.q_proj" in text


def test_diff_tells_settings_and_how_far_two_updates_are_apart(shelf, capsys):
    run_adapters_diff(str(shelf / "a"), str(shelf / "b"), json_output=True)
    found = _json(capsys)
    one, two = (_updates(shelf / name, shelf / "bases/base") for name in ("a", "b"))
    path = "model.layers.3.self_attn.q_proj"
    apart = mx.linalg.norm(two[path] - one[path]) / mx.linalg.norm(one[path])
    cosine = (one[path] * two[path]).sum() / mx.linalg.norm(one[path]) / mx.linalg.norm(two[path])
    assert found["modules"][path]["distance"] == pytest.approx(apart.item(), rel=1e-3)
    assert found["modules"][path]["cosine"] == pytest.approx(cosine.item(), abs=1e-4)
    assert found["settings"]["method, rank"] == ["lora 4", "lora 2"]
    assert any("alone adapts 24 modules" in note for note in found["notes"])
    whole = sum((update**2).sum().item() for update in one.values()) ** 0.5
    missing = {path: mx.zeros_like(update) for path, update in one.items()} | two
    distance = sum(((missing[path] - one[path]) ** 2).sum().item() for path in one) ** 0.5
    assert found["all"]["distance"] == pytest.approx(distance / whole, rel=1e-3)


def test_diff_keeps_both_scores_of_a_set_that_was_asked_in_two_ways(shelf, tmp_path, capsys):
    _copy(shelf / "a", tmp_path / "asked")
    for place, tokens in enumerate((24, 48)):
        asked = result(("fixed", "kept wrong"), max_tokens=tokens)
        (tmp_path / f"asked/eval/{place}.json").write_text(asked.model_dump_json())
    run_adapters_diff(str(shelf / "b"), str(tmp_path / "asked"), json_output=True)
    both = {"data": "data-test", "scores": ["–", "1 of 2, 50 % (9–91)"]}
    assert _json(capsys)["scores"] == [both, both]


def test_diff_of_a_copy_says_that_nothing_differs(shelf, tmp_path, capsys):
    for file in (shelf / "a").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    run_adapters_diff(str(shelf / "a"), str(tmp_path))
    text = capsys.readouterr().out
    assert "the same settings, data and base" in text
    assert text.splitlines()[-1].split() == ["all", "0.000", "1.000", "–", "–"]
    (tmp_path / "run.yaml").write_text("model: base\nlora: {rank: 4}\n")
    run_adapters_diff(str(tmp_path), str(shelf / "a"))
    output = capsys.readouterr()
    assert "lora.rank" not in output.out
    assert f"note: {shelf / 'a'}: has no run file" in output.err
    with pytest.raises(AdapterError, match="the same adapter"):
        run_adapters_diff(str(shelf / "a"), str(shelf / "a"))


@pytest.mark.parametrize(
    ("method", "rank", "weights", "tolerance"),
    [("linear", None, "0.7,0.3", 1e-5), ("svd", 6, "0.7,0.3", 1e-5), ("svd", 64, None, 1e-5), ("ties", 64, None, None)],
)
def test_a_merged_adapter_is_one_that_every_command_takes(shelf, tmp_path, capsys, method, rank, weights, tolerance):
    output = tmp_path / "merged"
    names = [str(shelf / name) for name in ("a", "b")]
    assert run_adapters_merge(names, output, method=method, weights=weights, rank=rank, json_output=True) == 0
    report = _json(capsys)
    first, second = (float(weight) for weight in (weights or "0.5,0.5").split(","))
    one, two = (_updates(shelf / name, shelf / "bases/base") for name in ("a", "b"))
    merged = _updates(output, shelf / "bases/base")
    assert merged.keys() == one.keys()
    for path, update in merged.items() if tolerance else ():
        expected = first * one[path] + (second * two[path] if path in two else 0)
        assert mx.abs(update - expected).max().item() < tolerance, path
    assert report["rank"] == {None: 6}.get(rank, rank)
    facts = read_adapter(output).facts
    assert [one["name"] for one in facts["merged_from"]["adapters"]] == ["a", "b"]
    assert facts["system_prompt"] == "S1"
    run_adapters_list(tmp_path, json_output=True)
    assert _json(capsys)["adapters"][0]["rank"] == report["rank"]


def test_a_linear_merge_answers_as_the_mix_that_it_names(shelf, tmp_path, capsys):
    base = load_base(str(shelf / "bases/base"))
    bank = AdapterBank(base.model, asdict(base.identity))
    for name in ("a", "b"):
        bank.add(name, shelf / name)
    for number, (weights, mix) in enumerate([("0.7,0.3", "a:0.7+b:0.3"), ("2,-1", "a:2+b:-1"), (None, "a:0.5+b:0.5")]):
        output = tmp_path / str(number)
        run_adapters_merge([str(shelf / name) for name in ("a", "b")], output, weights=weights)
        assert mix in capsys.readouterr().err.replace(f"{shelf}/", "")
        bank.add(str(number), output)
        bank.activate(str(number))
        merged = base.model(TOKENS)
        bank.activate(mix)
        assert mx.abs(base.model(TOKENS) - merged).max().item() < 1e-5
        bank.activate("a")
        assert mx.abs(base.model(TOKENS) - merged).max().item() > 1e-2


def test_a_merged_adapter_whose_file_was_edited_is_shown_all_the_same(shelf, tmp_path, capsys):
    """`adapters show` ended in a KeyError."""
    run_adapters_merge([str(shelf / "a"), str(shelf / "b")], tmp_path / "both")
    path = tmp_path / "both/adapter_config.json"
    config = json.loads(path.read_text())
    for edited, told in (
        ({"adapters": [{"name": "a"}], "method": "svd"}, "nan · a (svd)"),
        ({"method": "svd"}, "adapters that its file does not name"),
    ):
        config["mlx_lora"]["merged_from"] = edited
        path.write_text(json.dumps(config))
        capsys.readouterr()
        run_adapters_show(str(tmp_path / "both"))
        assert re.search(rf"merged from +{re.escape(told)}$", capsys.readouterr().out, re.MULTILINE)


def test_a_run_file_that_cannot_be_read_is_named_by_a_comparison(shelf, tmp_path, monkeypatch):
    _copy(shelf / "a", mine := tmp_path / "mine")
    (mine / "run.yaml").write_text("model: base\n")
    read = Path.read_text

    def refused(path, *args, **settings):
        if path == mine / "run.yaml":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return read(path, *args, **settings)

    monkeypatch.setattr(Path, "read_text", refused)
    with pytest.raises(AdapterError) as caught:
        run_adapters_diff(str(shelf / "b"), str(mine))
    assert str(caught.value.message) == f"{mine / 'run.yaml'}: Permission denied"


def test_a_merge_says_whose_system_prompt_it_has_kept(shelf, tmp_path, capsys):
    _copy(shelf / "a", bare := tmp_path / "of-mlx-lm")  # which tells nothing of prompts
    config = json.loads((bare / "adapter_config.json").read_text())
    del config["mlx_lora"]
    (bare / "adapter_config.json").write_text(json.dumps(config))
    for first, kept, text in ((bare, shelf / "b", "S2"), (shelf / "a", shelf / "a", "S1")):
        run_adapters_merge([str(first), str(shelf / "b")], tmp_path / text)
        said = f"note: system_prompt differs between them: that of {kept} is kept\n"
        assert said in capsys.readouterr().err
        assert json.loads((tmp_path / text / "adapter_config.json").read_text())["mlx_lora"]["system_prompt"] == text


def test_a_merge_goes_where_the_home_folder_leads(shelf, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    run_adapters_merge([str(shelf / "b"), str(shelf / "a")], Path("~/merged"))
    assert (tmp_path / "merged/adapters.safetensors").is_file()
    (tmp_path / "file").touch()
    with pytest.raises(MlxLoraError, match="not a folder"):
        run_adapters_merge(["nowhere", str(shelf / "a")], tmp_path / "file/merged")


def test_mlx_lm_takes_a_merged_adapter_whose_modules_lie_in_different_layers(shelf, tmp_path):
    from mlx_lm.utils import load_adapters

    run_adapters_merge([str(shelf / "b"), str(shelf / "a")], tmp_path / "merged")
    base = load_base(str(shelf / "bases/base"))
    apply_adapter(base.model, read_adapter(tmp_path / "merged"), asdict(base.identity))
    expected = base.model(TOKENS)
    remove_lora(base.model)
    assert mx.allclose(load_adapters(base.model, str(tmp_path / "merged"))(TOKENS), expected, atol=1e-5)


def test_experts_are_merged_too(tmp_path):
    base = save_tiny_folder(tmp_path / "bases/base", "mixtral")
    names = [str(_save(tmp_path / f"e{seed}", base, seed, layers=1)) for seed in (1, 2)]
    run_adapters_merge(names, tmp_path / "merged", method="svd", rank=8, weights="1,-0.5")
    one, two, merged = (_updates(Path(folder), base) for folder in (*names, tmp_path / "merged"))
    assert any(update.ndim == 3 for update in merged.values())
    for path, update in merged.items():
        assert mx.abs(update - (one[path] - 0.5 * two[path])).max().item() < 1e-5, path


@pytest.mark.parametrize(
    ("names", "options", "fact"),
    [
        (["a", "stranger"], {}, "trained on other, .*their bases differ"),
        (["a", "dora"], {}, "DoRA adapter"),
        (["a", "b"], {"weights": "1"}, "1 numbers for 2 adapters"),
        (["a", "b"], {"weights": "1,x"}, "not numbers"),
        (["a", "b"], {"weights": "1,0"}, "a weight is 0"),
        (["a", "b"], {"rank": 4}, "the ranks added"),
        (["a", "b"], {"method": "slerp"}, "--method slerp: unknown"),
        (["a", "b"], {"density": 0.5}, "keeps all entries"),
        (["a", "b"], {"method": "ties", "density": 1.5}, "--density 1.5"),
        (["a", "b"], {"method": "svd", "rank": 0}, "--rank 0"),
    ],
)
def test_what_cannot_be_merged_is_refused_and_nothing_is_written(shelf, tmp_path, names, options, fact):
    with pytest.raises(AdapterError, match=fact):
        run_adapters_merge([str(shelf / name) for name in names], tmp_path / "merged", **options)
    assert list(tmp_path.iterdir()) == []


def _adapter(folder: Path) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapters.safetensors").write_bytes(b"damaged")
    (folder / "eval").mkdir()
    (folder / "eval/test.json").write_text("{}")
    return folder


def test_an_adapter_is_removed_even_when_it_is_damaged_and_nothing_beside_it(tmp_path, capsys):
    _adapter(tmp_path / "gone")
    _adapter(tmp_path / "kept")
    assert run_adapters_remove(str(tmp_path / "gone"), yes=True) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert "removed" in capsys.readouterr().err


def test_without_a_yes_nothing_is_removed(tmp_path, monkeypatch):
    folder = _adapter(tmp_path / "kept")
    with pytest.raises(MlxLoraError, match="nobody can be asked"):
        run_adapters_remove(str(folder))
    for typed, code in (("n\n", 1), ("\n", 1), ("y\n", 0)):
        terminal = type("Terminal", (), {"isatty": lambda self: True, "readline": lambda self, typed=typed: typed})()
        monkeypatch.setattr("sys.stdin", terminal)
        assert run_adapters_remove(str(folder)) == code
        assert folder.exists() == bool(code)


def test_a_folder_with_anything_else_in_it_is_not_removed(tmp_path):
    for number, add in enumerate(
        [
            lambda folder: (folder / "notes.txt").write_text("mine"),
            lambda folder: (folder / "model.safetensors").write_text("mine"),
            lambda folder: (folder / "other").mkdir(),
            lambda folder: (folder / "README.md").mkdir(),
        ]
    ):
        folder = _adapter(tmp_path / str(number))
        add(folder)
        with pytest.raises(AdapterError, match="holds what no adapter has"):
            run_adapters_remove(str(folder), yes=True)
        assert (folder / "adapters.safetensors").exists()
    (tmp_path / "none").mkdir()
    with pytest.raises(AdapterError, match="no adapter"):
        run_adapters_remove(str(tmp_path / "none"), yes=True)


def test_a_link_is_never_followed(tmp_path):
    target = _adapter(tmp_path / "target")
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(AdapterError, match="is a link to"):
        run_adapters_remove(str(tmp_path / "link"), yes=True)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine.txt").write_text("mine")
    folder = _adapter(tmp_path / "folder")
    (folder / "checkpoints").symlink_to(outside)
    with pytest.raises(AdapterError, match="checkpoints"):
        run_adapters_remove(str(folder), yes=True)
    (folder / "checkpoints").unlink()
    (folder / "eval/link").symlink_to(outside)
    assert run_adapters_remove(str(folder), yes=True) == 0
    assert (outside / "mine.txt").read_text() == "mine"
    assert (target / "eval/test.json").exists()


def test_an_adapter_that_a_run_is_training_is_not_removed(tmp_path):
    from mlx_lora.training.runfolder import claimed_folder

    folder = _adapter(tmp_path / "busy")
    with claimed_folder(folder, resume=True, overwrite=False), pytest.raises(MlxLoraError, match="is training into it"):
        run_adapters_remove(str(folder), yes=True)
    assert (folder / "adapters.safetensors").exists()


def test_a_score_on_trained_questions_is_said_to_be_one(shelf, tmp_path, capsys):
    _copy(shelf / "a", tmp_path / "a")
    for name, trained in (("a-train", {"trained_on": True}), ("b-mixed", {"trained_questions": 1})):
        asked = result(("fixed", "kept right", "kept wrong"), name=name, source=f"{name}.jsonl")
        asked = asked.model_copy(update={"data": asked.data.model_copy(update=trained)})
        (tmp_path / "a/eval" / f"{name}.json").write_text(asked.model_dump_json())
    run_adapters_show(str(tmp_path / "a"))
    shown = " ".join(capsys.readouterr().out.split())
    assert "67 % (21–94), all asked in training" in shown
    assert "67 % (21–94), 1 asked in training" in shown
    run_adapters_list(tmp_path, json_output=True)
    score = _json(capsys)["adapters"][0]["score"]
    assert score["trained_share"] == pytest.approx(1 / 3)
    kept = result(("kept right",), name="general-knowledge", source="general-knowledge")
    (tmp_path / "a/eval/general-knowledge.json").write_text(kept.model_dump_json())
    run_adapters_list(tmp_path, json_output=True)
    assert _json(capsys)["adapters"][0]["score"]["data"] == "b-mixed", "what it keeps is not what it learned"
