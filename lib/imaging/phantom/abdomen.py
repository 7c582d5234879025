"""The phantom's abdomen and pelvis: solid organs, vessels and bladder; the bowel is in `bowel`."""

import numpy as np

from lib.imaging.phantom.frame import Build, Profile, Sides, diaphragm
from lib.imaging.phantom.shapes import Canvas, Field, Knot, Point, Waves, around, grain, mirrored, smooth_max

_KIDNEYS = {"right": ((-72.0, 0.0, -38.0), (-0.22, -0.16, -1.0)), "left": ((70.0, -2.0, -22.0), (0.22, -0.16, -1.0))}
"""Centre and downward long axis: the lower pole lies further out and further forward."""

_SITES = ((-98, -22, 22), (-72, -84, 8), (-112, -58, -14), (-42, -92, 46), (-68, -16, 58), (-14, -108, 44), (-88, -52, 50))
"""Where metastases may sit in the liver."""


def draw_abdomen(
    canvas: Canvas,
    hu: dict[str, float],
    build: Build,
    anatomy: np.random.Generator,
    texture: np.random.Generator,
) -> None:
    """The solid organs and vessels below the diaphragm."""
    _draw_pelvis(canvas, hu, build)
    _draw_spleen(canvas, hu, build, anatomy)
    _draw_liver(canvas, hu, build, anatomy)
    for side, name in Sides:
        _draw_kidney(canvas, hu, side, name, anatomy, texture)
    _draw_pancreas(canvas, hu, anatomy)
    _draw_vessels(canvas, hu)


def _draw_liver(canvas: Canvas, hu: dict[str, float], build: Build, rng: np.random.Generator) -> None:
    field = Field(canvas.grid, (-148, -148, -100), (90, 70, 118))
    liver = smooth_max(Profile.CAVITY.distance(field) + 3.5, (field.z - diaphragm(field, build)).astype(np.float32) + 5, 10)
    low = 26 + np.where(field.x < 0, 0.74, 0.42) * field.x + 0.20 * (field.y + 50) + rng.uniform(-8, 8)
    liver = smooth_max(liver, ((low - field.z) * 0.78).astype(np.float32), 16)
    left = 0.83 * (field.x - rng.uniform(2, 14)) + 0.55 * (field.y + 24)
    liver = smooth_max(liver, left.astype(np.float32), 12)
    back = 24 - np.hypot(field.x, (field.y - 6) * 0.9)
    liver = smooth_max(liver, (back + 4).astype(np.float32), 8)
    centre, axis = _KIDNEYS["right"]
    liver = smooth_max(liver, -(field.ellipsoid(centre, (30, 33, 62), axis) - 5), 8)
    bladder = field.ellipsoid((-62, -98, -26), (17, 17, 36), (-0.25, -0.5, -0.8))
    liver = smooth_max(liver, -bladder + 1, 5)
    ligament = field.tube([(-14, -140, 20), (-16, -110, 14), (-20, -72, 12)], [4, 4, 5])
    liver = smooth_max(liver, -ligament, 4)
    liver += field.noise(Waves.draw(rng, 8, (45, 110), 1.6))
    share = canvas.paint(field, liver, hu["liver"], "liver")

    portal = field.tube(
        [(-30, -62, 8), (-44, -58, 20), (-72, -46, 26), (-102, -30, 24), (-116, -18, 16)], [7, 7, 5.5, 3.5, 1.5]
    )
    field.tube([(-44, -58, 20), (-22, -84, 30), (2, -104, 42), (22, -114, 50)], [6, 5, 3.5, 1.5], portal)
    for course in (
        [(-72, -46, 26), (-84, -68, 16), (-98, -84, 0)],
        [(-88, -38, 25), (-98, -44, 48), (-106, -46, 62)],
        [(-80, -42, 26), (-86, -14, 14), (-92, 8, 2)],
    ):
        field.tube(course, [3.6, 2.6, 1.2], portal)
    canvas.paint(field, portal, hu["blood_portal"], within=share)
    hepatic = field.tube([(-26, -34, 72), (-62, -12, 62), (-96, 4, 40), (-112, 10, 16)], [5.5, 4.5, 3, 1.3])
    field.tube([(-26, -36, 72), (-52, -62, 62), (-72, -86, 40), (-78, -98, 18)], [5.5, 4.5, 3, 1.3], hepatic)
    field.tube([(-24, -38, 72), (-6, -76, 66), (18, -100, 58)], [5, 3.8, 1.4], hepatic)
    canvas.paint(field, hepatic, hu["blood_vein"] + (20 if hu["blood_vein"] > 100 else 0), within=share)
    _draw_lesions(canvas, field, liver, share, hu, rng)

    gall = bladder + 3
    canvas.paint(field, gall - 1.6, hu["bowel_wall"] - 10, "gallbladder")
    canvas.paint(field, gall, hu["gallbladder"])


def _draw_lesions(
    canvas: Canvas, field: Field, liver: np.ndarray, share: np.ndarray, hu: dict[str, float], rng: np.random.Generator
) -> None:
    count = int(rng.integers(1, 4))
    for site in rng.permutation(len(_SITES))[:count]:
        centre = np.array(_SITES[site]) + rng.uniform(-6, 6, 3)
        radius = rng.uniform(8, 19)
        lesion = field.ellipsoid(centre, radius * rng.uniform(0.85, 1.15, 3)) + field.noise(Waves.draw(rng, 6, (16, 34), 1.3))
        lesion = smooth_max(lesion, liver + 2, 2)
        # A rim a little brighter than the necrotic core.
        core = hu["liver_lesion"] + np.clip(lesion / 6 + 1, 0, 1) * 0.25 * (hu["liver"] - hu["liver_lesion"])
        canvas.paint(field, lesion, core, "liver_lesion", within=share)


def _draw_spleen(canvas: Canvas, hu: dict[str, float], build: Build, rng: np.random.Generator) -> None:
    field = Field(canvas.grid, (30, -80, -70), (148, 90, 100))
    size = rng.uniform(0.92, 1.06)
    spleen = field.ellipsoid((104, 20, 18), (42 * size, 56 * size, 66 * size), (0.25, -0.5, -0.9))
    spleen = smooth_max(spleen, Profile.CAVITY.distance(field) + 4, 8)
    spleen = smooth_max(spleen, (field.z - diaphragm(field, build)).astype(np.float32) + 6, 8)
    spleen = smooth_max(spleen, -field.ellipsoid((54, -26, 18), (45, 52, 80)), 10)
    spleen = smooth_max(spleen, -(field.ellipsoid(_KIDNEYS["left"][0], (30, 33, 60), _KIDNEYS["left"][1]) - 5), 8)
    spleen += field.noise(Waves.draw(rng, 6, (35, 80), 1.5))
    # The arterial spleen is striped: red and white pulp fill at different speeds.
    early = hu["spleen"] > 100 and hu["blood_vein"] < 100
    stripes = field.noise(Waves.draw(rng, 8, (14, 30), 22 if early else 2))
    canvas.paint(field, spleen, hu["spleen"] + stripes, "spleen")


def _draw_kidney(
    canvas: Canvas, hu: dict[str, float], side: int, name: str, rng: np.random.Generator, texture: np.random.Generator
) -> None:
    centre, axis = _KIDNEYS[name]
    field = Field(canvas.grid, np.subtract(centre, 70), np.add(centre, 70))
    size = rng.uniform(0.94, 1.05)
    kidney = field.ellipsoid(centre, (28 * size, 29 * size, 57 * size), axis)
    hilum = np.add(centre, (-side * 17, -9, 0))
    sinus = field.ellipsoid(np.add(hilum, (-side * 6, -4, 0)), (15, 11, 23), axis)
    kidney = smooth_max(kidney, -sinus, 7)
    kidney += field.noise(Waves.draw(rng, 6, (28, 60), 1.1))
    fascia = np.abs(field.ellipsoid(centre, (40, 40, 74), axis)) - 0.5
    fat = canvas.labels[field.box] == canvas.number("torso_fat")
    canvas.paint(field, fascia, hu["torso_fat"] + 60, within=fat.astype(np.float32))
    share = canvas.paint(field, kidney, hu["renal_cortex"], f"kidney_{name}")
    depth = kidney + 7 + 2.0 * grain(texture, field, 13)
    medulla = smooth_max(depth, -sinus + 4, 4)
    canvas.paint(field, medulla, hu["renal_medulla"], within=share)
    calyces = field.ellipsoid(np.add(centre, (-side * 6, -3, 0)), (9, 7, 30), axis)
    canvas.paint(field, calyces, hu["torso_fat"], within=share)
    pelvis = field.tube([np.add(hilum, (side * 9, 2, 10)), hilum, np.add(hilum, (-side * 12, -6, -8))], [2.5, 5, 4])
    field.tube([np.add(hilum, (side * 9, 2, -12)), hilum], [2.5, 5], pelvis)
    canvas.paint(field, pelvis, hu["urine"] + 5)
    ureter: list[Point] = [
        np.add(hilum, (-side * 12, -6, -8)),
        np.add(hilum, (-side * 16, -14, -50)),
        (side * 36, -40, -130),
        (side * 48, -14, -200),
    ]
    outer = around(canvas.grid, ureter, 15)
    canvas.paint(outer, outer.tube(ureter, 2.6), hu["muscle"] - 25)
    gland = np.add(centre, (-side * 30, -14, 40))
    limbs = Field(canvas.grid, gland - 30, gland + 30)
    adrenal = limbs.tube([np.add(gland, (0, -8, 10)), gland, np.add(gland, (-side * 4, 14, -8))], [4.2, 4.8, 3.2])
    limbs.tube([gland, np.add(gland, (side * 8, 13, -8))], [4.2, 3.2], adrenal)
    canvas.paint(limbs, adrenal, hu["adrenal"], f"adrenal_gland_{name}")


def _draw_pancreas(canvas: Canvas, hu: dict[str, float], rng: np.random.Generator) -> None:
    field = Field(canvas.grid, (-60, -100, -70), (110, 15, 45))
    course = [(-26, -60, -48), (-28, -62, -28), (-14, -70, -12), (12, -78, -4), (44, -58, 6), (78, -34, 14)]
    pancreas = field.tube(course, [10, 14, 11, 9, 10.5, 8]) + field.noise(Waves.draw(rng, 12, (10, 22), 1.4))
    canvas.paint(field, pancreas, hu["pancreas"], "pancreas")


def _draw_pelvis(canvas: Canvas, hu: dict[str, float], build: Build) -> None:
    field = Field(canvas.grid, (-70, -100, -320), (70, 50, -180))
    if build.female:
        womb = field.ellipsoid((4, -14, -222), (26, 21, 36), (0, -0.75, 0.65))
        canvas.paint(field, womb, hu["uterus"], "uterus")
        canvas.paint(field, womb + 17, hu["uterus"] - 35)
        canvas.paint(
            field, field.tube([(2, 4, -250), (0, 0, -290), (0, 6, -316)], [11, 9, 8]), hu["muscle"] + 8, "skeletal_muscle"
        )
        for side, _ in Sides:
            canvas.paint(field, field.ellipsoid((side * 42, -16, -206), (11, 9, 15)), hu["muscle"] - 22)
    else:
        gland = field.ellipsoid((0, -14, -282), (23, 17, 19))
        canvas.paint(field, gland, hu["prostate"], "prostate")
        seminal = field.tube([(30, 2, -250), (12, 0, -256), (0, 0, -262), (-12, 0, -256), (-30, 2, -250)], [5, 6, 4, 6, 5])
        canvas.paint(field, seminal, hu["muscle"] - 25)
    for side, _ in Sides:
        floor = field.sheet(
            mirrored([(8, -42, -295), (12, 0, -306), (8, 36, -300)], side),
            mirrored([(52, -30, -262), (54, 10, -258), (36, 44, -255)], side),
            3.0,
        )
        canvas.paint(field, floor, hu["muscle"], "skeletal_muscle")
    f = build.bladder
    urine = field.ellipsoid((0, -46, -244 + 14 * f), (46 * f, 36 * f, 37 * f))
    urine = (
        smooth_max(urine, -(field.ellipsoid((4, -14, -222), (26, 21, 36), (0, -0.75, 0.65)) - 4), 6) if build.female else urine
    )
    canvas.paint(field, urine - 3, hu["bowel_wall"] - 12, "urinary_bladder")
    canvas.paint(field, urine, hu["urine"])


def _draw_vessels(canvas: Canvas, hu: dict[str, float]) -> None:
    """From small to large, so that trunks close over the roots of their branches."""
    plan: list[tuple[str | None, str, list[Knot], list[float]]] = [
        (None, "blood_artery", [(8, -42, 6), (8, -56, 8), (34, -46, 14), (80, -20, 20)], [3.5, 3.5, 2.8, 2.2]),
        (None, "blood_artery", [(8, -56, 8), (-18, -66, 12), (-36, -62, 16)], [3, 2.6, 2.2]),
        (None, "blood_artery", [(7, -44, -8), (5, -62, -22), (2, -68, -60), (-14, -74, -110)], [4.2, 4, 3.5, 2]),
        (None, "blood_artery", [(8, -36, -20), (30, -18, -24), (52, -10, -24)], [3.2, 3, 2.6]),
        (None, "blood_artery", [(2, -36, -22), (-20, -26, -30), (-52, -8, -36)], [3.2, 3, 2.6]),
        (None, "blood_vein", [(52, -14, -22), (28, -40, -20), (8, -56, -20), (-18, -48, -24)], [5, 5, 3.8, 5.5]),
        (None, "blood_vein", [(-52, -12, -38), (-22, -40, -34)], [5, 5.5]),
        ("portal_vein_and_splenic_vein", "blood_portal", [(-12, -78, -120), (-10, -74, -70), (-6, -64, -14)], [4, 5, 6.5]),
        ("portal_vein_and_splenic_vein", "blood_portal", [(-6, -62, -14), (-18, -60, 0), (-34, -62, 12)], [7, 7.2, 7]),
        (
            "portal_vein_and_splenic_vein",
            "blood_portal",
            [(84, -14, 18), (48, -42, 6), (14, -62, -4), (-6, -62, -12)],
            [4, 4.6, 5, 6.5],
        ),
    ]
    for side, name in Sides:
        artery = mirrored(
            [
                (0, -48, -98),
                (22, -46, -136),
                (42, -38, -170),
                (60, -48, -210),
                (74, -70, -255),
                (78, -80, -290),
                (82, -76, -350),
            ],
            side,
        )
        vein = mirrored(
            [
                (0, -36, -112),
                (24, -34, -140),
                (40, -26, -172),
                (58, -34, -212),
                (70, -60, -255),
                (72, -72, -290),
                (74, -66, -350),
            ],
            side,
        )
        if side > 0:
            vein[0] = (-14, -36, -112)
        plan += [
            (f"iliac_vena_{name}", "blood_vein", vein, [8, 7.5, 7, 6.5, 6, 6, 5.5]),
            (f"iliac_vena_{name}", "blood_vein", mirrored([(38, -24, -168), (46, 8, -200), (48, 24, -225)], side), [5, 4, 3]),
            (f"iliac_artery_{name}", "blood_artery", artery, [6, 5.6, 5.2, 4.8, 4.5, 4.5, 4]),
            (
                f"iliac_artery_{name}",
                "blood_artery",
                mirrored([(40, -38, -166), (44, -2, -195), (44, 14, -220)], side),
                [4, 3.2, 2.2],
            ),
        ]
    cava: list[Knot] = [
        (-16, -37, -114),
        (-19, -40, -80),
        (-21, -43, -40),
        (-23, -43, 0),
        (-26, -38, 40),
        (-25, -34, 75),
        (-26, -34, 105),
    ]
    aorta: list[Knot] = [
        (6, -50, 142),
        (-10, -46, 165),
        (-16, -40, 195),
        (-6, -24, 218),
        (12, -4, 222),
        (25, 17, 208),
        (27, 25, 180),
    ]
    aorta += [(25, 24, 130), (20, 12, 85), (13, -6, 45), (9, -24, 10), (6, -37, -40), (2, -46, -100)]
    plan += [
        ("inferior_vena_cava", "blood_vein", cava, [9.5, 10.5, 11, 11.5, 12, 12.5, 12.5]),
        ("aorta", "blood_artery", aorta, [16, 16, 15.5, 14.5, 13.5, 13, 12.5, 12, 11.5, 11, 10.5, 9.5, 8.5]),
    ]
    for label, tissue, course, radii in plan:
        field = around(canvas.grid, course, 22)
        canvas.paint(field, field.tube(course, radii), hu[tissue], label)
