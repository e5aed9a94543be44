"""Rows of one batch with an adapter each: every row answers as its adapter alone, and the base's bit for bit."""

from dataclasses import replace

import mlx_lora  # noqa: F401  (loads OpenBLAS before MLX)

import mlx.core as mx  # isort: skip
import mlx.nn as nn
import pytest

from mlx_lora.config import LoraSettings
from mlx_lora.errors import AdapterError
from mlx_lora.lora.adapter import save_adapter
from mlx_lora.lora.inject import inject_lora, iter_lora_modules, remove_lora
from mlx_lora.lora.layer import DoRALinear, LoRALinear
from mlx_lora.lora.row_bank import RowBank
from mlx_lora.lora.rows import RowLoRA, Rows, factors_of
from tests.tiny import tiny_model

INPUTS, OUTPUTS = 32, 64


def linear_of(dtype: mx.Dtype = mx.float32, bits: int | None = None, bias: bool = True) -> nn.Module:
    mx.random.seed(3)
    linear = nn.Linear(INPUTS, OUTPUTS, bias=bias)
    linear.set_dtype(dtype)
    return linear if bits is None else nn.QuantizedLinear.from_linear(linear, group_size=32, bits=bits)


def trained(kind: type, linear: nn.Module, rank: int, scale: float, seed: int):
    layer = kind(linear, rank, scale, 0.0, mx.random.key(seed))
    layer.lora_b = 0.2 * mx.random.normal(layer.lora_b.shape, key=mx.random.key(seed + 100))
    if kind is DoRALinear:
        layer.m = layer.m * (1 + 0.2 * mx.random.normal(layer.m.shape, key=mx.random.key(seed + 200)))
    layer.eval()
    return layer


def row_layer(linear: nn.Module, layers) -> tuple[RowLoRA, Rows]:
    rows = Rows()
    return RowLoRA(linear, rows, {number: factors_of("x", layer) for number, layer in layers.items()}), rows


@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tokens", [1, 7])
def test_each_row_has_its_own_adapter_of_its_own_rank_and_kind(bits, bias, tokens):
    linear = linear_of(bits=bits, bias=bias)
    layers = {
        4: trained(LoRALinear, linear, 2, 2.0, 1),
        9: trained(DoRALinear, linear, 8, 0.5, 2),
        5: trained(LoRALinear, linear, 5, 3.0, 3),
    }
    layer, rows = row_layer(linear, layers)
    x = mx.random.normal((5, tokens, INPUTS), key=mx.random.key(7))
    adapters = (9, None, 4, 5, 4)
    rows.use(adapters)
    answer = layer(x)
    for place, number in enumerate(adapters):
        wanted = linear(x)[place] if number is None else layers[number](x)[place]
        assert mx.allclose(answer[place], wanted, rtol=1e-5, atol=1e-5), (place, number)
    assert mx.abs(answer - linear(x)).max() > 0.1  # the adapters change something


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_a_row_without_an_adapter_is_the_bases_bit_for_bit_even_where_the_base_says_minus_zero(dtype):
    linear = linear_of(dtype, bias=False)
    linear.weight[0] = -0.0
    layer, rows = row_layer(linear, {0: trained(DoRALinear, linear, 4, 1.0, 1)})
    x = mx.abs(mx.random.normal((3, 2, INPUTS), key=mx.random.key(7))).astype(dtype)
    rows.use((None, 0, None))
    answer, base = layer(x), linear(x)
    assert answer.dtype == dtype
    bits = mx.uint32 if dtype == mx.float32 else mx.uint16
    assert mx.array_equal(answer[::2].view(bits), base[::2].view(bits))
    assert not mx.array_equal(answer[1], base[1])


def test_a_neighbour_whose_adapter_overflows_leaves_the_other_rows_alone():
    linear = linear_of()
    wild = trained(LoRALinear, linear, 4, 1.0, 1)
    wild.lora_b = mx.full(wild.lora_b.shape, mx.inf)
    layer, rows = row_layer(linear, {0: wild, 1: trained(LoRALinear, linear, 2, 1.0, 2)})
    x = mx.random.normal((3, 1, INPUTS), key=mx.random.key(7))
    rows.use((0, 1, None))
    answer = layer(x)
    assert not mx.isfinite(answer[0]).all()
    assert mx.isfinite(answer[1:]).all()


def test_without_any_adapted_row_the_base_answers_itself():
    linear = linear_of()
    layer, rows = row_layer(linear, {3: trained(LoRALinear, linear, 2, 1.0, 1)})
    x = mx.random.normal((2, 3, INPUTS), key=mx.random.key(7))
    rows.use((None, 8))  # 8 adapts other layers
    assert mx.array_equal(layer(x), linear(x))


def test_an_input_that_is_not_the_batch_is_refused_rather_than_mixed_up():
    linear = linear_of()
    layer, rows = row_layer(linear, {3: trained(LoRALinear, linear, 2, 1.0, 1)})
    rows.use((3, None))
    with pytest.raises(ValueError, match="cannot tell them apart"):
        layer(mx.zeros((6, INPUTS)))


SHAPES = {
    "attention": LoraSettings(rank=2, target_modules="attention", layers=2),
    "all": LoraSettings(rank=6, alpha=24.0),
    "dora": LoraSettings(rank=4, method="dora"),
}


def save_random(folder, model, settings: LoraSettings, seed: int):
    inject_lora(model, settings, seed=seed)
    for index, (_, layer) in enumerate(iter_lora_modules(model)):
        layer.lora_b = 0.3 * mx.random.normal(layer.lora_b.shape, key=mx.random.key(100 * seed + index))
    save_adapter(folder, model, settings=settings, metadata={})
    remove_lora(model)
    return folder


@pytest.fixture
def llama(tmp_path):
    """A model and its row bank with the adapters of SHAPES; name → number, name → logits of it alone in a batch."""
    model = tiny_model("llama")
    folders = {name: save_random(tmp_path / name, model, each, i) for i, (name, each) in enumerate(SHAPES.items())}
    tokens = mx.random.randint(5, 300, (5, 9), key=mx.random.key(1))
    alone = {None: model(tokens)}
    for name, folder in folders.items():
        from mlx_lora.lora.adapter import apply_adapter, read_adapter

        apply_adapter(model, read_adapter(folder))
        model.eval()
        alone[name] = model(tokens)
        remove_lora(model)
    return model, folders, tokens, alone


def test_a_mixed_batch_of_a_model_answers_each_row_as_its_adapter_alone(llama):
    model, folders, tokens, alone = llama
    bank = RowBank(model)
    numbers = {name: bank.add(name, folder)[0] for name, folder in folders.items()}
    who = ("dora", None, "all", "attention", None)
    bank.rows.use(tuple(None if name is None else numbers[name] for name in who))
    logits = model(tokens)
    for row, name in enumerate(who):
        if name is None:
            assert mx.array_equal(logits[row], alone[None][row])
        assert mx.allclose(logits[row], alone[name][row], rtol=1e-4, atol=1e-4), name
        assert name is None or mx.abs(logits[row] - alone[None][row]).max() > 0.05
    assert bank.names == tuple(folders)
    assert bank.nbytes > 0


def test_adapters_come_and_go_while_others_stay_and_the_last_one_leaves_the_very_base(llama):
    model, folders, tokens, alone = llama
    bank = RowBank(model)
    first, _ = bank.add("all", folders["all"])
    second, _ = bank.add("dora", folders["dora"])
    bank.remove("all")
    again, _ = bank.add("all", folders["all"])
    assert len({first, second, again}) == 3  # a number never comes back
    bank.rows.use((second, again, None, second, again))
    logits = model(tokens)
    for row, name in enumerate(("dora", "all", None, "dora", "all")):
        assert mx.allclose(logits[row], alone[name][row], rtol=1e-4, atol=1e-4)
    bank.remove("all")
    bank.remove("dora")
    assert bank.nbytes == 0
    assert mx.array_equal(model(tokens), alone[None])


def test_a_refused_adapter_leaves_all_as_it_was(llama, tmp_path):
    model, folders, tokens, alone = llama
    bank = RowBank(model)
    number, _ = bank.add("all", folders["all"])
    foreign = save_random(tmp_path / "foreign", tiny_model("gpt2"), LoraSettings(rank=2), 5)
    with pytest.raises(AdapterError, match="this base does not have"):
        bank.add("foreign", foreign)
    with pytest.raises(AdapterError, match="of this name"):
        bank.add("all", folders["all"])
    bank.rows.use((number, None, None, None, number))
    logits = model(tokens)
    assert bank.names == ("all",)
    assert mx.allclose(logits[4], alone["all"][4], rtol=1e-4, atol=1e-4)
    assert mx.array_equal(logits[1:4], alone[None][1:4])


def test_adapters_of_a_mixtures_experts_are_refused_with_the_reason(tmp_path):
    model = tiny_model("mixtral")
    settings = LoraSettings(rank=2, target_modules="all-linear")
    experts = save_random(tmp_path / "experts", model, settings, 1)
    attention = save_random(tmp_path / "attention", model, LoraSettings(rank=2, target_modules="attention"), 2)
    bank = RowBank(model)
    with pytest.raises(AdapterError, match="experts: these regroup the rows"):
        bank.add("experts", experts)
    assert bank.add("attention", attention)[0] == 0


def test_a_row_that_would_not_answer_as_alone_is_found_before_anybody_asks(llama, monkeypatch):
    model, folders, _, _ = llama
    bank = RowBank(model)
    from mlx_lora.lora import row_bank

    def wrong(path, layer):
        return replace(factors_of(path, layer), lora_b=2 * layer.lora_b * layer.scale)

    monkeypatch.setattr(row_bank, "factors_of", wrong)
    with pytest.raises(AdapterError, match="cannot share a batch"):
        bank.add("all", folders["all"])
    assert bank.names == ()
    assert bank.nbytes == 0
