"""A run's journal as server-sent events.

The journal itself is read, not the run: whichever process works on it, and whenever a client comes back, every event is sent
once, in order, with its number as `id`.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from threading import Event as Flag

from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.concurrency import run_in_threadpool

from lib.server.jobs.journal import read_events
from lib.server.jobs.state import Status, status_of

POLL_S = 0.1
"""How often the journal is looked at."""
BEAT_S = 15.0
"""So long nothing is sent without a comment that shows that the connection lives."""
_RETRY_MS = 1000


async def event_stream(folder: Path, after: int, stopping: Flag) -> AsyncIterator[bytes]:
    """The events with numbers above `after` as they come, until the run has ended or the server stops."""
    status, offset, sent = Status.QUEUED, 0, time.monotonic()
    yield format_sse_event(retry=_RETRY_MS)
    while not stopping.is_set():
        try:
            events, offset = await run_in_threadpool(read_events, folder, offset)
        except FileNotFoundError:  # pruned meanwhile
            return
        for event in events:
            status = status_of(event) or status
            if event["seq"] > after:
                data = json.dumps(event, separators=(",", ":"))
                yield format_sse_event(data_str=data, event=event["kind"], id=str(event["seq"]))
                sent = time.monotonic()
        if events:
            continue
        if status.ended:
            return
        if time.monotonic() - sent > BEAT_S:
            yield KEEPALIVE_COMMENT
            sent = time.monotonic()
        await asyncio.sleep(POLL_S)
