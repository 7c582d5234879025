"""The lane: one queue in front of the copies of one model, so that slices, runs and users share its batches.

Threads: any number of threads call `submit`, each copy of the model has one worker thread. One lock guards the queue; it is
never held while a model works. `submit` blocks until its items are done or its limits are reached.

Fair: a batch takes one item from each waiting call in turn, so a call of one item is in the next batch however long the others
are. A call whose limits are reached leaves the queue at once; a batch that nobody wants any more is told so.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from lib.agent.limits import UNLIMITED, Bound, EveryLimit
from lib.errors import EngineError, OutOfMemory

Item = TypeVar("Item")
Result = TypeVar("Result")
Work = Callable[[list[Item], Bound], list[Result | EngineError]]
"""A model: a batch in, for each item in order its result or the reason why there is none."""

_POLL = 0.05
"""Seconds between looks at the limits of a call that waits."""
_UNDONE = EngineError("interrupted")


@dataclass(eq=False)
class _Call(Generic[Item, Result]):
    """What one caller waits for. Guarded by the lane's lock."""

    limits: Bound
    waiting: deque[tuple[int, Item]]
    results: list[Result | EngineError]
    """An error stands where nothing has been done yet."""
    left: int
    since: float = field(default_factory=time.monotonic)
    broken: BaseException | None = None
    """A defect of the model's code: raised in the caller."""


Batch = list[tuple[_Call[Item, Result], int, Item]]


class Lane(Generic[Item, Result]):
    """Batches of at most `max_batch` items; a batch that is not full waits for more until its oldest item is `max_wait` seconds
    old. `copies` are equal models, each on its own device.

    A batch that does not fit into memory is halved, and so is `max_batch` from then on. Another failure of a batch fails only
    the items that fail alone too.
    """

    def __init__(self, name: str, copies: Sequence[Work[Item, Result]], max_batch: int, max_wait: float = 0.005):
        self.max_batch = max_batch
        self._max_wait = max_wait
        self._changed = threading.Condition()
        self._calls: deque[_Call[Item, Result]] = deque()
        self._closed = False
        for number, work in enumerate(copies):
            threading.Thread(target=self._serve, args=(work,), name=f"{name}-{number}", daemon=True).start()

    def submit(self, items: Sequence[Item], limits: Bound = UNLIMITED) -> list[Result | EngineError]:
        """The results of `items`, in order. When the limits are reached first, errors stand for what was not done."""
        return self.order(items, limits)()

    def order(self, items: Sequence[Item], limits: Bound = UNLIMITED) -> Callable[[], list[Result | EngineError]]:
        """Queue the items without waiting; the function that comes back waits for what `submit` returns."""
        call: _Call[Item, Result] = _Call(limits, deque(enumerate(items)), [_UNDONE] * len(items), len(items))
        with self._changed:
            if self._closed:
                raise EngineError("the engine has been closed")
            self._calls.append(call)
            self._changed.notify_all()
        return lambda: self._collect(call)

    def _collect(self, call: _Call[Item, Result]) -> list[Result | EngineError]:
        with self._changed:
            while call.left and call.broken is None and call.limits.reached() is None:
                self._changed.wait(_POLL)
            call.waiting.clear()
            if call.broken is not None:
                raise call.broken
            return list(call.results)

    def close(self) -> None:
        """End the worker threads once their batch is done; calls that wait get an error."""
        with self._changed:
            self._closed = True
            for call in self._calls:
                call.broken = EngineError("the engine has been closed")
            self._changed.notify_all()

    def _serve(self, work: Work[Item, Result]) -> None:
        while True:
            batch = self._next()
            if not batch:
                return
            try:
                self._work(work, batch)
            except BaseException as error:
                with self._changed:
                    for call, _, _ in batch:
                        call.broken = error
                    self._changed.notify_all()

    def _next(self) -> Batch[Item, Result]:
        """The next batch; empty when the lane has been closed."""
        with self._changed:
            while not self._closed:
                self._calls = deque(call for call in self._calls if call.waiting)
                ready = sum(len(call.waiting) for call in self._calls)
                if not ready:
                    self._changed.wait()
                    continue
                patience = min(call.since for call in self._calls) + self._max_wait - time.monotonic()
                if ready >= self.max_batch or patience <= 0:
                    return self._take()
                self._changed.wait(patience)
            return []

    def _take(self) -> Batch[Item, Result]:
        batch: Batch[Item, Result] = []
        while len(batch) < self.max_batch and self._calls:
            call = self._calls.popleft()
            position, item = call.waiting.popleft()
            batch.append((call, position, item))
            if call.waiting:
                self._calls.append(call)
        return batch

    def _work(self, work: Work[Item, Result], batch: Batch[Item, Result]) -> None:
        limits = EveryLimit([call.limits for call, _, _ in batch])
        results: list[Result | EngineError] = []
        failed: EngineError | None = None
        try:
            results = work([item for _, _, item in batch], limits)
        except EngineError as error:
            # A copy: the exception itself keeps the frames of the failed batch alive, and with them its memory on the device.
            failed = type(error)(str(error))
        if failed is None:
            self._deliver(batch, results)
        elif len(batch) == 1 or limits.reached() is not None:
            self._deliver(batch, [failed] * len(batch))
        else:
            half = len(batch) // 2 if isinstance(failed, OutOfMemory) else 1
            if isinstance(failed, OutOfMemory):
                with self._changed:
                    self.max_batch = max(1, min(self.max_batch, half))
            for begin in range(0, len(batch), half):
                self._work(work, batch[begin : begin + half])

    def _deliver(self, batch: Batch[Item, Result], results: Sequence[Result | EngineError]) -> None:
        with self._changed:
            for (call, position, _), result in zip(batch, results, strict=True):
                call.results[position] = result
                call.left -= 1
            self._changed.notify_all()
