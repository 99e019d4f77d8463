"""The rig that the slice of `make chaos` works on: the session's broker and server."""

import sys
from collections.abc import Iterator

import pytest

from tests.chaos.nursery import Nursery
from tests.chaos.rig import Rig
from tests.conftest import TEMPLATE
from tests.postgres import Databases


@pytest.fixture
def rig(
    bootstrap: str, databases: Databases, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Rig]:
    """Give what scenarios share; a test that fails shows how far they came."""
    folder = tmp_path_factory.mktemp("chaos")
    made: list[str] = []

    def database() -> str:
        made.append(databases.create(TEMPLATE))
        return made[-1]

    with Nursery(folder) as nursery:
        yield Rig(
            bootstrap=bootstrap,
            folder=folder,
            database=database,
            nursery=nursery,
            say=lambda text: print(text, file=sys.stderr),  # noqa: T201 - pytest keeps it
        )
    for url in made:
        databases.drop(url)
