"""The phantom's bones: spine, thorax, shoulder girdle, pelvis and femurs, each a cortical shell around marrow."""

import numpy as np

from lib.imaging.phantom.frame import VERTEBRAE, Profile, Sides, spine
from lib.imaging.phantom.shapes import Canvas, Field, Knot, around, grain, mirrored, smooth_max, smooth_min

_RIB_ENDS: tuple[tuple[float, float, list[Knot]], ...] = (
    # Level of the bony end, its angle from the back (radians), and the courses of the cartilage to the breastbone.
    (258, 2.55, [(24, -52, 246)]),
    (228, 2.55, [(22, -66, 222)]),
    (196, 2.50, [(20, -84, 196)]),
    (166, 2.45, [(18, -100, 172)]),
    (136, 2.38, [(60, -117, 138), (17, -113, 150)]),
    (102, 2.28, [(75, -126, 108), (40, -126, 118), (16, -120, 132)]),
    (62, 2.14, [(100, -118, 58), (70, -134, 74), (35, -134, 104), (14, -126, 118)]),
    (24, 2.00, [(112, -108, 20), (88, -130, 44), (66, -136, 72)]),
    (-2, 1.86, [(122, -90, -8), (108, -114, 10), (88, -132, 38)]),
    (-16, 1.66, [(130, -66, -26), (122, -92, -16), (108, -114, 6)]),
    (-34, 1.22, []),
    (-26, 0.78, []),
)


def _paint_bone(
    canvas: Canvas,
    field: Field,
    distance: np.ndarray,
    hu: dict[str, float],
    name: str,
    rng: np.random.Generator,
    shell: float = 1.6,
    inside: str = "marrow",
) -> None:
    canvas.paint(field, distance, hu["cortex"], name)
    canvas.paint(field, distance + shell, hu[inside] + 28 * grain(rng, field, 3.0))


def draw_skeleton(canvas: Canvas, hu: dict[str, float], arms_down: bool, rng: np.random.Generator) -> None:
    for side, name in Sides:
        _draw_shoulder(canvas, hu, side, name, arms_down, rng)
    _draw_thorax(canvas, hu, rng)
    _draw_spine(canvas, hu, rng)
    for side, name in Sides:
        _draw_hip(canvas, hu, side, name, rng)
        _draw_femur(canvas, hu, side, name, rng)
    _draw_sacrum(canvas, hu, rng)


def _draw_spine(canvas: Canvas, hu: dict[str, float], rng: np.random.Generator) -> None:
    field = Field(canvas.grid, (-32, -45, -160), (32, 60, 300))
    centres = np.array([(v[1], v[2]) for v in VERTEBRAE])[::-1]
    y0 = spine(field.z)
    slope = np.gradient(spine(np.arange(-200.0, 340.0)))[np.clip(field.z + 200, 0, 539).astype(int)]
    level = field.z + slope * (field.y - y0) * 0.9
    middles = (centres[1:, 1] + centres[:-1, 1]) / 2
    index = np.searchsorted(middles, level)
    edges = np.concatenate([[2 * centres[0, 1] - middles[0]], middles, [2 * centres[-1, 1] - middles[-1]]])
    half = np.diff(edges)[index] / 2
    offset = np.abs(level - ((edges[1:] + edges[:-1]) / 2)[index])
    width = np.interp(field.z, [-150, -80, 31, 180, 287], [26, 24, 20.5, 15.5, 15])
    depth = np.interp(field.z, [-150, -80, 31, 180, 287], [18, 17.5, 16, 13.5, 9.5])
    waist = 1 - 0.09 * np.square(1 - np.minimum(offset / half, 1))
    u, v = field.x / (width * waist), (field.y - y0) / (depth * waist)
    column = ((np.sqrt(u * u + v * v) - 1) * depth).astype(np.float32)
    disc = np.interp(field.z, [-150, 0, 60, 287], [5.5, 4.2, 2.6, 1.8])
    ends = np.maximum(level - edges[-1], edges[0] - level)
    canvas.paint(field, smooth_max(column + 0.5, ends.astype(np.float32), 2), hu["disc"], "intervertebral_discs")
    body = smooth_max(column, (offset - half + disc).astype(np.float32), 3)

    canal = np.hypot(field.x / 11, (field.y - y0 - depth - 8) / 8.5) - 1
    parts = [_posterior_elements(field, n) for n in range(len(VERTEBRAE))]
    arch = np.minimum.reduce(parts)
    owner = np.argmin(parts, axis=0)
    bone = smooth_min(body, arch, 2)
    bone = smooth_max(bone, (-8 * canal).astype(np.float32), 1.5)
    canvas.paint(field, (9 * canal).astype(np.float32), hu["cord"], "spinal_cord")
    _paint_bone(canvas, field, bone, hu, "vertebrae_L1", rng, 1.3)
    mine = np.where(body < arch, len(VERTEBRAE) - 1 - index, owner)
    inside = bone < 0
    for n, (name, _, _) in enumerate(VERTEBRAE):
        canvas.labels[field.box][inside & (mine == n)] = canvas.number(name)


def _posterior_elements(field: Field, n: int) -> np.ndarray:
    """Arch and processes of vertebra `n`, counted from above; the thoracic spines slant downwards."""
    _, y, z = VERTEBRAE[n]
    lumbar = n >= 12
    back = y + float(np.interp(z, [-140, 31, 180, 287], [18, 16, 13.5, 9.5]))
    drop, length = (8, 30) if lumbar else (24 if n > 3 else 14, 26)
    distance = field.tube(
        [(0, back + 17, z - 2), (0, back + 24, z - 2 - drop / 3), (0, back + 17 + length, z - 2 - drop)], [4, 3, 4.5]
    )
    field.tube([(0, back + 16, z + 2), (0, back + 17, z - 12)], 3.5, distance)
    for side in (1, -1):
        reach = 26.0 if lumbar else 20.0
        tip = (side * (16 + reach), back + (10 if lumbar else 26), z + 4)
        pedicle = [(13, back - 5, z + 6), (14.5, back + 3, z + 5), (15, back + 9, z + 2)]
        field.tube(mirrored(pedicle, side), [5.5, 4.5, 5], distance)
        field.tube(
            mirrored([(15, back + 9, z + 2), (10, back + 15, z - 2), (1, back + 18, z - 4)], side), [5, 3.5, 3.5], distance
        )
        field.tube([(side * 15, back + 9, z + 3), tip], [4.5, 3.5], distance)
        field.tube(
            mirrored([(15, back + 10, z + 15), (16, back + 12, z), (15, back + 13, z - 15)], side), [4, 5.5, 4.5], distance
        )
    return distance


def _draw_thorax(canvas: Canvas, hu: dict[str, float], rng: np.random.Generator) -> None:
    for side, name in Sides:
        for n, (_, _, cartilage) in enumerate(_RIB_ENDS):
            course = mirrored(rib_course(n), side)
            gristle = mirrored([(abs(course[-1][0]), *course[-1][1:]), *cartilage], side) if cartilage else []
            points = np.array(course + gristle)
            field = around(canvas.grid, points, 10)
            if gristle:
                canvas.paint(field, field.tube(gristle, 5.5), hu["cartilage"], "costal_cartilages")
            bone = field.blank()
            for lift in (-3.2, 0.0, 3.2):
                field.tube([(p[0], p[1], p[2] + lift) for p in course], [3.4] * (len(course) - 1) + [2.6], bone)
            _paint_bone(canvas, field, bone, hu, f"rib_{name}_{n + 1}", rng, 1.3)
    field = Field(canvas.grid, (-40, -145, 80), (40, -35, 265))
    shape = [(-56, 252, 24), (-67, 224, 17), (-88, 195, 15), (-104, 168, 16), (-118, 135, 17), (-127, 110, 10), (-129, 92, 5)]
    edges = [[(side * w, y, z) for y, z, w in shape] for side in (1, -1)]
    bone = field.sheet(edges[0], edges[1], 5.5)
    _paint_bone(canvas, field, bone, hu, "sternum", rng, 1.2)


def rib_course(n: int) -> list[Knot]:
    """The left rib `n`, counted from 0 above: from its vertebra round the cavity, falling to its bony end."""
    _, y, z = VERTEBRAE[n]
    end, angle, _ = _RIB_ENDS[n]
    first = 0.42 if n else 0.6
    arc = [
        Profile.CAVITY.on(a, z + 2 + (end - z - 2) * ((a - first) / (angle - first)) ** 1.15, 6)
        for a in np.linspace(first, angle, 14)
    ]
    return [(19, y + 10, z + 8), (36, 0.5 * (y + 28) + 0.5 * arc[0][1], z + 6), *arc]


def _draw_shoulder(
    canvas: Canvas, hu: dict[str, float], side: int, name: str, arms_down: bool, rng: np.random.Generator
) -> None:
    blade = ([(82, 82, 262), (90, 94, 200), (98, 96, 132)], [(148, 30, 282), (132, 62, 220), (104, 92, 134)])
    points = np.array(mirrored(blade[0] + blade[1], side))
    field = around(canvas.grid, points, 16)
    bone = field.sheet(mirrored(blade[0], side), mirrored(blade[1], side), 2.6)
    field.tube(mirrored([(88, 92, 250), (125, 82, 268), (158, 46, 294)], side), [4, 5, 7], bone)
    field.tube(mirrored([(144, 34, 275), (140, 50, 235), (106, 92, 140)], side), [10, 4.5, 4], bone)
    _paint_bone(canvas, field, bone, hu, f"scapula_{name}", rng, 1.4)
    course = mirrored([(24, -58, 254), (60, -56, 264), (105, -22, 280), (150, 12, 298)], side)
    field = around(canvas.grid, course, 12)
    _paint_bone(canvas, field, field.tube(course, [9, 6, 5.5, 7]), hu, f"clavicula_{name}", rng)
    if not arms_down:
        course = mirrored([(164, 14, 282), (184, 2, 330)], side)
        field = around(canvas.grid, course, 30)
        _paint_bone(canvas, field, field.tube(course, [22, 14]), hu, f"humerus_{name}", rng)


def _draw_hip(canvas: Canvas, hu: dict[str, float], side: int, name: str, rng: np.random.Generator) -> None:
    field = Field(canvas.grid, (min(0, side * 145), -90, -340), (max(0, side * 145), 85, -95))
    crest: list[Knot] = [(44, 62, -158), (62, 50, -124), (96, 18, -107), (122, -20, -112), (132, -48, -134), (123, -68, -160)]
    rim: list[Knot] = [(42, 46, -190), (54, 34, -196), (72, 12, -206), (86, -10, -214), (92, -28, -214), (100, -52, -204)]
    bone = field.sheet(mirrored(crest, side), mirrored(rim, side), (4.6, 8.0))
    field.tube(mirrored(crest, side), [9, 7, 6, 7, 8, 8], bone)
    head = (side * 88.0, -14.0, -244.0)
    cup = np.maximum(field.ellipsoid(head, (35, 35, 35)), -field.ellipsoid(head, (27, 27, 27)))
    opening = (0.80 * side * (field.x - head[0]) - 0.22 * (field.y - head[1]) - 0.42 * (field.z - head[2])) - 12
    bone = smooth_min(bone, smooth_max(cup, opening, 2), 4)
    for course, radii in (
        ([(66, -36, -246), (38, -60, -262), (12, -70, -274)], [11.0, 7.5, 9.5]),
        ([(11, -68, -272), (11, -62, -292)], [8.5, 7.0]),
        ([(12, -60, -294), (32, -34, -312), (54, 12, -322)], [6.5, 5.5, 9.0]),
        ([(76, 16, -238), (68, 26, -275), (58, 22, -318)], [13.0, 11.0, 15.0]),
        ([(70, 32, -205), (72, 28, -235)], [8.0, 12.0]),
        ([(62, 40, -240), (52, 46, -248)], [6.0, 3.0]),
    ):
        field.tube(mirrored(course, side), radii, bone)
    bone = smooth_max(
        bone, 27 - np.sqrt(sum(np.square(c - np.float32(h)) for c, h in zip((field.x, field.y, field.z), head, strict=True))), 2
    )
    bone = smooth_max(bone, 3 - side * field.x, 1)
    _paint_bone(canvas, field, bone, hu, f"hip_{name}", rng, 1.9)


def _draw_femur(canvas: Canvas, hu: dict[str, float], side: int, name: str, rng: np.random.Generator) -> None:
    field = Field(canvas.grid, (min(side * 50, side * 165), -60, -440), (max(side * 50, side * 165), 50, -205))
    bone = field.ellipsoid((side * 88, -14, -244), (24, 24, 24))
    neck = field.tube(mirrored([(92, -13, -247), (110, -4, -259), (126, 6, -276)], side), [18, 15, 18])
    bone = smooth_min(bone, neck, 4)
    field.tube(mirrored([(138, 16, -252), (138, 14, -275), (130, 8, -300)], side), [10, 14, 15], bone)
    field.tube(mirrored([(112, 16, -305), (118, 10, -320)], side), [9, 12], bone)
    field.tube(mirrored([(128, 6, -290), (126, 2, -330), (122, -4, -440)], side), [16, 14.5, 14], bone)
    _paint_bone(canvas, field, bone, hu, f"femur_{name}", rng, 2.2)
    shaft = np.maximum(bone + 5, field.z + 305)
    canvas.paint(field, shaft, hu["shaft"])


def _draw_sacrum(canvas: Canvas, hu: dict[str, float], rng: np.random.Generator) -> None:
    field = Field(canvas.grid, (-70, -25, -285), (70, 95, -140))
    rows = [(4, -161, 38, 16), (24, -182, 40, 13), (42, -200, 32, 11), (55, -218, 24, 9), (62, -236, 16, 8), (56, -252, 8, 6)]
    bone = field.blank()
    for side in (1, -1):
        middle = [(0.0, y, z) for y, z, _, _ in rows]
        wing = [(side * w, y + 12 if w > 30 else y, z - 3) for y, z, w, _ in rows]
        for t in np.linspace(0, 1, 6):
            strand = [(m[0] + t * (w[0] - m[0]), m[1] + t * (w[1] - m[1]), m[2]) for m, w in zip(middle, wing, strict=True)]
            field.tube(strand, [r * (1 - 0.25 * t) for *_, r in rows], bone)
    field.tube([(0, 56, -252), (0, 50, -266), (0, 42, -276)], [6, 5, 3.5], bone)
    field.tube([(0, 36, -160), (0, 60, -190), (0, 76, -215)], [5, 6, 5], bone)
    gaps = field.blank()
    for side in (1, -1):
        for y, z, x in ((8, -178, 27), (26, -196, 24), (42, -212, 20), (54, -228, 15)):
            field.tube([(side * (x + 3), y - 14, z), (side * x, y + 8, z - 4)], 4.2, gaps)
    field.tube([(0, 27, -152), (0, 44, -182), (0, 58, -200), (0, 68, -216)], [9, 7.5, 5, 3.5], gaps)
    # The sacroiliac joints: the hips keep what is theirs.
    hips = np.isin(canvas.labels[field.box], [canvas.number("hip_left"), canvas.number("hip_right")])
    bone = smooth_max(bone, -gaps, 2)
    bone = np.where(hips, np.float32(1.0), bone)
    _paint_bone(canvas, field, bone, hu, "sacrum", rng, 1.5)
