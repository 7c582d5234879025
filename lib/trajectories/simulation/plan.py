"""The plan: which lessons are shown of a structure, and on which slices. The same for the same seed, wherever it is made."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lib.engines.evaluation import Case, reference_labels
from lib.imaging.load import load_volume
from lib.imaging.planes import Plane, ViewGrid
from lib.imaging.volume import Volume
from lib.trajectories.simulation.config import Lesson, Shares, SimulationConfig
from lib.trajectories.simulation.targets import Target

_NEVER_THERE = 3
"""A structure that the image does not hold gets so many times fewer episodes than one that it holds."""


@dataclass(frozen=True)
class Assignment:
    """One episode to play."""

    lesson: Lesson
    index: int
    """The slice."""
    prompt: str
    seed: int
    other: Target | None = None
    """What the mask that the episode begins with shows; only for MISMATCH."""


class LabelledVolume:
    """A case in memory: its volume and labels, cut along the axial plane."""

    def __init__(self, case: Case):
        """Raises ImageError when the image or its reference cannot be used."""
        self.name = case.name
        self.volume: Volume = load_volume(case.image, modality=case.modality)
        self.grid = ViewGrid(self.volume, Plane.AXIAL)
        self._labels = reference_labels(case, self.volume)

    def reference(self, target: Target, index: int) -> np.ndarray:
        """The structure on a slice, bool `[height, width]` of its view."""
        there = np.isin(self.grid.cut(self._labels, index), target.values)
        return np.ascontiguousarray(self.grid.enlarge(there, order=0))

    @cached_property
    def _areas(self) -> np.ndarray:
        """Voxels `[slice, value]`; slices that were never acquired have none."""
        found = np.zeros((self.grid.slice_count, int(self._labels.max()) + 1), dtype=np.int64)
        for index in self.grid.acquired:
            found[index] = np.bincount(self.grid.cut(self._labels, index).ravel(), minlength=found.shape[1])
        return found

    def areas(self, target: Target) -> np.ndarray:
        """Voxels of the structure on each slice."""
        return self._areas[:, [value for value in target.values if value < self._areas.shape[1]]].sum(axis=1)

    def least(self, config: SimulationConfig) -> float:
        """Voxels on a slice from which on a structure counts as present."""
        if self.volume.planar:
            return config.least_pixels
        spacing = self.volume.orientation.permute(self.volume.spacing)
        return config.least_mm2 / (spacing[0] * spacing[1])


def make_plan(
    scene: LabelledVolume,
    target: Target,
    others: Sequence[Target],
    config: SimulationConfig,
    shares: Shares,
    slices: int,
    seed: int,
) -> list[Assignment]:
    """At most `slices` episodes of `target`, of lessons by their `shares`; none twice on a slice. `others` are the structures
    whose masks may stand there wrongly."""
    rng = np.random.default_rng(seed_of(seed, scene.name, target.name))
    areas, least = scene.areas(target), scene.least(config)
    present = rng.permutation(np.flatnonzero(areas >= least)).tolist()
    absent = rng.permutation([index for index in scene.grid.acquired if areas[index] == 0]).tolist()
    if not target.values:
        slices = max(1, slices // _NEVER_THERE)
    lessons = list(shares)
    planned: dict[tuple[Lesson, int], Assignment] = {}
    for turn in range(slices):
        lesson = lessons[int(rng.choice(len(lessons), p=list(shares.values())))] if present else Lesson.ABSENT
        if lesson is Lesson.ABSENT and not absent:
            lesson = Lesson.PLAIN
        here = absent if lesson is Lesson.ABSENT or (lesson is Lesson.MISMATCH and rng.random() < config.gone) else present
        if not here:
            continue
        index = int(here[turn % len(here)])
        other = None
        if lesson is Lesson.MISMATCH:
            shown = [one for one in others if one.name != target.name and scene.areas(one)[index] >= least]
            if shown:
                other = shown[int(rng.integers(len(shown)))]
            else:
                lesson = Lesson.PLAIN if here is present else Lesson.ABSENT
        prompt = _question(config, target, rng)
        own = seed_of(seed, scene.name, target.name, lesson, index)
        planned.setdefault((lesson, index), Assignment(lesson, index, prompt, own, other))
    return list(planned.values())


def seed_of(*parts: object) -> int:
    """A seed below 2^64 that differs where any of the parts does."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big")


def _question(config: SimulationConfig, target: Target, rng: np.random.Generator) -> str:
    first, *others = config.questions
    question = first if not others or rng.random() < 0.5 else others[int(rng.integers(len(others)))]
    return question.format(target=target.words)
