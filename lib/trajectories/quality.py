"""Quality of the agent over time: how good its masks were, and what they cost the annotators, as final labels told later.

A volume is one image as one annotator labelled it in one week, with the episodes of one engine on it that the labels graded.
Of a label that was sent again, and of an episode that went on, the newest counts. Corrections and simulated episodes do not.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from statistics import fmean
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from lib.agent.episode import Actor
from lib.imaging import rle
from lib.trajectories.store import TrajectoryStore
from lib.trajectories.tables import GradingRow, LabelRow, StepRow, TrajectoryRow
from lib.trajectories.trajectory import Source


@dataclass(frozen=True)
class VolumeQuality:
    """What the agent's work on a volume was worth."""

    image: str
    """The image's hash."""
    annotator: str
    labelled: str
    """When the newest label arrived: ISO 8601, UTC."""
    engine: str
    weights: str
    recipe: str
    """Of the reward."""
    slices: int
    """Where the agent or the annotator drew something."""
    dice: float | None
    """Mean over these slices, of the mask at which the agent itself had ended; None where there is none."""
    reward: float
    """Mean total of the episodes."""
    turns: int
    """Steps of the agent."""
    clicks: int
    """Corrections: the annotators' own clicks in these episodes, those taken back too."""
    seconds: float
    """The annotator's time: from the first run on the image, or the label before, to the label. A pause between two events
    (an episode recorded, a label) counts up to a limit."""

    @property
    def week(self) -> str:
        """ISO 8601, such as 2026-W47."""
        year, week, _ = datetime.fromisoformat(self.labelled).isocalendar()
        return f"{year}-W{week:02d}"


@dataclass(frozen=True)
class WeekQuality:
    """The volumes of one week, engine and recipe; means over them."""

    week: str
    engine: str
    weights: str
    recipe: str
    volumes: int
    dice: float | None
    reward: float
    turns: float
    clicks: float
    seconds: float


@dataclass(frozen=True)
class _Graded:
    """A grading that counts."""

    trajectory: str
    image: str
    annotator: str
    labelled: str
    engine: str
    weights: str
    recipe: str
    reference: str
    dice: float
    reward: float

    @property
    def week(self) -> tuple[int, int]:
        return datetime.fromisoformat(self.labelled).isocalendar()[:2]


def volumes(store: TrajectoryStore, idle_s: float) -> list[VolumeQuality]:
    """All graded volumes, by the time of their labels. A pause counts up to `idle_s` seconds."""
    with store.reading() as session:
        graded = _graded(session)
        taken = _steps_taken(session)
        own = _own_ious(session, {key: turn for key, (_, _, turn) in taken.items() if turn is not None})
        seconds = _seconds(session, {one.image for one in graded}, idle_s)
    groups: dict[tuple[Any, ...], list[_Graded]] = defaultdict(list)
    for one in graded:
        groups[one.image, one.annotator, one.week, one.engine, one.weights, one.recipe].append(one)
    empty = _Empty(store)
    found = []
    for (image, annotator, _, engine, weights, recipe), members in groups.items():
        dices = [value for one in members if (value := _own_dice(one, taken, own, empty)) is not None]
        times = {one.labelled for one in members}
        found.append(
            VolumeQuality(
                image=image,
                annotator=annotator,
                labelled=max(times),
                engine=engine,
                weights=weights,
                recipe=recipe,
                slices=len(dices),
                dice=fmean(dices) if dices else None,
                reward=fmean(one.reward for one in members),
                turns=sum(taken.get(one.trajectory, (0, 0, None))[0] for one in members),
                clicks=sum(taken.get(one.trajectory, (0, 0, None))[1] for one in members),
                seconds=sum(seconds[image, annotator, time] for time in times),
            )
        )
    return sorted(found, key=lambda one: (one.labelled, one.image, one.recipe))


def state(store: TrajectoryStore) -> tuple[int, int, str]:
    """Differs when `volumes` may: how many gradings and labels there are, and when the newest grading was made."""
    gradings = select(func.count(), func.max(GradingRow.created))
    with store.reading() as session:
        number, newest = session.execute(gradings).one()
        return number, session.scalar(select(func.count()).select_from(LabelRow)) or 0, newest or ""


def weekly(found: Iterable[VolumeQuality]) -> list[WeekQuality]:
    """Per week, engine, weights and recipe, in this order."""
    groups: dict[tuple[str, str, str, str], list[VolumeQuality]] = defaultdict(list)
    for one in found:
        groups[one.week, one.engine, one.weights, one.recipe].append(one)
    rows = []
    for (week, engine, weights, recipe), members in sorted(groups.items()):
        dices = [one.dice for one in members if one.dice is not None]
        rows.append(
            WeekQuality(
                week=week,
                engine=engine,
                weights=weights,
                recipe=recipe,
                volumes=len(members),
                dice=fmean(dices) if dices else None,
                reward=fmean(one.reward for one in members),
                turns=fmean(one.turns for one in members),
                clicks=fmean(one.clicks for one in members),
                seconds=fmean(one.seconds for one in members),
            )
        )
    return rows


class _Empty:
    """Which masks have no pixel, by digest."""

    def __init__(self, store: TrajectoryStore):
        self._blobs = store.blobs
        self._known: dict[str, bool] = {}

    def __call__(self, digest: str) -> bool:
        if digest not in self._known:
            self._known[digest] = rle.area(self._blobs.mask(digest)) == 0
        return self._known[digest]


def _graded(session: Session) -> list[_Graded]:
    """Of each episode, annotator and recipe the newest."""
    row, grading, label = TrajectoryRow, GradingRow, LabelRow
    columns = (row.key, row.image, label.annotator, label.created, row.engine, row.weights)
    chosen = (
        select(row.episode, *columns, grading.recipe, grading.reference, grading.dice, grading.total)
        .join(row, row.key == grading.trajectory)
        .join(label, label.key == grading.label)
        .where(row.source == Source.RUN.value, grading.dropped == "")
        .order_by(label.created, grading.created, row.version)
    )
    newest: dict[tuple[str, str, str], _Graded] = {}
    for episode, *values in session.execute(chosen):
        one = _Graded(*values)
        newest[episode, one.annotator, one.recipe] = one
    return list(newest.values())


def _steps_taken(session: Session) -> dict[str, tuple[int, int, int | None]]:
    """Of each graded trajectory the agent's steps, the annotators', and the turn of the first of these."""
    graded = select(GradingRow.trajectory)
    actor = StepRow.actor
    counted = select(StepRow.trajectory, actor, func.count(), func.min(StepRow.turn)).where(StepRow.trajectory.in_(graded))
    found: dict[str, tuple[int, int, int | None]] = {}
    for trajectory, who, number, turn in session.execute(counted.group_by(StepRow.trajectory, actor)):
        agent, annotator, first = found.get(trajectory, (0, 0, None))
        found[trajectory] = (number, annotator, first) if who == Actor.AGENT.value else (agent, number, turn)
    return found


def _own_ious(session: Session, corrected: dict[str, int]) -> dict[tuple[str, str], float | None]:
    """(trajectory, reference) -> IoU at which the agent had ended before the first turn of an annotator, for the trajectories
    that have one; None where no step of the agent stayed."""
    clicked = select(StepRow.trajectory).where(StepRow.actor == Actor.ANNOTATOR.value)
    chosen = select(GradingRow.trajectory, GradingRow.reference, GradingRow.steps).where(GradingRow.trajectory.in_(clicked))
    found: dict[tuple[str, str], float | None] = {}
    for trajectory, reference, steps in session.execute(chosen):
        if trajectory in corrected:
            own = [step["iou_after"] for step in steps if step["turn"] < corrected[trajectory]]
            found[trajectory, reference] = own[-1] if own else None
    return found


def _own_dice(one: _Graded, taken: Any, own: dict[tuple[str, str], float | None], empty: _Empty) -> float | None:
    """Dice of the agent's own mask; None where neither it nor the label has a pixel, or no mask is the agent's."""
    dice = one.dice
    if one.trajectory in taken and taken[one.trajectory][2] is not None:
        iou = own.get((one.trajectory, one.reference))
        if iou is None:
            return None
        dice = 2 * iou / (1 + iou)
    return None if dice == 1.0 and empty(one.reference) else dice


def _seconds(session: Session, images: Collection[str], idle_s: float) -> dict[tuple[str, str, str], float]:
    """(image, annotator, time of a label) -> the annotator's seconds until then, since their label before."""
    runs, labels = defaultdict(list), defaultdict(set)
    recorded = select(TrajectoryRow.image, TrajectoryRow.created).where(TrajectoryRow.source == Source.RUN.value)
    for image, created in session.execute(recorded.order_by(TrajectoryRow.created)):
        if image in images:
            runs[image].append(created)
    for image, annotator, created in session.execute(select(LabelRow.image, LabelRow.annotator, LabelRow.created)):
        labels[image, annotator].add(created)
    found: dict[tuple[str, str, str], float] = {}
    for (image, annotator), times in labels.items():
        before = ""
        for time in sorted(times):
            events = [created for created in runs[image] if before < created <= time]
            found[image, annotator, time] = _active([*([before] if before else []), *events, time], idle_s)
            before = time
    return found


def _active(events: Sequence[str], idle_s: float) -> float:
    """Seconds from the first event to the last, pauses up to `idle_s`."""
    times = [datetime.fromisoformat(event).timestamp() for event in events]
    return sum(min(later - earlier, idle_s) for earlier, later in pairwise(times))
