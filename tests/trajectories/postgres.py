"""A real PostgreSQL of Debian's packages, for the tests of one session: on loopback, in a temporary folder."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lib.server.process import free_port


def programs() -> Path | None:
    """Where initdb and postgres are; None when they are not installed."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return folders[-1].parent if folders else None


@contextmanager
def running(programs: Path) -> Iterator[str]:
    """The URL of a server, without a database's name, until the block ends. As root it runs as the user `postgres`."""
    folder = Path(tempfile.mkdtemp(prefix="ibis-postgres-"))
    user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    as_user = ["runuser", "-u", user, "--"] if os.geteuid() == 0 else []
    shutil.chown(folder, user)
    port = free_port()
    try:
        initdb = [*as_user, programs / "initdb", "-D", folder / "db", "-A", "trust", "-U", "ibis", "--no-sync"]
        subprocess.run(initdb, check=True, capture_output=True, cwd=folder)
        options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories="
        start = [*as_user, programs / "pg_ctl", "-D", folder / "db", "-w", "-o", options, "-l", folder / "log", "start"]
        subprocess.run(start, check=True, cwd=folder, stdout=subprocess.DEVNULL)
        try:
            yield f"postgresql://ibis@127.0.0.1:{port}/"
        finally:
            subprocess.run(
                [*as_user, programs / "pg_ctl", "-D", folder / "db", "-m", "immediate", "stop"],
                check=True,
                cwd=folder,
                stdout=subprocess.DEVNULL,
            )
    finally:
        shutil.rmtree(folder)
