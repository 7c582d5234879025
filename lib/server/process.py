"""The server as a child process, for the demo and for tests: real port, real HTTP."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

import httpx

from lib.errors import EngineError

ROOT = Path(__file__).resolve().parent.parent.parent


class ServerProcess:
    """`python main.py serve` on a free port of the loopback interface, from `with` to the end of the block.

    Raises EngineError with the end of the log when the server does not come up within `patience_s`.
    """

    def __init__(self, studies: Path | str, log: Path, arguments: tuple[str, ...] = (), patience_s: float = 180):
        self._studies = studies
        self._log = log
        self._arguments = arguments
        self._patience_s = patience_s
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> "ServerProcess":
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, str(ROOT / "main.py"), "serve", "--studies", str(self._studies), "--port", str(port)]
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                [*command, *self._arguments], stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, start_new_session=True
            )
        try:
            self._wait()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._stop()

    def _wait(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + self._patience_s
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise EngineError(f"the server stopped while starting (exit code {self._process.returncode}):\n{self._tail()}")
            try:
                if httpx.get(f"{self.url}/info/", timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.2)
        raise EngineError(f"the server did not answer within {self._patience_s:.0f} s:\n{self._tail()}")

    def _stop(self) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        os.killpg(self._process.pid, signal.SIGTERM)
        try:
            self._process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _tail(self) -> str:
        return "\n".join(self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])


def free_port() -> int:
    """A port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
