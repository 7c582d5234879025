"""A cache bounded by bytes.

Shared between threads. One lock guards the table and is never held while values are made; a value that two threads want at once
is made by one of them while the other waits for it. A failure reaches all who wait, and is not kept.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class ByteCache(Generic[Key, Value]):
    """The most recently used values, up to `max_bytes` as `size` counts them; the last one is kept whatever its size."""

    def __init__(self, max_bytes: int, size: Callable[[Value], int]):
        self._max_bytes = max_bytes
        self._size = size
        self._lock = threading.Lock()
        self._futures: OrderedDict[Key, Future[Value]] = OrderedDict()

    def get(self, key: Key, make: Callable[[], Value]) -> Value:
        """The value of `key`, made now if it is not kept. Raises what `make` raises."""
        return self.get_many([key], lambda _: [make()])[0]

    def get_many(self, keys: Sequence[Key], make_many: Callable[[Sequence[Key]], Sequence[Value]]) -> list[Value]:
        """The values of `keys`, in order. `make_many` makes those that are neither kept nor being made by another thread: one
        value per key, each key once. Raises what `make_many` raises."""
        futures: dict[Key, Future[Value]] = {}
        mine: list[Key] = []
        with self._lock:
            for key in keys:
                if key not in self._futures:
                    self._futures[key] = Future()
                    mine.append(key)
                self._futures.move_to_end(key)
                futures[key] = self._futures[key]
        if mine:
            try:
                made = dict(zip(mine, make_many(mine), strict=True))
            except BaseException as error:
                with self._lock:
                    for key in mine:
                        del self._futures[key]
                for key in mine:
                    futures[key].set_exception(error)
                raise
            for key, value in made.items():
                futures[key].set_result(value)
            with self._lock:
                self._evict()
        return [futures[key].result() for key in keys]

    @property
    def nbytes(self) -> int:
        """Bytes of the values kept."""
        with self._lock:
            return sum(self._size(future.result()) for future in self._futures.values() if future.done())

    def _evict(self) -> None:
        done = [key for key, future in self._futures.items() if future.done()]
        total = sum(self._size(self._futures[key].result()) for key in done)
        for key in done[:-1]:
            if total <= self._max_bytes:
                return
            total -= self._size(self._futures.pop(key).result())
