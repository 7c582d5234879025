"""The endpoints of a remote model: who takes the next request, and who is left in peace for a while.

Lives in one asyncio loop and is used from there only, so nothing is locked. `lend` waits for room, and for a server that asked
for a pause; nothing else waits.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from openai import AsyncOpenAI

COOL_DOWN_S = 1.0
"""After the first failure; doubles with each further one."""
MAX_COOL_DOWN_S = 30.0


@dataclass(eq=False)
class Endpoint:
    """One server, and how it has been doing."""

    url: str
    client: AsyncOpenAI
    busy: int = 0
    """Requests under way."""
    failures: int = 0
    """In a row; requests that were under way together count as one."""
    reason: str = ""
    """Of the last failure."""
    failed_at: float = float("-inf")
    rests_until: float = 0.0
    """It failed: others are preferred until then, on the clock of `time.monotonic`; the next request is a probe."""
    paused_until: float = 0.0
    """It asked for a pause: nobody calls before."""

    def fail(self, reason: str, began: float) -> None:
        """A request that was sent at `began` (`time.monotonic`) failed for the server's fault."""
        if began >= self.failed_at:
            self.failures += 1
        self.reason = reason
        self.failed_at = time.monotonic()
        self.rests_until = self.failed_at + min(MAX_COOL_DOWN_S, COOL_DOWN_S * 2.0 ** (self.failures - 1))

    def answer(self) -> None:
        """It answered, so it lives."""
        self.failures = 0
        self.rests_until = 0.0

    def pause(self, seconds: float) -> None:
        self.paused_until = max(self.paused_until, time.monotonic() + seconds)


class Endpoints:
    """Lends endpoints to requests, each to at most `concurrency` at once."""

    def __init__(self, endpoints: Sequence[Endpoint], concurrency: int):
        self.all = tuple(endpoints)
        self._concurrency = concurrency
        self._next = 0
        self._changed = asyncio.Event()

    @asynccontextmanager
    async def lend(self) -> AsyncIterator[Endpoint]:
        """The least busy of those that are well, in turn; a failed one that has rested gets one request to prove itself. When
        none is well, the one whose rest ends first is tried all the same."""
        while (endpoint := self._choose()) is None:
            self._changed.clear()
            try:
                async with asyncio.timeout(self._pause()):
                    await self._changed.wait()
            except TimeoutError:
                continue
        endpoint.busy += 1
        try:
            yield endpoint
        finally:
            endpoint.busy -= 1
            self._changed.set()

    @property
    def any_well(self) -> bool:
        """Whether a request that failed elsewhere has somewhere to go at once."""
        now = time.monotonic()
        return any(not endpoint.failures and now >= endpoint.paused_until for endpoint in self.all)

    def given_up(self, failures: int) -> bool:
        """Whether every endpoint has failed more than so many times in a row: it is known to be away."""
        return all(endpoint.failures > failures for endpoint in self.all)

    def _choose(self) -> Endpoint | None:
        now = time.monotonic()
        self._next = (self._next + 1) % len(self.all)
        turn = self.all[self._next :] + self.all[: self._next]
        free = [endpoint for endpoint in turn if endpoint.busy < self._concurrency and now >= endpoint.paused_until]
        for endpoint in free:
            if endpoint.failures and now >= endpoint.rests_until and not endpoint.busy:
                return endpoint
        well = [endpoint for endpoint in free if not endpoint.failures]
        if well:
            return min(well, key=lambda endpoint: endpoint.busy)
        if any(not endpoint.failures for endpoint in self.all) or not free:
            return None
        return min(free, key=lambda endpoint: endpoint.rests_until)

    def _pause(self) -> float | None:
        """Seconds until an endpoint may be called again that may not be called now; None when only room is missing."""
        now = time.monotonic()
        ends = [until for e in self.all for until in (e.paused_until, e.rests_until if e.failures else 0.0) if until > now]
        return min(ends) - now if ends else None
