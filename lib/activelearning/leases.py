"""Leases: who was given which image, so that no two annotators get the same one at a time.

Shared between request threads. One lock covers the table; it is never held while anything waits.
"""

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Lease:
    """An image in somebody's hands."""

    user: str
    since: float
    """Seconds since the epoch."""


class Leases:
    """Hands out images, one annotator each."""

    def __init__(self, lease_s: float, skip_s: float, clock: Callable[[], float] = time.time):
        """After it was given out nobody else gets an image for `lease_s`; the same annotator, who has skipped it or is done
        with it, not for `skip_s`."""
        self._lease_s = lease_s
        self._skip_s = skip_s
        self._clock = clock
        self._lock = threading.Lock()
        self._given: dict[str, Lease] = {}

    @property
    def lease_s(self) -> float:
        return self._lease_s

    def now(self) -> float:
        """Seconds since the epoch."""
        return self._clock()

    def note(self, image: str, lease: Lease) -> None:
        """Take in that somebody works on an image; an older lease of it ends."""
        with self._lock:
            known = self._given.get(image)
            if known is None or known.since < lease.since:
                self._given[image] = lease

    def held(self) -> set[str]:
        """The images that are given out."""
        with self._lock:
            return {image for image, lease in self._given.items() if self._clock() - lease.since < self._lease_s}

    def take(self, images: Iterable[str], user: str) -> str | None:
        """Give `user` the first of the images that is free for them; None when there is no image at all.

        When none is free: the one that they themselves had, the longest time ago, then the one that somebody else had.
        """
        with self._lock:
            now = self._clock()
            kept: list[tuple[bool, float, str]] = []
            for image in images:
                lease = self._given.get(image)
                if lease is None or now - lease.since >= (self._skip_s if lease.user == user else self._lease_s):
                    break
                kept.append((lease.user != user, lease.since, image))
            else:
                if not kept:
                    return None
                image = min(kept)[2]
            self._given[image] = Lease(user, now)
            return image
