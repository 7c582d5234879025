"""Runs as jobs: asked for, waited for, cancelled, interrupted, resumed.

Shared between threads, without a lock of its own: a run's journal has one writer, the queue and the cache of states guard
themselves. Work is done by the queue's threads.
"""

import logging
import time
from concurrent.futures import CancelledError, Future, wait
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from lib.agent.engine import Engine
from lib.agent.limits import Limits, StopReason
from lib.agent.run import RunResult
from lib.agent.trace import to_trace
from lib.engines.together import run_targets
from lib.engines.volumes.strategy import covered_slices
from lib.errors import EngineError, InputError
from lib.imaging.cache import ImageRef, VolumeCache
from lib.imaging.planes import ViewGrid
from lib.imaging.volume import Volume
from lib.infers.asked import Asked, Finished
from lib.server.jobs.assemble import label_map, results_of
from lib.server.jobs.journal import Busy, Journal, Kind, backwards
from lib.server.jobs.queue import Job, JobQueue, Priority
from lib.server.jobs.recorder import Recorder
from lib.server.jobs.refusal import Refusal
from lib.server.jobs.state import RunState, Status, last_status
from lib.server.jobs.statecache import StateCache
from lib.server.runstore import RunStore
from lib.trajectories.recorder import Recording, RunRecorder, Work

logger = logging.getLogger(__name__)

ASKED: TypeAdapter[Asked] = TypeAdapter(Asked)
_POLL_S = 0.1
"""How often who waits for a run that waits itself looks at the limits."""


class Runs:
    """All runs of this server. A run belongs to its user: to others it does not exist."""

    def __init__(
        self, store: RunStore, queue: JobQueue, engine: Engine, volumes: VolumeCache, recording: Recording | None = None
    ):
        """Without `recording` no trajectories are kept."""
        self._recording = recording
        self._store = store
        self._queue = queue
        self._engine = engine
        self._volumes = volumes
        self._states = StateCache()

    def start(self, asked: Asked, priority: Priority, limits: Limits | None = None) -> Job:
        """Queue a new run; the job's key is its id. Raises Refusal (429, 503) as the queue does."""
        key = self._store.create({"asked": ASKED.dump_python(asked, mode="json")})
        journal = Journal(self._store.folder(key))
        try:
            return self._submit(key, asked, journal, Kind.QUEUED, priority, limits or Limits())
        except Refusal:
            journal.close()
            self._store.remove(key)
            raise

    def begin(self, asked: Asked) -> str:
        """A run that the agent has no part in, for an annotator's clicks; its id."""
        volume = self._volumes.get(asked.image)
        key = self._store.create({"asked": ASKED.dump_python(asked, mode="json")})
        with Journal(self._store.folder(key)) as journal:
            nothing: list[list[int]] = [[] for _ in asked.targets]
            journal.append(Kind.STARTED, engine=self._engine.name, content_hash=volume.content_hash, slices=nothing)
            journal.append(Kind.DONE, status=Status.COMPLETE.value, answer="", notes=[])
        return key

    def run(self, asked: Asked, limits: Limits) -> Finished:
        """Queue a run and wait for it; it ends when the limits are reached. Raises what the run raises; Refusal 503 when the
        limits were reached before it began."""
        job = self.start(asked, Priority.WAITED, limits)
        while not job.future.done():
            wait([job.future], timeout=_POLL_S)
            if limits.reached() is not None:
                job.future.cancel()
        try:
            finished: Finished = job.future.result()
        except CancelledError as error:
            if limits.reached() is StopReason.DEADLINE:
                message = "the time budget was used up before the run began: give it more time, or POST it to /ibis/runs"
                raise Refusal(503, message, {"Retry-After": "10"}) from error
            raise Refusal(499, f"run {job.key} was cancelled before it began") from error
        return finished

    def resume(self, key: str, user: str) -> Job:
        """Go on from the slices that have an answer. Raises Refusal: 404 unknown, 409 when there is nothing to resume."""
        asked, _ = self.asked(key, user)
        try:
            journal = Journal(self._store.folder(key))
        except Busy as error:
            raise Refusal(409, f"run {key} is being worked on") from error
        try:
            if self.state(key).status is Status.COMPLETE:
                raise Refusal(409, f"run {key} is complete: there is nothing to resume")
            return self._submit(key, asked, journal, Kind.RESUMED, Priority.BACKGROUND, Limits())
        except Refusal:
            journal.close()
            raise

    def cancel(self, key: str, user: str) -> None:
        """Raises Refusal: 404 unknown, 409 when it has ended already or another process works on it."""
        self.asked(key, user)
        job = self._queue.find(key)
        if job is not None:
            job.cancel()
            return
        status = self.state(key).status
        if status.ended:
            raise Refusal(409, f"run {key} has ended already: {status.value}")
        raise Refusal(409, f"run {key} is worked on by another process of this server")

    def asked(self, key: str, user: str) -> tuple[Asked, float]:
        """What was asked for, and when (seconds since the epoch). Raises Refusal 404 when it is not this user's, or gone."""
        found = self._store.request(key)
        if found is None or found["asked"]["user"] != user:
            raise self._gone(key)
        return ASKED.validate_python(found["asked"]), found["created"]

    def state(self, key: str) -> RunState:
        """Raises Refusal 404 when the run is gone."""
        try:
            return self._states.get(self._store.folder(key))
        except FileNotFoundError as error:
            raise self._gone(key) from error

    def trace(self, key: str, target: int) -> dict[str, Any]:
        """The trace of a target (1 for the first) of an ended run, as `lib.agent.trace` makes it. Whoever has the id may see
        it: viewers open it as a plain link. Raises Refusal: 404 unknown, 409 when there is none (yet)."""
        legacy = self._store.legacy_trace(key)
        if legacy is not None and target == 1:
            return legacy
        state = self.state(key)
        if not state.traces and state.status is not Status.COMPLETE:
            raise Refusal(409, f"run {key} has no trace: it is {state.status.value}")
        if state.seq > state.traced:
            return self._traced_anew(key, target, state)
        if not 1 <= target <= len(state.traces):
            raise Refusal(404, f"target {target}: run {key} has {len(state.traces)}")
        records = [slice_.record for (number, _), slice_ in sorted(state.slices.items()) if number == target]
        return {**state.traces[target - 1], "slices": [record for record in records if record is not None]}

    def _traced_anew(self, key: str, target: int, state: RunState) -> dict[str, Any]:
        """The trace of a run that an annotator worked on since its end."""
        found = self._store.request(key)
        if found is None:
            raise self._gone(key)
        asked = ASKED.validate_python(found["asked"])
        if not 1 <= target <= len(asked.targets):
            raise Refusal(404, f"target {target}: run {key} has {len(asked.targets)}")
        try:
            volume = self._volumes.get(asked.image)
        except (InputError, FileNotFoundError) as error:
            raise Refusal(410, f"the image of run {key} is gone") from error
        trace = to_trace(results_of(asked, state, volume, self._engine)[target - 1])
        before = state.traces[target - 1] if state.traces else {}
        return trace | {name: before[name] for name in ("created", "engine", "seconds") if name in before}

    def image(self, key: str) -> ImageRef:
        """The image that the run looked at; it may be gone by now. Raises Refusal 404."""
        found = self._store.request(key)
        image = self._store.legacy_image(key) if found is None else ASKED.validate_python(found["asked"]).image
        if image is None:
            raise self._gone(key)
        return image

    def labels(self, key: str, user: str) -> tuple[Asked, np.ndarray, Volume]:
        """The label map as far as the run has come, uint8 `[i, j, k]`, and its image. Raises Refusal: 404 unknown, 410 when the
        image is gone or has changed."""
        asked, _ = self.asked(key, user)
        state = self.state(key)
        try:
            volume = self._volumes.get(asked.image)
        except (InputError, FileNotFoundError) as error:
            raise Refusal(410, f"the image of run {key} is gone") from error
        if state.content_hash not in ("", volume.content_hash):
            raise Refusal(410, f"the image of run {key} has changed since")
        labels, _ = label_map(asked, results_of(asked, state, volume, self._engine))
        return asked, labels, volume

    def of_user(self, user: str) -> list[tuple[str, Asked, float]]:
        """The ids of a user's runs, what was asked for, and when (seconds since the epoch); newest first."""
        found = ((key, self._store.request(key)) for key in self._store.newest_first())
        mine = ((key, request) for key, request in found if request is not None and request["asked"]["user"] == user)
        return [(key, ASKED.validate_python(request["asked"]), request["created"]) for key, request in mine]

    def status(self, key: str) -> Status:
        """Reads only the end of the journal. Raises Refusal 404 when the run is gone."""
        try:
            return last_status(backwards(self._store.folder(key))) or Status.QUEUED
        except FileNotFoundError as error:
            raise self._gone(key) from error

    def folder(self, key: str) -> Path:
        return self._store.folder(key)

    def recorders(self, key: str, asked: Asked, target: int, volume: Volume) -> list[RunRecorder]:
        """Who records the trajectories of a target (1 for the first); empty when none are kept."""
        if self._recording is None:
            return []
        one = asked.targets[target - 1]
        work = Work(key, target, one.name, asked.user, asked.image_id, one.request, volume, self._engine)
        return [RunRecorder(self._recording, work)]

    def recover(self) -> list[str]:
        """Mark the runs that an earlier process left without an end; their ids. They wait to be resumed."""
        self._store.sweep()
        found = []
        for key in self._store.newest_first():
            folder = self._store.folder(key)
            if self._store.request(key) is None or self.status(key).ended:
                continue
            try:
                with Journal(folder) as journal:
                    journal.append(Kind.INTERRUPTED)
            except Busy:  # another process works on it
                continue
            found.append(key)
        return found

    def _gone(self, key: str) -> Refusal:
        return Refusal(404, f"run {key!r} does not exist, or is no longer kept: the newest {self._store.keep} are")

    def _submit(self, key: str, asked: Asked, journal: Journal, kind: Kind, priority: Priority, limits: Limits) -> Job:
        def work() -> Finished:
            return self._carry_out(key, asked, journal, limits)

        def left(future: "Future[Any]") -> None:
            """Who cancels a waiting run ends its journal."""
            if future.cancelled():
                with journal:
                    if self._queue.closed:
                        journal.append(Kind.INTERRUPTED)
                    else:
                        journal.append(Kind.CANCELLED, detail="before it began")

        about = f"{asked.image_id}: {'; '.join(target.request.prompt for target in asked.targets)}"
        job = Job(key, asked.user, priority, about, work, limits)
        journal.append(kind, user=asked.user, priority=priority.name.lower())
        job.future.add_done_callback(left)
        return self._queue.submit(job)

    def _carry_out(self, key: str, asked: Asked, journal: Journal, limits: Limits) -> Finished:
        with journal:
            try:
                return self._work(key, asked, journal, limits)
            except BaseException as error:
                journal.append(Kind.FAILED, **failure(error))
                raise

    def _work(self, key: str, asked: Asked, journal: Journal, limits: Limits) -> Finished:
        if asked.budget_s is not None and limits.deadline is None:
            limits = Limits(time.monotonic() + asked.budget_s, limits.cancelled)
        state = self.state(key)
        volume = self._volumes.get(asked.image)
        if state.content_hash and state.content_hash != volume.content_hash:
            raise InputError(f"{asked.image_id} has changed since the run began: start a new one", "image")
        requests = [target.request for target in asked.targets]
        grids = [ViewGrid(volume, request.plane) for request in requests]
        slices = [covered_slices(request.slices, grid) for request, grid in zip(requests, grids, strict=True)]
        for request in requests:
            self._engine.policy.check(volume, request.prompt)
        journal.append(Kind.STARTED, engine=self._engine.name, content_hash=volume.content_hash, slices=slices)
        numbers = range(1, len(requests) + 1)
        trajectories = [self.recorders(key, asked, number, volume) for number in numbers]
        recorders = [(Recorder(journal, number, limits), *own) for number, own in zip(numbers, trajectories, strict=True)]
        known = [state.known(number, grid.size) for number, grid in zip(numbers, grids, strict=True)]
        for own, settled in zip(trajectories, known, strict=True):
            for recorder in own:
                recorder.catch_up(settled)
        results = tuple(run_targets(requests, volume, self._engine, limits, recorders, known))
        cancelled = limits.reached() is StopReason.CANCELLED
        if cancelled:  # said before masks are put together, which takes its time for several targets
            self._finish(journal, results, volume.warnings, limits)
        labels, overlaps = label_map(asked, results)
        notes = (*volume.warnings, *overlaps)
        if not cancelled:
            self._finish(journal, results, notes, limits)
        return Finished(key, results, labels, notes)

    def _finish(self, journal: Journal, results: tuple[RunResult, ...], notes: tuple[str, ...], limits: Limits) -> None:
        status = Status.COMPLETE if all(result.status == "complete" for result in results) else Status.INCOMPLETE
        traces = [{name: part for name, part in to_trace(result).items() if name != "slices"} for result in results]
        data = {"answer": "; ".join(result.answer for result in results), "notes": notes, "traces": traces}
        if status is Status.COMPLETE or limits.reached() is not StopReason.CANCELLED:
            journal.append(Kind.DONE, status=status.value, **data)
        elif self._queue.closed:
            journal.append(Kind.INTERRUPTED, **data)
        else:
            journal.append(Kind.CANCELLED, detail="while it ran", **data)


def failure(error: BaseException) -> dict[str, Any]:
    """What the journal says of an error: a sentence, and the HTTP status that says whose fault it is."""
    if isinstance(error, InputError):
        return {"detail": error.message, "field": error.field, "status": 422}
    if isinstance(error, EngineError):
        return {"detail": str(error), "field": None, "status": 503}
    if isinstance(error, FileNotFoundError):
        return {"detail": "the image is gone", "field": "image", "status": 410}
    logger.error("A run failed", exc_info=error)
    return {
        "detail": f"{type(error).__name__} while the server worked on it; the log has the details",
        "field": None,
        "status": 500,
    }
