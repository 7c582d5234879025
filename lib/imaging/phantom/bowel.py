"""The phantom's stomach, small and large bowel: folded walls around fluid, stool and the gas that rises in it."""

import numpy as np

from lib.imaging.phantom.frame import Build, Profile, diaphragm
from lib.imaging.phantom.shapes import Canvas, Field, Knot, Waves, grain, resample, smooth_max


def draw_bowel(
    canvas: Canvas, hu: dict[str, float], build: Build, anatomy: np.random.Generator, texture: np.random.Generator
) -> None:
    _draw_mesentery(canvas, hu, anatomy)
    _draw_small_bowel(canvas, hu, anatomy, texture)
    _draw_colon(canvas, hu, anatomy, texture)
    _draw_stomach(canvas, hu, build, anatomy, texture)


def _fill(
    canvas: Canvas,
    field: Field,
    tube: np.ndarray,
    wall: float,
    content: float | np.ndarray,
    gas: np.ndarray,
    hu: dict[str, float],
    name: str,
) -> None:
    """A hollow organ: wall, content, and gas where `gas` is negative."""
    canvas.paint(field, tube, hu["bowel_wall"], name)
    share = canvas.paint(field, tube + wall, content)
    canvas.paint(field, gas, hu["gas"], within=share)


def _draw_stomach(
    canvas: Canvas, hu: dict[str, float], build: Build, anatomy: np.random.Generator, texture: np.random.Generator
) -> None:
    field = Field(canvas.grid, (-60, -135, -70), (110, 40, 110))
    course = np.array(
        [
            (58, -2, 52),
            (62, -26, 44),
            (60, -54, 26),
            (48, -82, 2),
            (20, -98, -18),
            (-10, -98, -20),
            (-30, -88, -10),
            (-40, -80, -6),
        ],
        float,
    )
    size = anatomy.uniform(0.85, 1.05)
    course += anatomy.uniform(-4, 4, course.shape)
    tube = field.tube(course, size * np.array([33, 34, 31, 26, 21, 17, 11, 8.0]))
    tube += field.noise(Waves.draw(anatomy, 8, (22, 50), 1.5))
    tube = smooth_max(tube, (field.z - diaphragm(field, build)).astype(np.float32) + 6, 8)
    tube = smooth_max(tube, Profile.CAVITY.distance(field) + 4, 8)
    level = anatomy.uniform(-104, -84)
    content = hu["fluid"] + 10 * grain(texture, field, 9)
    _fill(canvas, field, tube, 4.0, content, field.y - np.float32(level), hu, "stomach")
    loop: list[Knot] = [
        (-36, -82, -6),
        (-50, -70, -10),
        (-54, -56, -30),
        (-50, -50, -58),
        (-22, -52, -72),
        (14, -60, -66),
        (34, -66, -52),
    ]
    field = Field(canvas.grid, (-80, -105, -95), (55, -20, 15))
    height = np.zeros(field.shape, np.float32)
    tube = field.tube(loop, [9, 12, 12, 12, 11, 10, 11], height=height)
    _fill(canvas, field, tube, 2.6, hu["fluid"] + 6, (0.75 - height) * 10, hu, "duodenum")


def _draw_small_bowel(canvas: Canvas, hu: dict[str, float], anatomy: np.random.Generator, texture: np.random.Generator) -> None:
    """Loops that wind to and fro through the middle abdomen, jejunum above with more folds, ileum below."""
    field = Field(canvas.grid, (-105, -125, -235), (105, -20, -40))
    knots: list[Knot] = [(34, -66, -56)]
    direction = -1
    for row, level in enumerate(np.arange(-68, -206, -25.0)):
        for depth in (-98.0, -68.0) if row % 2 == 0 else (-68.0, -98.0):
            reach = 74 if level > -160 else 50
            xs = np.arange(-reach, reach + 1, 24.0) * direction
            wave = anatomy.uniform(0, 2 * np.pi)
            knots += [(float(x), depth + 9 * np.sin(x / 16 + wave), level + 8 * np.cos(x / 19 + wave)) for x in xs]
            direction = -direction
    course = np.array(knots) + anatomy.normal(0, 3.2, (len(knots), 3))
    radii = anatomy.uniform(9.5, 12.8, len(course))
    height = np.zeros(field.shape, np.float32)
    tube = field.tube(course, radii, height=height)
    # Not all of the space is taken: fat between the groups of loops.
    tube += np.maximum(field.noise(Waves.draw(anatomy, 6, (60, 130), 5)) - 2.5, 0)
    folds = hu["fluid"] + 14 * grain(texture, field, 5)
    pockets = 1.0 + field.noise(Waves.draw(anatomy, 6, (50, 120), 0.55)) - height
    _fill(canvas, field, tube, 2.6, folds, pockets * 10, hu, "small_bowel")


def _draw_mesentery(canvas: Canvas, hu: dict[str, float], anatomy: np.random.Generator) -> None:
    field = Field(canvas.grid, (-110, -125, -230), (110, -30, -30))
    vessels = field.blank()
    for n in range(16):
        root = np.array([-4.0 - n * 0.6, -68.0, -50.0 - 4.5 * n])
        end = np.add(root, (anatomy.uniform(-80, 80), anatomy.uniform(-40, 5), anatomy.uniform(-60, 10)))
        field.tube([root, (root + end) / 2 + anatomy.normal(0, 8, 3), end], [2.2, 1.7, 1.0], vessels)
    canvas.paint(field, vessels, hu["blood_portal"] - 25)


def _draw_colon(canvas: Canvas, hu: dict[str, float], anatomy: np.random.Generator, texture: np.random.Generator) -> None:
    rows = [
        (-78, -56, -166, 24),
        (-90, -48, -140, 27),
        (-100, -36, -105, 25),
        (-104, -34, -72, 23),
        (-92, -62, -56, 21),
        (-66, -98, -66, 20),
        (-30, -108, -62, 20),
        (8, -112, -56, 19),
        (46, -106, -40, 19),
        (78, -84, -16, 18),
        (104, -46, 4, 17),
        (112, -22, -20, 15),
        (110, -8, -60, 14),
        (108, -10, -105, 14),
        (92, -42, -145, 14),
        (66, -48, -176, 13),
        (34, -30, -190, 13),
        (8, -20, -178, 13),
        (-8, 6, -186, 13),
        (2, 26, -212, 15),
        (0, 32, -240, 18),
        (0, 26, -270, 15),
        (0, 26, -296, 8),
        (0, 34, -322, 7),
    ]
    table = np.array(rows, float)
    table[:19, :3] += anatomy.uniform(-4, 4, (19, 3))
    table[:22, 3] *= anatomy.uniform(0.85, 1.1, 22)
    centres, radii = resample(table[:, :3], table[:, 3])
    along = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(centres, axis=0), axis=1))])
    haustra = 1 + 0.13 * np.cos(2 * np.pi * along / 27) * (along < 0.72 * along[-1])
    field = Field(canvas.grid, (-140, -145, -335), (140, 60, 35))
    height = np.zeros(field.shape, np.float32)
    tube = field.tube(centres, radii * haustra, height=height)
    tube += field.noise(Waves.draw(anatomy, 8, (20, 45), 0.9))
    crumbs = grain(texture, field, 4.5)
    content = hu["stool"] - 420 * np.clip((crumbs - 0.5) / 1.3, 0, 1) + 6 * crumbs
    gas = 0.35 + field.noise(Waves.draw(anatomy, 6, (70, 160), 0.5)) - height
    _fill(canvas, field, tube, 2.4, content, gas * 14, hu, "colon")
