"""Recording: every settled slice of a run becomes a trajectory, while the run goes on.

`Recording` is shared between the threads of all runs. One thread of its own writes; a queue of `WAITING` episodes keeps a run
that is faster than the disk waiting. A slice whose episode is being written when the process is killed is recorded when its run
is resumed: recording the same episode twice is recording it once.
"""

import logging
import queue
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy.exc import OperationalError, SQLAlchemyError

from lib.agent.engine import Engine
from lib.agent.episode import Outcome
from lib.agent.loop import Observer
from lib.agent.run import RunRequest
from lib.imaging.overlays import overlay_named
from lib.imaging.planes import ViewGrid
from lib.imaging.views import View
from lib.imaging.volume import Volume
from lib.trajectories.privacy import patient_of
from lib.trajectories.store import TrajectoryStore, now
from lib.trajectories.trajectory import Maker, Origin, Source, Trajectory

logger = logging.getLogger(__name__)

WAITING = 256
"""Episodes that may wait for the disk."""
_PAUSES_S = (1, 2, 4, 8)
"""Between tries while the database is away."""
_TOGETHER = 32
"""At most so many are written in one transaction."""


@dataclass(frozen=True, eq=False)
class Work:
    """One target of a run, to record episodes of."""

    run: str
    target: int
    """1 for the first."""
    label: str
    user: str
    image_id: str
    """What the server calls the image."""
    request: RunRequest
    volume: Volume
    engine: Engine
    source: Source = Source.RUN


def origin_of(view: View, store: TrajectoryStore, image_id: str) -> Origin:
    """Where a view comes from, without identifiers."""
    volume = view.volume
    patient, burned_in = patient_of(volume)
    image = store.hashed("image", image_id)
    return Origin(
        image=image,
        patient=store.hashed("patient", patient) if patient else image,
        content_hash=volume.content_hash,
        modality=volume.modality.value,
        plane=view.plane.value,
        index=view.index,
        size=view.size,
        pixel_mm=0.0 if volume.planar else view.grid.pixel_mm,
        burned_in=burned_in,
    )


def build_trajectory(
    view: View,
    outcome: Outcome,
    work: Work,
    store: TrajectoryStore,
    origin: Origin | None = None,
    episode: str = "",
    lesson: str = "",
    kept_from: int = 1,
) -> Trajectory:
    """The trajectory of an episode on `view`; its picture is stored as a blob. `origin` where it is known already.

    `episode` names what the versions of one episode have in common, by default the run, the target and the slice.
    """
    return Trajectory(
        episode=episode or f"{work.run}:{work.target}:{view.index}",
        source=work.source,
        run=work.run,
        target=work.target,
        user=work.user,
        created=now(),
        origin=origin or origin_of(view, store, work.image_id),
        prompt=work.request.prompt,
        label=work.label,
        overlay=overlay_named(work.request.overlay).name,
        max_turns=work.request.max_turns,
        maker=Maker.of(work.engine),
        picture=store.blobs.put_picture(view.image()),
        outcome=outcome,
        lesson=lesson,
        kept_from=kept_from,
    )


class Recording:
    """Writes what it is given, in the order it came, until it is closed."""

    def __init__(self, store: TrajectoryStore):
        self.store = store
        self.failed = 0
        """Episodes that could not be written; the log says why."""
        self._queue: queue.Queue[tuple[Work, Outcome] | threading.Event | None] = queue.Queue(WAITING)
        self._away = False
        self._thread = threading.Thread(target=self._write, name="recording", daemon=True)
        self._thread.start()

    def record(self, work: Work, outcomes: Iterable[Outcome]) -> None:
        """Hand episodes over; those without a step, and those cut short before one, are none. Waits while the queue is full."""
        for outcome in outcomes:
            if outcome.steps:
                self._queue.put((work, outcome))

    def flush(self) -> None:
        """Wait until all that was handed over is written."""
        done = threading.Event()
        self._queue.put(done)
        done.wait()

    def close(self) -> None:
        """Write what is left, and end."""
        self._queue.put(None)
        self._thread.join()

    def _write(self) -> None:
        while True:
            batch = [self._queue.get()]
            while len(batch) < _TOGETHER and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            by_image: dict[str, list[tuple[Work, Outcome]]] = {}
            for one in batch:
                if isinstance(one, tuple):
                    by_image.setdefault(one[0].image_id, []).append(one)
            for pairs in by_image.values():
                self._keep(pairs)
            for one in batch:
                if isinstance(one, threading.Event):
                    one.set()
            if None in batch:
                return

    def _keep(self, pairs: Sequence[tuple[Work, Outcome]]) -> None:
        """Write episodes of one image together, or one by one where that fails. A database that is away is waited for, but only
        once until it is back: runs must not stand still for it."""
        for pause in (*_PAUSES_S, None) if not self._away else (None,):
            try:
                self._add(pairs)
                self._away = False
                return
            except OperationalError as error:
                if pause is None:
                    self._away = True
                    self._lose(pairs, error)
                    return
                time.sleep(pause)
            except (LookupError, OSError, SQLAlchemyError, TypeError, ValueError) as error:  # of one episode, not of all others
                if len(pairs) == 1:
                    self._lose(pairs, error)
                else:
                    for pair in pairs:
                        self._keep([pair])
                return

    def _lose(self, pairs: Sequence[tuple[Work, Outcome]], error: Exception) -> None:
        self.failed += len(pairs)
        logger.error("%d episodes could not be recorded", len(pairs), exc_info=error)

    def _add(self, pairs: Sequence[tuple[Work, Outcome]]) -> None:
        self.store.add([self._trajectory(work, outcome) for work, outcome in pairs], pairs[0][0].image_id)

    def _trajectory(self, work: Work, outcome: Outcome) -> Trajectory:
        view = View(ViewGrid(work.volume, work.request.plane), outcome.index, outcome.window)
        return build_trajectory(view, outcome, work, self.store)


class RunRecorder(Observer):
    """Records the slices of one target of a run as they are settled."""

    def __init__(self, recording: Recording, work: Work):
        self._recording = recording
        self._work = work

    def settled(self, outcome: Outcome) -> None:
        self._recording.record(self._work, [outcome])

    def catch_up(self, known: Mapping[int, Outcome]) -> None:
        """Record what an earlier process settled, and perhaps did not live to record."""
        self._recording.record(self._work, known.values())
