"""The server under load: several clients at once, and what everybody else waits meanwhile."""

import json
import shutil
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx

from lib.errors import EngineError
from lib.server.process import ServerProcess


@dataclass(frozen=True)
class ServerMeasurement:
    """Seconds, wall clock."""

    serial: float
    """All requests one after another."""
    parallel: float
    """The same requests at once."""
    info_alone: float
    """Median `GET /info/` of an idle server."""
    info_median: float
    """Median `GET /info/` while the requests run at once."""
    info_longest: float


def measure_server(image: Path, prompt: str, engine: str, clients: int, scratch: Path) -> ServerMeasurement:
    """Start the server on `clients` copies of an image and ask for `prompt` on each."""
    studies = scratch / "studies"
    studies.mkdir()
    for number in range(clients):
        if image.is_dir():
            shutil.copytree(image, studies / f"case{number}")
        else:
            shutil.copy(image, studies / f"case{number}{''.join(image.suffixes)}")
    arguments = ("--engine", engine) if engine else ()
    with ServerProcess(studies, scratch / "server.log", arguments) as server:
        names = sorted(httpx.get(f"{server.url}/datastore/?output=all", timeout=60).json()["objects"])
        if len(names) != clients:
            raise EngineError(f"the server lists {len(names)} images, not {clients}")
        _infer(server.url, names[0], prompt)
        with httpx.Client(base_url=server.url, timeout=60) as session:
            alone = statistics.median(_info(session) for _ in range(20))
        began = time.perf_counter()
        for name in names:
            _infer(server.url, name, prompt)
        serial = time.perf_counter() - began
        waits: list[float] = []
        done = threading.Event()
        watcher = threading.Thread(target=_watch, args=(server.url, waits, done))
        watcher.start()
        began = time.perf_counter()
        try:
            with ThreadPoolExecutor(clients) as pool:
                list(pool.map(lambda name: _infer(server.url, name, prompt), names))
        finally:
            done.set()
            watcher.join()
        parallel = time.perf_counter() - began
    return ServerMeasurement(serial, parallel, alone, statistics.median(waits), max(waits))


def _infer(url: str, name: str, prompt: str) -> None:
    answer = httpx.post(
        f"{url}/infer/ibis_agent?image={name}&output=json", data={"params": json.dumps({"prompt": prompt})}, timeout=600
    )
    answer.raise_for_status()


def _info(session: httpx.Client) -> float:
    began = time.perf_counter()
    session.get("/info/").raise_for_status()
    return time.perf_counter() - began


def _watch(url: str, waits: list[float], done: threading.Event) -> None:
    with httpx.Client(base_url=url, timeout=60) as session:
        while not done.is_set():
            waits.append(_info(session))
            time.sleep(0.02)
