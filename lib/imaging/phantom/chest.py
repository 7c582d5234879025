"""The phantom's chest: lungs with airways and vessels, heart, great vessels, gullet."""

import numpy as np

from lib.imaging.phantom.frame import Build, Profile, Sides, diaphragm, spine
from lib.imaging.phantom.shapes import Canvas, Field, Knot, Point, Waves, around, grain, mirrored, smooth_max, smooth_min


def draw_chest(
    canvas: Canvas, hu: dict[str, float], build: Build, anatomy: np.random.Generator, texture: np.random.Generator
) -> None:
    """Everything above the diaphragm, and the diaphragm."""
    _draw_diaphragm(canvas, hu, build)
    for side, name in Sides:
        _draw_lung(canvas, hu, build, side, name, anatomy, texture)
    _draw_heart(canvas, hu, build)
    _draw_airways(canvas, hu)


def _draw_diaphragm(canvas: Canvas, hu: dict[str, float], build: Build) -> None:
    field = Field(canvas.grid, (-150, -150, -60), (150, 100, 125))
    sheet = np.abs(diaphragm(field, build) - field.z + 1) - 2.6
    sheet = np.maximum(sheet, Profile.CAVITY.distance(field))
    sheet = np.maximum(sheet, 20 - np.hypot(field.x, field.y - 10))
    canvas.paint(field, sheet, hu["muscle"], "skeletal_muscle")
    for side, _ in Sides:
        course = mirrored([(12, 2, 50), (11, -10, 25), (10, -20, -5), (9, -27, -50)], side)
        crus = around(canvas.grid, course, 12)
        canvas.paint(crus, crus.tube(course, [5, 6, 6, 3]), hu["muscle"], "skeletal_muscle")


def _mediastinum(field: Field) -> np.ndarray:
    """What lies between the lungs: the heart's sac, the great vessels, the spine and its muscles."""
    heart = field.ellipsoid((24, -52, 120), (51, 52, 72), (0.66, -0.42, -0.62))
    half = np.interp(field.z, [60, 130, 165, 200, 230, 260, 300], [16, 20, 29, 31, 33, 30, 26]).astype(np.float32)
    front = np.interp(field.z, [60, 140, 200, 260], [-100, -100, -70, -40]).astype(np.float32)
    slim = np.clip((field.y - front) / 40, 0, 1)
    slab = np.abs(field.x - 2) - half * (0.12 + 0.88 * slim)
    slab = np.maximum(slab, field.y - spine(field.z))
    back = spine(field.z)
    column = 24 * (np.hypot(field.x / 24, (field.y - back - 10) / 32) - 1)
    arch = field.tube(
        [(0, -36, 212), (8, -18, 226), (22, 12, 216), (26, 24, 180), (25, 24, 110), (14, 12, 50)], [18, 17, 16, 16, 15, 15]
    )
    cava = field.tube([(-26, -26, 240), (-28, -24, 130), (-26, -34, 70)], 12)
    return smooth_min(smooth_min(heart, slab, 14), np.minimum(smooth_min(column, arch, 8), cava), 10)


def _draw_lung(
    canvas: Canvas,
    hu: dict[str, float],
    build: Build,
    side: int,
    name: str,
    anatomy: np.random.Generator,
    texture: np.random.Generator,
) -> None:
    field = Field(canvas.grid, (min(0, side * 145), -140, -30), (max(0, side * 145), 95, 282))
    apex = field.z - 274 + (np.square(np.abs(field.x) - 46) + np.square(field.y - 14)) / 110
    lung = smooth_max(Profile.CAVITY.distance(field) + 2.5, (diaphragm(field, build) - field.z).astype(np.float32) + 3.5, 5)
    lung = smooth_max(lung, apex.astype(np.float32), 6)
    lung = smooth_max(lung, -_mediastinum(field), 6)
    lung = np.maximum(lung, 2 - side * field.x)
    lung += field.noise(Waves.draw(anatomy, 6, (50, 110), 0.8))
    # The dependent lung is denser: about 1 HU per mm in a supine patient.
    density = hu["lung"] + 0.55 * (field.y + 20) + 22 * grain(texture, field, 6.0) + 14 * grain(texture, field, 2.5)
    share = canvas.paint(field, lung, density, f"lung_{name}")
    fissure = np.abs((field.z - 150) + 0.9 * (field.y + 10)) * 0.74 - 0.5
    canvas.paint(field, fissure, hu["lung"] + 130, within=share)
    _draw_tree(canvas, field, hu, side, share, anatomy)


def _draw_tree(
    canvas: Canvas, field: Field, hu: dict[str, float], side: int, share: np.ndarray, rng: np.random.Generator
) -> None:
    """Pulmonary vessels: from the hilum to points spread through the lung, each with twigs; bronchi beside the first."""
    hilum = np.array([side * 38.0, 2.0, 172.0])
    vessels, airways = field.blank(), field.blank()
    for n in range(24):
        angle, level = 2 * np.pi * n / 8 + rng.uniform(-0.3, 0.3), rng.uniform(55, 255)
        rise = np.clip((level - 60) / 200, 0, 1)
        target = np.array(
            [side * (78 + 42 * np.cos(angle) * (1 - 0.4 * rise)), -8 + 70 * np.sin(angle) * (1 - 0.5 * rise), level]
        )
        middle = (hilum + target) / 2 + rng.normal(0, 7, 3)
        course = [hilum + rng.normal(0, 5, 3), middle, target]
        field.tube(course, [5.2, 3.0, 1.3], vessels)
        if n % 2 == 0:
            field.tube([hilum, np.add(middle, (0, 6, 3)), np.add(0.5 * (middle + target), (0, 4, 2))], [5.0, 2.6, 1.5], airways)
        for t in (0.35, 0.6, 0.85):
            start = (1 - t) * middle + t * target
            for _ in range(2):
                twig = start + 0.35 * (target - middle) + rng.normal(0, 24, 3)
                field.tube([start, (start + twig) / 2 + rng.normal(0, 3, 3), twig], [1.9, 1.4, 0.8], vessels)
    canvas.paint(field, vessels, hu["blood_pulmonary"] - 20, within=share)
    canvas.paint(field, airways, hu["muscle"] - 60, within=share)
    canvas.paint(field, airways + 1.2, hu["gas"], within=share)


def _draw_heart(canvas: Canvas, hu: dict[str, float], build: Build) -> None:
    field = Field(canvas.grid, (-65, -125, 40), (110, 40, 210))
    axis: Point = (0.66, -0.42, -0.62)
    heart = field.ellipsoid((22, -52, 120), (45, 46, 66), axis)
    heart = smooth_min(heart, field.ellipsoid((-26, -38, 122), (24, 28, 34)), 10)
    heart = smooth_min(heart, field.ellipsoid((4, -18, 142), (36, 22, 24)), 10)
    heart = smooth_max(heart, (diaphragm(field, build) - field.z).astype(np.float32) + 6, 6)
    sac = smooth_max(np.abs(heart - 3.5) - 0.7, field.z - 165, 3)
    canvas.paint(field, sac, hu["muscle"] - 20)
    share = canvas.paint(field, heart, hu["myocardium"], "heart")
    fat = field.tube([(-28, -66, 150), (-12, -78, 130), (-8, -78, 100), (0, -70, 75)], 6)
    field.tube([(10, -86, 150), (38, -98, 110), (64, -92, 78)], 4, fat)
    field.tube([(48, -26, 148), (56, -12, 120), (38, -4, 95)], 5, fat)
    left = field.ellipsoid((40, -42, 112), (21, 22, 44), axis)
    right = field.ellipsoid((18, -76, 112), (17, 30, 46), axis)
    right = smooth_max(right, 9 - field.ellipsoid((40, -42, 112), (22, 23, 46), axis), 4)
    atria = field.ellipsoid((4, -16, 142), (33, 19, 21))
    canvas.paint(field, np.minimum(left, atria), hu["blood_artery"] - 8, within=share)
    canvas.paint(field, right, hu["blood_pulmonary"], within=share)
    canvas.paint(field, field.ellipsoid((-27, -39, 122), (20, 24, 31)), hu["blood_pulmonary"] - 15, within=share)
    canvas.paint(field, fat, hu["torso_fat"], within=share)


def _draw_airways(canvas: Canvas, hu: dict[str, float]) -> None:
    vessels: list[tuple[str, str, list[Knot], list[float]]] = [
        ("superior_vena_cava", "blood_pulmonary", [(-28, -22, 238), (-29, -24, 200), (-28, -28, 140)], [8, 9.5, 10]),
        (
            "brachiocephalic_vein_left",
            "blood_pulmonary",
            [(-26, -26, 236), (0, -42, 240), (34, -36, 262), (60, -34, 288)],
            [8, 7, 7, 6],
        ),
        ("brachiocephalic_vein_right", "blood_pulmonary", [(-28, -22, 238), (-36, -26, 262), (-60, -34, 288)], [8, 7.5, 6]),
        (
            "pulmonary_artery",
            "blood_pulmonary",
            [(14, -60, 145), (20, -44, 168), (22, -22, 184), (36, 0, 186), (44, 8, 176)],
            [14, 14, 13, 11, 8],
        ),
        (
            "pulmonary_artery",
            "blood_pulmonary",
            [(18, -28, 178), (0, -14, 178), (-24, -6, 176), (-42, 0, 170)],
            [11, 10.5, 10, 8],
        ),
        ("pulmonary_vein", "blood_artery", [(48, 4, 150), (24, -8, 146)], [7, 8]),
        ("pulmonary_vein", "blood_artery", [(-46, 2, 146), (-18, -10, 142)], [7, 8]),
        (
            "brachiocephalic_trunk",
            "blood_artery",
            [(-4, -18, 226), (-10, -16, 242), (-22, -12, 272), (-28, -12, 300)],
            [7, 6.5, 6, 4],
        ),
        ("common_carotid_artery_left", "blood_artery", [(8, -10, 228), (14, -12, 255), (22, -10, 300)], [4.5, 4, 3.8]),
        ("subclavian_artery_left", "blood_artery", [(17, 4, 226), (24, 6, 255), (38, 2, 280), (70, -4, 286)], [5.5, 5, 5, 4.5]),
        (
            "esophagus",
            "bowel_wall",
            [(4, -12, 300), (6, -2, 250), (5, 8, 205), (4, 12, 160), (8, 2, 105), (20, -14, 72), (34, -26, 58)],
            [7] * 7,
        ),
    ]
    for name, tissue, course, radii in vessels:
        field = around(canvas.grid, course, 20)
        canvas.paint(field, field.tube(course, radii), hu[tissue], name)
    field = Field(canvas.grid, (-65, -50, 140), (65, 35, 310))
    airway = field.tube([(0, -26, 310), (0, -22, 270), (-1, -8, 225), (-2, 0, 196)], [9.5, 9.5, 9.5, 10])
    field.tube([(-2, 0, 196), (-20, 4, 184), (-36, 5, 172), (-48, 6, 152)], [9, 8, 6.5, 5], airway)
    field.tube([(-2, 0, 196), (18, 6, 182), (36, 9, 172), (50, 12, 158)], [8.5, 7, 6, 5], airway)
    canvas.paint(field, airway - 1.8, hu["muscle"] - 10)
    canvas.paint(field, airway, hu["gas"], "trachea")
