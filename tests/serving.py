"""A real model server nobody here wrote: `transformers serve` as a child process, with a tiny checkpoint."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

import httpx

from lib.server.process import free_port

PATIENCE_S = 120


class ModelServer:
    """Serves the checkpoint in `folder` on the loopback interface, from `with` to the end of the block.

    The output goes to `log`; beside it lies the server's empty model cache. Only its own process group is ever signalled.
    """

    def __init__(self, folder: Path, log: Path, port: int | None = None):
        self.model = str(folder)
        """The only model name that the server takes."""
        self.port = port or free_port()
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """The base URL for OpenAI clients."""
        return f"{self.root}/v1"

    def start(self) -> None:
        """Start on the port, also again after `kill`; returns when the server answers. Raises RuntimeError with its log."""
        serve = str(Path(sys.executable).parent / "transformers")
        command = [serve, "serve", self.model, "--host", "127.0.0.1", "--port", str(self.port), "--device", "cpu"]
        quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(self._log.parent / "hf")}
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | quiet, start_new_session=True
            )
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                if httpx.get(f"{self.root}/health", timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.1)
        self.kill()
        tail = self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
        raise RuntimeError("transformers serve did not come up:\n" + "\n".join(tail))

    def kill(self) -> None:
        """End it at once, as a crash would."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def __enter__(self) -> "ModelServer":
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.kill()
