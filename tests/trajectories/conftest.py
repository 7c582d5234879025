"""Stores to test with: SQLite, and a real PostgreSQL where Debian's package is installed."""

import secrets

import psycopg
import pytest

from lib.trajectories.store import TrajectoryStore
from tests.trajectories.postgres import programs, running


@pytest.fixture(scope="session")
def postgres():
    """The URL of a PostgreSQL server."""
    where = programs()
    if where is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    with running(where) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request) -> str:
    """The URL of a fresh database; empty for SQLite beside the blobs."""
    if request.param == "sqlite":
        return ""
    server = request.getfixturevalue("postgres")
    name = f"ibis_{secrets.token_hex(4)}"
    with psycopg.connect(f"{server}postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"{server}{name}"


@pytest.fixture
def store(tmp_path, database):
    opened = TrajectoryStore(tmp_path / "store", database)
    yield opened
    opened.close()
