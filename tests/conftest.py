"""What holds for every test: a cache folder of its own, no network, no time limits inside property tests."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # two threads lose much on tiny matrices and on shared cores
os.environ.pop("COLUMNS", None)  # pytest-xdist sets it for its workers; a test that needs a width sets it

import mlx_lora  # isort: skip  # loads the fast BLAS before MLX is imported
import mlx.core as mx
import pytest
from hypothesis import settings

assert mlx_lora

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


@pytest.fixture(scope="session")
def scratch(tmp_path_factory):
    """For property tests, whose examples write one file over and over: a folder that no other test looks into."""
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture(autouse=True)
def _no_limits_of_others():
    """A run gives MLX limits for its process; the next test begins without them, and measures what it would alone."""
    yield
    mx.set_memory_limit(2**40)
    mx.set_cache_limit(32 * 2**20)


@pytest.fixture
def one_task_at_a_time():
    """Above its limit MLX waits for each task; below, it lays out up to ten: how many depends on what else runs."""
    before = mx.set_memory_limit(1)
    yield
    mx.set_memory_limit(before)
