"""The database of the store: SQLite (with a write-ahead log) or PostgreSQL, brought to the newest schema when it is opened.

Engines may be shared between threads and processes. On SQLite a writing transaction takes the write lock at its begin and waits
for another writer up to `BUSY_S`, so two writers never undo each other's work; readers never wait.
"""

from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from filelock import FileLock
from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, OperationalError

from lib.errors import InputError

BUSY_S = 60.0
_MIGRATIONS = Path(__file__).resolve().parent / "migrations"
_POSTGRES_LOCK = 4_249_182
_BLOBS_LOCK = 4_249_183


def sqlite_url(path: Path) -> str:
    return f"sqlite:///{path.resolve()}"


def open_database(url: str) -> Engine:
    """The engine, its schema made or migrated. Raises InputError for an URL that is none, a server that does not answer, or a
    database that a newer version of this project made."""
    try:
        address = make_url(url)
        if address.get_backend_name() == "postgresql":
            engine = create_engine(address.set(drivername="postgresql+psycopg"), pool_pre_ping=True)
        elif address.get_backend_name() == "sqlite" and address.database:
            engine = _sqlite(url, Path(address.database))
        else:
            raise InputError(f"{address.render_as_string()!r}: use sqlite:///FILE or postgresql://...", "trajectories")
    except (ArgumentError, NoSuchModuleError) as error:
        raise InputError(f"{url!r} is no database URL: use sqlite:///FILE or postgresql://...", "trajectories") from error
    try:
        migrate(engine)
    except OperationalError as error:
        reason = str(error.orig).strip().splitlines()[0]
        raise InputError(
            f"the trajectory store {address.render_as_string()} cannot be opened: {reason}", "trajectories"
        ) from error
    return engine


def migrate(engine: Engine) -> None:
    """Bring the schema up to date; one process at a time does."""
    if engine.dialect.name == "sqlite":
        with FileLock(f"{engine.url.database}.lock"), engine.begin() as connection:
            _upgrade(connection)
    else:
        with engine.begin() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _POSTGRES_LOCK})
            _upgrade(connection)


def guard(connection: Connection, removing: bool) -> None:
    """Keep those who remove blobs and those who name them apart until the transaction ends: many may add at a time, or one
    remove. On SQLite the write lock does that already."""
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SELECT pg_advisory_xact_lock{'' if removing else '_shared'}(:key)"), {"key": _BLOBS_LOCK})


def _upgrade(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.attributes["connection"] = connection
    newest = ScriptDirectory.from_config(config).get_current_head()
    current = MigrationContext.configure(connection).get_current_revision()
    if current == newest:
        return
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise InputError(
            f"the trajectory store has schema {current}, which this version does not know: update IBIS Label", "trajectories"
        ) from error


def _sqlite(url: str, path: Path) -> Engine:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path.parent} cannot be made: {error.strerror}", "trajectories") from error
    engine = create_engine(url, connect_args={"timeout": BUSY_S})

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # SQLAlchemy's own BEGIN below, not the driver's late one
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        reading = connection.get_execution_options().get("reading", False)
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

    return engine
