"""Adapters side by side on one base: swapped to the bit, mixed exactly, refused without a trace."""

import json
import os
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_lora.config import LoraSettings
from mlx_lora.errors import AdapterError
from mlx_lora.lora.adapter import apply_adapter, read_adapter, save_adapter
from mlx_lora.lora.bank import AdapterBank, folder_version
from mlx_lora.lora.inject import inject_lora, iter_lora_modules, replace_module
from mlx_lora.lora.layer import DoRALinear
from mlx_lora.lora.merge import merged_weight
from mlx_lora.lora.mix import Mix, parse_mix
from tests.tiny import tiny_model

TOKENS = mx.array([[1, 7, 30, 31, 200, 9, 12, 300]])
IDENTITY = {"name": "tiny", "config_sha256": "c1", "weights_sha256": "w1"}
ADAPTERS: dict[str, dict[str, Any]] = {
    "wide": {"rank": 8, "alpha": 20.0},
    "upper": {"rank": 3, "alpha": 3.0, "layers": 2, "target_modules": "mlp", "dropout": 0.5},
    "attention": {"rank": 2, "target_modules": "attention", "use_rslora": True},
    "dora": {"rank": 4, "method": "dora", "layers": 3, "target_modules": "mlp"},
}
EXPERTS: dict[str, dict[str, Any]] = {
    "experts": {"rank": 2, "target_modules": "mlp"},
    "all": {"rank": 5, "layers": 1},
    "few": {"rank": 1},
}


def write_adapter(
    folder: Path, family: str = "llama", *, seed: int = 0, identity: Any = IDENTITY, **settings: Any
) -> Path:
    """An adapter of random weights on the tiny model."""
    model = tiny_model(family, bits=4)
    chosen = LoraSettings(**settings)
    inject_lora(model, chosen, seed=seed)
    for index, (_, layer) in enumerate(iter_lora_modules(model)):
        layer.lora_b = 0.1 * mx.random.normal(layer.lora_b.shape, key=mx.random.key(1000 * seed + index))
        if isinstance(layer, DoRALinear):
            layer.m = layer.m * (1 + 0.1 * mx.random.normal(layer.m.shape, key=mx.random.key(7 * seed + index)))
    save_adapter(folder, model, settings=chosen, metadata={"identity": identity})
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bank")
    for seed, (name, settings) in enumerate(ADAPTERS.items()):
        write_adapter(folder / name, seed=seed, **settings)
    for seed, (name, settings) in enumerate(EXPERTS.items()):
        write_adapter(folder / name, "mixtral", seed=seed, **settings)
    write_adapter(folder / "foreign", rank=2, identity={**IDENTITY, "weights_sha256": "w2"})
    return folder


def bank_of(folders: Path, *names: str, family: str = "llama") -> AdapterBank:
    bank = AdapterBank(tiny_model(family, bits=4), IDENTITY)
    for name in names:
        bank.add(name, folders / name)
    return bank


def fresh(folder: Path | None, family: str = "llama") -> mx.array:
    model = tiny_model(family, bits=4)
    if folder is not None:
        apply_adapter(model, read_adapter(folder), IDENTITY)
    logits: mx.array = model(TOKENS)
    return logits


def answer(bank: AdapterBank) -> mx.array:
    logits: mx.array = bank.model(TOKENS)
    return logits


def same(first: mx.array, second: mx.array) -> bool:
    return bool(mx.array_equal(first, second))


@pytest.mark.parametrize(("family", "names"), [("llama", list(ADAPTERS)), ("mixtral", list(EXPERTS))])
def test_every_swap_answers_bitwise_as_a_fresh_load(folders: Path, family: str, names: list[str]) -> None:
    bank = bank_of(folders, *names, family=family)
    expected = {name: fresh(folders / name, family) for name in names}
    bare = fresh(None, family)
    for name in [*names, *reversed(names)]:
        bank.activate(name)
        assert same(answer(bank), expected[name]), name
    bank.activate(None)
    assert same(answer(bank), bare)
    assert bank.names == tuple(names)


def test_without_an_adapter_the_model_holds_the_bases_own_modules(folders: Path) -> None:
    model = tiny_model(bits=4)
    before = {path: id(module) for path, module in model.named_modules()}
    bank = AdapterBank(model, IDENTITY)
    bank.add("wide", folders / "wide")
    bank.activate("wide")
    bank.activate(None)
    assert {path: id(module) for path, module in model.named_modules()} == before


def test_adding_changes_nothing_of_what_answers(folders: Path) -> None:
    bank = bank_of(folders, "wide")
    bank.activate("wide")
    bank.add("dora", folders / "dora")
    assert bank.active == Mix((("wide", 1.0),))
    assert same(answer(bank), fresh(folders / "wide"))


def test_a_failed_add_leaves_bank_and_model_as_they_were(folders: Path, tmp_path: Path) -> None:
    bank = bank_of(folders, "wide")
    bank.activate("wide")
    shapes = write_adapter(tmp_path / "shapes", "gpt2", rank=2)
    (tmp_path / "empty").mkdir()
    for name, folder, fact in (
        ("foreign", folders / "foreign", "other"),
        ("shapes", shapes, "modules that this base does not have"),
        ("empty", tmp_path / "empty", "no adapters.safetensors"),
        ("nowhere", tmp_path / "nowhere", "no such adapter folder"),
        ("wide", folders / "dora", "wide: there is an adapter of this name already"),
        (" ", folders / "dora", "an adapter needs a name"),
    ):
        with pytest.raises(AdapterError, match=fact):
            bank.add(name, folder)
        assert bank.names == ("wide",)
        assert str(bank.active) == "wide"
        assert same(answer(bank), fresh(folders / "wide")), fact


def test_a_model_with_an_adapter_has_no_bank(folders: Path) -> None:
    model = tiny_model(bits=4)
    apply_adapter(model, read_adapter(folders / "wide"), None)
    with pytest.raises(AdapterError, match="has an adapter already"):
        AdapterBank(model)


def test_an_unknown_name_names_the_near_one_and_changes_nothing(folders: Path) -> None:
    bank = bank_of(folders, "wide", "upper")
    bank.activate("wide")
    for act in (bank.activate, bank.remove, bank.resident):
        with pytest.raises(AdapterError, match="no adapter is called uper") as caught:
            act("uper")
        assert caught.value.hint == "did you mean upper?"
    with pytest.raises(AdapterError) as caught:
        bank.activate("xyz")
    assert caught.value.hint == "there are wide, upper"
    assert same(answer(bank), fresh(folders / "wide"))


def test_the_base_answers_when_the_active_adapter_is_removed_and_others_stay(folders: Path) -> None:
    bank = bank_of(folders, "wide", "upper", "attention")
    bank.activate("wide:0.5+upper")
    bank.remove("attention")
    assert str(bank.active) == "wide:0.5+upper"
    bank.remove("upper")
    assert (bank.active, bank.names) == (None, ("wide",))
    assert same(answer(bank), fresh(None))


def test_an_adapter_put_in_place_of_the_active_one_answers_at_once(folders: Path) -> None:
    bank = bank_of(folders, "wide")
    bank.activate("wide")
    first = bank.cache_key
    bank.add("wide", folders / "dora", replace=True)
    assert same(answer(bank), fresh(folders / "dora"))
    assert bank.cache_key != first


def test_one_that_cannot_stand_in_the_mix_that_is_on_is_not_put_in_its_place(folders: Path) -> None:
    bank = bank_of(folders, "wide", "upper")
    bank.activate("wide+upper")
    before, key = answer(bank), bank.cache_key
    with pytest.raises(AdapterError, match="no weighted sum is exact"):
        bank.add("upper", folders / "dora", replace=True)
    assert bank.resident("upper").adapter.parameters.method == "lora"
    assert bank.cache_key == key
    assert same(answer(bank), before)


def dense_answer(folders: Path, weights: dict[str, float], family: str) -> mx.array:
    """Logits of the plain base whose weights hold the sum of the adapters' dense updates, each times its weight."""
    model = tiny_model(family)
    updates: dict[str, mx.array] = {}
    linears: dict[str, Any] = {}
    for name, weight in weights.items():
        adapted = tiny_model(family)
        apply_adapter(adapted, read_adapter(folders / name), None)
        for path, layer in iter_lora_modules(adapted):
            linears[path] = layer.linear
            updates[path] = updates.get(path, 0) + weight * (merged_weight(layer) - layer.linear.weight)
    for path, linear in linears.items():
        linear.weight = linear.weight + updates[path]
        replace_module(model, path, linear)
    logits: mx.array = model(TOKENS)
    return logits


@pytest.mark.parametrize(
    ("family", "weights"),
    [
        ("llama", {"wide": 0.7, "upper": 0.3}),
        ("llama", {"wide": 0.5}),
        ("llama", {"wide": 1.0, "upper": -1.5, "attention": 2.0}),
        ("llama", {"attention": 0.4, "dora": 1.0}),  # no module in common: DoRA stays whole
        ("mixtral", {"experts": 0.6, "all": 0.4, "few": 1.0}),
    ],
)
def test_a_mix_answers_as_the_sum_of_the_dense_updates(folders: Path, family: str, weights: dict[str, float]) -> None:
    bank = AdapterBank(tiny_model(family), None)
    for name in weights:
        bank.add(name, folders / name)
    expected = dense_answer(folders, weights, family)
    bare = answer(bank)
    mix = bank.activate("+".join(f"{name}:{weight}" for name, weight in weights.items()))
    assert mix == bank.active == Mix(tuple(weights.items()))
    assert mx.allclose(answer(bank), expected, rtol=1e-4, atol=1e-4)
    assert not mx.allclose(bare, expected, rtol=1e-2, atol=1e-2)
    bank.activate(None)
    assert same(answer(bank), bare)


def test_a_mix_put_on_again_is_the_same_layers_until_one_of_them_is_another(folders: Path) -> None:
    bank = bank_of(folders, "wide", "upper")

    def layers(text: str) -> list[int]:
        bank.activate(text)
        return [id(layer) for _, layer in iter_lora_modules(bank.model)]

    first = layers("wide:0.7+upper:0.3")
    others = [layers(f"wide:{weight}+upper") for weight in (2, 3, 4)]
    assert layers("wide:0.7+upper:0.3") == first
    others.append(layers("wide:5.0+upper"))  # the fifth: the one used longest ago goes
    assert layers("wide:2+upper") != others[0]
    bank.add("upper", folders / "attention", replace=True)
    assert layers("wide:0.7+upper:0.3") != first


@pytest.mark.parametrize("text", ["dora:0.5", "dora+upper", "dora:1+wide:0.1"])
def test_dora_in_a_sum_is_refused_with_its_reason(folders: Path, text: str) -> None:
    bank = bank_of(folders, "dora", "upper", "wide")
    bank.activate("wide")
    with pytest.raises(AdapterError, match=r"dora is DoRA, which brings each row of .* no weighted sum is exact"):
        bank.activate(text)
    assert same(answer(bank), fresh(folders / "wide"))


def test_half_of_an_adapter_is_not_left_in_the_model_by_an_interrupt(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = bank_of(folders, "wide", "upper")
    bank.activate("upper")
    left = [10]

    def interrupted(*arguments: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        replace_module(*arguments)

    monkeypatch.setattr("mlx_lora.lora.bank.replace_module", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bank.activate("wide")
    assert str(bank.active) == "upper"
    assert same(answer(bank), fresh(folders / "upper"))
    bank.activate("wide")
    assert same(answer(bank), fresh(folders / "wide"))


def test_each_state_has_a_cache_key_of_its_own_and_equal_states_share_one(folders: Path, tmp_path: Path) -> None:
    bank = bank_of(folders, "wide", "upper")
    keys: dict[str | None, str | None] = {}
    for text in (None, "wide", "upper", "wide+upper", "wide:0.7+upper:0.3", "wide:0.5"):
        bank.activate(text)
        keys[text] = bank.cache_key
    assert keys[None] is None
    assert len(set(keys.values())) == len(keys)
    bank.activate("wide:1.0")
    assert bank.cache_key == keys["wide"]
    path = write_adapter(tmp_path / "again", rank=2)
    bank.add("again", path)
    bank.activate("again")
    before = bank.cache_key
    write_adapter(path, rank=2, seed=5)
    os.utime(path / "adapters.safetensors", ns=(1, 1))
    bank.add("again", path, replace=True)
    assert bank.cache_key != before


def test_an_edited_config_is_another_version_of_the_adapter(tmp_path: Path) -> None:
    """chat's /adapter took a changed scale or system prompt for what it had in memory."""
    path = write_adapter(tmp_path / "run", rank=2)
    bank = bank_of(tmp_path, "run")
    bank.activate("run")
    before, first = bank.cache_key, answer(bank)
    config = json.loads((path / "adapter_config.json").read_text())
    config["lora_parameters"]["scale"] *= 2
    (path / "adapter_config.json").write_text(json.dumps(config))
    os.utime(path / "adapter_config.json", ns=(1, 1))
    assert folder_version(path) != bank.resident("run").version
    bank.add("run", path, replace=True)
    assert bank.resident("run").version == folder_version(path)
    assert bank.cache_key != before
    assert not same(answer(bank), first)


WEIGHTS = [
    ("a:x", "a:x: x is no weight"),
    ("a:", "a:: nothing is no weight"),
    ("a:nan", "a: its weight is nan, expected -100 to 100"),
    ("a:1e9+b", "a: its weight is 1e9, expected -100 to 100"),
    ("a+b+a:2", "a stands in it twice"),
]


@pytest.mark.parametrize(("text", "fact"), WEIGHTS)
def test_what_is_no_mix_is_refused_with_the_part_that_is_wrong(text: str, fact: str) -> None:
    with pytest.raises(AdapterError, match=fact):
        parse_mix(text, ["a", "b"].__contains__)


@pytest.mark.parametrize(("text", "name"), [("wide+", "nothing"), ("", "nothing"), ("wide;b", "wide;b"), ("w:2", "w")])
def test_a_part_that_names_nobody_is_refused(folders: Path, text: str, name: str) -> None:
    with pytest.raises(AdapterError, match=f"^no adapter is called {name}$"):
        bank_of(folders, "wide").parse(text)


def test_a_name_with_signs_of_its_own_stands_alone_and_takes_a_weight() -> None:
    is_name = ["runs/a+b", "c:3"].__contains__
    assert parse_mix("runs/a+b", is_name) == Mix((("runs/a+b", 1.0),))
    assert parse_mix("c:3:0.5", is_name) == Mix((("c:3", 0.5),))
    assert parse_mix(" c:3 + d : 2", is_name) == Mix((("c:3", 1.0), ("d", 2.0)))


@given(st.dictionaries(st.text("abc-_ü9", min_size=1), st.floats(-100, 100), min_size=1))
def test_a_mix_is_read_as_it_is_written(weights: dict[str, float]) -> None:
    mix = Mix(tuple(weights.items()))
    assert parse_mix(str(mix), weights.__contains__) == mix
