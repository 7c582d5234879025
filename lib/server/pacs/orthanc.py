"""A small PACS for trying things out: Orthanc (Debian's packages), on this machine or in a network namespace of its own.

Orthanc 1.10 listens on every interface and cannot be told otherwise, but answers this machine only. In a namespace with nothing
but loopback it is by itself: what else is started there reaches it, and nothing reaches the internet.
"""

import ctypes
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import ParamSpec, Protocol, TypeVar

import httpx

from lib.errors import EngineError

P = ParamSpec("P")
T = TypeVar("T")

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
_NAMESPACES = Path("/run/netns")
_CLONE_NEWNET = 0x40000000
_PATIENCE_S = 20.0


def missing() -> str:
    """What Orthanc lacks on this machine; empty when it can run."""
    if shutil.which("Orthanc") is None or not PLUGIN.exists():
        return "Orthanc with its DICOMweb plugin is not installed: apt-get install orthanc orthanc-dicomweb"
    return ""


def why_not() -> str:
    """Why Orthanc cannot run in a namespace on this machine; empty when it can."""
    if missing():
        return missing()
    if shutil.which("ip") is None:
        return "ip is not installed: apt-get install iproute2"
    if os.geteuid() != 0:
        return "a network namespace of its own needs root"
    name = _name()
    if subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode:
        return "this machine allows no network namespaces"
    subprocess.run(["ip", "netns", "del", name], check=True)
    return ""


class Place(Protocol):
    """Where a PACS runs."""

    def call(self, function: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
        """Run a function there: sockets that it opens and processes that it starts belong there."""


class ThisMachine:
    """The network of this machine."""

    def call(self, function: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
        return function(*arguments, **options)


class Namespace:
    """A network namespace with loopback only, from `with` to the end of the block. Needs root.

    `call` runs a function inside: sockets that it opens and processes that it starts belong there. Threads of its own do this;
    those of the caller stay outside.
    """

    def __init__(self) -> None:
        self.name = _name()

    def __enter__(self) -> "Namespace":
        subprocess.run(["ip", "netns", "add", self.name], check=True)
        subprocess.run(["ip", "-n", self.name, "link", "set", "lo", "up"], check=True)
        self._pool = ThreadPoolExecutor(16, thread_name_prefix=self.name, initializer=self._enter)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._pool.shutdown()
        subprocess.run(["ip", "netns", "del", self.name], check=True)

    def call(self, function: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
        return self._pool.submit(function, *arguments, **options).result()

    def forward(self, port: int, inside: int) -> None:
        """Let this machine's own programs reach port `inside` of the namespace at 127.0.0.1:`port`, until the process ends.

        Raises EngineError when the port is taken.
        """
        try:
            listening = socket.create_server(("127.0.0.1", port))
        except OSError as error:
            raise EngineError(f"127.0.0.1:{port} cannot be listened on ({error.strerror})") from error
        threading.Thread(target=self._accept, args=(listening, inside), name="forward", daemon=True).start()

    def _accept(self, listening: socket.socket, inside: int) -> None:
        while True:
            near = listening.accept()[0]
            try:
                far = self.call(socket.create_connection, ("127.0.0.1", inside))
            except OSError:
                near.close()
                continue
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=_pump, args=(source, target), daemon=True).start()

    def _enter(self) -> None:
        with open(_NAMESPACES / self.name, "rb") as handle:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(handle.fileno(), _CLONE_NEWNET):
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))


class OrthancServer:
    """Orthanc with DICOMweb in `place`, its database in `folder`; from `with` to the end of the block.

    Only its own process is ever signalled.
    """

    def __init__(self, place: Place, folder: Path, port: int = 8042):
        self._place = place
        self._folder = folder
        self._root = f"http://127.0.0.1:{port}"
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"{self._root}/dicom-web"
        """The DICOMweb root, as seen there."""

    def __enter__(self) -> "OrthancServer":
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.thaw()
        self.kill()

    def start(self) -> None:
        """Start it, also again after `kill`; returns when it answers. Raises EngineError with the end of its log."""
        self._folder.mkdir(parents=True, exist_ok=True)
        config = self._folder / "orthanc.json"
        config.write_text(json.dumps(self._configuration(), indent=1), encoding="utf-8")
        with open(self._folder / "orthanc.log", "ab") as log:
            self._process = self._place.call(
                subprocess.Popen, ["Orthanc", str(config)], stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        deadline = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                if self._place.call(httpx.get, f"{self._root}/system", timeout=2).status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.05)
        self.kill()
        tail = (self._folder / "orthanc.log").read_text(encoding="utf-8", errors="replace").splitlines()[-8:]
        raise EngineError("Orthanc did not come up:\n" + "\n".join(tail))

    def kill(self) -> None:
        """End it at once, as a power cut would."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def freeze(self) -> None:
        """Let it hang: connections are accepted, nothing is answered."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)

    def add(self, files: Iterable[Path]) -> None:
        """Store DICOM files in it. Raises EngineError when it refuses one."""
        self._place.call(self._add, files)

    def _add(self, files: Iterable[Path]) -> None:
        with httpx.Client(timeout=60) as http:
            for path in files:
                answer = http.post(f"{self._root}/instances", content=path.read_bytes())
                if answer.status_code != 200:
                    raise EngineError(f"Orthanc refuses {path.name}: {answer.text[:200]}")

    def _configuration(self) -> dict[str, object]:
        database = str(self._folder / "database")
        return {
            "Name": "IBIS Label",
            "StorageDirectory": database,
            "IndexDirectory": database,
            "HttpPort": self._port,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomServerEnabled": False,
            "Plugins": [str(PLUGIN)],
            "DicomWeb": {
                "Enable": True,
                "Root": "/dicom-web/",
                "EnableWado": True,
                "StudiesMetadata": "Full",
                "SeriesMetadata": "Full",
            },
        }


def _name() -> str:
    return f"ibis-{secrets.token_hex(4)}"


def _pump(source: socket.socket, target: socket.socket) -> None:
    try:
        while chunk := source.recv(65536):
            target.sendall(chunk)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        source.close()
        target.close()
