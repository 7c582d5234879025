"""What the rules know of a CT before they look for an organ: the body, its lungs, the spine, the trunk's wall and cavity.

HU of tissues after Kalender, Computed Tomography (3rd ed. 2011): air -1000, lung -950 to -500, fat -120 to -60, water 0, muscle
and solid organs 30 to 70 without contrast medium, spongy bone 100 to 300.
"""

from functools import cached_property

import numpy as np
from scipy import ndimage
from skimage.morphology import convex_hull_image

from lib.policies.tissue import (
    Spacing,
    Tissue,
    components,
    depth_in_planes,
    dilate,
    fill_planes,
    largest,
    planewise,
)

SKIN = -300
"""HU half-way between air and fat, as far as partial volume lets one tell."""
GAS = -400
BRIGHT = 150
"""HU above which unenhanced tissue is bone."""
_CROSS = ndimage.generate_binary_structure(2, 1)
_DISC = np.array([[0, 1, 1, 1, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 0]], bool)


class Landmarks:
    """Landmarks of one CT on the coarse grid, each computed when first asked for; arrays are `[r, a, s]`."""

    def __init__(self, tissue: Tissue):
        self.tissue = tissue
        self.spacing = tissue.spacing

    @cached_property
    def body(self) -> np.ndarray:
        """bool: everything inside the skin of every part in view, lungs and bowel gas included, table and cushions not."""
        solid = self.tissue.hu > SKIN
        filled = fill_planes(solid)
        thick = depth_in_planes(filled, self.spacing) > 30
        core = planewise(ndimage.binary_opening, solid, _DISC) | (dilate(thick, 30, self.spacing) & filled)
        kept = np.zeros_like(core)
        biggest = 0
        for part, box, size in components(core):
            biggest = biggest or size
            if size < 0.015 * biggest:
                break
            kept[box] |= part
        return fill_planes(planewise(ndimage.binary_dilation, kept, _CROSS, 2) & filled)

    @cached_property
    def scale(self) -> float:
        """Size of this trunk relative to an adult's, whose muscles span 320 mm or more from side to side."""
        widths = (self.wall_depth > 0).any(axis=1).sum(axis=0) * self.spacing[0]
        return float(np.clip(np.percentile(widths[widths > 0], 90) / 320, 0.45, 1)) if widths.any() else 1.0

    @cached_property
    def adult(self) -> Spacing:
        """Voxel size in millimetres of an adult of the same shape: the unit of all positions and sizes of organs."""
        r, a, s = (mm / self.scale for mm in self.spacing)
        return (r, a, s)

    def ml(self, mask: np.ndarray) -> float:
        """Volume of a mask in an adult of the same shape; a slab thinner than 60 mm counts as if it were 60 mm thick."""
        thickness = self.tissue.hu.shape[2] * self.adult[2]
        return float(mask.sum()) * self.tissue.voxel_ml / self.scale**3 * max(1.0, 60 / thickness)

    @cached_property
    def skull(self) -> np.ndarray:
        """bool `[s]`: slices in which a closed ring of bone holds nearly all of the body, as only the head's does."""
        inside = fill_planes(planewise(ndimage.binary_dilation, self.bright, _CROSS)).sum(axis=(0, 1))
        return inside > 0.45 * np.maximum(self.body.sum(axis=(0, 1)), 1)

    @cached_property
    def bright(self) -> np.ndarray:
        """bool: bone, calcium, metal and contrast medium."""
        return (self.tissue.hu > BRIGHT) & self.body

    @cached_property
    def spine(self) -> np.ndarray:
        """float32 `[s, 2]`: voxel coordinates (r, a) of the spinal canal's centre in each slice; NaN without a vertebra.

        The path along s, by dynamic programming, on which a soft canal has a vertebral body before it and an arch behind it.
        """
        rows, columns, count = self.tissue.hu.shape
        bone = np.where(self.body, np.clip(self.tissue.hu, 0, 350), 0).astype(np.float32) / 350
        score = self._blurred(bone, 9, 25) + self._blurred(bone, 6, -15) - self._blurred(bone, 4, 0)
        r, a = np.arange(rows, dtype=np.float32), np.arange(columns, dtype=np.float32)
        for s in range(count):
            body = self.body[:, :, s]
            area = body.sum()
            if not area or self.skull[s]:
                score[:, :, s] = 0
                continue
            middle = (body.sum(axis=1) * r).sum() / area
            aside = (r - middle) * self.adult[0] / 45
            back, front = np.flatnonzero(body[max(0, int(middle) - 3) : int(middle) + 4].any(axis=0))[[0, -1]]
            depth = ((a - back) / max(1, front - back) - 0.28) / 0.15
            score[:, :, s] = np.maximum(score[:, :, s], 0) * np.exp(-(aside**2))[:, None] * np.exp(-(depth**2))[None, :]
        reach = [max(1, round(self.adult[2] * 1.2 / mm)) for mm in self.adult[:2]]
        total = score.copy()
        for s in range(1, count):
            total[:, :, s] += ndimage.maximum_filter(total[:, :, s - 1], size=[2 * n + 1 for n in reach])
        track = np.full((count, 2), np.nan, np.float32)
        r0, a0 = np.unravel_index(total[:, :, -1].argmax(), (rows, columns))
        for s in range(count - 1, -1, -1):
            low = max(0, int(r0) - reach[0]), max(0, int(a0) - reach[1])
            window = total[low[0] : int(r0) + reach[0] + 1, low[1] : int(a0) + reach[1] + 1, s]
            r0, a0 = np.add(low, np.unravel_index(window.argmax(), window.shape))
            if score[r0, a0, s] > 0.25:
                track[s] = r0, a0
        return _smoothed(track, 12 / self.adult[2])

    def _blurred(self, bone: np.ndarray, sigma: float, ahead: float) -> np.ndarray:
        """Mean of `bone` within about `sigma` mm of the point `ahead` mm in front, in each slice."""
        blurred = ndimage.gaussian_filter(bone, (sigma / self.adult[0], sigma / self.adult[1], 0), truncate=3)
        return ndimage.shift(blurred, (0, -round(ahead / self.adult[1]), 0), order=0, prefilter=False)

    @cached_property
    def midline(self) -> np.ndarray:
        """float32 `[s]`: r of the body's middle plane, from the spine; where there is none, from the body's outline."""
        r = self.spine[:, 0].copy()
        known = np.isfinite(r)
        if known.any():
            return np.interp(np.arange(r.size), np.flatnonzero(known), r[known]).astype(np.float32)
        middle = ndimage.center_of_mass(self.body)[0] if self.body.any() else self.tissue.hu.shape[0] / 2
        return np.full(r.size, middle, np.float32)

    @cached_property
    def aside(self) -> np.ndarray:
        """float32 `[r, 1, s]`: adult mm from the midline, positive to the patient's right."""
        r = np.arange(self.tissue.hu.shape[0], dtype=np.float32)
        return ((r[:, None] - self.midline[None, :]) * self.adult[0])[:, None, :]

    @cached_property
    def ahead(self) -> np.ndarray:
        """float32 `[1, a, s]`: adult mm in front of the spinal canal's centre; NaN where there is no vertebra."""
        a = np.arange(self.tissue.hu.shape[1], dtype=np.float32)
        return ((a[:, None] - self.spine[None, :, 1]) * self.adult[1])[None, :, :]

    @cached_property
    def vertebra(self) -> np.ndarray:
        """bool: where the vertebral bodies are: an adult's fit into ellipses of 54 by 38 mm in front of the canal."""
        return (self.aside / 27) ** 2 + ((self.ahead - 26) / 19) ** 2 < 1

    @cached_property
    def canal(self) -> np.ndarray:
        """bool: about the spinal canal."""
        return (self.aside / 12) ** 2 + (self.ahead / 10) ** 2 < 1

    @cached_property
    def gas(self) -> np.ndarray:
        """bool: lung, airway and bowel gas."""
        return (self.tissue.hu < GAS) & self.body

    @cached_property
    def airy(self) -> np.ndarray:
        """bool: both lungs with the airways joined to them. Bowel gas is as thin as the air outside, lung is not; a lung is
        either whole in the image and large, or cut by its upper end, because nothing in the chest lies above the lungs."""
        found = np.zeros_like(self.gas)
        slices = np.flatnonzero(self.body.any(axis=(0, 1)) & ~self.skull)
        for part, box, _ in components(self.gas & ~self.skull):
            volume = self.ml(part)
            if volume < 10:
                break
            core = ndimage.binary_erosion(part, border_value=1)
            inside = self.tissue.hu[box][core if core.any() else part]
            if np.median(inside) > -950 and (box[2].stop > slices[-1] or volume > 250):
                found[box] |= part
        return found

    @cached_property
    def airway(self) -> np.ndarray:
        """bool: trachea and main bronchi: a pipe of gas as thin as air, near the midline between the lungs."""
        thin = self.airy & (self.tissue.hu < -930) & (np.abs(self.aside) < 45)
        pipe = np.zeros_like(thin)
        for part, box, size in components(thin):
            volume = self.ml(part)
            if volume < 2 or size < 8:
                break
            if volume < 150 and (part.shape[2] * self.adult[2] > 30 or box[2].stop == thin.shape[2]):
                pipe[box] |= part
        return dilate(pipe, 1.5 * self.adult[0], self.adult) & self.gas

    @cached_property
    def wall_depth(self) -> np.ndarray:
        """float32: mm below the outer surface of the trunk's muscles, within each axial slice; 0 outside the trunk."""
        inside = planewise(ndimage.binary_erosion, self.body, _CROSS, 2)
        lean = inside & ((self.tissue.hu > -40) | (self.tissue.hu < -200))
        core = largest(planewise(ndimage.binary_opening, lean, _CROSS))
        for s in np.flatnonzero(core.any(axis=(0, 1))):
            core[:, :, s] = convex_hull_image(core[:, :, s])
        return depth_in_planes(core & self.body, self.spacing)

    @cached_property
    def subcutaneous_fat(self) -> np.ndarray:
        """bool: fat between the skin and the muscles of trunk and limbs."""
        fat = (self.tissue.hu > -190) & (self.tissue.hu < -30)
        below_skin = depth_in_planes(self.body, self.spacing) > 2
        return fat & below_skin & (self.wall_depth < 3) & ~self.skull

    @cached_property
    def cavity(self) -> np.ndarray:
        """bool: the chest and belly inside ribs and muscles, without the spine and the muscles behind it."""
        ahead, aside = self.ahead, np.abs(self.aside)
        depth = self.wall_depth / self.scale
        reach = np.where(ahead > 0, 25, 60)
        near = self.bright & (depth > 0) & (depth < reach)
        weight = near * np.exp(-depth / 6)
        sigma = [20 / mm for mm in self.adult]
        spread = ndimage.gaussian_filter(weight, sigma, truncate=2.5)
        outer = ndimage.gaussian_filter(weight * depth, sigma, truncate=2.5)
        floor = 1e-3
        inside = depth > (outer + floor * 6) / (spread + floor) + 8
        behind = ahead < 8 - np.clip(aside - 20, 0, 60) * 0.5
        return inside & ~behind & ~self.vertebra & np.isfinite(ahead) & ~self.skull


def _smoothed(track: np.ndarray, sigma: float) -> np.ndarray:
    """`[s, 2]` smoothed along s; NaN stays NaN."""
    known = np.isfinite(track[:, 0])
    if not known.any():
        return track
    s = np.arange(len(track))
    filled = np.stack([np.interp(s, s[known], track[known, axis]) for axis in (0, 1)], axis=1)
    smooth = ndimage.gaussian_filter1d(filled, sigma, axis=0, mode="nearest").astype(np.float32)
    smooth[~known] = np.nan
    return smooth
