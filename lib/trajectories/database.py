"""The database of the store: SQLite (with a write-ahead log) or PostgreSQL, brought to the newest schema when it is opened.

Engines may be shared between threads and processes. On SQLite a writing transaction takes the write lock at its begin and waits
for another writer up to `BUSY_S`, so two writers never undo each other's work; readers never wait.
"""

from contextlib import closing
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from filelock import FileLock
from sqlalchemy import Connection, Engine, create_engine, event, insert, make_url, select, text
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError

from lib.errors import InputError
from lib.trajectories.tables import StoreRow

BUSY_S = 60.0
_MIGRATIONS = Path(__file__).resolve().parent / "migrations"
_POSTGRES_LOCK = 4_249_182
_BLOBS_LOCK = 4_249_183


def sqlite_url(path: Path) -> str:
    return f"sqlite:///{path.resolve()}"


def open_database(url: str, owner: str) -> Engine:
    """The engine, its schema made or migrated. `owner` tells the folder of the store's files: one database belongs to one.

    Raises InputError for an URL that is none, a server that does not answer, a database that a newer version of this project
    made, and one that belongs to another folder.
    """
    try:
        address = make_url(url)
        if address.get_backend_name() == "postgresql":
            engine = create_engine(address.set(drivername="postgresql+psycopg"), pool_pre_ping=True)
        elif address.get_backend_name() == "sqlite" and address.database:
            engine = _sqlite(url, Path(address.database))
        else:
            raise InputError(f"{address.render_as_string()!r}: use sqlite:///FILE or postgresql://...", "trajectories")
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        message = "this is no database URL: use sqlite:///FILE or postgresql://USER@HOST/NAME"  # and may hold a password
        raise InputError(message, "trajectories") from error
    try:
        migrate(engine)
        _claim(engine, owner)
    except DatabaseError as error:
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


def erase(engine: Engine) -> None:
    """Take what was deleted out of the database's files, as far as it is in our hands: PostgreSQL vacuums by itself."""
    if engine.dialect.name == "sqlite":
        with closing(engine.raw_connection()) as connection:  # a checkpoint cannot stand in a transaction
            connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _claim(engine: Engine, owner: str) -> None:
    with engine.begin() as connection:
        guard(connection, removing=True)
        there = connection.scalar(select(StoreRow.owner))
        if there is None:
            connection.execute(insert(StoreRow).values(owner=owner))
        elif there != owner:
            raise InputError(
                f"the database {engine.url.render_as_string()} belongs to another folder of trajectories: name that one, or "
                "another database",
                "trajectories",
            )


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
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "secure_delete=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        reading = connection.get_execution_options().get("reading", False)
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

    return engine
