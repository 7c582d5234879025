"""Expected gain: what the agent would learn from a label of an image, as far as the recorded runs on it tell.

`Gain` is shared between request threads. One lock covers what it knows of the runs, and is held while the database is asked for
newer ones; its other caches are keyed by content and have locks of their own. Ranking waits for the disk, and for nothing else.
"""

import threading
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cache, lru_cache

import numpy as np
from PIL import Image
from pycocotools import mask as coco
from pydantic import BaseModel, ConfigDict, Field
from scipy.spatial.distance import cdist
from sqlalchemy import case, func, select
from sqlalchemy.orm import Session, aliased

from lib.agent.limits import StopReason
from lib.config import load_config
from lib.errors import InputError
from lib.trajectories.store import TrajectoryStore
from lib.trajectories.tables import ImageRow, LabelRow, StepRow, TrajectoryRow
from lib.trajectories.trajectory import Source

_BROKEN = (StopReason.PROTOCOL_ERROR, StopReason.REPEATED_ACTION, StopReason.NO_PROGRESS)
_CUT = (StopReason.DEADLINE, StopReason.CANCELLED, StopReason.FAILED)
_OVERLAP = timedelta(minutes=10)
"""An episode may be committed so long after the time that its row has."""
_THUMBNAIL = 16
_LEVELS = 32
_KEPT = 16_384


class Weights(BaseModel):
    """How much each kind of evidence counts."""

    model_config = ConfigDict(extra="forbid")
    doubt: float = Field(ge=0)
    disagreement: float = Field(ge=0)
    errors: float = Field(ge=0)
    length: float = Field(ge=0)
    diversity: float = Field(ge=0)


class GainConfig(BaseModel):
    """`configs/activelearning.yaml`, which says what each is."""

    model_config = ConfigDict(extra="forbid")
    weights: Weights
    shortlist: int = Field(ge=1)
    centres: int = Field(ge=0)
    episodes: int = Field(ge=2)
    slices: int = Field(ge=1)
    unseen: float = Field(ge=0, le=1)
    lease_minutes: float = Field(ge=0)
    skip_minutes: float = Field(ge=0)
    idle_minutes: float = Field(gt=0)


@cache
def gain_config() -> GainConfig:
    return load_config("activelearning", GainConfig)


@dataclass(frozen=True)
class Evidence:
    """What recorded runs tell about an image; from 0, nothing to learn, to 1."""

    runs: int
    """How many: of each target the newest."""
    doubt: float
    errors: float
    length: float
    disagreement: float = 0.0
    diversity: float = 0.0


@dataclass(frozen=True)
class Candidate:
    """An image that could be labelled next."""

    image: str
    """The image's hash."""
    gain: float
    """0..1"""
    evidence: Evidence | None
    """None for an image without a run."""
    labels: int
    """How many final labels of it have arrived."""


class Gain:
    """Ranks the images of a store."""

    def __init__(self, store: TrajectoryStore, config: GainConfig | None = None):
        self._store = store
        self._config = config or gain_config()
        self._lock = threading.Lock()
        self._known: dict[str, tuple[str, Evidence]] = {}
        self._mark = (0, "")
        self._picture = lru_cache(_KEPT)(self._describe)
        self._disagreement = lru_cache(_KEPT)(self._compare)

    def rank(self, images: Iterable[str], done: Collection[str] = ()) -> list[Candidate]:
        """The `images` (hashes), best first; of equal ones those without a label first, then in the order of their hashes,
        which has nothing to do with their names.

        `done` are the images that others should differ from: labelled, or being labelled.
        """
        seen, labels = self._runs(), self.labels()
        wanted = list(dict.fromkeys(images))
        first = sorted((image for image in wanted if image in seen), key=lambda image: (-self._gain(seen[image]), image))
        shortlist = first[: self._config.shortlist]
        centres = [image for image in seen if image in set(done)][: self._config.centres]
        found = {**seen, **self._closer({image: seen[image] for image in shortlist}, centres)}
        candidates = [
            Candidate(image, self._gain(found.get(image)), found.get(image), labels.get(image, 0)) for image in wanted
        ]
        return sorted(candidates, key=lambda one: (-one.gain, one.labels, one.image))

    def key(self, image_id: str) -> str:
        """The hash of an image, given what the server calls it."""
        return self._store.hashed("image", image_id)

    def labels(self) -> dict[str, int]:
        """How many final labels have arrived, for each image that has one."""
        with self._store.reading() as session:
            counted = session.execute(select(LabelRow.image, func.count()).group_by(LabelRow.image))
            return {image: number for image, number in counted}

    def busy(self, since: str) -> list[tuple[str, str, str]]:
        """(image, user, ISO 8601 time of the newest episode) of everybody's runs since then."""
        newest = func.max(TrajectoryRow.created)
        recent = (TrajectoryRow.source == Source.RUN.value, TrajectoryRow.created >= since)
        chosen = select(TrajectoryRow.image, TrajectoryRow.user, newest).where(*recent)
        with self._store.reading() as session:
            grouped = session.execute(chosen.group_by(TrajectoryRow.image, TrajectoryRow.user))
            return [(image, user, created) for image, user, created in grouped]

    def _gain(self, evidence: Evidence | None) -> float:
        if evidence is None:
            return self._config.unseen
        weights = dict(self._config.weights)
        total = sum(weights.values())
        return sum(weight * getattr(evidence, name) for name, weight in weights.items()) / total if total else 0.0

    def _runs(self) -> dict[str, Evidence]:
        """Of each image what its newest run of each target tells, without what needs blobs; the newest image first."""
        row = TrajectoryRow
        count = select(func.count(), func.max(row.created)).where(row.source == Source.RUN.value)
        with self._lock, self._store.reading() as session:
            number, newest = session.execute(count).one()
            known, mark = self._mark
            if number < known:  # some were forgotten
                self._known, mark = {}, ""
            if (number, newest) != self._mark:
                self._known |= self._read_runs(session, mark)
                self._mark = (number, newest or "")
            newest_first = sorted(self._known.items(), key=lambda item: item[1][0], reverse=True)
        return {image: evidence for image, (_, evidence) in newest_first}

    def _read_runs(self, session: Session, since: str) -> dict[str, tuple[str, Evidence]]:
        """Of the images with an episode since then: when the newest was recorded, and what the runs tell."""
        row, later, touched = TrajectoryRow, aliased(TrajectoryRow), aliased(TrajectoryRow)
        turns = select(func.count()).where(StepRow.trajectory == row.key).correlate(row).scalar_subquery()
        created = func.max(row.created).label("created")
        runs = (
            select(
                row.image,
                row.label,
                created,
                func.avg(1.0 - row.confidence),
                func.avg(case((row.stop.in_([stop.value for stop in _BROKEN]), 1.0), else_=0.0)),
                func.avg(1.0 * turns / row.max_turns),
            )
            .where(
                row.source == Source.RUN.value,
                row.stop.not_in([stop.value for stop in _CUT]),
                ~select(later.key).where(later.episode == row.episode, later.version > row.version).exists(),
            )
            .group_by(row.image, row.label, row.run)
            .order_by(created.desc())
        )
        if since:
            begin = (datetime.fromisoformat(since) - _OVERLAP).isoformat(timespec="milliseconds")
            runs = runs.where(row.image.in_(select(touched.image).where(touched.created >= begin)))
        told: dict[str, dict[str, tuple[float, float, float]]] = {}
        newest: dict[str, str] = {}
        for image, label, time, doubt, errors, length in session.execute(runs):
            newest.setdefault(image, time)
            told.setdefault(image, {}).setdefault(label, (doubt or 0.0, errors, min(1.0, length)))
        return {
            image: (newest[image], Evidence(len(targets), *map(float, np.mean(list(targets.values()), axis=0))))
            for image, targets in told.items()
        }

    def _closer(self, shortlist: dict[str, Evidence], centres: Sequence[str]) -> dict[str, Evidence]:
        """The evidence with disagreement and diversity."""
        disagreement = self._disagreements(shortlist)
        diversity = self._diversity(list(shortlist), centres)
        return {
            image: replace(evidence, disagreement=disagreement.get(image, 0.0), diversity=diversity[image])
            for image, evidence in shortlist.items()
        }

    def _disagreements(self, images: Collection[str]) -> dict[str, float]:
        """Of the images with several episodes on one slice and target: 1 - mean pairwise IoU of their masks."""
        row = TrajectoryRow
        same = (row.image, row.label, row.plane, row.slice)
        newest = func.row_number().over(partition_by=same, order_by=(row.created.desc(), row.key)).label("newest")
        many = func.count().over(partition_by=same).label("many")
        cut = [stop.value for stop in (*_CUT, StopReason.ANNOTATED)]
        later = aliased(TrajectoryRow)
        inner = (
            select(*same, row.mask, newest, many)
            .where(
                row.image.in_(images),
                row.source == Source.RUN.value,
                row.stop.not_in(cut),
                ~select(later.key).where(later.episode == row.episode, later.version > row.version).exists(),
            )
            .subquery()
        )
        told = inner.c
        chosen = select(told.image, told.label, told.plane, told.slice, told.mask).where(
            told.many > 1, told.newest <= self._config.episodes
        )
        masks: dict[str, dict[tuple[str, str], dict[int, list[str]]]] = {}
        with self._store.reading() as session:
            for image, label, plane, index, mask in session.execute(chosen.order_by(told.slice, told.newest)):
                slices = masks.setdefault(image, {}).setdefault((label, plane), {})
                slices.setdefault(index, []).append(mask)
        found: dict[str, float] = {}
        for image, targets in masks.items():
            values = [
                self._disagreement(tuple(sorted(slices[index])))
                for slices in targets.values()
                for index in _spread(list(slices), self._config.slices)
            ]
            known = [value for value in values if value is not None]
            if known:
                found[image] = float(np.mean(known))
        return found

    def _compare(self, digests: tuple[str, ...]) -> float | None:
        """1 - mean pairwise IoU of masks, of two empty ones 1; None when one was forgotten meanwhile."""
        if len(set(digests)) == 1:
            return 0.0
        try:
            masks = [self._store.blobs.mask(digest) for digest in digests]
        except InputError:
            return None
        runs = [{"size": mask["size"], "counts": mask["counts"].encode("ascii")} for mask in masks]
        if any(one["size"] != runs[0]["size"] for one in runs):
            return None
        overlap = coco.iou(runs, runs, [False] * len(runs))
        empty = coco.area(runs) == 0
        overlap[np.ix_(empty, empty)] = 1.0
        return 1.0 - float(overlap[np.triu_indices(len(runs), 1)].mean())

    def _diversity(self, images: Sequence[str], centres: Sequence[str]) -> dict[str, float]:
        """Distance (0..1) of each image to the nearest of the centres; 1 where there is none."""
        known = self._embeddings([*images, *centres])
        there = [image for image in centres if image in known]
        here = [image for image in images if image in known]
        found = dict.fromkeys(images, 1.0)
        if not there or not here:
            return found
        (modality, described), (others, compared) = (_stacked([known[image] for image in of]) for of in (here, there))
        distance = (cdist(described, compared, "cityblock") + (modality[:, None] != others[None])) / 3
        return found | dict(zip(here, distance.min(axis=1).clip(0, 1).tolist(), strict=True))

    def _embeddings(self, images: Collection[str]) -> dict[str, tuple[str, np.ndarray]]:
        """Modality, and what one picture of the image looks like: of the newest slice on which something was drawn."""
        row = TrajectoryRow
        order = (case((row.confidence.is_(None), 1), else_=0), row.created.desc(), row.key)
        newest = func.row_number().over(partition_by=row.image, order_by=order).label("newest")
        inner = select(row.image, row.picture, newest).where(row.image.in_(images), row.source == Source.RUN.value).subquery()
        chosen = select(inner.c.image, ImageRow.modality, inner.c.picture).join(ImageRow, ImageRow.key == inner.c.image)
        with self._store.reading() as session:
            pictures = list(session.execute(chosen.where(inner.c.newest == 1)))
        described = ((image, modality, self._picture(digest)) for image, modality, digest in pictures)
        return {image: (modality, vector) for image, modality, vector in described if vector is not None}

    def _describe(self, digest: str) -> np.ndarray | None:
        """A picture's grey levels and its thumbnail, so scaled that two pictures' city-block distance is at most 1 for each;
        None when it was forgotten meanwhile."""
        try:
            with Image.open(self._store.blobs.picture_path(digest)) as picture:
                grey = picture.convert("L")
        except (InputError, FileNotFoundError):
            return None
        levels = np.asarray(grey.histogram(), dtype=np.float32).reshape(_LEVELS, -1).sum(axis=1)
        thumbnail = np.asarray(grey.resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX), dtype=np.float32).ravel()
        return np.concatenate([levels / levels.sum() / 2, thumbnail / 255 / thumbnail.size])


def _stacked(described: Sequence[tuple[str, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([modality for modality, _ in described]), np.stack([vector for _, vector in described])


def _spread(values: Sequence[int], most: int) -> list[int]:
    """At most `most` of the values, evenly spread."""
    positions = np.unique(np.linspace(0, len(values) - 1, min(most, len(values))).round().astype(int))
    return [values[position] for position in positions]
