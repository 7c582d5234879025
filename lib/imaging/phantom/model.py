"""A CT phantom of the trunk, thorax to pelvis: the demo's image, and a world to train small agents in.

Its anatomy differs with the seed. No patient's data is in it: every shape is a smooth implicit function. Where organs lie, how
large and how bright they are, noise and partial volume are as in a CT; the reference labels are exact.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from scipy import ndimage

from lib.errors import InputError
from lib.imaging.phantom.abdomen import draw_abdomen
from lib.imaging.phantom.bowel import draw_bowel
from lib.imaging.phantom.chest import draw_chest
from lib.imaging.phantom.frame import Build, build_grid, draw_arms, draw_muscles, draw_table, draw_wall
from lib.imaging.phantom.shapes import Canvas
from lib.imaging.phantom.skeleton import draw_skeleton
from lib.imaging.phantom.tissues import AIR, Phase, tissues
from lib.imaging.volume import Modality, Volume

_KERNEL = 0.75
"""Sigma in mm of the scanner's blur in plane: a soft-tissue kernel."""
_NOISE = 12.0
"""Standard deviation of the noise in HU."""
_GRAIN = 0.9
"""Sigma in mm of the noise's correlation in plane."""

GROUPS: dict[str, tuple[str, ...]] = {
    "liver": ("liver", "liver_lesion"),
    "vertebrae": ("vertebrae_",),
    "ribs": ("rib_",),
    "hips": ("hip_",),
    "femurs": ("femur_",),
    "lungs": ("lung_",),
    "kidneys": ("kidney_",),
    "muscle": ("skeletal_muscle", "autochthon_", "gluteus_", "iliopsoas_"),
    "body": ("",),
}
"""Structures made of several labels, by the beginnings of their names. A lesion is part of its liver."""


@dataclass(frozen=True, eq=False)
class Masks(Mapping[str, np.ndarray]):
    """Boolean masks `[i, j, k]` by name, made from the label volume when asked for."""

    reference: np.ndarray
    names: dict[int, str]

    @cached_property
    def _members(self) -> dict[str, tuple[int, ...]]:
        members: dict[str, tuple[int, ...]] = {name: (number,) for number, name in self.names.items()}
        for group, beginnings in GROUPS.items():
            if found := tuple(n for n, name in self.names.items() if name.startswith(beginnings)):
                members[group] = found
        return members

    def __getitem__(self, name: str) -> np.ndarray:
        chosen = np.zeros(256, bool)
        chosen[list(self._members[name])] = True
        return chosen[self.reference]

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)


@dataclass(frozen=True, eq=False)
class Phantom:
    """One individual's CT with its truth."""

    volume: Volume
    """int16 HU, i to the patient's left, j to posterior, k to superior; affine voxel -> RAS mm."""
    reference: np.ndarray
    """uint8 [i, j, k]: label numbers, 0 outside the body."""
    names: dict[int, str]
    """Name of every label number, as TotalSegmentator names structures where it knows them."""
    seed: int
    phase: Phase
    female: bool
    arms_down: bool

    @cached_property
    def labels(self) -> Masks:
        """Every structure's mask, and the groups' (`GROUPS`)."""
        return Masks(self.reference, self.names)


def make_phantom(
    seed: int = 0,
    spacing: tuple[float, float, float] = (1.3, 1.3, 6.0),
    size: tuple[int, int, int] | None = None,
    phase: Phase = Phase.PORTAL_VENOUS,
) -> Phantom:
    """The individual of a seed, scanned in a contrast phase.

    `spacing` in mm along i, j, k. `size` is the voxel count around the trunk's centre; without it the whole trunk is held,
    square in plane. The anatomy depends on the seed alone, so two spacings or phases show the same individual; noise and
    texture depend on the grid too. Raises InputError for a spacing or size that is not positive.
    """
    if min(spacing) <= 0 or (size is not None and min(size) < 1) or seed < 0:
        raise InputError(f"phantom seed {seed}, spacing {spacing} and size {size} must be positive numbers")
    person, inner, texture, scanner = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(4))
    build = Build.draw(person)
    canvas = Canvas(build_grid(person, build, spacing, size), AIR)
    hu = tissues(phase)
    if build.arms_down:
        draw_arms(canvas, hu)
    draw_wall(canvas, hu, build, texture)
    draw_muscles(canvas, hu)
    draw_chest(canvas, hu, build, inner, texture)
    draw_skeleton(canvas, hu, build.arms_down, texture)
    draw_abdomen(canvas, hu, build, inner, texture)
    draw_bowel(canvas, hu, build, inner, texture)
    draw_table(canvas, hu)
    _scan(canvas, scanner)
    grid = canvas.grid
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    affine[:3, 3] = -grid.origin[0], -grid.origin[1], grid.origin[2]
    data = np.clip(np.rint(canvas.hu), -1024, 3071).astype(np.int16)
    names = {number: name for name, number in canvas.names.items()}
    volume = Volume(data, affine, Modality.CT, Path(f"phantom-seed{seed}"))
    return Phantom(volume, canvas.labels, names, seed, phase, build.female, build.arms_down)


def _scan(canvas: Canvas, rng: np.random.Generator) -> None:
    """The scanner's blur and noise, in place, slice by slice.

    Noise is correlated as after a soft-tissue kernel, stronger in the middle of the patient, and streaks along the rays that
    meet most bone: from side to side through shoulders and hips.
    """
    si, sj, _ = canvas.grid.spacing
    kernel = (_KERNEL / si, _KERNEL / sj)
    correlation = (_GRAIN / si, _GRAIN / sj)
    ni, nj, nk = canvas.grid.shape
    u, v = np.linspace(-1, 1, ni)[:, None], np.linspace(-1, 1, nj)[None]
    centre = (0.75 + 0.45 * np.exp(-4 * (u * u + v * v))).astype(np.float32)
    for k in range(nk):
        image = ndimage.gaussian_filter(canvas.hu[:, :, k], kernel)
        noise = ndimage.gaussian_filter(rng.standard_normal((ni, nj), dtype=np.float32), correlation)
        path = np.maximum(image + 1000, 0).sum(axis=0) * (si / 1000)
        image += noise * (_NOISE / noise.std() * centre)
        if path.max() > 340:
            streak = ndimage.gaussian_filter1d(rng.standard_normal((ni, nj), dtype=np.float32), 22 / si, axis=0, truncate=2.5)
            image += streak * (_NOISE / streak.std() * 0.5 * np.square(np.maximum(path - 340, 0) / 120))
        canvas.hu[:, :, k] = image
