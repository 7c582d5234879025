"""What may end work from outside, and why an episode ended."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol


class StopReason(StrEnum):
    """Why an episode ended."""

    TERMINATED = "terminated"
    """The policy approved the mask."""
    ABSENT = "absent"
    """The policy terminated without a mask: the target is not on this slice."""
    MAX_TURNS = "max_turns"
    """The turn limit was reached."""
    REPEATED_ACTION = "repeated_action"
    """The policy placed the same click three times in a row."""
    NO_PROGRESS = "no_progress"
    """The clicks no longer changed the mask, or led back and forth between masks."""
    PROTOCOL_ERROR = "protocol_error"
    """The policy's replies were not of the grammar, also when asked again."""
    ANNOTATED = "annotated"
    """A person placed the clicks and asked for no more."""
    PROPAGATED = "propagated"
    """No episode was played: the segmenter's memory brought the mask from a neighbouring slice."""
    DEADLINE = "deadline"
    """The request's time budget was used up."""
    CANCELLED = "cancelled"
    """The request was cancelled."""
    FAILED = "failed"
    """The policy or the segmenter could not do its work."""


class Bound(Protocol):
    """Something that may end work from outside."""

    def reached(self) -> StopReason | None:
        """Why the work is no longer wanted, or None while it is."""

    def left(self) -> float | None:
        """Seconds until the deadline, at least 0; None without one."""


@dataclass(frozen=True)
class Limits:
    """What may end a run. Checked between turns, while it waits for a model, and inside long forward passes."""

    deadline: float | None = None
    """On the clock of `time.monotonic`."""
    cancelled: threading.Event = field(default_factory=threading.Event)

    def __deepcopy__(self, memo: object) -> "Limits":
        """The event is meant to be shared: MONAI Label copies requests on their way to a task."""
        return self

    def reached(self) -> StopReason | None:
        if self.cancelled.is_set():
            return StopReason.CANCELLED
        if self.deadline is not None and time.monotonic() >= self.deadline:
            return StopReason.DEADLINE
        return None

    def left(self) -> float | None:
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())


@dataclass(frozen=True)
class EveryLimit:
    """The limits of a batch that several requests share: reached when nobody wants it any more."""

    of: Sequence[Bound]

    def reached(self) -> StopReason | None:
        reasons = [limits.reached() for limits in self.of]
        return reasons[0] if reasons and None not in reasons else None

    def left(self) -> float | None:
        times = [limits.left() for limits in self.of]
        known = [seconds for seconds in times if seconds is not None]
        return max(known) if known and len(known) == len(times) else None


UNLIMITED = Limits()
"""Never cancelled, no deadline."""
