"""The states of runs that someone asked for lately, kept so that only new events are read.

Shared between threads. One lock guards the table and is held for moments only; each entry has its own, held while the journal's
new events are read. Entries go when they are old, or when the journals behind them add up to too much; the next question reads
the journal again.
"""

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

from lib.server.jobs.journal import read_events
from lib.server.jobs.state import RunState


@dataclass(eq=False)
class _Entry:
    lock: threading.Lock = field(default_factory=threading.Lock)
    state: RunState = field(default_factory=RunState)
    offset: int = 0
    used: float = 0.0


class StateCache:
    """At most `max_bytes` of journals, each for `idle_s` seconds after it was last asked for; the last one is always kept."""

    def __init__(self, max_bytes: int = 256 * 2**20, idle_s: float = 1800):
        self._max_bytes = max_bytes
        self._idle_s = idle_s
        self._lock = threading.Lock()
        self._entries: OrderedDict[Path, _Entry] = OrderedDict()

    def get(self, folder: Path) -> RunState:
        """The present state of the run in `folder`; the caller may keep it. Raises FileNotFoundError when the run is gone."""
        now = time.monotonic()
        with self._lock:
            entry = self._entries.setdefault(folder, _Entry())
            entry.used = now
            self._entries.move_to_end(folder)
        try:
            with entry.lock:
                while True:
                    events, entry.offset = read_events(folder, entry.offset)
                    if not events:
                        break
                    for event in events:
                        entry.state.apply(event)
                state = entry.state.copy()
        except FileNotFoundError:
            with self._lock:
                self._entries.pop(folder, None)
            raise
        self._evict(now)
        return state

    def __len__(self) -> int:
        with self._lock:
            return len(self._entries)

    def _evict(self, now: float) -> None:
        with self._lock:
            total = sum(entry.offset for entry in self._entries.values())
            for folder, entry in list(self._entries.items())[:-1]:
                if total <= self._max_bytes and now - entry.used <= self._idle_s:
                    return
                total -= entry.offset
                del self._entries[folder]
