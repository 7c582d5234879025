"""Finished runs on disk: their traces, for viewing after the answer was sent."""

import json
import os
import re
import secrets
import shutil
from pathlib import Path
from typing import Any

from lib.agent.run import RunResult
from lib.agent.trace import to_trace
from lib.imaging.cache import ImageRef
from lib.imaging.volume import Modality

_KEY = re.compile(r"[0-9a-f]{16}")


class RunStore:
    """One folder per run under `folder`, the newest `keep` of them. Safe to use from several threads and processes: a run's
    folder appears whole or not at all, and is never changed."""

    def __init__(self, folder: Path, keep: int = 500):
        self._folder = folder
        self._keep = keep

    def add(self, result: RunResult, image: ImageRef) -> str:
        """Store the trace of a run on an image; returns its id."""
        key = secrets.token_hex(8)
        self._folder.mkdir(parents=True, exist_ok=True)
        draft = self._folder / f".{key}"
        try:
            draft.mkdir()
            self._write(draft, result, image)
            os.replace(draft, self._folder / key)
        except OSError:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        self._prune()
        return key

    def _write(self, draft: Path, result: RunResult, image: ImageRef) -> None:
        where = {"path": str(image.path), "series": image.series, "modality": image.modality}
        (draft / "image.json").write_text(json.dumps(where), encoding="utf-8")
        (draft / "trace.json").write_text(json.dumps(to_trace(result)), encoding="utf-8")

    def trace(self, key: str) -> dict[str, Any] | None:
        """The trace of a run, or None when there is none of that id (any more)."""
        return self._read(key, "trace.json")

    def image(self, key: str) -> ImageRef | None:
        """The image that the run looked at; it may be gone by now."""
        where = self._read(key, "image.json")
        if where is None:
            return None
        return ImageRef(Path(where["path"]), where["series"], Modality(where["modality"]) if where["modality"] else None)

    def _read(self, key: str, name: str) -> Any:
        if not _KEY.fullmatch(key):
            return None
        try:
            return json.loads((self._folder / key / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None

    def _prune(self) -> None:
        runs = []
        for entry in os.scandir(self._folder):
            try:
                runs.append((entry.stat().st_mtime, entry.path) if _KEY.fullmatch(entry.name) else None)
            except FileNotFoundError:  # another thread removed it
                continue
        for _, path in sorted(run for run in runs if run is not None)[: -self._keep]:
            shutil.rmtree(path, ignore_errors=True)
