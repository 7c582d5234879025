"""Final labels, on their way to the gradings: kept on disk until every recorded episode was held against them.

Shared between request threads, the poller of a PACS and one thread of its own, which does the grading one label after the
other and never stops a request. A label that arrived is whole on disk before `arrived` returns; what a killed process left is
graded after the next start. One lock guards the reports and the count of what waits.
"""

import json
import logging
import re
import secrets
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lib.agent.engine import Engine
from lib.agent.limits import Limits
from lib.errors import InputError
from lib.imaging.cache import ImageRef, VolumeCache
from lib.imaging.files import replacing
from lib.imaging.labelmaps import load_labels
from lib.trajectories.grading import Extent, FinalLabel, Graded, grade_label
from lib.trajectories.recorder import Recording
from lib.trajectories.rewards.recipes import Recipe
from lib.trajectories.store import now

logger = logging.getLogger(__name__)

_REPORTS = 200
_RETRY_S = 60.0
_SUFFIXES = re.compile(r"(\.nii\.gz|\.[A-Za-z0-9]{1,8})$")


@dataclass(frozen=True)
class Arrived:
    """A final label of an image."""

    image_id: str
    names: Mapping[int, str]
    """Voxel value -> name."""
    annotator: str
    source: str
    """"api", "review" or "pacs"."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Label name -> name of the target that it means."""
    extents: Mapping[str, Extent] = field(default_factory=dict)
    """By name the slices that the label speaks for, where those are not all."""


@dataclass(frozen=True)
class Report:
    """What became of a label."""

    key: str
    image_id: str
    annotator: str
    source: str
    time: str
    graded: Graded | None
    problem: str = ""
    """Why it could not be graded."""
    notes: tuple[str, ...] = field(default=())
    """What the annotator should know."""


class LabelDesk:
    """Grades what arrives. `locate` says where an image of the store is, and raises InputError or FileNotFoundError."""

    def __init__(
        self,
        folder: Path,
        recording: Recording,
        engine: Engine,
        volumes: VolumeCache,
        recipe: Recipe,
        locate: Callable[[str], ImageRef],
    ):
        self._folder = folder
        self._recording = recording
        self._engine = engine
        self._volumes = volumes
        self._recipe = recipe
        self._locate = locate
        self._lock = threading.Lock()
        self._reports: deque[Report] = deque(maxlen=_REPORTS)
        self._wake = threading.Event()
        self._limits = Limits()
        self._idle = threading.Condition(self._lock)
        self._thread = threading.Thread(target=self._work, name="grading", daemon=True)

    def start(self) -> None:
        """Begin, with what an earlier process left first."""
        self._thread.start()

    def close(self) -> None:
        """Stop between two episodes; what is not graded yet is after the next start."""
        self._limits.cancelled.set()
        self._wake.set()
        self._thread.join()

    def arrived(self, label: Arrived, file: Path) -> str:
        """Take a label whose map is in `file`; it is graded soon. Returns its key, which the report has."""
        self._folder.mkdir(parents=True, exist_ok=True)
        key = f"{now().replace(':', '')}-{secrets.token_hex(4)}"
        found = _SUFFIXES.search(file.name)
        name = f"{key}{found[0] if found else ''}"
        with replacing(self._folder / name) as draft:
            shutil.copyfile(file, draft)
        about = {**vars(label), "names": dict(label.names), "aliases": dict(label.aliases), "file": name}
        about["extents"] = {part: [extent.plane, sorted(extent.slices)] for part, extent in label.extents.items()}
        with replacing(self._folder / f"{key}.json") as draft:
            draft.write_text(json.dumps(about), encoding="utf-8")
        self._wake.set()
        return key

    def waiting(self, image_id: str = "") -> int:
        """How many labels (of an image) have arrived and are not graded yet."""
        return sum(not image_id or about["image_id"] == image_id for _, about in self._pending())

    def reports(self, image_id: str) -> list[Report]:
        """What became of the labels of an image since the server began, oldest first."""
        with self._lock:
            return [report for report in self._reports if report.image_id == image_id]

    def wait(self, timeout_s: float) -> bool:
        """Wait until nothing waits; False when it took longer."""
        with self._idle:
            return self._idle.wait_for(lambda: not self._pending(), timeout_s)

    def _work(self) -> None:
        later: dict[str, float] = {}
        while self._limits.reached() is None:
            self._wake.clear()
            due = [one for one in self._pending() if later.get(one[0].stem, 0.0) <= time.monotonic()]
            for path, about in due:
                try:
                    report = self._grade(path.stem, about)
                except Exception:  # the label stays, and is tried again: a database that is down comes back
                    logger.exception("A label is not graded yet; it is tried again in %d s", _RETRY_S)
                    later[path.stem] = time.monotonic() + _RETRY_S
                    continue
                if self._limits.reached() is not None:
                    return
                later.pop(path.stem, None)
                with self._idle:
                    self._reports.append(report)
                    path.unlink(missing_ok=True)
                    (self._folder / about["file"]).unlink(missing_ok=True)
                    self._idle.notify_all()
            self._wake.wait(_RETRY_S if later else None)

    def _pending(self) -> list[tuple[Path, dict[str, Any]]]:
        found = []
        for path in sorted(self._folder.glob("[!.]*.json")):
            try:
                found.append((path, json.loads(path.read_text(encoding="utf-8"))))
            except FileNotFoundError:  # graded meanwhile
                continue
        return found

    def _grade(self, key: str, about: Mapping[str, Any]) -> Report:
        who = (key, about["image_id"], about["annotator"], about["source"], now())
        self._recording.flush()
        try:
            volume = self._volumes.get(self._locate(about["image_id"]))
            final = FinalLabel(
                about["image_id"],
                volume,
                load_labels(self._folder / about["file"], volume),
                {int(value): name for value, name in about["names"].items()},
                about["annotator"],
                about["source"],
                about["aliases"],
                {name: Extent(plane, frozenset(slices)) for name, (plane, slices) in about["extents"].items()},
                key,
            )
            graded = grade_label(final, self._recording.store, self._recipe, self._engine, self._limits)
        except InputError as error:
            logger.warning("A label cannot be graded: %s", error.message)
            return Report(*who, None, problem=error.message)
        except FileNotFoundError:
            return Report(*who, None, problem="the image is gone")
        return Report(*who, graded, notes=tuple(_notes(graded)))


def _notes(graded: Graded) -> list[str]:
    notes = []
    for target in graded.unmatched_targets:
        unused = ", ".join(repr(name) for name in graded.unused_names)
        notes.append(
            f"no part of the label means {target!r}"
            + (f": name one of {unused} so, or say what it means" if unused else ": add a segment of that name")
        )
    for reason, count in graded.dropped.items():
        notes.append(f"{count} episodes have no reward: {reason}")
    if graded.unspoken:
        notes.append(f"{graded.unspoken} episodes lie on slices that the label does not speak for")
    if graded.changed:
        notes.append(f"{graded.changed} episodes were recorded on an earlier content of the image")
    return notes
