"""Liver, spleen and kidneys in a CT: the large even chunks of soft tissue at their places in the belly."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import ndimage

from lib.agent.anatomy import Rule, anatomy
from lib.policies.landmarks import Landmarks
from lib.policies.tissue import components, dilate, distance, erode, grown_box, largest, opened, reached, without_pinholes

_PINHOLE = 3
_FLAT_BONE_MM2 = 900
"""A section of an adult's rib is smaller, one of the ilium or the scapula mostly larger."""
_FLAT_BONE_HEIGHT_MM = 50
"""A rib that a thick slice cuts lengthwise looks as large as a flat bone, but not for so many millimetres."""
_KIDNEY_HEIGHT_MM = 170


@dataclass(frozen=True)
class Tone:
    """The grey of an organ in this scan."""

    hu: float
    spread: float
    """Standard deviation in HU, noise included."""

    def like(self, values: np.ndarray) -> np.ndarray:
        """Where smoothed values are within three standard deviations, or 24 HU: streaks and vessels belong to the organ."""
        return np.abs(values - self.hu) < max(3 * self.spread, 24)


def tone(values: np.ndarray, lowest: float, highest: float) -> Tone | None:
    """The commonest HU between two bounds; None for too few voxels."""
    bins = np.arange(lowest, highest + 1, 4)
    counts = np.histogram(values, bins)[0].astype(np.float32)
    if counts.sum() < 50:
        return None
    smooth = ndimage.gaussian_filter1d(counts, 1.5)
    peak = float(bins[smooth.argmax()] + 2)
    near = np.abs(values[np.abs(values - peak) < 30] - peak)
    return Tone(peak, float(np.clip(1.4826 * np.median(near), 7, 16)))


def _rule(name: str) -> Rule:
    rule = anatomy()[name].rule
    assert rule is not None
    return rule


class Organs:
    """Organs of one CT on the coarse grid; arrays are bool `[r, a, s]`, empty where the organ is not in view."""

    def __init__(self, marks: Landmarks, bone: np.ndarray):
        self.marks = marks
        self.bone = bone
        self.spacing = marks.adult

    @cached_property
    def soft(self) -> np.ndarray:
        """Organs, muscle and vessels in the cavity."""
        values = self.marks.tissue.smooth
        return without_pinholes((values > -10) & (values < 300) & self.marks.cavity & ~self.bone, _PINHOLE)

    @cached_property
    def _nothing(self) -> np.ndarray:
        return np.zeros_like(self.soft)

    def _grown(self, alike: np.ndarray, seeds: np.ndarray, neck: float, reach: float) -> np.ndarray:
        """From the seeds through passages wider than twice `neck` mm, then `reach` mm further into thin edges."""
        core = reached(erode(alike, neck, self.spacing, border=False), seeds)
        return reached(opened(dilate(core, neck + reach, self.spacing) & alike, 3, self.spacing), core)

    @cached_property
    def _level(self) -> np.ndarray:
        """bool `[s]`: slices in which the middle of a belly organ may lie: no higher than 130 mm above the lungs' lowest point,
        where the domes of the diaphragm end, and not among the large flat bones of pelvis and shoulders."""
        marks = self.marks
        level = np.ones(self.soft.shape[2], bool)
        lung = np.flatnonzero(marks.airy.any(axis=(0, 1)))
        if lung.size:
            level &= (np.arange(level.size) - lung[0]) * self.spacing[2] < 130
        aside = self.bone & (np.abs(marks.aside) > 55) & (marks.wall_depth > 0)
        flat = np.zeros_like(level)
        for s in np.flatnonzero(aside.any(axis=(0, 1))):
            labels, _ = ndimage.label(aside[:, :, s])
            flat[s] = np.bincount(labels.ravel())[1:].max() * self.spacing[0] * self.spacing[1] >= _FLAT_BONE_MM2
        runs, count = ndimage.label(flat)
        for run in range(1, count + 1):
            where = np.flatnonzero(runs == run)
            inside = where[0] > 0 and where[-1] < flat.size - 1
            if inside and where.size * self.spacing[2] < _FLAT_BONE_HEIGHT_MM:
                flat[where] = False
        return level & ~flat

    def _drifting(self, alike: np.ndarray, shade: Tone, where: np.ndarray) -> np.ndarray:
        """`alike` and what continues it where the grey drifts slowly, as beam hardening by arms makes it."""
        values = self.marks.tissue.smooth
        sigma = [15 / mm for mm in self.spacing]
        for _ in range(2):
            weight = ndimage.gaussian_filter(alike.astype(np.float32), sigma, truncate=2)
            local = ndimage.gaussian_filter(np.where(alike, values - shade.hu, 0).astype(np.float32), sigma, truncate=2)
            drift = np.clip(local / np.maximum(weight, 1e-3), -25, 25) * (weight > 0.02)
            alike = alike | (where & (np.abs(values - shade.hu - 1.3 * drift) < 15) & (drift < -3) & (values > 10))
        return alike

    @cached_property
    def liver(self) -> np.ndarray:
        marks, values = self.marks, self.marks.tissue.smooth
        right = self.soft & (marks.aside > 15) & self._level
        deep = largest(erode(right, 15, self.spacing, border=False))
        shade = tone(values[deep], *_rule("liver").hu)
        if shade is None or marks.ml(deep) < 20:
            return self._nothing
        left_lobe = marks.ahead > 45 + 0.5 * (-20 - marks.aside)
        place = self.soft & ~self._great_vessels & ((marks.aside > -20) | left_lobe)
        alike = without_pinholes(self._drifting(place & shade.like(values), shade, place), _PINHOLE)
        seeds = largest(erode(alike & right, 15, self.spacing, border=False))
        if marks.ml(seeds) < 15:
            return self._nothing
        return self._grown(alike, seeds, 8, 8)

    @cached_property
    def _great_vessels(self) -> np.ndarray:
        """Where aorta and vena cava lie: next to the front of the vertebral bodies."""
        return (np.abs(self.marks.aside) < 32) & (self.marks.ahead < 68)

    @cached_property
    def spleen(self) -> np.ndarray:
        rule = _rule("spleen")
        marks, values = self.marks, self.marks.tissue.smooth
        place = self.soft & ~dilate(self.liver, 3, self.spacing)
        place &= (marks.aside < -35 - 0.6 * np.maximum(marks.ahead - 10, 0)) & (marks.ahead < 110)
        near = place & self._level & (marks.aside < -45) & (marks.ahead < rule.ahead[1])
        deep = self._at_wall(self._even(near, rule.hu), rule.aside[0])
        shade = tone(values[deep], *rule.hu)
        if shade is None:
            return self._nothing
        alike = without_pinholes(self._drifting(place & shade.like(values), shade, place), _PINHOLE)
        return self._grown(alike, deep & alike, 6, 6)

    def _even(self, place: np.ndarray, span: tuple[float, float]) -> Iterator[np.ndarray]:
        """`place` cut into overlapping bands of grey: what touches there may differ in grey."""
        values = self.marks.tissue.smooth
        for middle in np.arange(span[0], span[1] + 1, 12):
            band = place & (np.abs(values - middle) < 15)
            if self.marks.ml(band) > 10:
                yield without_pinholes(band, _PINHOLE)

    def _at_wall(self, places: Iterable[np.ndarray], least_aside: float) -> np.ndarray:
        """The core of the chunk with the largest part of its surface on the cavity's wall or the lung: a spleen's place, not a
        kidney's or the stomach's."""
        beyond = (self.marks.airy | ~self.marks.cavity) & (np.abs(self.marks.aside) > 95) & self.marks.body
        wall = dilate(beyond, 12, self.spacing)
        best, most = self._nothing, 0.0
        for place in places:
            for neck in (11, 8):
                for part, box, _ in components(erode(place, neck, self.spacing, border=False)):
                    core = self._nothing.copy()
                    core[box] = part
                    if self.marks.ml(core) < 1.5:
                        break
                    whole = dilate(core, neck, self.spacing) & place
                    r, _, s = (round(v) for v in ndimage.center_of_mass(whole))
                    rim = dilate(whole, 5, self.spacing) & ~whole
                    if abs(self.marks.aside[r, 0, s]) < least_aside or not rim.any():
                        continue
                    walled = float(wall[rim].mean())
                    score = (walled - 0.15) * self.marks.ml(whole)
                    if score > most:
                        best, most = core, score
        return best

    @cached_property
    def muscle_tone(self) -> Tone:
        """The muscles behind the spine; 55 HU where they are out of view."""
        marks, values = self.marks, self.marks.tissue.smooth
        back = (np.abs(marks.aside) > 12) & (np.abs(marks.aside) < 50) & (marks.ahead < -10) & (marks.wall_depth > 8)
        return tone(values[back & ~self.bone], 10, 110) or Tone(55, 10)

    @cached_property
    def _enhanced_kidney(self) -> Tone | None:
        """What is far brighter than muscle on either side of the spine; None without contrast medium."""
        marks, values, aside = self.marks, self.marks.tissue.smooth, np.abs(self.marks.aside)
        muscle = self.muscle_tone.hu
        bright = (
            self.soft & ~self.liver & (values > muscle + 30) & (aside > 28) & (aside < 110) & (marks.ahead < 60) & self._level
        )
        seeds = largest(erode(bright & ~dilate(self.bone, 6, self.spacing), 5, self.spacing, border=False))
        return tone(values[seeds], muscle + 30, 300) if marks.ml(seeds) > 8 else None

    def _between(self, share: float) -> float:
        """HU part of the way from muscle to enhanced kidney."""
        assert self._enhanced_kidney is not None
        return self.muscle_tone.hu + share * (self._enhanced_kidney.hu - self.muscle_tone.hu)

    @cached_property
    def _psoas_tone(self) -> Tone | None:
        """The muscles beside the vertebral bodies, which the kidneys lie against."""
        aside, ahead = np.abs(self.marks.aside), self.marks.ahead
        return tone(self.marks.tissue.smooth[self.soft & (aside > 27) & (aside < 42) & (ahead > 5) & (ahead < 40)], 10, 110)

    def kidney(self, right: bool) -> np.ndarray:
        """The chunk beside the spine that stands alone best, of a kidney's size: in fat, or brighter than what is around it."""
        marks, values = self.marks, self.marks.tissue.smooth
        aside = marks.aside if right else -marks.aside
        place = self.soft & ~self.liver & ~self.spleen & (aside > 28) & (aside < 120) & (marks.ahead < 80)
        if self._enhanced_kidney is not None:
            least = self._between(0.4)
            places, apart = [place & (values > least)], values < least
        else:
            places, apart = [place], (values < -20) & (values > -200)
            if self._psoas_tone is not None:
                places.append(without_pinholes(place & (values < self._psoas_tone.hu - 8), _PINHOLE))
        best, best_score = self._nothing, 0.1
        for place in places:
            for neck in (3, 5, 7):
                cores = erode(place, neck, self.spacing, border=False)
                for part, box, _ in components(cores):
                    core = self._nothing.copy()
                    core[box] = part
                    if marks.ml(core) < 3:
                        break
                    whole = self._nearest(core, cores & ~core, place, 18)
                    score = self._kidney_score(whole, aside, apart)
                    if score > best_score:
                        best, best_score = whole, score
        return best

    def _nearest(self, core: np.ndarray, others: np.ndarray, place: np.ndarray, reach: float) -> np.ndarray:
        """The part of `place` within `reach` mm that lies nearer to this core than to the others."""
        box = grown_box(core, reach, self.spacing)
        near = distance(~core[box], self.spacing)
        taken = distance(~others[box], self.spacing) if others[box].any() else np.inf
        whole = self._nothing.copy()
        whole[box] = reached(place[box] & (near < reach) & (near < taken), core[box])
        return whole

    def _kidney_score(self, whole: np.ndarray, aside: np.ndarray, apart: np.ndarray) -> float:
        marks = self.marks
        volume = marks.ml(whole)
        r, a, s = (round(v) for v in ndimage.center_of_mass(whole))
        lateral, front = float(aside[r, 0, s]), float(marks.ahead[0, a, s])
        height = (np.ptp(np.flatnonzero(whole.any(axis=(0, 1)))) + 1) * self.spacing[2]
        rule = _rule("kidney_left")
        sizes = rule.volume_ml[0] < volume < rule.volume_ml[1] and height < _KIDNEY_HEIGHT_MM
        places = rule.aside[0] < lateral < rule.aside[1] and rule.ahead[0] < front < rule.ahead[1] and self._level[s]
        if not (sizes and places):
            return 0
        rim = dilate(whole, 4, self.spacing) & ~whole
        if not rim.any():
            return 0
        alone = apart[rim].mean() - 2 * (marks.vertebra | self.bone)[rim].mean()
        typical = (np.log(volume / 160) / 1.0) ** 2 + ((lateral - 62) / 30) ** 2 + ((front - 15) / 22) ** 2
        return float(alone * np.exp(-typical / 2))
