"""The real PACS and the real server for the end-to-end tests, together in a network namespace without any other network."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from lib.server.pacs.orthanc import Namespace, OrthancServer, why_not
from lib.server.process import ServerProcess

QUICK = "poll_s: 1\nexpiry_s: 1\ntimeout_s: 3\nretry_s: 0.5\nretry_most_s: 2\n"
"""Settings with which a test need not wait."""


@dataclass(frozen=True)
class Site:
    """Orthanc and the label server; both are reached through here."""

    namespace: Namespace
    pacs: OrthancServer
    server: ServerProcess
    cache: Path
    log: Path

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """A request to the label server."""
        return self.namespace.call(httpx.request, method, self.server.url + path, **{"timeout": 120, **options})

    def dicom(self, method: str, path: str, **options: Any) -> httpx.Response:
        """A request to the PACS's DICOMweb services."""
        return self.namespace.call(httpx.request, method, f"{self.pacs.url}/{path}", **{"timeout": 60, **options})


@contextmanager
def site(folder: Path, files: Sequence[Path], settings: str = QUICK, start_pacs: bool = True) -> Iterator[Site]:
    """A site below `folder` whose PACS holds `files`; skips the test where that cannot be."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    folder.mkdir(parents=True, exist_ok=True)
    configuration = folder / "pacs.yaml"
    configuration.write_text(settings, encoding="utf-8")
    with Namespace() as namespace, OrthancServer(namespace, folder / "orthanc") as pacs:
        pacs.add(files)
        if not start_pacs:
            pacs.kill()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MONAI_LABEL_DICOMWEB_CACHE_PATH", str(folder / "cache"))
            patch.setenv("HOME", str(folder / "home"))
            for name in [name for name in os.environ if name.lower() in ("http_proxy", "https_proxy", "all_proxy")]:
                patch.delenv(name)
            server = ServerProcess(pacs.url, folder / "server.log", ("--conf", "pacs", str(configuration)))
            namespace.call(server.__enter__)
        try:
            (cache,) = (folder / "cache").iterdir()
            yield Site(namespace, pacs, server, cache, folder / "server.log")
        finally:
            server.__exit__(None, None, None)
