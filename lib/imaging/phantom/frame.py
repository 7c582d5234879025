"""The phantom's trunk: body wall, muscles and the cavity that holds the organs.

The dimensions of the phantom are those of an average adult, set by hand to anatomy atlases: levels of the vertebrae and organs,
extents and courses. Coordinates as in `shapes`.
"""

from dataclasses import dataclass
from enum import Enum

import numpy as np

from lib.imaging.phantom.shapes import Canvas, Field, Grid, Knot, Waves, around, grain, mirrored, smooth_max, smooth_min

Sides = ((1, "left"), (-1, "right"))

VERTEBRAE = (
    *(
        (f"vertebrae_T{n + 1}", y, z)
        for n, (y, z) in enumerate([(0, 287), (10, 267), (19, 247), (26, 226), (31, 204), (34, 182)])
    ),
    *((f"vertebrae_T{n + 7}", y, z) for n, (y, z) in enumerate([(34, 159), (32, 135), (28, 111), (23, 86), (17, 60), (9, 31)])),
    *((f"vertebrae_L{n + 1}", y, z) for n, (y, z) in enumerate([(0, 0), (-11, -34), (-18, -68), (-20, -102), (-14, -136)])),
)
"""Name, y and z of the centre of every vertebral body, from above."""

_SLAB = 24
_LEVELS = np.arange(-420.0, 420.0)


class Profile(Enum):
    """Cross-sections of the trunk by level: rows of z, half width, anterior y, posterior y (mm)."""

    CAVITY = (
        (420, 30, -20, 20),
        (300, 52, -25, 22),
        (275, 68, -34, 36),
        (250, 90, -46, 54),
        (220, 110, -64, 66),
        (180, 123, -86, 75),
        (140, 131, -104, 78),
        (100, 137, -118, 77),
        (60, 139, -130, 72),
        (20, 138, -135, 62),
        (-20, 133, -134, 50),
        (-60, 127, -129, 38),
        (-100, 121, -121, 33),
        (-140, 114, -113, 36),
        (-180, 104, -106, 50),
        (-220, 84, -98, 66),
        (-260, 62, -82, 64),
        (-300, 44, -62, 56),
        (-420, 20, -30, 30),
    )
    """Inside of the ribs, the abdominal wall and the pelvis."""
    WALL = (
        (420, 120, -45, 60),
        (320, 150, -52, 74),
        (285, 172, -66, 90),
        (250, 171, -80, 101),
        (220, 165, -94, 107),
        (180, 157, -108, 106),
        (140, 152, -118, 102),
        (100, 151, -130, 97),
        (60, 152, -140, 91),
        (20, 152, -146, 84),
        (-20, 149, -145, 77),
        (-60, 145, -140, 69),
        (-100, 143, -131, 66),
        (-140, 149, -124, 76),
        (-180, 160, -116, 88),
        (-220, 167, -108, 96),
        (-260, 170, -101, 97),
        (-300, 167, -97, 90),
        (-420, 155, -95, 80),
    )
    """Outside of the muscles."""

    def at(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Half width, centre y and half depth at levels `z` of any shape."""
        rows = np.array(self.value)[::-1]
        index = np.clip(np.rint(z - _LEVELS[0]), 0, len(_LEVELS) - 1).astype(np.int32)
        width, front, back = (np.interp(_LEVELS, rows[:, 0], rows[:, c]).astype(np.float32) for c in (1, 2, 3))
        return width[index], ((front + back) / 2)[index], ((back - front) / 2)[index]

    def distance(self, field: Field) -> np.ndarray:
        """Distance to the surface, mm along the ray from the axis."""
        width, centre, depth = self.at(field.z)
        y = field.y - centre
        ratio = roundness(field.x / width, y / depth)
        return np.hypot(field.x, y) * (1 - 1 / np.maximum(ratio, 1e-3))

    def on(self, angle: float, z: float, outside: float = 0.0) -> tuple[float, float, float]:
        """The point of the surface at level `z` in the direction `angle`, in radians from posterior towards the left."""
        width, centre, depth = (float(v) for v in self.at(np.array(z)))
        r = 1 / float(roundness(np.array(np.sin(angle)), np.array(np.cos(angle))))
        return ((width + outside) * r * np.sin(angle), centre + (depth + outside) * r * np.cos(angle), z)


def roundness(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """1 on a closed curve between an ellipse and a rounded rectangle, proportional to the distance from the origin."""
    p, q = u * u, v * v
    return 0.5 * np.sqrt(p + q) + 0.5 * np.sqrt(np.sqrt(p * p + q * q))


def spine(z: np.ndarray | float) -> np.ndarray:
    """y of the centre of the vertebral column at levels z."""
    levels = [(-420, 40), (-330, 40), (-262, 52), (-235, 64), (-210, 56), (-185, 36), (-163, 6)]
    rows = np.array(levels + [(v[2], v[1]) for v in reversed(VERTEBRAE)], float)
    return np.interp(z, rows[:, 0], rows[:, 1]).astype(np.float32)


@dataclass(frozen=True)
class Build:
    """What differs between individuals besides their size."""

    female: bool
    arms_down: bool
    fat: float
    """Thickness of the subcutaneous fat at the flank, mm."""
    dome: float
    """How far the diaphragm stands above its usual height, mm: the depth of the breath."""
    bladder: float
    """Filling relative to 300 ml, as a length."""

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Build":
        return cls(
            female=bool(rng.random() < 0.5),
            arms_down=bool(rng.random() < 0.25),
            fat=float(rng.uniform(9, 26)),
            dome=float(rng.uniform(-8, 12)),
            bladder=float(rng.uniform(0.7, 1.1)),
        )


def diaphragm(field: Field, build: Build) -> np.ndarray:
    """Level of the diaphragm above or below each voxel: two domes, the right one higher, and the
    central tendon under the heart, falling to the ribs."""
    out = []
    for x0, y0, top in ((-68, -28, 96), (70, -22, 84), (6, -62, 66)):
        u = (field.x - x0) / np.float32(83)
        v = field.y - y0
        v = v / np.where(v > 0, np.float32(103), np.float32(126))
        q = u * u + v * v
        out.append(top + np.float32(build.dome) - 84 * q * (0.4 + 0.6 * q))
    return np.maximum(smooth_max(smooth_max(out[0], out[1], 30), out[2], 20), np.float32(-70))


def draw_wall(canvas: Canvas, hu: dict[str, float], build: Build, rng: np.random.Generator) -> None:
    """Skin, fat, the muscles' envelope and the cavity, some slices at a time to spare memory."""
    depth = canvas.grid.shape[2]
    for k in range(0, depth, _SLAB):
        _draw_slab(canvas, slice(k, min(k + _SLAB, depth)), hu, build, rng)
    if build.female:
        _draw_glands(canvas, hu, rng)


def _draw_slab(canvas: Canvas, slices: slice, hu: dict[str, float], build: Build, rng: np.random.Generator) -> None:
    whole = Field(canvas.grid, (-180 - build.fat, -190, 0), (180 + build.fat, 155, 0), slices)
    wall = Profile.WALL.distance(whole)
    front = np.clip(-whole.y / 100, -0.3, 1) * np.clip((90 - whole.z) / 120, 0, 1)
    seat = np.clip(whole.y / 60, 0, 1) * np.clip((-90 - whole.z) / 90, 0, 1)
    skin = wall - np.float32(build.fat) * (0.75 + 0.6 * front + 0.9 * seat)
    if build.female:
        for side, _ in Sides:
            skin = smooth_min(skin, whole.ellipsoid((side * 78, -122, 148), (58, 42 + build.fat / 2, 54)), 30)
    navel = np.square(whole.x / 9) + np.square((whole.z + 92) / 9)
    skin += np.where(whole.y < -60, 13 * np.exp(-navel), 0).astype(np.float32)
    canvas.paint(whole, skin, hu["skin"], "subcutaneous_fat")
    canvas.paint(whole, skin + 1.8, hu["subcutaneous_fat"] + 7 * grain(rng, whole, 7.0))
    wall = smooth_max(wall, skin + 4, 4)
    # Linea alba, and the furrow over the spine.
    wall += (3.5 * np.exp(-np.square(whole.x / 5))).astype(np.float32) * (whole.z < 80)
    canvas.paint(whole, wall, hu["muscle"] - 25 * np.maximum(grain(rng, whole, 4.0) - 0.4, 0), "skeletal_muscle")
    inner = Field(canvas.grid, (-145, -140, 0), (145, 85, 0), slices)
    canvas.paint(inner, Profile.CAVITY.distance(inner), hu["torso_fat"] + 7 * grain(rng, inner, 6.0), "torso_fat")


def _draw_glands(canvas: Canvas, hu: dict[str, float], rng: np.random.Generator) -> None:
    for side, _ in Sides:
        field = Field(canvas.grid, (side * 78 - 50, -165, 100), (side * 78 + 50, -90, 200))
        gland = field.ellipsoid((side * 80, -136, 148), (32, 14, 30)) + 5 * grain(rng, field, 14)
        canvas.paint(field, gland, hu["gland"])


def draw_muscles(canvas: Canvas, hu: dict[str, float]) -> None:
    """Fat between the muscles, and the muscles that stand out of the wall. The bones are drawn over them."""
    _draw_fat_planes(canvas, hu)
    for side, name in Sides:
        field = Field(canvas.grid, (min(side * 4, side * 80), -30, -190), (max(side * 4, side * 80), 105, 300))
        back = field.y - spine(field.z)
        column = np.hypot((np.abs(field.x) - 33) / 29, (back - 46) / 19) - 1
        canvas.paint(field, 22 * column + np.maximum(field.z - 250, 0) / 4, hu["torso_fat"])
        canvas.paint(field, 22 * column + 1.5 + np.maximum(field.z - 250, 0) / 4, hu["muscle"], f"autochthon_{name}")
        _draw_pelvic_muscles(canvas, hu, side, name)
        _draw_shoulder_muscles(canvas, hu, side)


def _draw_fat_planes(canvas: Canvas, hu: dict[str, float]) -> None:
    """Between the three layers of the flank, beside the rectus, in the armpits and between the muscles of the seat."""
    for side, _ in Sides:
        flank = Field(canvas.grid, (min(side * 70, side * 160), -140, -130), (max(side * 70, side * 160), 60, 0))
        inner, outer = Profile.CAVITY.distance(flank), Profile.WALL.distance(flank)
        depth = inner / np.maximum(inner - outer, 1)
        inside = np.clip((-flank.z - 5) / 25, 0, 1) * np.clip((flank.z + 125) / 20, 0, 1)
        inside *= np.clip((np.abs(flank.x) - 85) / 15, 0, 1)
        for level in (0.36, 0.66):
            canvas.paint(flank, np.abs(depth - level) * 20 - 0.55, hu["torso_fat"], within=inside)
        grooves: list[tuple[list[Knot], float]] = [
            ([(128, -30, 262), (132, -22, 230), (138, -10, 195), (144, 5, 150)], 15),
            ([(150, 30, 240), (152, 35, 200)], 5),
            ([(72, -112, 20), (74, -122, -20), (74, -122, -70), (64, -112, -140), (45, -100, -210)], 3.5),
            ([(85, -88, -245), (88, -84, -275), (92, -80, -340)], 15),
            ([(42, 55, -260), (40, 45, -290), (36, 40, -320)], 15),
            ([(20, 92, -230), (14, 96, -270), (12, 80, -330)], 9),
        ]
        for points, radius in grooves:
            low, high = np.min(points, axis=0) - radius, np.max(points, axis=0) + radius
            if side < 0:
                low[0], high[0] = -high[0], -low[0]
            field = Field(canvas.grid, low, high)
            canvas.paint(field, field.tube(mirrored(points, side), radius), hu["torso_fat"], "torso_fat")


def _draw_pelvic_muscles(canvas: Canvas, hu: dict[str, float], side: int, name: str) -> None:
    plates = {
        f"gluteus_maximus_{name}": (
            [(30, 74, -150), (28, 84, -195), (26, 84, -240), (30, 70, -280)],
            [(112, 62, -165), (140, 44, -215), (150, 38, -260), (140, 42, -320)],
            15.0,
        ),
        f"gluteus_medius_{name}": (
            [(88, 42, -122), (118, 5, -118), (136, -35, -130), (132, -62, -160)],
            [(128, 28, -215), (140, 18, -235), (146, 4, -235), (146, -20, -230)],
            12.0,
        ),
        f"gluteus_minimus_{name}": (
            [(92, 25, -165), (108, 0, -160), (118, -28, -162), (116, -48, -175)],
            [(120, 22, -228), (126, 10, -236), (130, -2, -238), (130, -22, -236)],
            8.0,
        ),
    }
    plan: list[tuple[str, list[Knot], list[float]]] = [
        (
            f"iliopsoas_{name}",
            [(26, -2, 10), (34, -12, -34), (42, -22, -80), (54, -28, -130), (74, -42, -180), (92, -60, -230), (104, -48, -270)],
            [7, 14, 19, 22, 22, 18, 14],
        ),
        ("skeletal_muscle", [(96, 5, -150), (98, -20, -170), (96, -45, -200)], [13, 15, 12]),
        ("skeletal_muscle", [(84, 32, 0), (80, 30, -50), (80, 26, -108)], [8, 14, 15]),
        ("skeletal_muscle", [(48, 8, -225), (52, 0, -255), (50, -15, -285)], [8, 12, 10]),
        ("skeletal_muscle", [(28, 60, -205), (55, 50, -225), (100, 25, -245), (125, 14, -262)], [7, 10, 9, 6]),
        ("skeletal_muscle", [(40, -45, -290), (62, -25, -320), (80, -10, -360)], [18, 30, 34]),
        ("skeletal_muscle", [(112, -66, -200), (112, -72, -260), (112, -70, -340)], [10, 17, 22]),
        ("skeletal_muscle", [(140, -45, -170), (148, -35, -240), (148, -20, -340)], [9, 13, 17]),
    ]
    for muscle, (first, last, radius) in plates.items():
        points = mirrored(first + last, side)
        field = around(canvas.grid, points, 18)
        distance = field.sheet(mirrored(first, side), mirrored(last, side), radius)
        distance = smooth_max(distance, Profile.WALL.distance(field) + 2, 6)
        canvas.paint(field, distance - 2.5, hu["torso_fat"], "torso_fat")
        canvas.paint(field, distance, hu["muscle"], muscle)
    for muscle, course, radii in plan:
        points = mirrored(course, side)
        field = around(canvas.grid, points, 40)
        distance = field.tube(points, radii)
        canvas.paint(field, distance - 1.8, hu["torso_fat"])
        canvas.paint(field, distance, hu["muscle"], muscle)


def _draw_shoulder_muscles(canvas: Canvas, hu: dict[str, float], side: int) -> None:
    """Subscapularis and infraspinatus around the shoulder blade, the pectorals, latissimus, and fat between them."""
    plates = [
        ([(84, 84, 262), (92, 96, 190), (96, 96, 130)], [(148, 30, 285), (140, 52, 220), (112, 82, 135)], 15.0),
        ([(18, -72, 240), (20, -104, 180), (30, -116, 150)], [(130, -48, 262), (132, -62, 235), (110, -92, 170)], 10.0),
        ([(128, 66, 180), (132, 62, 120), (120, 66, 60)], [(150, 18, 190), (152, 0, 140), (146, 30, 60)], 7.0),
    ]
    for first, last, radius in plates:
        points = mirrored(first + last, side)
        field = around(canvas.grid, points, 18)
        distance = field.sheet(mirrored(first, side), mirrored(last, side), radius)
        distance = smooth_max(distance, 3 - Profile.CAVITY.distance(field), 4)
        share = canvas.paint(field, distance - 3, hu["torso_fat"], "torso_fat")
        canvas.paint(field, distance, hu["muscle"], "skeletal_muscle", within=(share > 0).astype(np.float32))


def draw_arms(canvas: Canvas, hu: dict[str, float]) -> None:
    """Both arms beside the trunk, as in patients who cannot raise them."""
    for side, name in Sides:
        upper = mirrored([(182, 12, 268), (204, 34, 190), (216, 48, 60)], side)
        lower = mirrored([(216, 48, 60), (212, 20, -20), (206, -6, -120), (204, -14, -170), (202, -18, -230)], side)
        points = upper + lower
        field = around(canvas.grid, points, 55)
        arm = field.tube(upper, [50, 46, 40])
        field.tube(lower, [40, 38, 28, 30, 20], arm)
        canvas.paint(field, arm, hu["skin"], "subcutaneous_fat")
        canvas.paint(field, arm + 1.8, hu["subcutaneous_fat"])
        canvas.paint(field, arm + 8, hu["muscle"], "skeletal_muscle")
        bones = {
            f"humerus_{name}": [([(180, 12, 268), (202, 34, 190), (216, 50, 64)], [20.0, 11, 13])],
            f"ulna_{name}": [([(222, 60, 66), (224, 34, -20), (216, 6, -110), (212, -2, -160)], [12.0, 8, 7, 7])],
            f"radius_{name}": [([(208, 40, 50), (202, 10, -20), (196, -16, -110), (196, -20, -165)], [10.0, 7, 8, 11])],
        }
        for bone, courses in bones.items():
            distance = field.blank()
            for course, radii in courses:
                field.tube(mirrored(course, side), radii, distance)
            canvas.paint(field, distance, hu["cortex"], bone)
            canvas.paint(field, distance + 3.5, hu["shaft"])


def draw_table(canvas: Canvas, hu: dict[str, float]) -> None:
    """A curved couch of carbon fibre around foam, its top touching the patient's back."""
    rows = np.flatnonzero(canvas.labels.any(axis=(0, 2)))
    if rows.size == 0:
        return
    lowest = float(canvas.grid.axis(1)[rows[-1]]) + 3
    field = Field(canvas.grid, (-270, lowest - 20, -1e4), (270, lowest + 90, 1e4))
    arc = np.hypot(field.x, field.y - np.float32(lowest - 520))
    shell = smooth_max(520 - arc, np.hypot(field.x * 0.62, field.y - np.float32(lowest - 520)) - 546, 6)
    shell = np.maximum(shell, np.abs(field.x) - 205)
    canvas.paint(field, shell, hu["couch"])
    canvas.paint(field, shell + 2.2, hu["foam"])


def build_grid(
    rng: np.random.Generator, build: Build, spacing: tuple[float, float, float], size: tuple[int, int, int] | None
) -> Grid:
    """The individual's grid. Without `size` it holds the whole trunk, square in plane as CT images are."""
    scale = (float(rng.uniform(0.94, 1.06)), float(rng.uniform(0.94, 1.06)), float(rng.uniform(0.95, 1.05)))
    warp = (
        Waves.draw(rng, 5, (180, 420), 2.2),
        Waves.draw(rng, 5, (180, 420), 2.2),
        Waves.draw(rng, 5, (180, 420), 2.0),
    )
    half = (172 + 1.0 * build.fat) * scale[0] + 16
    if build.arms_down:
        half = max(half, 272 * scale[0])
    length = (292.0 + 335.0) * scale[2]
    fitted = (int(np.ceil(2 * half / spacing[0])), int(np.ceil(2 * half / spacing[1])), int(np.ceil(length / spacing[2])))
    shape = size or fitted
    centre = (0.0, -18.0 * scale[1], (292.0 - 335.0) / 2 * scale[2])
    origin = [centre[a] - spacing[a] * (shape[a] - 1) / 2 for a in range(3)]
    return Grid(shape, spacing, (round(origin[0], 3), round(origin[1], 3), round(origin[2], 3)), scale, warp)
