"""The queue: what the server works on, what waits, and in which order.

Shared between threads. One lock guards the table of jobs; it is never held while work is done. Workers are threads that wait
for work; submitting, listing and cancelling never block. A job's future is done after the job has left the table.
"""

import heapq
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from lib.agent.limits import Limits
from lib.server.jobs.refusal import Refusal


class Priority(IntEnum):
    """Lower goes first; within one, first come first served."""

    CLICK = 0
    """A person waits for the mask of a click."""
    WAITED = 1
    """A client waits for the run, through `/infer/`."""
    BACKGROUND = 2
    """A run that someone will look at later."""


@dataclass(frozen=True, eq=False)
class Job:
    """One piece of work. Wait for it with `future.result`: `concurrent.futures.wait` hears late that it was cancelled."""

    key: str
    """The run's id; for clicks an id of its own."""
    user: str
    priority: Priority
    about: str
    """What it is, for people."""
    work: Callable[[], Any]
    limits: Limits = field(default_factory=Limits)
    future: "Future[Any]" = field(default_factory=Future)
    created: float = field(default_factory=time.time)
    """Seconds since the epoch."""

    def cancel(self) -> None:
        """Never begin it if it waits, end it at the next turn if it runs."""
        self.limits.cancelled.set()
        self.future.cancel()


class JobQueue:
    """`workers` threads for all jobs and one for clicks alone, so that a click never waits behind runs.

    A user may have `per_user` runs here at a time, waiting ones included; clicks do not count.
    """

    def __init__(self, workers: int, per_user: int = 20):
        self._per_user = per_user
        self._changed = threading.Condition()
        self._heap: list[tuple[Priority, int, Job]] = []
        self._running: list[Job] = []
        self._number = 0
        self._closed = False
        ranges = [Priority.BACKGROUND] * workers + [Priority.CLICK]
        self._threads = [
            threading.Thread(target=self._serve, args=(to,), name=f"jobs-{to.name.lower()}", daemon=True) for to in ranges
        ]
        for thread in self._threads:
            thread.start()

    @property
    def closed(self) -> bool:
        return self._closed

    def submit(self, job: Job) -> Job:
        """Take the job in. Raises Refusal: 429 when its user has too many runs here, 503 when the server is stopping."""
        with self._changed:
            if self._closed:
                raise Refusal(503, "the server is stopping")
            self._heap = [entry for entry in self._heap if not entry[2].future.cancelled()]
            heapq.heapify(self._heap)
            if job.priority is not Priority.CLICK:
                mine = sum(other.user == job.user and other.priority is not Priority.CLICK for other in self._jobs())
                if mine >= self._per_user:
                    raise Refusal(
                        429,
                        f"{job.user} has {mine} runs here that wait or run: wait for one to end, or cancel one",
                        {"Retry-After": "10"},
                    )
            self._number += 1
            heapq.heappush(self._heap, (job.priority, self._number, job))
            self._changed.notify_all()
        return job

    def running(self) -> list[Job]:
        with self._changed:
            return list(self._running)

    def waiting(self) -> list[Job]:
        """The jobs that wait, the next one first."""
        with self._changed:
            return [job for *_, job in sorted(self._heap, key=lambda entry: entry[:2]) if not job.future.cancelled()]

    def find(self, key: str) -> Job | None:
        """The job of that key that waits or runs."""
        with self._changed:
            return next((job for job in self._jobs() if job.key == key and not job.future.cancelled()), None)

    def close(self, patience_s: float = 5.0) -> None:
        """Take nothing more in, cancel everything, and wait until the workers have stopped, or for `patience_s` seconds."""
        with self._changed:
            self._closed = True
            jobs = self._jobs()
        for job in jobs:
            job.cancel()
        with self._changed:
            for *_, job in self._heap:
                job.future.set_running_or_notify_cancel()
            self._heap.clear()
            self._changed.notify_all()
        deadline = time.monotonic() + patience_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _jobs(self) -> list[Job]:
        return self._running + [job for *_, job in self._heap]

    def _serve(self, least: Priority) -> None:
        while (job := self._next(least)) is not None:
            self._do(job)
            del job

    def _next(self, least: Priority) -> Job | None:
        with self._changed:
            while not self._closed:
                while self._heap and self._heap[0][0] <= least:
                    job = heapq.heappop(self._heap)[2]
                    if job.future.set_running_or_notify_cancel():
                        self._running.append(job)
                        return job
                self._changed.wait()
        return None

    def _do(self, job: Job) -> None:
        """As `concurrent.futures` does it: whatever the work raises reaches who waits for it."""
        try:
            result = job.work()
        except BaseException as error:
            self._leave(job)
            job.future.set_exception(error)
        else:
            self._leave(job)
            job.future.set_result(result)

    def _leave(self, job: Job) -> None:
        with self._changed:
            self._running.remove(job)
