from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from lib.agent.protocol import Click
from lib.agent.segmenter import Segmenter
from lib.imaging.planes import Plane, ViewGrid, ViewPoint
from lib.imaging.views import View
from lib.imaging.volume import Modality, Volume
from lib.imaging.windows import Window
from lib.segmenters.graphcut import GraphCut

SEGMENTER: Segmenter = GraphCut()


def view_of(picture: np.ndarray) -> View:
    """A view that shows `picture` uint8 [row, column] as it is."""
    data = np.ascontiguousarray(picture.T[:, :, None])
    volume = Volume(data, np.diag([1.0, -1.0, 1.0, 1.0]), Modality.OTHER, Path("picture"), planar=True)
    return View(ViewGrid(volume, Plane.AXIAL), 0, Window(0, 255, "stored"))


def at(view: View, row: int, column: int, positive: bool = True) -> Click:
    return Click(ViewPoint.of_pixel(column, row, *view.size), positive)


def play(view: View, *clicks: tuple[int, int, bool]) -> np.ndarray:
    state = SEGMENTER.start([view])[0]
    mask = np.zeros(view.grey().shape, bool)
    for row, column, positive in clicks:
        prediction = SEGMENTER.click([state], [at(view, row, column, positive)])[0]
        mask, state = prediction.mask, prediction.state
    return mask


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def ellipse(shape: tuple[int, int], row: float, column: float, height: float, width: float) -> np.ndarray:
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return ((rows - row) / height) ** 2 + ((columns - column) / width) ** 2 <= 1


def noisy(picture: np.ndarray, deviation: float) -> np.ndarray:
    noise = np.random.default_rng(1).normal(0, deviation, picture.shape)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


def scene() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """A body of fat (60) with two touching organs (110, 150), two ribs of 4x4 px (240) and air around it (0)."""
    shape = (160, 200)
    parts = {
        "body": ellipse(shape, 80, 100, 70, 90),
        "left": ellipse(shape, 80, 70, 35, 30),
        "right": ellipse(shape, 80, 125, 30, 26),
    }
    parts["right"] &= ~parts["left"]
    for name, (row, column) in {"rib": (24, 98), "other rib": (130, 110)}.items():
        parts[name] = np.zeros(shape, bool)
        parts[name][row : row + 4, column : column + 4] = True
    picture = np.zeros(shape)
    for name, grey in {"body": 60, "left": 110, "right": 150, "rib": 240, "other rib": 240}.items():
        picture[parts[name]] = grey
    return picture, parts


PICTURE, PARTS = scene()


@pytest.mark.parametrize("deviation", [0, 4, 10])
@pytest.mark.parametrize(("part", "row", "column"), [("left", 80, 70), ("right", 80, 125)])
def test_one_click_finds_one_of_two_touching_organs(deviation, part, row, column):
    assert iou(play(view_of(noisy(PICTURE, deviation)), (row, column, True)), PARTS[part]) > 0.9


@pytest.mark.parametrize("deviation", [0, 4])
def test_one_click_finds_a_rib_of_four_pixels(deviation):
    mask = play(view_of(noisy(PICTURE, deviation)), (26, 100, True))
    assert iou(mask, PARTS["rib"]) > 0.6
    assert mask.sum() < 30


def test_disconnected_parts_add_up():
    mask = play(view_of(noisy(PICTURE, 4)), (26, 100, True), (132, 112, True), (80, 70, True))
    assert iou(mask, PARTS["rib"] | PARTS["other rib"] | PARTS["left"]) > 0.9


@pytest.mark.parametrize(("height", "width"), [(100, 120), (512, 512), (1024, 700)])
@pytest.mark.parametrize("grey", [200, 255])
def test_a_body_that_fills_most_of_the_picture_comes_whole(height, width, grey):
    body = ellipse((height, width), height / 2, width / 2, height * 0.44, width * 0.46)
    assert body.mean() > 0.6
    picture = np.where(body, grey, 0)
    assert iou(play(view_of(noisy(picture, 6)), (height // 2, width // 2, True)), body) > 0.97


def test_a_negative_click_removes_what_was_wrongly_included_up_to_its_edges():
    shape = (128, 128)
    organ, leak = ellipse(shape, 64, 45, 30, 30), ellipse(shape, 64, 95, 16, 20)
    picture = np.full(shape, 40)
    picture[organ | leak] = 120
    view = view_of(noisy(picture, 3))
    clicks = ((64, 45, True), (64, 98, True))
    assert iou(play(view, *clicks), organ | leak) > 0.9
    assert iou(play(view, *clicks, (64, 98, False)), organ) > 0.9


def test_a_ring_keeps_its_large_hole():
    shape = (128, 128)
    skull = ellipse(shape, 64, 64, 50, 45) & ~ellipse(shape, 64, 64, 43, 38)
    picture = np.where(skull, 230, np.where(ellipse(shape, 64, 64, 43, 38), 90, 0))
    assert iou(play(view_of(noisy(picture, 3)), (17, 64, True)), skull) > 0.7


clicks_on_the_scene = st.lists(st.tuples(st.integers(0, 159), st.integers(0, 199), st.booleans()), min_size=1, max_size=6)
NOISY_VIEW = view_of(noisy(PICTURE, 5))


@settings(max_examples=25, deadline=None)
@given(clicks_on_the_scene)
def test_the_mask_obeys_every_click(clicks):
    mask = play(NOISY_VIEW, *clicks)
    for (row, column), positive in {(row, column): positive for row, column, positive in clicks}.items():
        assert mask[row, column] == positive


@settings(max_examples=15, deadline=None)
@given(clicks_on_the_scene)
def test_positive_clicks_only_add_and_negative_clicks_only_remove(clicks):
    state = SEGMENTER.start([NOISY_VIEW])[0]
    before = np.zeros(PICTURE.shape, bool)
    for row, column, positive in clicks:
        prediction = SEGMENTER.click([state], [at(NOISY_VIEW, row, column, positive)])[0]
        assert not ((before & ~prediction.mask) if positive else (prediction.mask & ~before)).any()
        assert 0 <= prediction.score <= 1
        before, state = prediction.mask, prediction.state


@settings(max_examples=10, deadline=None)
@given(clicks_on_the_scene, clicks_on_the_scene)
def test_earlier_states_stay_valid_and_replay_gives_the_same(clicks, others):
    start = SEGMENTER.start([NOISY_VIEW])[0]
    state, masks = start, []
    for row, column, positive in clicks:
        prediction = SEGMENTER.click([state], [at(NOISY_VIEW, row, column, positive)])[0]
        for y, x, sign in others:
            SEGMENTER.click([state], [at(NOISY_VIEW, y, x, sign)])
        state = prediction.state
        masks.append(prediction.mask.copy())
    state = start
    for (row, column, positive), mask in zip(clicks, masks, strict=True):
        prediction = SEGMENTER.click([state], [at(NOISY_VIEW, row, column, positive)])[0]
        assert np.array_equal(prediction.mask, mask)
        state = prediction.state


def test_a_batch_gives_what_single_calls_give():
    views = [view_of(noisy(PICTURE, deviation)) for deviation in (0, 3, 6)]
    clicks = [at(views[0], 80, 70), at(views[1], 26, 100), at(views[2], 80, 125)]
    together = SEGMENTER.click(SEGMENTER.start(views), clicks)
    for view, click, prediction in zip(views, clicks, together, strict=True):
        alone = SEGMENTER.click(SEGMENTER.start([view]), [click])[0]
        assert np.array_equal(prediction.mask, alone.mask)
        assert prediction.score == alone.score


def test_threads_do_not_disturb_each_other():
    views = [view_of(noisy(PICTURE, deviation)) for deviation in (1, 3, 5, 7)]
    clicks = [(80, 70, True), (26, 100, True), (60, 70, False), (132, 112, True)]
    expected = [play(view, *clicks) for view in views]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda view: play(view, *clicks), views * 3))
    for mask, reference in zip(found, expected * 3, strict=True):
        assert np.array_equal(mask, reference)


def test_a_view_that_nobody_clicks_on_is_not_rendered(monkeypatch):
    def fail(_: View) -> np.ndarray:
        raise AssertionError("rendered")

    monkeypatch.setattr(View, "grey", fail)
    assert len(SEGMENTER.start([NOISY_VIEW, NOISY_VIEW])) == 2


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (3, 2), (40, 1)])
def test_tiny_and_uniform_pictures_work(shape):
    view = view_of(np.full(shape, 7, np.uint8))
    row, column = shape[0] - 1, shape[1] - 1
    assert play(view, (row, column, True))[row, column]
    assert not play(view, (row, column, True), (row, column, False))[row, column]
    assert not play(view, (0, 0, False)).any()


def next_click(truth: np.ndarray, mask: np.ndarray) -> tuple[int, int, bool]:
    """The centre of the largest error."""
    missed, wrong = (ndimage.distance_transform_edt(np.pad(e, 1))[1:-1, 1:-1] for e in (truth & ~mask, mask & ~truth))
    positive = missed.max() >= wrong.max()
    row, column = np.unravel_index((missed if positive else wrong).argmax(), truth.shape)
    return int(row), int(column), bool(positive)


@pytest.mark.parametrize(("target", "least"), [("liver", 0.85), ("spleen", 0.85), ("aorta", 0.8)])
def test_eight_clicks_on_a_real_ct_slice(data, target, least):
    folder = data / "png2d"
    view = view_of(np.asarray(Image.open(folder / "ct_liver_ts.png").convert("L")))
    truth = np.asarray(Image.open(folder / f"ct_liver_ts_mask_{target}.png").convert("L")) > 127
    state = SEGMENTER.start([view])[0]
    mask = np.zeros(truth.shape, bool)
    for _ in range(8):
        prediction = SEGMENTER.click([state], [at(view, *next_click(truth, mask))])[0]
        mask, state = prediction.mask, prediction.state
    assert iou(mask, truth) > least
