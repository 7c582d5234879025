"""The annotator's part of a run: clicks on the agent's mask, undo, locked slices, and letting the agent go on.

Shared between threads, without a lock of its own. Everything is a job of the queue, clicks before all else, and whoever changes
a run holds its journal: two changes of one run come one after the other, and none while the agent works on it.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from lib.agent.engine import Engine
from lib.agent.episode import Actor, Given, Outcome
from lib.agent.limits import Limits, StopReason
from lib.agent.loop import Observer
from lib.agent.protocol import Click
from lib.agent.record import to_record
from lib.agent.run import RunRequest
from lib.agent.takeover import Slice, annotate, annotator_clicks, go_on, undo
from lib.agent.trace import to_trace
from lib.engines.spread import spread
from lib.engines.volumes.carrying import draw, tissue_of
from lib.errors import EngineError, InputError
from lib.imaging import rle
from lib.imaging.cache import VolumeCache
from lib.imaging.overlays import overlay_named
from lib.imaging.planes import ViewGrid
from lib.imaging.views import View
from lib.imaging.volume import Volume
from lib.imaging.windows import choose_window
from lib.infers.asked import Asked
from lib.server.jobs.assemble import label_map, results_of
from lib.server.jobs.journal import Busy, Journal, Kind
from lib.server.jobs.queue import Job, JobQueue, Priority
from lib.server.jobs.recorder import Recorder
from lib.server.jobs.refusal import Refusal
from lib.server.jobs.runs import Runs, failure
from lib.server.jobs.state import RunState, SliceState, Status

Result = TypeVar("Result")
_PATIENCE_S = 30.0
"""How long a change waits for another change of the same run."""


@dataclass(frozen=True, eq=False)
class Sheet:
    """One target of a run, opened for a change: its journal is held."""

    journal: Journal
    asked: Asked
    target: int
    """1 for the first."""
    state: RunState
    volume: Volume
    engine: Engine
    limits: Limits
    recorders: Sequence[Observer] = ()
    """Who hears of what is settled."""

    @property
    def request(self) -> RunRequest:
        return self.asked.targets[self.target - 1].request

    @property
    def grid(self) -> ViewGrid:
        return ViewGrid(self.volume, self.request.plane)

    def outcome(self, index: int) -> Outcome | None:
        return self.state.outcome(self.target, index, self.grid.size)

    def slice_(self, index: int) -> Slice:
        outcome = self.outcome(index)
        preset = self.engine.policy.window_preset(self.request.prompt)
        window = outcome.window if outcome is not None else choose_window(self.volume, self.request.window, preset)
        return Slice(View(self.grid, index, window), self.request.prompt, overlay_named(self.request.overlay))

    def check_free(self, indices: Sequence[int]) -> None:
        """Raises Refusal 409 for a locked slice, InputError for one that does not exist."""
        for index in indices:
            self.grid.check(index)
            if self.state.slices.get((self.target, index), SliceState()).locked:
                raise Refusal(409, f"slice {index} is locked: unlock it first")

    def worked(self, index: int) -> Outcome | None:
        """The slice's outcome to go on from. With a mask that was brought from another slice, an episode begins."""
        outcome = self.outcome(index)
        if outcome is None or not outcome.found or replays(outcome):
            return outcome
        view, mask = self.slice_(index).view, rle.decode(outcome.mask)
        drawn = draw(view, mask, tissue_of(view, mask), self.engine, self.limits)
        return replace(outcome, given=Given(outcome.mask, outcome.confidence or 0.0, drawn.clicks), steps=())

    def settle(self, outcome: Outcome) -> Outcome:
        record = to_record(outcome)
        conclusive = outcome.conclusive
        self.journal.append(Kind.SLICE_SETTLED, target=self.target, slice=outcome.index, conclusive=conclusive, outcome=record)
        for recorder in self.recorders:
            recorder.settled(outcome)
        return outcome

    def finish(self) -> None:
        """Say what the whole run has come to."""
        state = self.state
        results = results_of(self.asked, state, self.volume, self.engine)
        _, notes = label_map(self.asked, results)
        complete = all(result.status == "complete" for result in results) and state.settled == state.total
        traces = [{name: part for name, part in to_trace(result).items() if name != "slices"} for result in results]
        status = Status.COMPLETE if complete else Status.INCOMPLETE
        answer = "; ".join(result.answer for result in results)
        self.journal.append(Kind.DONE, status=status.value, answer=answer, notes=list(notes), traces=traces)


class Takeover:
    """What an annotator may do with a run of his or her own."""

    def __init__(self, runs: Runs, queue: JobQueue, engine: Engine, volumes: VolumeCache):
        self._runs = runs
        self._queue = queue
        self._engine = engine
        self._volumes = volumes

    def click(
        self, key: str, user: str, target: int, clicks: Mapping[int, Sequence[Click]], limits: Limits
    ) -> dict[int, Outcome]:
        """Add clicks by slice; the slices' new outcomes.

        Raises Refusal: 404; 409 for a locked slice, or while the agent works.
        """

        def work(sheet: Sheet) -> dict[int, Outcome]:
            sheet.check_free(list(clicks))
            return {index: _annotated(sheet, index, sheet.worked(index), placed) for index, placed in clicks.items()}

        return self._change(key, user, target, work, limits)

    def synchronise(
        self, key: str, user: str, target: int, clicks: Mapping[int, Sequence[Click]], limits: Limits
    ) -> dict[int, Outcome]:
        """As `click`, for a client that sends all its clicks each time: only the difference becomes steps.

        Clicks of the annotator that are no longer among them are taken back; but when none of them is there any more the
        client has begun anew, and all that it sends are added.
        """

        def work(sheet: Sheet) -> dict[int, Outcome]:
            sheet.check_free(list(clicks))
            return {index: _synchronised(sheet, index, wanted) for index, wanted in clicks.items()}

        return self._change(key, user, target, work, limits)

    def carry(
        self, key: str, user: str, target: int, negatives: Mapping[int, Sequence[Click]], limits: Limits
    ) -> dict[int, Outcome]:
        """Carry what the annotator drew to the slices beside it; all slices of the target that have an outcome then.

        Slices that the agent or the annotator worked on, and locked ones, stay as they are. What was carried before and is no
        longer reached is empty again.
        """

        def work(sheet: Sheet) -> dict[int, Outcome]:
            outcomes = sheet.state.outcomes(target, sheet.grid.size)
            drawn = {index: outcome for index, outcome in outcomes.items() if annotator_clicks(outcome)}
            if not drawn:
                return outcomes
            own = {index for index, outcome in outcomes.items() if outcome.stop is not StopReason.PROPAGATED}
            own |= {index for (number, index), one in sheet.state.slices.items() if number == target and one.locked}
            given = {index: list(clicks) for index, clicks in negatives.items()}
            window = next(iter(drawn.values())).window
            found = spread(drawn, given, sheet.grid, window, sheet.engine, limits)
            for index, outcome in found.items():
                if index not in own:
                    outcomes[index] = sheet.settle(_carried(outcome))
            for index in set(outcomes) - set(found) - own:
                outcomes[index] = sheet.settle(_carried(replace(outcomes[index], mask=rle.empty(*sheet.grid.size))))
            return outcomes

        return self._change(key, user, target, work, limits)

    def undo(self, key: str, user: str, target: int, index: int, turn: int) -> Outcome:
        """Take the click of a turn back. Raises InputError when there is none; Refusal as `click`."""

        def work(sheet: Sheet) -> Outcome:
            sheet.check_free([index])
            outcome = sheet.outcome(index)
            if outcome is None:
                raise InputError(f"slice {index} has no steps", "slice")
            if outcome.found and not replays(outcome):
                raise InputError(f"the mask of slice {index} was brought from other slices: click on it instead", "slice")
            return _undone(sheet, outcome, turn)

        return self._change(key, user, target, work, Limits())

    def lock(self, key: str, user: str, target: int, indices: Sequence[int], locked: bool) -> None:
        """Lock slices: nobody changes them until they are unlocked. A slice without a mask is locked as empty."""

        def work(sheet: Sheet) -> None:
            for index in indices:
                sheet.grid.check(index)
            for index in indices:
                if locked and sheet.outcome(index) is None:
                    sheet.settle(annotate(sheet.slice_(index), None, [], sheet.engine, sheet.limits))
                kind = Kind.LOCK if locked else Kind.UNLOCK
                sheet.journal.append(kind, target=target, slice=index)

        self._change(key, user, target, work, Limits())

    def proceed(self, key: str, user: str, target: int, indices: Sequence[int] | None, turns: int, limits: Limits) -> Job:
        """Let the agent go on from where each slice is now; by default on those that the annotator touched last. Does not wait
        for the agent, but for the run to say that it goes on.

        Raises Refusal: 404, 409, 422 when there is nothing to go on with; InputError for a slice that does not exist.
        """

        def announce(sheet: Sheet) -> list[int]:
            chosen = _touched(sheet) if indices is None else list(indices)
            if not chosen:
                raise Refusal(422, "slices: no slice was clicked on since the agent was last here; name some")
            sheet.check_free(chosen)
            sheet.journal.append(Kind.CONTINUED, target=target, slices=chosen, turns=turns)
            return chosen

        def work(sheet: Sheet) -> None:
            pairs = [(sheet.slice_(index), sheet.worked(index)) for index in chosen]
            recorder = Recorder(sheet.journal, target, limits)
            for outcome in go_on(pairs, turns, sheet.engine, limits, [recorder]):
                sheet.settle(outcome)
            replace(sheet, state=self._runs.state(key)).finish()

        def left(future: "Future[Any]") -> None:
            """Who cancels it while it waits leaves the run as it was."""
            if future.cancelled():
                with Journal(self._runs.folder(key)) as journal:
                    journal.append(Kind.CANCELLED, detail="before the agent went on")

        chosen = self._change(key, user, target, announce, limits)
        job = self._job(key, user, target, work, limits, Priority.WAITED)
        job.future.add_done_callback(left)
        try:
            return self._queue.submit(job)
        except Refusal:
            job.future.cancel()
            raise

    def _change(self, key: str, user: str, target: int, work: Callable[[Sheet], Result], limits: Limits) -> Result:
        job = self._queue.submit(self._job(key, user, target, work, limits, Priority.CLICK))
        result: Result = job.future.result()
        return result

    def _job(
        self,
        key: str,
        user: str,
        target: int,
        work: Callable[[Sheet], Result],
        limits: Limits,
        priority: Priority,
    ) -> Job:
        asked, _ = self._runs.asked(key, user)
        if not 1 <= target <= len(asked.targets):
            raise Refusal(404, f"target {target}: run {key} has {len(asked.targets)}")

        def carry_out() -> Result:
            with self._opened(key, job) as journal:
                state = self._runs.state(key)
                volume = self._volumes.get(asked.image)
                if state.content_hash not in ("", volume.content_hash):
                    raise Refusal(410, f"the image of run {key} has changed since")
                recorders = self._runs.recorders(key, asked, target, volume)
                sheet = Sheet(journal, asked, target, state, volume, self._engine, limits, recorders)
                try:
                    return work(sheet)
                except (EngineError, InputError, OSError) as error:
                    if self._runs.state(key).status is Status.RUNNING:
                        journal.append(Kind.FAILED, **failure(error))
                    raise

        name = asked.targets[target - 1].request.prompt
        own = key if priority is not Priority.CLICK else f"{key}-click"
        job = Job(own, user, priority, f"{asked.image_id}: {name}, with the annotator", carry_out, limits)
        return job

    def _opened(self, key: str, job: Job) -> Journal:
        """The run's journal, as soon as another change of it has ended."""
        until = time.monotonic() + _PATIENCE_S
        while True:
            try:
                return Journal(self._runs.folder(key))
            except Busy as error:
                if self._queue.find(key) not in (None, job) or time.monotonic() >= until:
                    raise Refusal(409, f"the agent works on run {key}: wait for its end, or cancel it") from error
                time.sleep(0.01)


def replays(outcome: Outcome) -> bool:
    """Whether the outcome's own steps make its mask, from what its episode began with."""
    return outcome.given is not None or any(step.mask is not None and not step.undone for step in outcome.steps)


def _carried(outcome: Outcome) -> Outcome:
    """A carried slice has no episode of its own that anybody could go on with."""
    detail = outcome.detail or "carried from a slice that the annotator drew"
    return replace(outcome, stop=StopReason.PROPAGATED, detail=detail, steps=(), final_turn=None)


def _annotated(sheet: Sheet, index: int, outcome: Outcome | None, clicks: Sequence[Click]) -> Outcome:
    recorder = Recorder(sheet.journal, sheet.target, sheet.limits)
    done = annotate(sheet.slice_(index), outcome, clicks, sheet.engine, sheet.limits, [recorder])
    return sheet.settle(done)


def _undone(sheet: Sheet, outcome: Outcome, turn: int) -> Outcome:
    left = undo(sheet.slice_(outcome.index), outcome, turn, sheet.engine, sheet.limits)
    sheet.journal.append(Kind.UNDO, target=sheet.target, slice=outcome.index, turn=turn)
    return sheet.settle(left)


def _synchronised(sheet: Sheet, index: int, wanted: Sequence[Click]) -> Outcome:
    outcome = sheet.worked(index)
    placed = annotator_clicks(outcome)
    if outcome is not None and set(placed) & set(wanted):
        for step in outcome.steps:
            gone = step.actor is Actor.ANNOTATOR and not step.undone and step.mask is not None and step.action not in wanted
            if gone:
                outcome = _undone(sheet, outcome, step.turn)
    fresh = [click for click in wanted if click not in placed]
    if not fresh and outcome is not None:
        return outcome
    return _annotated(sheet, index, outcome, fresh)


def _touched(sheet: Sheet) -> list[int]:
    """The free slices whose last step is the annotator's."""
    found = []
    for index, outcome in sheet.state.outcomes(sheet.target, sheet.grid.size).items():
        kept = [step for step in outcome.steps if not step.undone]
        if kept and kept[-1].actor is Actor.ANNOTATOR and not sheet.state.slices[sheet.target, index].locked:
            found.append(index)
    return found
