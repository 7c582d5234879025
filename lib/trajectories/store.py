"""The store of trajectories: rows in a database, pictures and masks as blobs beside it.

Shared between threads and processes, without locks of its own: the database and the blobs keep writers apart. Adding an episode
writes its blobs first and then all its rows in one transaction, so a row never names what is not there. Every method may wait
for the disk and for another writer.
"""

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Select, delete, func, insert, select, union
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from lib.errors import InputError
from lib.imaging.rle import Rle
from lib.trajectories.blobs import GRACE_S, Blobs
from lib.trajectories.database import erase, guard, open_database, sqlite_url
from lib.trajectories.grade import Dropped, Grade, StepGrade
from lib.trajectories.privacy import fingerprint, hashed, read_salt
from lib.trajectories.rows import image_row, to_trajectory, trajectory_rows
from lib.trajectories.selection import Selection, narrow, ordered
from lib.trajectories.tables import Base, GradingRow, ImageRow, LabelRow, RejectionRow, StepRow, TrajectoryRow
from lib.trajectories.trajectory import Source, Trajectory

_TRIES = 20


@dataclass(frozen=True)
class Label:
    """A final label of one target."""

    image: str
    """The image's hash."""
    name: str
    annotator: str
    source: str
    created: str
    key: str


@dataclass(frozen=True, eq=False)
class Grading:
    """A trajectory against a label."""

    key: str
    trajectory: str
    label: Label
    created: str
    reference: str
    """Digest of the label's mask in the trajectory's view."""
    recipe: str
    grade: Grade | Dropped


@dataclass(frozen=True)
class Rejection:
    """An annotator's word that a run is of no use."""

    run: str
    target: int
    annotator: str
    reason: str
    created: str


@dataclass(frozen=True)
class Summary:
    """A trajectory in a line."""

    key: str
    version: int
    source: Source
    run: str
    target: int
    user: str
    created: str
    image: str
    plane: str
    slice: int
    prompt: str
    label: str
    engine: str
    stop: str
    turns: int
    confidence: float | None
    lesson: str
    gradings: int
    reward: float | None
    """Mean total of its gradings."""
    dice: float | None
    """Mean of its gradings."""


@dataclass(frozen=True)
class Forgotten:
    """What was removed."""

    images: int
    trajectories: int
    gradings: int
    blobs: int
    runs: tuple[str, ...]
    """Whose records a server still has."""


class TrajectoryStore:
    """Opens the store in `folder`, or the database at `url` with its blobs in `folder`; makes what is not there.

    Raises InputError as `open_database` does.
    """

    def __init__(self, folder: Path, url: str = "", identifiers: bool = False):
        """`identifiers`: keep the names that the server has for images, beside their hashes."""
        self.folder = folder
        self._salt = read_salt(folder)
        self._identifiers = identifiers
        self._engine = open_database(url or sqlite_url(folder / "trajectories.sqlite"), fingerprint(self._salt))
        self.blobs = Blobs(folder / "blobs")

    def close(self) -> None:
        self._engine.dispose()

    def hashed(self, kind: str, identifier: str) -> str:
        """The store's hash of an identifier; `kind` is "image" or "patient"."""
        return hashed(self._salt, kind, identifier)

    def add(self, trajectories: Sequence[Trajectory], name: str | None = None) -> int:
        """Record trajectories, all or none; those that are there already are passed over. Returns how many are new.

        `name` is what the server calls the image of all of them. Their pictures must have been put before: raises InputError
        when one is gone.
        """
        if not trajectories:
            return 0
        rows = [trajectory_rows(trajectory, self.blobs.put_mask) for trajectory in trajectories]
        for _ in range(_TRIES):
            try:
                return self._insert(trajectories, rows, name if self._identifiers else None)
            except IntegrityError as error:  # another process recorded the same episode meanwhile
                last = error
        raise last

    def get(self, key: str) -> Trajectory:
        """By its key or the first digits of it. Raises InputError when there is none, or more than one."""
        found = self.summaries(Selection(keys=(key,), newest=False), limit=2)
        if len(found) != 1:
            raise InputError(f"{'no trajectory' if not found else 'more than one trajectory'} begins with {key!r}", "key")
        with self.reading() as session:
            return self._load(session, [found[0].key])[0]

    def select(self, selection: Selection, batch: int = 64) -> Iterator[Trajectory]:
        """The trajectories, oldest first; a `batch` of them in memory."""
        with self.reading() as session:
            keys = list(session.scalars(ordered(narrow(select(TrajectoryRow.key), selection))))
        for begin in range(0, len(keys), batch):
            with self.reading() as session:
                loaded = self._load(session, keys[begin : begin + batch])
            yield from loaded

    def summaries(self, selection: Selection, limit: int | None = None, offset: int = 0) -> list[Summary]:
        """In lines, newest first."""
        turns = select(func.count()).where(StepRow.trajectory == TrajectoryRow.key).scalar_subquery()
        graded = select(GradingRow).where(GradingRow.trajectory == TrajectoryRow.key)
        count = graded.with_only_columns(func.count()).scalar_subquery()
        reward = graded.with_only_columns(func.avg(GradingRow.total)).scalar_subquery()
        dice = graded.with_only_columns(func.avg(GradingRow.dice)).scalar_subquery()
        chosen = narrow(select(TrajectoryRow, turns, count, reward, dice), selection)
        chosen = chosen.order_by(TrajectoryRow.created.desc(), TrajectoryRow.key).limit(limit).offset(offset)
        with self.reading() as session:
            return [_summary(*row) for row in session.execute(chosen)]

    def count(self, selection: Selection) -> int:
        with self.reading() as session:
            return int(session.scalar(narrow(select(func.count(TrajectoryRow.key)), selection)) or 0)

    def add_label(self, image: str, name: str, annotator: str, source: str, key: str = "") -> Label:
        """Note that a final label has arrived; `image` is the image's hash. The image must be known. With a `key` (32 hex
        digits) that is there already, the label is the same one."""
        label = Label(image, name, annotator, source, now(), key or secrets.token_hex(16))
        values = {name: getattr(label, name) for name in ("key", "image", "annotator", "source", "name", "created")}
        with self._engine.begin() as connection:
            there = connection.execute(select(LabelRow.created).where(LabelRow.key == label.key)).scalar()
            if there is None:
                connection.execute(insert(LabelRow).values(values))
        return label if there is None else replace(label, created=there)

    def newest_labels(self) -> set[str]:
        """The keys of the labels that no later one of the same image, name and annotator replaces."""
        chosen = select(LabelRow.key, LabelRow.image, LabelRow.name, LabelRow.annotator)
        chosen = chosen.order_by(LabelRow.created, LabelRow.key)
        with self.reading() as session:
            return set({(image, name, who): key for key, image, name, who in session.execute(chosen)}.values())

    def contents(self) -> list[tuple[str, str]]:
        """The patient's hash and the content of every image that was recorded, each pair once."""
        chosen = select(ImageRow.patient, TrajectoryRow.content_hash).join(ImageRow, ImageRow.key == TrajectoryRow.image)
        with self.reading() as session:
            return [(patient, content) for patient, content in session.execute(chosen.distinct())]

    def add_grading(self, trajectory: str, label: Label, reference: Rle, recipe: str, grade: Grade | Dropped) -> bool:
        """Record a grading; False when the trajectory has one for this label and recipe already, or was forgotten."""
        values: dict[str, Any] = {
            "key": secrets.token_hex(16),
            "trajectory": trajectory,
            "label": label.key,
            "created": now(),
            "recipe": recipe,
            **_grade_values(grade),
        }
        there = select(GradingRow.key).where(
            GradingRow.trajectory == trajectory, GradingRow.label == label.key, GradingRow.recipe == recipe
        )
        try:
            with self._engine.begin() as connection:
                guard(connection, removing=False)
                known = connection.scalar(select(TrajectoryRow.key).where(TrajectoryRow.key == trajectory))
                if known is None or connection.scalar(there) is not None:
                    return False
                values["reference"] = self.blobs.put_mask(reference)
                connection.execute(insert(GradingRow).values(values))
        except IntegrityError:  # another process was faster
            return False
        return True

    def gradings(self, selection: Selection) -> dict[str, list[Grading]]:
        """The gradings of the trajectories by key, oldest first; the trajectories without one are left out."""
        keys = narrow(select(TrajectoryRow.key), selection)
        chosen = (
            select(GradingRow, LabelRow)
            .join(LabelRow, LabelRow.key == GradingRow.label)
            .where(GradingRow.trajectory.in_(keys))
            .order_by(GradingRow.created, GradingRow.key)
        )
        found: dict[str, list[Grading]] = {}
        with self.reading() as session:
            for row, label in session.execute(chosen):
                found.setdefault(row.trajectory, []).append(_grading(row, label))
        return found

    def reject(self, run: str, target: int, annotator: str, reason: str) -> Rejection:
        """Note that a run is of no use."""
        rejection = Rejection(run, target, annotator, reason, now())
        with self._engine.begin() as connection:
            connection.execute(insert(RejectionRow).values(key=secrets.token_hex(16), **vars(rejection)))
        return rejection

    def rejections(self, run: str = "") -> list[Rejection]:
        """Of a run, or of all; oldest first."""
        chosen = select(RejectionRow).order_by(RejectionRow.created, RejectionRow.key)
        with self.reading() as session:
            rows = session.scalars(chosen.where(RejectionRow.run == run) if run else chosen)
            return [Rejection(row.run, row.target, row.annotator, row.reason, row.created) for row in rows]

    def forget(self, patient: str = "", image: str = "") -> Forgotten:
        """Remove everything of a patient, or of an image (their hashes), blobs included; nothing else."""
        chosen = select(ImageRow.key).where(ImageRow.patient == patient if patient else ImageRow.key == image)
        with Session(self._engine) as session, session.begin():
            guard(session.connection(), removing=True)
            images = list(session.scalars(chosen))
            mine = select(TrajectoryRow.key).where(TrajectoryRow.image.in_(images))
            runs = list(session.scalars(select(TrajectoryRow.run).where(TrajectoryRow.image.in_(images)).distinct()))
            before = set(session.scalars(_digests(mine)))
            gradings = session.execute(delete(GradingRow).where(GradingRow.trajectory.in_(mine))).rowcount  # type: ignore[attr-defined]
            session.execute(delete(StepRow).where(StepRow.trajectory.in_(mine)))
            session.execute(delete(RejectionRow).where(RejectionRow.run.in_(runs)))
            trajectories = session.execute(delete(TrajectoryRow).where(TrajectoryRow.image.in_(images))).rowcount  # type: ignore[attr-defined]
            session.execute(delete(LabelRow).where(LabelRow.image.in_(images)))
            session.execute(delete(ImageRow).where(ImageRow.key.in_(images)))
        # A kill before this leaves files that `collect` removes; rows without their files it never leaves.
        with Session(self._engine) as session, session.begin():
            guard(session.connection(), removing=True)
            blobs = self.blobs.remove(before - set(session.scalars(_digests(None))))
        erase(self._engine)
        return Forgotten(len(images), trajectories, gradings, blobs, tuple(sorted(runs)))

    def collect(self, grace_s: float = GRACE_S) -> int:
        """Remove blobs that no row names and that are older than `grace_s`; how many."""
        with Session(self._engine) as session, session.begin():
            guard(session.connection(), removing=True)
            return self.blobs.collect(set(session.scalars(_digests(None))), grace_s)

    def named(self) -> set[str]:
        """The digests of all blobs that rows name."""
        with self.reading() as session:
            return set(session.scalars(_digests(None)))

    def missing(self) -> set[str]:
        """Digests that rows name and that are not there: none, unless files were removed by hand."""
        return self.named() - self.blobs.digests()

    @contextmanager
    def reading(self) -> Iterator[Session]:
        with self._engine.connect().execution_options(reading=True) as connection, Session(connection) as session:
            yield session

    def _insert(self, trajectories: Sequence[Trajectory], rows: list[Any], name: str | None) -> int:
        with self._engine.begin() as connection:
            guard(connection, removing=False)
            keys = [row["key"] for row, _ in rows]
            there = set(connection.scalars(select(TrajectoryRow.key).where(TrajectoryRow.key.in_(keys))))
            origins = {one.origin.image: one.origin for one in trajectories}
            known = set(connection.scalars(select(ImageRow.key).where(ImageRow.key.in_(origins))))
            fresh = {row["key"]: (row, steps) for row, steps in rows if row["key"] not in there}
            episodes = {row["episode"] for row, _ in fresh.values()}
            newest = select(TrajectoryRow.episode, func.max(TrajectoryRow.version)).group_by(TrajectoryRow.episode)
            found = connection.execute(newest.where(TrajectoryRow.episode.in_(episodes)))
            versions: dict[str, int] = {episode: version for episode, version in found}
            for row, steps in fresh.values():
                self._check_blobs(row, steps)
                row["version"] = versions[row["episode"]] = versions.get(row["episode"], 0) + 1
            for table, values in (
                ("images", [image_row(origin, name) for key, origin in origins.items() if key not in known]),
                ("trajectories", [row for row, _ in fresh.values()]),
                ("steps", [step for _, steps in fresh.values() for step in steps]),
            ):
                if values:
                    connection.execute(insert(Base.metadata.tables[table]), values)
        return len(fresh)

    def _check_blobs(self, row: dict[str, Any], steps: list[dict[str, Any]]) -> None:
        """Who forgets a patient may have removed a blob since it was put; none is removed until the transaction ends."""
        named = {row["picture"], row["mask"], *(step["mask"] for step in steps if step["mask"] is not None)}
        gone = [digest for digest in named if digest not in self.blobs]
        if gone:
            raise InputError(f"blob {gone[0][:12]} was removed before trajectory {row['key'][:8]} was recorded", "store")

    def _load(self, session: Session, keys: list[str]) -> list[Trajectory]:
        """In the order of `keys`."""
        chosen = select(TrajectoryRow, ImageRow).join(ImageRow, ImageRow.key == TrajectoryRow.image)
        rows = {row.key: (row, image) for row, image in session.execute(chosen.where(TrajectoryRow.key.in_(keys)))}
        steps: dict[str, list[StepRow]] = {key: [] for key in keys}
        for step in session.scalars(select(StepRow).where(StepRow.trajectory.in_(keys)).order_by(StepRow.turn)):
            steps[step.trajectory].append(step)
        return [to_trajectory(*rows[key], iter(steps[key]), self.blobs) for key in keys if key in rows]


def now() -> str:
    """The time as rows have it: ISO 8601, UTC, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _digests(trajectories: Select[Any] | None) -> Any:
    """All digests that the rows of these trajectories name; of all for None."""
    parts = [
        select(TrajectoryRow.picture, TrajectoryRow.key),
        select(TrajectoryRow.mask, TrajectoryRow.key),
        select(TrajectoryRow.given["mask"].as_string(), TrajectoryRow.key).where(TrajectoryRow.given.is_not(None)),
        select(StepRow.mask, StepRow.trajectory).where(StepRow.mask.is_not(None)),
        select(GradingRow.reference, GradingRow.trajectory),
    ]
    if trajectories is not None:
        parts = [part.where(part.selected_columns[1].in_(trajectories)) for part in parts]
    return union(*(part.with_only_columns(part.selected_columns[0]) for part in parts))


def _grade_values(grade: Grade | Dropped) -> dict[str, Any]:
    if isinstance(grade, Dropped):
        return {"dropped": grade.reason, "iou": None, "dice": None, "total": None, "parts": {}, "steps": []}
    steps = [{**vars(step), "parts": dict(step.parts)} for step in grade.steps]
    parts = dict(grade.parts)
    return {"dropped": "", "iou": grade.iou, "dice": grade.dice, "total": grade.total, "parts": parts, "steps": steps}


def _grading(row: GradingRow, label: LabelRow) -> Grading:
    grade: Grade | Dropped = Dropped(row.dropped)
    if row.iou is not None and row.dice is not None and row.total is not None:
        steps = tuple(StepGrade(**step) for step in row.steps)
        grade = Grade(row.recipe, row.iou, row.dice, row.parts, row.total, steps)
    about = Label(label.image, label.name, label.annotator, label.source, label.created, label.key)
    return Grading(row.key, row.trajectory, about, row.created, row.reference, row.recipe, grade)


def _summary(row: TrajectoryRow, turns: int, gradings: int, reward: float | None, dice: float | None) -> Summary:
    return Summary(
        key=row.key,
        version=row.version,
        source=Source(row.source),
        run=row.run,
        target=row.target,
        user=row.user,
        created=row.created,
        image=row.image,
        plane=row.plane,
        slice=row.slice,
        prompt=row.prompt,
        label=row.label,
        engine=row.engine,
        stop=row.stop,
        turns=turns,
        confidence=row.confidence,
        lesson=row.lesson,
        gradings=gradings,
        reward=reward,
        dice=dice,
    )
