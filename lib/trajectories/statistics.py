"""What is in a store, in numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import Select, func, select

from lib.trajectories.selection import Selection, narrow
from lib.trajectories.store import TrajectoryStore
from lib.trajectories.tables import GradingRow, ImageRow, LabelRow, StepRow, TrajectoryRow

_TURNS = 20
"""The learning curve ends here."""


@dataclass(frozen=True)
class CurvePoint:
    """Graded episodes after so many turns; one that has ended stays as it was."""

    turn: int
    """0: before the first."""
    iou: float
    """Mean."""
    lower: float
    """First quartile."""
    upper: float
    """Third quartile."""


@dataclass(frozen=True)
class Rewards:
    """The gradings by one recipe."""

    gradings: int
    dropped: Mapping[str, int]
    """Without a reward, by reason."""
    totals: np.ndarray
    """float `[n]`"""
    parts: Mapping[str, float]
    """Mean of each part, over the episodes that have it."""


@dataclass(frozen=True)
class Statistics:
    """A selection of trajectories."""

    trajectories: int
    images: int
    patients: int
    runs: int
    labels: int
    """Final labels that graded one of them."""
    steps: Mapping[str, int]
    """By actor."""
    by: Mapping[str, Mapping[str, int]]
    """Trajectories by source, engine, label, lesson and stop reason, the most first."""
    dice: np.ndarray
    """float `[n]`, one per trajectory and label."""
    rewards: Mapping[str, Rewards]
    """By recipe."""
    curve: Sequence[CurvePoint]
    """The learning curve; empty where nothing is graded."""


def statistics(store: TrajectoryStore, selection: Selection) -> Statistics:
    """Of the selected trajectories."""
    row, grading = TrajectoryRow, GradingRow
    keys = narrow(select(row.key), selection)
    chosen = row.key.in_(keys)
    columns = {"source": row.source, "engine": row.engine, "label": row.label, "lesson": row.lesson, "stop": row.stop}
    patients = select(func.count(ImageRow.patient.distinct())).join(row, row.image == ImageRow.key).where(chosen)
    labels = select(func.count(LabelRow.key.distinct())).join(grading, grading.label == LabelRow.key)
    gradings = select(
        grading.trajectory,
        grading.label,
        grading.recipe,
        grading.dropped,
        grading.dice,
        grading.total,
        grading.parts,
        grading.steps,
    ).where(grading.trajectory.in_(keys))
    with store.reading() as session:

        def counted(query: Select[str, int]) -> dict[str, int]:
            return dict(sorted(((name, number) for name, number in session.execute(query)), key=lambda item: -item[1]))

        steps = select(StepRow.actor, func.count()).where(StepRow.trajectory.in_(keys)).group_by(StepRow.actor)
        rows = list(session.execute(gradings.order_by(grading.recipe, grading.created)))
        first = {(one.trajectory, one.label): one for one in reversed(rows) if not one.dropped}
        total, images, runs = session.execute(
            select(func.count(), func.count(row.image.distinct()), func.count(row.run.distinct())).where(chosen)
        ).one()
        return Statistics(
            trajectories=total,
            images=images,
            runs=runs,
            patients=session.scalar(patients) or 0,
            labels=session.scalar(labels.where(grading.trajectory.in_(keys))) or 0,
            steps=counted(steps),
            by={name: counted(select(column, func.count()).where(chosen).group_by(column)) for name, column in columns.items()},
            dice=np.array([one.dice for one in first.values()], dtype=float),
            rewards={
                recipe: _rewards([one for one in rows if one.recipe == recipe])
                for recipe in dict.fromkeys(one.recipe for one in rows)
            },
            curve=learning_curve([_course(one.steps) for one in first.values()]),
        )


def belongings(store: TrajectoryStore, patient: str = "", image: str = "") -> tuple[int, int]:
    """How many images and trajectories there are of a patient, or of an image (their hashes)."""
    chosen = select(ImageRow.key).where(ImageRow.patient == patient if patient else ImageRow.key == image)
    with store.reading() as session:
        images = list(session.scalars(chosen))
        number = session.scalar(select(func.count(TrajectoryRow.key)).where(TrajectoryRow.image.in_(images)))
    return len(images), number or 0


def learning_curve(courses: Sequence[Sequence[float]]) -> list[CurvePoint]:
    """The mean IoU by turn; a course has the IoU before the first turn and after each."""
    known = [course for course in courses if course]
    if not known:
        return []
    length = min(_TURNS + 1, max(len(course) for course in known))
    table = np.array([[course[min(turn, len(course) - 1)] for turn in range(length)] for course in known])
    lower, upper = np.quantile(table, (0.25, 0.75), axis=0)
    return [
        CurvePoint(turn, float(mean), float(low), float(high))
        for turn, (mean, low, high) in enumerate(zip(table.mean(axis=0), lower, upper, strict=True))
    ]


def _course(steps: Sequence[Mapping[str, float]]) -> list[float]:
    return [steps[0]["iou_before"], *(step["iou_after"] for step in steps)] if steps else []


def _rewards(rows: Sequence[Any]) -> Rewards:
    dropped: dict[str, int] = {}
    parts: dict[str, list[float]] = {}
    for one in rows:
        if one.dropped:
            dropped[one.dropped] = dropped.get(one.dropped, 0) + 1
        for name, value in one.parts.items():
            parts.setdefault(name, []).append(value)
    totals = np.array([one.total for one in rows if not one.dropped], dtype=float)
    return Rewards(len(rows), dropped, totals, {name: float(np.mean(values)) for name, values in sorted(parts.items())})
