"""What happens to one target of a run, written to the run's journal as it happens."""

from collections.abc import Sequence

from lib.agent.episode import Episode, Outcome, Step
from lib.agent.limits import Bound, StopReason
from lib.agent.loop import Observer
from lib.agent.record import step_record, to_record
from lib.imaging import rle
from lib.imaging.rle import Rle
from lib.server.jobs.journal import Journal, Kind


class Recorder(Observer):
    """Writes steps and outcomes. A slice whose turn never came, because the run was stopped, leaves no event."""

    def __init__(self, journal: Journal, target: int, limits: Bound):
        """`target` is 1 for the first."""
        self._journal = journal
        self._target = target
        self._limits = limits

    def started(self, episode: Episode) -> None:
        if self._limits.reached() is None:
            self._journal.append(Kind.SLICE_STARTED, target=self._target, slice=episode.view.index)

    def stepped(self, episode: Episode) -> None:
        record = step_record(episode.steps[-1])
        kept = {name: record[name] for name in ("turn", "actor", "thought", "action", "score", "seconds", "details")}
        self._journal.append(
            Kind.STEP, target=self._target, slice=episode.view.index, **kept, change=mask_change(episode.steps)
        )

    def settled(self, outcome: Outcome) -> None:
        if outcome.steps or outcome.stop not in (StopReason.CANCELLED, StopReason.DEADLINE):
            self._journal.append(
                Kind.SLICE_SETTLED,
                target=self._target,
                slice=outcome.index,
                conclusive=outcome.conclusive,
                outcome=to_record(outcome),
            )


def mask_change(steps: Sequence[Step]) -> Rle | None:
    """The pixels in which the last step's mask differs from the one before; None when the step left the mask as it was."""
    *earlier, last = steps
    if last.mask is None:
        return None
    before = next((step.mask for step in reversed(earlier) if step.mask is not None and not step.undone), None)
    return last.mask if before is None else rle.encode(rle.decode(before) ^ rle.decode(last.mask))
