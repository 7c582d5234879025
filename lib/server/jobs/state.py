"""The state of a run: what the events of its journal add up to, and nothing else."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from lib.agent.episode import Outcome
from lib.agent.record import from_record
from lib.server.jobs.journal import Event, Kind


class Status(StrEnum):
    """Where a run is."""

    QUEUED = "queued"
    RUNNING = "running"
    INTERRUPTED = "interrupted"
    """The server stopped meanwhile; it can be resumed."""
    CANCELLED = "cancelled"
    FAILED = "failed"
    INCOMPLETE = "incomplete"
    """It came to its end, with slices that have no answer."""
    COMPLETE = "complete"

    @property
    def ended(self) -> bool:
        return self not in (Status.QUEUED, Status.RUNNING)


_STATUS = {
    Kind.QUEUED: Status.QUEUED,
    Kind.STARTED: Status.RUNNING,
    Kind.INTERRUPTED: Status.INTERRUPTED,
    Kind.RESUMED: Status.QUEUED,
    Kind.CANCELLED: Status.CANCELLED,
    Kind.FAILED: Status.FAILED,
    Kind.CONTINUED: Status.RUNNING,
}


def status_of(event: Event) -> Status | None:
    """The status that an event brings about; None when it leaves the status as it was."""
    kind = Kind(event["kind"])
    return Status(event["status"]) if kind is Kind.DONE else _STATUS.get(kind)


def last_status(events: Iterable[Event]) -> Status | None:
    """The status after `events`, which come last first; None when there is none."""
    return next((status for event in events if (status := status_of(event)) is not None), None)


@dataclass(frozen=True)
class SliceState:
    """One slice for one target."""

    turns: int = 0
    """Of the episode that goes on, or of the outcome."""
    playing: bool = False
    record: Mapping[str, Any] | None = None
    """The outcome, as `lib.agent.record` writes it; None before there is one."""
    conclusive: bool = False
    """Whether the outcome is an answer."""
    locked: bool = False


@dataclass
class RunState:
    """Fold events in with `apply`, in order. Not safe to share while it changes: hand out a `copy`."""

    status: Status = Status.QUEUED
    seq: int = 0
    """Of the last event."""
    planned: tuple[tuple[int, ...], ...] = ()
    """The slices asked for, for each target; empty before the run has begun."""
    slices: dict[tuple[int, int], SliceState] = field(default_factory=dict)
    """By (target, slice); targets count from 1."""
    content_hash: str = ""
    """Of the image, once the run has begun."""
    answer: str = ""
    notes: tuple[str, ...] = ()
    error: str = ""
    traces: tuple[Mapping[str, Any], ...] = ()
    """For each target, its trace without the slices; empty before the end."""
    traced: int = 0
    """Number of the event that brought them."""

    def apply(self, event: Event) -> None:
        kind = Kind(event["kind"])
        self.seq = event["seq"]
        status = status_of(event)
        if status is not None:
            self._enter(status, event)
        if kind is Kind.STARTED:
            self.content_hash = event["content_hash"]
            self.planned = tuple(tuple(slices) for slices in event["slices"])
        if "slice" not in event:
            return
        key = (event["target"], event["slice"])
        before = self.slices.get(key, SliceState())
        if kind is Kind.SLICE_STARTED:
            after = replace(before, turns=0, playing=True)
        elif kind is Kind.STEP:
            after = replace(before, turns=event["turn"])
        elif kind is Kind.SLICE_SETTLED:
            record = event["outcome"]
            after = SliceState(len(record["steps"]), False, record, event["conclusive"], before.locked)
        elif kind in (Kind.LOCK, Kind.UNLOCK):
            after = replace(before, locked=kind is Kind.LOCK)
        else:
            return
        self.slices[key] = after

    def copy(self) -> "RunState":
        return replace(self, slices=dict(self.slices))

    def outcomes(self, target: int, size: tuple[int, int]) -> dict[int, Outcome]:
        """The outcomes of a target by slice, in slice order; `size` is (width, height) of the run's views."""
        return {
            index: from_record(slice_.record, size)
            for (number, index), slice_ in sorted(self.slices.items())
            if number == target and slice_.record is not None
        }

    def outcome(self, target: int, index: int, size: tuple[int, int]) -> Outcome | None:
        """One of `outcomes`."""
        record = self.slices.get((target, index), SliceState()).record
        return None if record is None else from_record(record, size)

    def known(self, target: int, size: tuple[int, int]) -> dict[int, Outcome]:
        """The outcomes that need not be looked for again: answers, and locked slices."""
        kept = {index for (number, index), s in self.slices.items() if number == target and (s.conclusive or s.locked)}
        return {index: outcome for index, outcome in self.outcomes(target, size).items() if index in kept}

    @property
    def settled(self) -> int:
        """How many of the slices asked for have an answer, over all targets."""
        return sum(
            self.slices.get((number, index), SliceState()).conclusive
            for number, indices in enumerate(self.planned, start=1)
            for index in indices
        )

    @property
    def total(self) -> int | None:
        """How many slices were asked for, over all targets; None before the run has begun."""
        return sum(map(len, self.planned)) if self.planned else None

    def _enter(self, status: Status, event: Event) -> None:
        self.status = status
        self.error = event.get("detail", "")
        self.answer = event.get("answer", self.answer)
        self.notes = tuple(event.get("notes", self.notes))
        if "traces" in event:
            self.traces, self.traced = tuple(event["traces"]), event["seq"]
        if status.ended:
            self.slices = {key: replace(slice_, playing=False) for key, slice_ in self.slices.items()}


def fold(events: Iterable[Event]) -> RunState:
    """The state that a journal's events add up to."""
    state = RunState()
    for event in events:
        state.apply(event)
    return state
