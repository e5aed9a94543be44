"""A page in headless Chromium, for all tests of a module."""

import shutil
import tempfile
from pathlib import Path

import pytest

from tests.browser.chromium import chromium


@pytest.fixture(scope="module")
def page():
    folder = tempfile.mkdtemp()
    try:
        with chromium(Path(folder)) as page:
            yield page
    finally:
        shutil.rmtree(folder, ignore_errors=True)
