"""`lora.init: contrastive`: A reads what the taught rows have and the base's own answers have not, and stays."""

from dataclasses import replace

import mlx_lora  # noqa: F401  (loads OpenBLAS before MLX)

import mlx.core as mx  # isort: skip
import numpy as np
import pytest

from mlx_lora.config import LoraSettings
from mlx_lora.dataset.examples import Example, Expected
from mlx_lora.errors import AdapterError, TrainingError
from mlx_lora.lora.inject import inject_lora, iter_lora_modules
from mlx_lora.lora.layer import AdapterLayer, LoRALinear
from mlx_lora.training import contrast
from mlx_lora.training.contrast import Contrast, contrast_adapters, contrast_columns
from mlx_lora.training.trainable import Trainable
from tests.tiny import TRANSFORMERS, tiny_model
from tests.training.rows import random_rows


def lines(count: int, width: int, seed: int, weights: np.ndarray | None = None) -> mx.array:
    found = np.random.default_rng(seed).standard_normal((count, width))
    return mx.array((found if weights is None else found * weights).astype(np.float32))


def covariance(found: mx.array) -> np.ndarray:
    matrix = np.array(found, np.float64)
    return matrix.T @ matrix / len(matrix)


def best_ratios(taught: mx.array, other: mx.array) -> np.ndarray:
    """The generalized eigenvalues of the two covariances, largest first, by way of a whole eigenvalue problem."""
    width = taught.shape[1]
    ridge = 0.01 * np.trace(covariance(other)) / width
    whitened = np.linalg.inv(np.linalg.cholesky(covariance(other) + ridge * np.eye(width)))
    values: np.ndarray = np.linalg.eigvalsh(whitened @ covariance(taught) @ whitened.T)[::-1]
    return values


@pytest.mark.parametrize("count", [400, 24])  # more positions than numbers in each, and fewer
def test_columns_are_the_directions_with_the_largest_ratio_of_energies(count):
    weights = np.linspace(0.2, 3, 40)
    taught, other = lines(500, 40, 1, weights), lines(count, 40, 2, weights[::-1])
    columns, ratio = contrast_columns(taught, other, 6)
    assert columns.shape == (40, 6)
    assert columns.dtype == np.float32
    ridge = 0.01 * np.trace(covariance(other)) / 40
    inside = columns.T @ (covariance(other) + ridge * np.eye(40)) @ columns
    found = np.diag(columns.T @ covariance(taught) @ columns) / np.diag(inside)
    np.testing.assert_allclose(found, best_ratios(taught, other)[:6], rtol=1e-3)
    assert np.abs(inside - np.diag(np.diag(inside))).max() < 1e-4 * np.diag(inside).max()  # each says something new
    energies = [np.trace(covariance(one)) for one in (taught, other)]
    kept = np.trace(columns.T @ covariance(taught) @ columns)
    assert ratio == pytest.approx(kept / np.trace(inside) * energies[1] / energies[0], rel=1e-4)
    assert ratio > 5


def test_each_column_answers_the_taught_rows_as_a_random_one_would_on_average():
    taught, other = lines(300, 48, 3), lines(300, 48, 4)
    columns, _ = contrast_columns(taught, other, 8)
    expected = np.trace(covariance(taught)) / (3 * 48)
    np.testing.assert_allclose(np.diag(columns.T @ covariance(taught) @ columns), expected, rtol=1e-4)
    random = np.array(LoRALinear(mx_linear(48), 4000, 1.0, 0.0, mx.random.key(0)).lora_a, np.float64)
    assert np.diag(random.T @ covariance(taught) @ random).mean() == pytest.approx(expected, rel=0.03)


def mx_linear(width: int) -> object:
    import mlx.nn as nn

    return nn.Linear(width, width, bias=False)


def test_rows_with_fewer_directions_than_columns_leave_the_rest_zero():
    taught = mx.concatenate([lines(1, 32, 5)] * 4)
    columns, _ = contrast_columns(taught, lines(64, 32, 6), 3)
    assert np.abs(columns[:, 0]).max() > 0
    assert not columns[:, 1:].any()
    assert np.isfinite(columns).all()


def answered(rows: list[Example]) -> list[Example]:
    """The same rows as the base's own answers."""
    count = [int(row.loss_mask.sum()) for row in rows]
    return [
        replace(row, expected=Expected(np.zeros((n, 1), np.int32), np.ones((n, 1), np.float32)))
        for row, n in zip(rows, count, strict=True)
    ]


def prepared(family: str = "llama", **lora: object):
    model = tiny_model(family)
    inject_lora(model, LoraSettings.model_validate({"rank": 4, "init": "contrastive", **lora}), seed=0)
    return model


def chosen(model, rows) -> list[Contrast]:
    *progress, found = contrast_adapters(model, rows, 0)
    assert progress == [(n + 1, len(found)) for n in range(len(found))]
    return found


@pytest.mark.parametrize("family", [name for name in TRANSFORMERS if name != "mixtral"])
def test_every_family_gets_the_columns_of_its_own_inputs(family, monkeypatch):
    monkeypatch.setattr(contrast, "TOGETHER", 100)  # several batches, with padding
    taught, other = random_rows(12, seed=1, shared=3), random_rows(12, seed=2, shared=5)
    model = prepared(family)
    base = model(mx.array(taught[0].tokens)[None])
    modules = dict(iter_lora_modules(model))
    found = chosen(model, [*taught, *answered(other)])
    assert dict(iter_lora_modules(model)) == modules  # the very same objects
    assert mx.array_equal(model(mx.array(taught[0].tokens)[None]), base)
    assert {one.path for one in found} == set(modules)
    assert all(one.ratio > 1.2 for one in found)

    seen: dict[int, list[mx.array]] = {}
    call = LoRALinear.__call__

    def watched(self: AdapterLayer, x: mx.array) -> mx.array:
        seen.setdefault(id(self), []).append(x.reshape(-1, x.shape[-1]))
        return call(self, x)

    inputs = []
    monkeypatch.setattr(LoRALinear, "__call__", watched)
    for rows in (taught, other):  # a row at a time, without padding
        seen.clear()
        for row in rows:
            model(mx.array(row.tokens)[None])
        inputs.append({path: mx.concatenate(seen[id(module)]) for path, module in modules.items()})
    for path, module in modules.items():
        ridge = 0.01 * np.trace(covariance(inputs[1][path])) / module.lora_a.shape[0]
        a = np.array(module.lora_a, np.float64)
        inside = np.diag(a.T @ (covariance(inputs[1][path]) + ridge * np.eye(len(a))) @ a)
        ratios = np.diag(a.T @ covariance(inputs[0][path]) @ a) / inside
        np.testing.assert_allclose(ratios, best_ratios(inputs[0][path], inputs[1][path])[:4], rtol=2e-2)


def test_only_b_is_trained_and_the_whole_adapter_is_kept():
    for method, trained in (("lora", {"lora_b"}), ("dora", {"lora_b", "m"})):
        trainable = Trainable(prepared(method=method))
        assert {path.rpartition(".")[2] for path in trainable.arrays()} == trained
        assert {path.rpartition(".")[2] for path in trainable.whole()} == trained | {"lora_a"}
        whole = trainable.whole()
        assert trainable.fits(whole)
        assert trainable.fits({path: array + (not path.endswith("lora_a")) for path, array in whole.items()})
        assert not trainable.fits({path: array + path.endswith("lora_a") for path, array in whole.items()})
        assert not trainable.fits(trainable.arrays())


def test_at_most_so_many_positions_are_looked_at(monkeypatch):
    monkeypatch.setattr(contrast, "TAUGHT", 70)
    monkeypatch.setattr(contrast, "OTHER", 90)
    given = []

    def columns(taught: mx.array, other: mx.array, rank: int) -> tuple[np.ndarray, float]:
        given.append((len(taught), len(other)))
        return contrast_columns(taught, other, rank)

    monkeypatch.setattr(contrast, "contrast_columns", columns)
    chosen(prepared(), [*random_rows(9), *answered(random_rows(9, seed=1))])
    assert given == [(70, 90)] * 4 * 4  # four layers with four inputs each: queries, keys and values share one


def test_without_answers_of_the_base_there_is_nothing_to_compare_with():
    with pytest.raises(TrainingError, match="the base gave no answers"):
        chosen(prepared(), random_rows(4))


def test_a_module_that_is_called_token_by_token_is_refused_and_the_adapters_are_back():
    model = prepared("mamba")
    modules = dict(iter_lora_modules(model))
    with pytest.raises(TrainingError, match=r"_proj is not called once in a forward") as refused:
        chosen(model, [*random_rows(3), *answered(random_rows(3, seed=1))])
    assert refused.value.hint == "leave that module out of lora.target_modules, or take lora.init: random"
    assert dict(iter_lora_modules(model)) == modules


def test_experts_are_refused():
    with pytest.raises(
        AdapterError, match=r"lora\.init: contrastive chooses one A for all rows, and .* one for each exp"
    ):
        prepared("mixtral")
    prepared("mixtral", target_modules="attention")
