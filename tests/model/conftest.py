"""What tests of models share."""

from collections.abc import Iterator

import mlx_lora  # isort: skip  # before mlx.core: it loads OpenBLAS
import mlx.core as mx
import pytest

assert mlx_lora


@pytest.fixture
def on_the_cpu() -> Iterator[None]:
    """Computes on the CPU, wherever the tests run."""
    before = mx.default_device()
    mx.set_default_device(mx.Device(mx.cpu))
    yield
    mx.set_default_device(before)
