"""SAM2 as the segmenter, against the sam2 package's own predictors."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import Image
from sam2.sam2_image_predictor import SAM2ImagePredictor
from sam2.sam2_video_predictor import SAM2VideoPredictor

from lib.agent.limits import Limits, StopReason
from lib.agent.protocol import Click
from lib.agent.segmenter import Prediction, Propagator
from lib.engines.tiny.sam2 import make_tiny_sam2
from lib.errors import EngineError, OutOfMemory
from lib.imaging.planes import Plane, ViewGrid, ViewPoint
from lib.imaging.views import View
from lib.imaging.volume import Modality, Volume
from lib.imaging.windows import Window
from lib.segmenters.sam2 import Sam2
from lib.segmenters.sam2_load import LoadedSam2, load_sam2
from lib.segmenters.sam2_memory import Propagation

torch.set_num_threads(1)
CPU = torch.device("cpu")
SIZES = (256, 512)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("weights")
    return {size: make_tiny_sam2(folder / str(size), size) for size in SIZES}


@pytest.fixture(scope="module")
def networks(checkpoints: dict[int, Path]) -> dict[int, LoadedSam2]:
    return {size: load_sam2(checkpoint, device=CPU) for size, checkpoint in checkpoints.items()}


@pytest.fixture
def segmenter(networks: dict[int, LoadedSam2]) -> Sam2:
    return Sam2(networks[256])


def slices(count: int, width: int = 256, height: int = 256, seed: int = 0) -> list[View]:
    """Axial views of a volume in which a bright ball drifts through noise."""
    rng = np.random.default_rng(seed)
    i, j, k = np.ogrid[:width, :height, :count]
    ball = ((i - width / 2 - 2 * k) ** 2 + (j - height / 2) ** 2) < (height / 5) ** 2
    data = (60 + 120 * ball + rng.normal(0, 12, (width, height, count))).clip(0, 255).astype(np.float32)
    volume = Volume(data, np.eye(4), Modality.OTHER, Path("ball"))
    return [View(ViewGrid(volume, Plane.AXIAL), index, Window(0, 255, "given")) for index in range(count)]


def clicks_on(seed: int, count: int) -> list[Click]:
    rng = np.random.default_rng(seed)
    return [Click(ViewPoint(*rng.uniform(0, 1, 2).tolist()), bool(rng.integers(2)) or n == 0) for n in range(count)]


def play(segmenter: Sam2, views: list[View], clicks: list[list[Click]]) -> list[list[Prediction]]:
    """All views together: the predictions of each view, one per click."""
    states = dict(enumerate(segmenter.start(views)))
    played: list[list[Prediction]] = [[] for _ in views]
    for turn in range(max(map(len, clicks))):
        active = [n for n in states if turn < len(clicks[n])]
        made = segmenter.click([states[n] for n in active], [clicks[n][turn] for n in active])
        for n, prediction in zip(active, made, strict=True):
            assert isinstance(prediction, Prediction)
            played[n].append(prediction)
            states[n] = prediction.state
    return played


def reference(network: LoadedSam2, view: View, clicks: list[Click], clamp: bool = True) -> list[tuple[np.ndarray, float]]:
    """What the package's own predictor makes of the clicks, with the released agent's feedback."""
    predictor = SAM2ImagePredictor(network.model)
    predictor._bb_feat_sizes = [(network.image_size // stride,) * 2 for stride in (4, 8, 16)]
    predictor.set_image(view.image())
    width, height = view.size
    made, points, logits = [], [], None
    for n, click in enumerate(clicks):
        x, y = click.point.x, click.point.y
        points.append(click.point.pixel(width, height) if clamp else (int(x * width), int(y * height)))
        masks, scores, low = predictor.predict(
            np.array(points, np.float32), np.array([c.positive for c in clicks[: n + 1]], np.int32), mask_input=logits
        )
        best = int(np.argmax(scores))
        logits = low[best][None]
        made.append((masks[best].astype(bool), float(scores[best])))
    return made


@pytest.mark.parametrize("size", SIZES)
def test_clicks_in_batches_are_what_the_image_predictor_makes_of_each_view(networks: dict[int, LoadedSam2], size: int) -> None:
    views = [*slices(3), *slices(1, 200, 150, seed=1), *slices(1, 640, 530, seed=2)]
    clicks = [clicks_on(n, 1 + n) for n in range(len(views))]
    played = play(Sam2(networks[size], embed_batch=2), views, clicks)
    for view, wanted, predictions in zip(views, clicks, played, strict=True):
        for (mask, score), prediction in zip(reference(networks[size], view, wanted), predictions, strict=True):
            assert prediction.mask.dtype == bool
            assert prediction.mask.shape == (view.size[1], view.size[0])
            np.testing.assert_array_equal(prediction.mask, mask)
            assert prediction.score == pytest.approx(score, abs=1e-5)
    assert {bool(p.mask.any() and not p.mask.all()) for predictions in played for p in predictions} == {True}


def test_a_click_on_the_far_border_stays_in_the_picture_unless_as_released(networks: dict[int, LoadedSam2]) -> None:
    view, corner = slices(1)[0], [Click(ViewPoint(1.0, 1.0), True)]
    states = [play(Sam2(networks[256], clamp=clamp), [view], [corner])[0][0].state for clamp in (True, False)]
    assert not torch.equal(states[0].logits, states[1].logits)
    for clamp, state in zip((True, False), states, strict=True):
        assert play(Sam2(networks[256], clamp=clamp), [view], [corner])[0][0].mask.tolist() == (
            reference(networks[256], view, corner, clamp)[0][0].tolist()
        )
        assert state.clicks == tuple(corner)


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_company_does_not_matter(networks: dict[int, LoadedSam2], data: st.DataObject) -> None:
    """A view's masks are the same whatever else is in the batch, and in whatever order, but for what is a coin toss: the
    sums behind a logit are rounded in another order, so a pixel within 1e-5 of the threshold may fall to either side."""
    segmenter = Sam2(networks[256])
    views = slices(4)
    clicks = [clicks_on(data.draw(st.integers(0, 99)), data.draw(st.integers(1, 3))) for _ in views]
    order = data.draw(st.permutations(range(4)))
    together = play(segmenter, [views[n] for n in order], [clicks[n] for n in order])
    for n, predictions in zip(order, together, strict=True):
        alone = play(segmenter, [views[n]], [clicks[n]])[0]
        for a, b in zip(predictions, alone, strict=True):
            assert (a.mask != b.mask).sum() <= 2
            np.testing.assert_allclose(a.state.logits, b.state.logits, rtol=0, atol=1e-5)


def test_threads_at_once_are_as_one_after_the_other(networks: dict[int, LoadedSam2]) -> None:
    views, clicks = slices(4), [clicks_on(n, 3) for n in range(4)]
    wanted = [play(Sam2(networks[256]), [view], [own])[0] for view, own in zip(views, clicks, strict=True)]
    shared = Sam2(networks[256], cache_bytes=1)
    with ThreadPoolExecutor(4) as threads:
        runs = [threads.submit(play, shared, [views[n % 4]], [clicks[n % 4]]) for n in range(12)]
        spread = threads.submit(lambda: list(shared.propagate(views, wanted[0][-1].mask)))
    for n, run in enumerate(runs):
        for a, b in zip(run.result()[0], wanted[n % 4], strict=True):
            np.testing.assert_array_equal(a.mask, b.mask)
    for (a, _), (b, _) in zip(spread.result(), shared.propagate(views, wanted[0][-1].mask), strict=True):
        np.testing.assert_array_equal(a, b)


def test_undo_is_going_back_to_a_state_and_replaying_gives_the_same_mask(
    segmenter: Sam2, networks: dict[int, LoadedSam2]
) -> None:
    view, clicks = slices(1)[0], clicks_on(5, 3)
    first, second, third = play(segmenter, [view], [clicks])[0]
    again = segmenter.click([first.state], [clicks[1]])[0]
    assert isinstance(again, Prediction)
    np.testing.assert_array_equal(again.mask, second.mask)
    np.testing.assert_array_equal(play(Sam2(networks[256]), [view], [clicks])[0][2].mask, third.mask)
    assert first.state.clicks == (clicks[0],)


def test_feedback_counts(segmenter: Sam2) -> None:
    """The second click's mask depends on the first one's logits, not only on the clicks."""
    view, clicks = slices(1)[0], clicks_on(5, 2)
    first, second = play(segmenter, [view], [clicks])[0]
    bare = play(segmenter, [view], [[clicks[1]]])[0][0]
    assert not torch.equal(second.state.logits, bare.state.logits)
    assert not torch.equal(first.state.logits, second.state.logits)


def test_episodes_at_different_turns_go_together(networks: dict[int, LoadedSam2]) -> None:
    segmenter, views = Sam2(networks[256]), slices(4)
    clicks = [clicks_on(n, n % 3 + 1) for n in range(4)]
    states = segmenter.start(views)
    for n in range(4):
        for click in clicks[n][:-1]:
            states[n] = segmenter.click([states[n]], [click])[0].state
    together = segmenter.click(states, [own[-1] for own in clicks])
    for view, own, prediction in zip(views, clicks, together, strict=True):
        assert isinstance(prediction, Prediction)
        assert prediction.state.clicks == tuple(own)
        np.testing.assert_array_equal(prediction.mask, reference(networks[256], view, own)[-1][0])


def test_logits_go_back_in_clamped(checkpoints: dict[int, Path]) -> None:
    network = load_sam2(checkpoints[256], device=CPU)
    for candidate in network.model.sam_mask_decoder.output_hypernetworks_mlps:
        candidate.layers[-1].weight.mul_(1000)
    view, clicks = slices(1)[0], clicks_on(5, 4)
    played = play(Sam2(network), [view], [clicks])[0]
    assert {float(prediction.state.logits.abs().max()) for prediction in played} == {32}
    for prediction, (mask, _) in zip(played, reference(network, view, clicks), strict=True):
        np.testing.assert_array_equal(prediction.mask, mask)


def test_an_evicted_embedding_is_made_again(networks: dict[int, LoadedSam2], monkeypatch: pytest.MonkeyPatch) -> None:
    views, clicks = slices(3), [clicks_on(n, 2) for n in range(3)]
    wanted = play(Sam2(networks[256]), views, clicks)
    small, large = Sam2(networks[256], cache_bytes=1), Sam2(networks[256])
    assert count_embedded(monkeypatch, large, views, clicks) == 3
    assert count_embedded(monkeypatch, large, views, clicks) == 0
    assert count_embedded(monkeypatch, small, views, clicks) > 6
    assert small._embeddings.nbytes < large._embeddings.nbytes / 2
    levels = large._embed([view.image() for view in views])
    assert {level.untyped_storage().nbytes() == level.nbytes for own in levels for level in own} == {True}
    for ours, theirs in zip(play(small, views, clicks), wanted, strict=True):
        np.testing.assert_array_equal(ours[-1].mask, theirs[-1].mask)


def count_embedded(monkeypatch: pytest.MonkeyPatch, segmenter: Sam2, views: list[View], clicks: list[list[Click]]) -> int:
    seen = []
    model, forward = segmenter._model, segmenter._model.forward_image
    with monkeypatch.context() as patch:
        patch.setattr(model, "forward_image", lambda images: (seen.append(len(images)), forward(images))[1])
        play(segmenter, views, clicks)
    return sum(seen)


def test_colour_pictures_with_equal_greys_are_told_apart(segmenter: Sam2) -> None:
    grey = np.full((64, 64, 1), 76.0)
    views = []
    for colour in ((255, 0, 0), (0, 129, 0)):
        painted = np.broadcast_to(np.array(colour, np.uint8), (64, 64, 1, 3)).copy()
        volume = Volume(grey, np.eye(4), Modality.OTHER, Path("x"), colour=painted, planar=True)
        views.append(View(ViewGrid(volume, Plane.AXIAL), 0, Window(0, 255, "stored")))
    red, green = segmenter.start(views)
    assert red.key != green.key


def test_what_is_no_longer_wanted_is_left(segmenter: Sam2, networks: dict[int, LoadedSam2]) -> None:
    views = slices(5)
    short = Sam2(networks[256])
    states = short.start(views, After(2))
    assert [isinstance(state, EngineError) for state in states] == [False, False, True, True, True]
    states = segmenter.start(views)
    stopped = segmenter.click(states, [clicks_on(n, 1)[0] for n in range(5)], After(0))
    assert all(isinstance(prediction, EngineError) for prediction in stopped)
    assert len(list(segmenter.propagate(views, np.ones((256, 256), bool), After(3)))) == 2


class After(Limits):
    """Reached after so many questions."""

    def __init__(self, questions: int):
        super().__init__()
        object.__setattr__(self, "left_over", [None] * questions)

    def reached(self) -> StopReason | None:
        return self.left_over.pop() if self.left_over else StopReason.CANCELLED


def test_out_of_memory_reaches_the_scheduler(segmenter: Sam2, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    view = slices(1)
    with monkeypatch.context() as patch:
        patch.setattr(segmenter._model, "forward_image", full)
        with pytest.raises(OutOfMemory, match="sam2_tiny: out of memory on cpu"):
            segmenter.start(view)
    assert not isinstance(segmenter.start(view)[0], EngineError)


@pytest.mark.parametrize(("size", "count"), [(256, 20), (512, 4)])
def test_propagation_is_what_the_video_predictor_does(
    checkpoints: dict[int, Path], networks: dict[int, LoadedSam2], size: int, count: int, tmp_path: Path
) -> None:
    views = slices(count, size, size)
    mask = views[0].grey() > 120
    for view in views:
        Image.fromarray(view.image()).save(tmp_path / f"{view.index:05d}.jpg", format="PNG")
    stock = video_predictor(checkpoints[size])
    video = stock.init_state(str(tmp_path))
    stock.add_new_mask(video, 0, 1, mask)
    wanted = [logits[0, 0].numpy() > 0 for _, _, logits in stock.propagate_in_video(video)][1:]
    got = list(Sam2(networks[size]).propagate(views, mask))
    assert len(got) == len(views) - 1
    for (ours, score), theirs in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert 0 <= score <= 1
    assert all(ours.any() and not ours.all() for ours, _ in got)


def video_predictor(checkpoint: Path) -> SAM2VideoPredictor:
    """As the package builds it for use, but for the hole filling, which needs its compiled extension."""
    node = OmegaConf.load(checkpoint.with_suffix(".yaml")).model
    node._target_ = "sam2.sam2_video_predictor.SAM2VideoPredictor"
    node.binarize_mask_from_pts_for_mem_enc = True
    node.sam_mask_decoder_extra_args = {
        "dynamic_multimask_via_stability": True,
        "dynamic_multimask_stability_delta": 0.05,
        "dynamic_multimask_stability_thresh": 0.98,
    }
    model = instantiate(node).eval()
    model.load_state_dict(torch.load(checkpoint, weights_only=True)["model"])
    return model


def test_propagation_at_other_sizes_follows_the_view(segmenter: Sam2) -> None:
    views = slices(4, 90, 140)
    assert isinstance(segmenter, Propagator)
    got = list(segmenter.propagate(views, views[0].grey() > 120))
    assert [(mask.shape, mask.dtype) for mask, _ in got] == [((140, 90), np.dtype(bool))] * 3
    assert list(segmenter.propagate(views[:1], views[0].grey() > 120)) == []
    assert list(segmenter.propagate([], np.zeros((1, 1), bool))) == []


def test_an_object_that_has_ended_leaves_an_empty_mask(checkpoints: dict[int, Path]) -> None:
    network = load_sam2(checkpoints[256], device=CPU)
    network.model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(-6)
    views = slices(3)
    got = list(Sam2(network).propagate(views, views[0].grey() > 120))
    assert not any(mask.any() for mask, _ in got)
    assert all(score < 0.05 for _, score in got)


def test_slices_come_one_at_a_time_and_their_memory_is_bounded(segmenter: Sam2, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, rendered = [], []
    follow, image = Propagation.follow, View.image
    monkeypatch.setattr(Propagation, "follow", lambda self, levels: (follow(self, levels), sizes.append(self.nbytes))[0])
    monkeypatch.setattr(View, "image", lambda self: (rendered.append(self.index), image(self))[1])
    views = slices(40, 64, 64)
    passing = segmenter.propagate(views, views[0].grey() > 120)
    next(passing)
    assert rendered == [0, 1]
    list(passing)
    assert rendered == list(range(40))
    assert sizes[0] < sizes[14] < sizes[15] == sizes[-1] < 17 * 2**14


def test_propagation_uses_the_embeddings_of_clicks(segmenter: Sam2, monkeypatch: pytest.MonkeyPatch) -> None:
    views = slices(3)
    segmenter.start(views)
    monkeypatch.setattr(segmenter._model, "forward_image", None)
    assert len(list(segmenter.propagate(views, views[0].grey() > 120))) == 2
