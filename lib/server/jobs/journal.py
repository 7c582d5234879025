"""The journal of a run: one JSON event a line, appended and never changed. What it says is the state of the run.

Shared between threads and processes. A run has one writer among all processes: it holds an exclusive `flock` on the file, which
the kernel takes back when the process ends, however it ends. Appending takes the writer's own lock and waits for the disk.
Readers need no lock: they take whole lines only. What a kill cut short at the end of the file is no event; the next
writer removes it.
"""

import fcntl
import json
import mmap
import os
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any

NAME = "events.jsonl"
CHUNK = 2**20
"""Bytes that a reader takes at a time, to the end of the line."""
_BLOCK = 2**18
"""Bytes that are read at a time from the end."""

Event = dict[str, Any]
"""`seq` (1 for the first), `time` (ISO 8601, UTC), `kind`, and what belongs to the kind."""


class Kind(StrEnum):
    """What happened."""

    QUEUED = "queued"
    """The run waits for a worker: `user`, `priority`."""
    STARTED = "started"
    """Work began: `engine`, `content_hash` of the image, `slices` (for each target the slices asked for)."""
    SLICE_STARTED = "slice_started"
    """An episode began on `slice` for `target` (1 for the first); its mask is empty."""
    STEP = "step"
    """A step was taken: `target`, `slice`, `turn`, `actor`, `thought`, `action`, `score`, `details`, and `change`: the pixels
    of the view in which the mask differs from the one before, as COCO run lengths; null when it does not."""
    SLICE_SETTLED = "slice_settled"
    """`slice` has its `outcome` for `target` (a record of `lib.agent.record`); the last one counts. `conclusive`: whether it is
    an answer."""
    INTERRUPTED = "interrupted"
    """The server stopped, or was stopped, while the run waited or worked."""
    RESUMED = "resumed"
    """The run waits for a worker again: `user`, `priority`. Settled slices stay."""
    CANCELLED = "cancelled"
    """Someone, or the end of the time budget before it began, stopped it: `detail`; when it had begun also what DONE has."""
    FAILED = "failed"
    """The run could not be carried out: `detail`, `field`, and the HTTP `status` that says whose fault it is."""
    DONE = "done"
    """Every slice had its turn: `status` (complete or incomplete), `answer`, `notes`, `traces` (for each target its trace
    without the slices)."""
    UNDO = "undo"
    """The annotator took the click of `turn` on `slice` of `target` back; a click placed is a STEP."""
    LOCK = "lock"
    """`slice` of `target` is not to be changed by agent or propagation."""
    UNLOCK = "unlock"
    CONTINUED = "continued"
    """The agent goes on from where the annotator left it."""


class Busy(RuntimeError):
    """Another writer, perhaps in another process, has the journal."""


class Journal:
    """The writer of one run's journal. Raises Busy when there is another, FileNotFoundError when the run's folder is gone."""

    def __init__(self, folder: Path):
        self._lock = threading.Lock()
        self._handle = os.open(folder / NAME, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._end, self.seq = _mended(self._handle)
        except BlockingIOError as error:
            os.close(self._handle)
            raise Busy(f"run {folder.name} is being worked on") from error
        except BaseException:
            os.close(self._handle)
            raise

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def append(self, kind: Kind, **data: Any) -> Event:
        """Write one event; whole, or OSError and the journal is as it was."""
        with self._lock:
            event = {
                "seq": self.seq + 1,
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "kind": kind.value,
                **data,
            }
            line = json.dumps(event, separators=(",", ":"), allow_nan=False).encode() + b"\n"
            try:
                rest = memoryview(line)
                while rest:
                    rest = rest[os.write(self._handle, rest) :]
            except OSError:
                os.ftruncate(self._handle, self._end)
                raise
            self._end += len(line)
            self.seq += 1
        return event

    def close(self) -> None:
        """Let go of the journal; may be called again."""
        with self._lock:
            if self._handle >= 0:
                os.close(self._handle)
                self._handle = -1


def read_events(folder: Path, offset: int = 0, at_most: int = CHUNK) -> tuple[list[Event], int]:
    """The events from byte `offset` on, and where to go on: about `at_most` bytes, none when there are no more (yet).

    Raises FileNotFoundError when the run is gone.
    """
    events = []
    begin = offset
    with open(folder / NAME, "rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                break
            events.append(json.loads(line))
            offset += len(line)
            if offset - begin >= at_most:
                break
    return events, offset


def backwards(folder: Path) -> Iterator[Event]:
    """The events, last first. Reads no more of the file than is asked for."""
    with open(folder / NAME, "rb") as file:
        begin = file.seek(0, os.SEEK_END)
        rest, torn = b"", True
        while begin:
            length = min(_BLOCK, begin)
            begin -= length
            file.seek(begin)
            rest, *lines = (file.read(length) + rest).split(b"\n")
            for line in reversed(lines):
                if not torn:
                    yield json.loads(line)
                torn = False
        if not torn:
            yield json.loads(rest)


def _mended(handle: int) -> tuple[int, int]:
    """Cut what is no whole event off the end of the file; its size and the number of its last event."""
    size = os.fstat(handle).st_size
    if not size:
        return 0, 0
    with mmap.mmap(handle, size, access=mmap.ACCESS_READ) as content:
        end = content.rfind(b"\n") + 1
        seq = json.loads(content[content.rfind(b"\n", 0, end - 1) + 1 : end])["seq"] if end else 0
    if end < size:
        os.ftruncate(handle, end)
    return end, seq
