"""One tiny house for all tests of the room, and one server over it."""

from collections.abc import Iterator

import pytest

from tests.serving.house import House, Running, build_house, served


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    """A llama with three adapters."""
    return build_house(tmp_path_factory.mktemp("house"), "llama_untied")


@pytest.fixture(scope="module")
def server(house: House) -> Iterator[Running]:
    """The house behind a port, all adapters loaded."""
    with served(house) as running:
        yield running
