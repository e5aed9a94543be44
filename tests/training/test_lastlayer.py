"""The last layer runs where a token is trained, and gives the plain forward's loss and gradients.

That it does so for every family, quantized too, with each other part, is in test_engine.py.
"""

from collections import Counter

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mlx_lora.dataset.batches import collate, padded_length
from mlx_lora.dataset.examples import Example
from mlx_lora.training.engine import Engine
from mlx_lora.training.lastlayer import use_windows, windows
from mlx_lora.training.trunk import find_trunk
from tests.training.rows import differences, engine, random_rows, stepper, trial

SHAPES = st.tuples(st.integers(1, 6), st.integers(1, 40))


@given(arrays(np.float32, SHAPES, elements=st.sampled_from([0.0, 0.0, 0.0, 1.0, 0.5])))
def test_windows_hold_every_trained_position_and_none_outside_the_row(weights):
    places = windows(weights)
    rows, length = weights.shape
    assert (np.diff(places, axis=1) == 1).all()
    assert places.min() >= 0
    assert places.max() < length
    for row in range(rows):
        assert set(np.flatnonzero(weights[row])) <= set(places[row].tolist())
    spans = [int(np.ptp(found)) + 1 for found in map(np.flatnonzero, weights) if len(found)]
    assert places.shape == (rows, min(length, padded_length(max(spans, default=1))))


def spans_near_the_end(count):
    """Rows of several turns with two or three trained spans among their last dozen tokens, and one with none."""
    rows = []
    for number, example in enumerate(random_rows(count, most=40)):
        mask = np.zeros(len(example.tokens), bool)
        mask[[-12 + number % 4, -8, -7, -3]] = True
        rows.append(Example(example.tokens, mask & (number != 2), example.place, None))
    return rows


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt2", "mixtral"])
@pytest.mark.parametrize("parts", [["supervised_positions"], "auto"])
def test_several_trained_spans_a_row_give_the_plain_gradients(family, parts):
    rows, run = spans_near_the_end(5), trial(family)
    batch = collate(rows, range(5))
    plain = Engine(run.model)
    expected = stepper(run, plain).gradients(plain.arrays(batch))
    way = engine(run, rows, parts)
    step = stepper(run, way, compiled=family == "llama")
    found = way.arrays(batch)
    assert found["windows"].shape == (5, 12)
    assert max(differences(step.gradients(found), expected).values()) < 5e-5


@pytest.mark.parametrize(("untrained", "width"), [(12, 28), (11, None)])
def test_windows_of_more_than_three_quarters_are_not_worth_it(untrained, width):
    tokens = np.arange(5, 46, dtype=np.int32)
    rows = [Example(tokens, np.arange(41) > untrained, "row", None)] * 2
    found = engine(trial(), rows, ["supervised_positions"]).arrays(collate(rows, range(2))).get("windows")
    assert (None if found is None else found.shape[1]) == width


@pytest.mark.parametrize("bits", [None, 4])
def test_outside_the_windows_the_last_layer_computes_keys_and_values_alone(bits):
    rows, run = random_rows(5), trial("gemma2", bits=bits)  # MLX can list what it computes: no part of it is our own
    way = engine(run, rows, ["supervised_positions"])
    batch = collate(rows, range(5))
    positions, inside = batch.inputs.size, way.arrays(batch)["windows"].size
    assert (positions, inside) == (240, 40)
    mine = products(way, batch)
    way.last_layer = False
    whole = products(way, batch)
    mlp, keys = 128, 32  # their widths, which no other part of a tiny model has
    # A layer has four wide products (gate and up, and each one's adapter) and four for its keys and values.
    assert {rows: whole[rows, mlp] for rows in (positions, inside)} == {positions: 16, inside: 0}
    assert {rows: mine[rows, mlp] for rows in (positions, inside)} == {positions: 12, inside: 4}
    assert mine[positions, keys] == whole[positions, keys] == 16
    assert mine[inside, keys] == 0


def products(way, batch):
    """How many matrix products of each shape MLX computes for the last layer's states of `batch`."""
    counts = Counter()

    def note(event):
        if event["type"] == "primitive" and event["name"] in ("Matmul", "QuantizedMatmul"):
            shape = event["outputs"][0][1]
            counts[int(np.prod(shape[:-1])), shape[-1]] += 1

    mx.export_function(note, lambda **arrays: way._states(arrays), **way.arrays(batch))
    return counts


def test_a_layer_that_cannot_run_on_windows_stays_as_it_was():
    trunk = find_trunk(trial("mamba").model)
    before = type(trunk.layers[-1])
    with pytest.raises((AttributeError, TypeError)):
        use_windows(trunk)
    assert type(trunk.layers[-1]) is before
