"""Grading: a final label arrives, and every episode that was recorded for it gets its reward.

Two annotators' labels on one image are two gradings of each episode; a label that an annotator sends again is one more. What a
target means is matched by name and never guessed: what matches nothing is told.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from lib.agent.engine import Engine
from lib.agent.limits import Limits
from lib.agent.takeover import Slice
from lib.errors import EngineError
from lib.imaging import rle
from lib.imaging.overlays import overlay_named
from lib.imaging.planes import Plane, ViewGrid
from lib.imaging.views import View
from lib.imaging.volume import Volume
from lib.policies.simulated import SimulatedPolicy
from lib.trajectories.grade import Dropped
from lib.trajectories.matching import match
from lib.trajectories.rewards.episode import grade
from lib.trajectories.rewards.recipes import Recipe
from lib.trajectories.selection import Selection
from lib.trajectories.simulation.correction import correct
from lib.trajectories.store import Grading, Label, TrajectoryStore, now
from lib.trajectories.trajectory import Maker, Origin, Source, Trajectory

logger = logging.getLogger(__name__)

CORRECTING_CLICKS = 5
"""At most so many clicks of a simulated expert are added to an episode that ended wrong."""


@dataclass(frozen=True)
class Extent:
    """Slices that a label speaks for: on others it says nothing."""

    plane: str
    slices: frozenset[int]


@dataclass(frozen=True, eq=False)
class FinalLabel:
    """What an annotator says is right."""

    image_id: str
    """What the server calls the image."""
    volume: Volume
    labels: np.ndarray
    """uint8 or uint16 `[i, j, k]` on the volume's grid."""
    names: Mapping[int, str]
    """Voxel value -> name; a name without a voxel says that the structure is absent."""
    annotator: str
    source: str
    """"api", "review", "pacs", "folder" or "command"."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Label name -> name of the target that it means, where someone said so."""
    extents: Mapping[str, Extent] = field(default_factory=dict)
    """By name the slices that the label speaks for, where those are not all."""
    key: str = ""
    """Tells a label that is graded again, because grading was interrupted, from another one."""

    def speaks_for(self, values: Sequence[int], origin: Origin) -> bool:
        """Whether these values of the label say anything about a slice."""
        extents = [self.extents[self.names[value]] for value in values if self.names[value] in self.extents]
        return all(extent.plane == origin.plane and origin.index in extent.slices for extent in extents)


@dataclass(frozen=True)
class Graded:
    """What came of a final label."""

    targets: tuple[str, ...] = ()
    """Labels of the targets that were graded."""
    graded: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Episodes without a reward, by reason."""
    corrections: int = 0
    unmatched_targets: tuple[str, ...] = ()
    """Targets with recorded episodes that nothing in the label means."""
    unused_names: tuple[str, ...] = ()
    """Names of the label that no recorded episode looked for."""
    changed: int = 0
    """Episodes of an earlier content of the image."""
    unspoken: int = 0
    """Episodes on slices that the label does not speak for."""


def counting(gradings: Sequence[Grading], recipe: str) -> list[Grading]:
    """Of an episode's gradings those that count: each annotator's newest, by one recipe; the newest last."""
    newest: dict[str, Grading] = {}
    for grading in sorted(gradings, key=lambda one: (one.label.created, one.created)):
        if grading.recipe == recipe:
            newest.pop(grading.label.annotator, None)
            newest[grading.label.annotator] = grading
    return list(newest.values())


def grade_label(
    final: FinalLabel, store: TrajectoryStore, recipe: Recipe, engine: Engine | None = None, limits: Limits | None = None
) -> Graded:
    """Grade all episodes of the label's image and targets against it, newest versions only.

    With an `engine`, a simulated expert goes on from where each wrong episode ended; its corrections are recorded and graded
    too. Stops between episodes when `limits` are reached; what was graded stays.
    """
    limits = limits or Limits()
    image = store.hashed("image", final.image_id)
    matched: dict[tuple[str, str], tuple[int, ...]] = {}
    labels: dict[str, Label] = {}
    dropped: Counter[str] = Counter()
    graded = corrections = changed = unspoken = 0
    for trajectory in store.select(Selection(image=image, source=Source.RUN)):
        if trajectory.origin.content_hash != final.volume.content_hash:
            changed += 1
            continue
        said = (trajectory.label, trajectory.prompt)
        if said not in matched:
            matched[said] = match(*said, final.names, final.aliases)
        values = matched[said]
        if not values or limits.reached() is not None:
            continue
        if not final.speaks_for(values, trajectory.origin):
            unspoken += 1
            continue
        if trajectory.label not in labels:
            key = store.hashed("label", f"{final.key}\0{trajectory.label}") if final.key else ""
            labels[trajectory.label] = store.add_label(image, trajectory.label, final.annotator, final.source, key)
        bench = Bench(final, store, recipe, labels[trajectory.label], engine, limits)
        reference = bench.reference(trajectory, values)
        found = bench.record(trajectory, reference)
        if found is not None:
            dropped[found.reason] += 1
            continue
        graded += 1
        corrections += bench.correct(trajectory, reference)
    meant = {value for values in matched.values() for value in values}
    return Graded(
        targets=tuple(sorted(labels)),
        graded=graded,
        dropped=dict(dropped),
        corrections=corrections,
        unmatched_targets=tuple(sorted({label for (label, _), values in matched.items() if not values})),
        unused_names=tuple(name for value, name in sorted(final.names.items()) if value not in meant),
        changed=changed,
        unspoken=unspoken,
    )


@dataclass(frozen=True, eq=False)
class Bench:
    """One target's label, and what is needed to hold episodes against it."""

    final: FinalLabel
    store: TrajectoryStore
    recipe: Recipe
    label: Label
    engine: Engine | None
    limits: Limits

    def reference(self, trajectory: Trajectory, values: Sequence[int]) -> np.ndarray:
        """The label in the trajectory's view, bool `[height, width]`."""
        grid = ViewGrid(self.final.volume, Plane(trajectory.origin.plane))
        there = np.isin(grid.cut(self.final.labels, trajectory.origin.index), values)
        return np.ascontiguousarray(grid.enlarge(there, order=0))

    def record(self, trajectory: Trajectory, reference: np.ndarray) -> Dropped | None:
        """Grade one trajectory; why it has no reward, if it has none."""
        result = grade(trajectory.outcome, reference, self.recipe)
        self.store.add_grading(trajectory.key, self.label, rle.encode(reference), self.recipe.name, result)
        return result if isinstance(result, Dropped) else None

    def correct(self, trajectory: Trajectory, reference: np.ndarray) -> int:
        """Record and grade a correction of the trajectory; how many were made: 0 or 1."""
        if self.engine is None:
            return 0
        grid = ViewGrid(self.final.volume, Plane(trajectory.origin.plane))
        view = View(grid, trajectory.origin.index, trajectory.outcome.window)
        slice_ = Slice(view, trajectory.prompt, overlay_named(trajectory.overlay))
        try:
            outcome = correct(slice_, trajectory.outcome, reference, self.engine, self.limits, CORRECTING_CLICKS)
        except EngineError as error:
            logger.warning("No correction of trajectory %s: %s", trajectory.key[:8], error)
            return 0
        if outcome is None or not outcome.conclusive:
            return 0
        correction = replace(
            trajectory,
            source=Source.CORRECTION,
            episode=f"{trajectory.key}:{self.label.key}",
            user=self.label.annotator,
            created=now(),
            maker=replace(Maker.of(self.engine), policy=f"{trajectory.maker.policy}, then {SimulatedPolicy.name}"),
            outcome=outcome,
            kept_from=len(trajectory.outcome.steps) + 1,
        )
        self.store.add([correction], self.final.image_id)
        self.record(correction, reference)
        return 1
