"""What holds for every test: a cache folder of its own, no network, no time limits inside property tests."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # two threads lose much on tiny matrices and on shared cores
os.environ.pop("COLUMNS", None)  # pytest-xdist sets it for its workers; a test that needs a width sets it

import pytest
from hypothesis import settings

import mlx_lora  # noqa: F401  # loads the fast BLAS before any test imports MLX

settings.register_profile("shared", deadline=None)
settings.load_profile("shared")


@pytest.fixture(autouse=True, scope="session")
def _hermetic(tmp_path_factory):
    """Nothing is read from or left in the user's cache, and no model hub is asked."""
    before = {name: os.environ.get(name) for name in ("MLX_LORA_CACHE", "HF_HUB_OFFLINE")}
    os.environ["MLX_LORA_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["HF_HUB_OFFLINE"] = "1"
    yield
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
