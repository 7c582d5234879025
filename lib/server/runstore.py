"""Runs on disk: one folder each, with what was asked for and the journal of what came of it.

Shared between threads and processes, without locks: a run's folder appears whole or not at all, its request is never changed
(and kept in memory once it was read), and its journal has a writer of its own (`lib.server.jobs.journal`).
"""

import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lib.imaging.cache import ImageRef
from lib.imaging.volume import Modality
from lib.server.jobs.journal import NAME, Busy, Journal

RUNS = "runs"
"""The folder of a server's runs, beside that of its trajectories."""
_KEY = re.compile(r"[0-9a-f]{16}")
_DRAFT_S = 60.0
"""A draft older than this was left by a process that was killed."""


class RunStore:
    """One folder per run under `folder`, the newest `keep` of them and those that are being worked on."""

    def __init__(self, folder: Path, keep: int = 500):
        self._folder = folder
        self.keep = keep
        self._requests: dict[str, dict[str, Any]] = {}

    def create(self, request: Mapping[str, Any]) -> str:
        """Store what was asked for, with an empty journal; returns the run's id: 64 random bits, 16 hex digits."""
        key = secrets.token_hex(8)
        self._folder.mkdir(parents=True, exist_ok=True)
        draft = self._folder / f".{key}"
        try:
            draft.mkdir()
            (draft / "request.json").write_text(json.dumps({"schema": 1, "created": time.time(), **request}), encoding="utf-8")
            (draft / NAME).touch()
            os.replace(draft, self._folder / key)
        except OSError:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        self._prune()
        return key

    def remove(self, key: str) -> None:
        shutil.rmtree(self.folder(key), ignore_errors=True)

    def folder(self, key: str) -> Path:
        """Where the run lies, whether it is there or not. Raises FileNotFoundError for what cannot be an id."""
        if not _KEY.fullmatch(key):
            raise FileNotFoundError(f"{key!r} is no id of a run")
        return self._folder / key

    def newest_first(self) -> list[str]:
        """The ids of all runs, newest first."""
        return [path.name for _, path in sorted(self._found(), reverse=True)]

    def request(self, key: str) -> dict[str, Any] | None:
        """What was asked for, or None when there is no such run (any more)."""
        found = self._requests.get(key) or self._read(key, "request.json")
        if found is not None:
            if len(self._requests) > 2 * self.keep:
                self._requests.clear()
            self._requests[key] = found
        return found

    def legacy_trace(self, key: str) -> dict[str, Any] | None:
        """The trace of a run from before there were journals."""
        found: dict[str, Any] | None = self._read(key, "trace.json")
        return found

    def legacy_image(self, key: str) -> ImageRef | None:
        """The image of a run from before there were journals."""
        where = self._read(key, "image.json")
        if where is None:
            return None
        return ImageRef(Path(where["path"]), where["series"], Modality(where["modality"]) if where["modality"] else None)

    def sweep(self) -> None:
        """Remove drafts that a killed process left."""
        for draft in self._folder.glob(".*"):
            try:
                if _KEY.fullmatch(draft.name[1:]) and time.time() - draft.stat().st_mtime > _DRAFT_S:
                    shutil.rmtree(draft, ignore_errors=True)
            except FileNotFoundError:  # another process removed it
                continue

    def _read(self, key: str, name: str) -> Any:
        try:
            return json.loads((self.folder(key) / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None

    def _found(self) -> list[tuple[int, Path]]:
        found: list[tuple[int, Path]] = []
        if not self._folder.is_dir():
            return found
        for entry in os.scandir(self._folder):
            if _KEY.fullmatch(entry.name):
                try:
                    found.append((entry.stat().st_mtime_ns, Path(entry.path)))
                except FileNotFoundError:  # another thread removed it
                    continue
        return found

    def _prune(self) -> None:
        for _, path in sorted(self._found())[: -self.keep]:
            try:
                with Journal(path):
                    shutil.rmtree(path, ignore_errors=True)
            except (Busy, FileNotFoundError):
                continue
