"""Several targets in one request on one volume."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from lib.agent.engine import Engine
from lib.agent.episode import Outcome
from lib.agent.limits import Limits
from lib.agent.loop import Observer
from lib.agent.run import RunRequest, RunResult
from lib.engines.volumes.run import run_volume
from lib.imaging.volume import Volume


def run_targets(
    requests: Sequence[RunRequest],
    volume: Volume,
    engine: Engine,
    limits: Limits,
    observers: Sequence[Sequence[Observer]] = (),
    known: Sequence[Mapping[int, Outcome]] = (),
) -> list[RunResult]:
    """One result for each request, in order; `observers` and `known` (see `run_volume`) are those of each request.

    Where the engine shares batches all targets are looked for at once: their slices go through the models together, and each
    slice is embedded once for all of them. Otherwise one after the other.
    """

    def one(number: int) -> RunResult:
        watchers = observers[number] if observers else ()
        return run_volume(requests[number], volume, engine, limits, watchers, known[number] if known else {})

    with ThreadPoolExecutor(len(requests) if engine.shares_batches else 1, thread_name_prefix="target") as pool:
        return list(pool.map(one, range(len(requests))))
