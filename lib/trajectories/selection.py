"""Which trajectories: filters, as people give them and as the database understands them."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Select, or_, select
from sqlalchemy.orm import aliased

from lib.errors import InputError
from lib.trajectories.tables import GradingRow, LabelRow, TrajectoryRow
from lib.trajectories.trajectory import Source


@dataclass(frozen=True)
class Selection:
    """Which trajectories; every field narrows."""

    keys: tuple[str, ...] = ()
    """Whole keys, or their first digits (at least 4)."""
    run: str = ""
    image: str = ""
    """The image's hash."""
    label: str = ""
    """Name of the target's label, whole."""
    user: str = ""
    engine: str = ""
    source: Source | None = None
    since: str = ""
    """ISO 8601; what was recorded at that time or later."""
    until: str = ""
    """ISO 8601; what was recorded before."""
    annotator: str = ""
    """Graded against a label of this annotator."""
    min_reward: float | None = None
    max_reward: float | None = None
    """Total of a grading."""
    graded: bool | None = None
    newest: bool = True
    """Only the newest version of each episode."""


def moment(text: str, field: str) -> str:
    """A point in time as rows have it, of ISO 8601 text such as "2026-11-22" or "2026-11-22T15:04+01:00"; UTC where it does
    not say. Raises InputError with that field."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError as error:
        raise InputError(f"{text!r} is no time such as 2026-11-22 or 2026-11-22T15:04", field) from error
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).astimezone(UTC).isoformat(timespec="milliseconds")


def narrow(chosen: Select[Any], wanted: Selection) -> Select[Any]:
    """A query of trajectories with only those that are wanted. Raises InputError for a key that is none."""
    row = TrajectoryRow
    for key in wanted.keys:
        if len(key) < 4 or not key.isalnum():
            raise InputError(f"{key!r} is no key: give at least its first 4 digits", "key")
    if wanted.keys:  # "g" comes after every hex digit
        chosen = chosen.where(or_(*((row.key >= key) & (row.key < f"{key}g") for key in wanted.keys)))
    for column, value in ((row.run, wanted.run), (row.image, wanted.image), (row.label, wanted.label)):
        chosen = chosen.where(column == value) if value else chosen
    for column, value in ((row.user, wanted.user), (row.engine, wanted.engine)):
        chosen = chosen.where(column == value) if value else chosen
    if wanted.source is not None:
        chosen = chosen.where(row.source == wanted.source.value)
    chosen = chosen.where(row.created >= wanted.since) if wanted.since else chosen
    chosen = chosen.where(row.created < wanted.until) if wanted.until else chosen
    if wanted.newest:
        later = aliased(TrajectoryRow)
        chosen = chosen.where(~select(later.key).where(later.episode == row.episode, later.version > row.version).exists())
    graded = select(GradingRow.key).where(GradingRow.trajectory == row.key)
    narrower = graded
    if wanted.annotator:
        narrower = narrower.join(LabelRow, LabelRow.key == GradingRow.label).where(LabelRow.annotator == wanted.annotator)
    if wanted.min_reward is not None:
        narrower = narrower.where(GradingRow.total >= wanted.min_reward)
    if wanted.max_reward is not None:
        narrower = narrower.where(GradingRow.total <= wanted.max_reward)
    if narrower is not graded:
        chosen = chosen.where(narrower.exists())
    if wanted.graded is not None:
        chosen = chosen.where(graded.exists() if wanted.graded else ~graded.exists())
    return chosen


def ordered(chosen: Select[Any]) -> Select[Any]:
    """A query of trajectories, oldest first."""
    return chosen.order_by(TrajectoryRow.created, TrajectoryRow.key)
