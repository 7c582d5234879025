"""Whole volumes: a few looks, masks carried between them, checks; with the real graph cut and the real SAM2."""

import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lib.agent.engine import Engine
from lib.agent.episode import Actor, Episode, Given
from lib.agent.limits import Limits, StopReason
from lib.agent.loop import Observer
from lib.agent.policy import Decision
from lib.agent.protocol import Reply, Terminate, render
from lib.agent.record import from_record, to_record
from lib.agent.run import RunRequest, run, select_slices
from lib.engines.build import build_engine
from lib.engines.evaluation import dice, evaluate_case, find_cases
from lib.engines.volumes.run import run_volume
from lib.engines.volumes.strategy import covered_slices
from lib.errors import EngineError, InputError
from lib.imaging import rle
from lib.imaging.planes import Plane, ViewGrid
from lib.imaging.views import View
from lib.imaging.volume import Modality, Volume
from lib.imaging.windows import Window
from lib.segmenters.graphcut import GraphCut
from tests.engines.expert import Expert

AUTO = RunRequest("ball", slices="auto", max_turns=8)


def scene(*balls, count=60, mm=2.0):
    """Bright ellipsoids ((i, j, k), radius in voxels, half length in slices) on noisy dark ground, and where they are."""
    i, j, k = np.ogrid[:90, :80, :count]
    truth = np.zeros((90, 80, count), bool)
    for (x, y, z), radius, half in balls:
        truth |= ((i - x) / radius) ** 2 + ((j - y) / radius) ** 2 + ((k - z) / half) ** 2 < 1
    noise = np.random.default_rng(0).normal(0, 6, truth.shape)
    data = (np.where(truth, 100, -80) + noise).astype(np.int16)
    return Volume(data, np.diag([1.0, -1.0, mm, 1.0]), Modality.CT, Path("scene.nii.gz")), truth


@pytest.fixture(scope="module")
def ball():
    return scene(((45, 40, 28), 22, 19))


def engine(truth, **expert):
    return Engine("test", Expert(truth, **expert), GraphCut(), batch=8)


class Record(Observer):
    def __init__(self):
        self.settled_ = []

    def settled(self, outcome):
        self.settled_.append(outcome)


def test_a_few_looks_give_the_mask_of_all(ball):
    volume, truth = ball
    every, few = engine(truth), engine(truth)
    whole = run(RunRequest("ball", max_turns=8), volume, every)
    result = run_volume(AUTO, volume, few)
    assert len(few.policy.asked) * 3 < len(every.policy.asked)
    assert dice(result.mask > 0, truth) > dice(whole.mask > 0, truth) - 0.03
    assert result.status == "complete"
    assert [outcome.index for outcome in result.outcomes] == list(range(60))
    assert sum(len(outcome.steps) for outcome in result.outcomes) == len(few.policy.asked)


def test_each_slice_says_how_its_mask_came_about(ball):
    volume, truth = ball
    outcomes = run_volume(AUTO, volume, engine(truth)).outcomes
    carried = [o for o in outcomes if o.stop is StopReason.PROPAGATED]
    inferred = [o for o in outcomes if o.stop is StopReason.ABSENT and not o.steps]
    looked = [o for o in outcomes if o.steps]
    assert len(carried) + len(inferred) + len(looked) == 60
    assert carried
    assert all(o.found and o.detail.startswith("from slice") and 0 < o.confidence <= 1 for o in carried)
    assert inferred
    assert all(not o.found and o.detail.startswith("inferred") for o in inferred)


def test_all_and_ranges_are_played_as_ever(ball):
    volume, truth = ball
    for slices in ("all", "20-24, 40"):
        request = RunRequest("ball", slices=slices, max_turns=8)
        assert np.array_equal(run_volume(request, volume, engine(truth)).mask, run(request, volume, engine(truth)).mask)


def test_a_stride_looks_at_its_slices_and_fills_the_rest(ball):
    volume, truth = ball
    result = run_volume(RunRequest("ball", slices="every 6", max_turns=8), volume, engine(truth))
    assert all(result.outcomes[index].steps for index in range(0, 60, 6))
    assert dice(result.mask > 0, truth) > 0.95
    with pytest.raises(InputError, match="every 4"):
        select_slices("every 0", result.grid)


def test_what_a_request_covers(ball):
    grid = ViewGrid(ball[0], Plane.AXIAL)
    assert covered_slices("auto", grid) == covered_slices("Every 7", grid) == grid.acquired
    assert covered_slices("3-5", grid) == (3, 4, 5)
    assert select_slices("every 25", grid) == (0, 25, 50)


def test_separate_pieces_are_all_found():
    volume, truth = scene(((30, 40, 12), 16, 8), ((60, 40, 45), 16, 9))
    result = run_volume(AUTO, volume, engine(truth))
    assert dice(result.mask > 0, truth) > 0.93
    assert not result.mask[:, :, 24:33].any()


def test_a_target_smaller_than_the_stride_is_found():
    volume, truth = scene(((45, 40, 31), 14, 3.5))
    result = run_volume(AUTO, volume, engine(truth))
    assert dice(result.mask > 0, truth) > 0.9


def test_absent_is_said_only_after_a_fine_search():
    volume, truth = scene()
    few = engine(truth)
    result = run_volume(AUTO, volume, few)
    looked = sorted(few.policy.asked)
    assert not result.mask.any()
    assert max(np.diff([-1, *looked, 60])) * 2.0 <= 6
    assert {o.stop for o in result.outcomes} == {StopReason.ABSENT}
    inferred = [o for o in result.outcomes if o.index not in looked]
    assert inferred
    assert all("show nothing" in o.detail for o in inferred)


def test_a_target_cut_by_the_volume_is_looked_at_on_the_last_slice():
    volume, truth = scene(((45, 40, 59), 20, 30))
    result = run_volume(AUTO, volume, engine(truth))
    assert result.outcomes[59].steps
    assert dice(result.mask > 0, truth) > 0.95


def test_the_same_request_gives_the_same_mask(ball):
    volume, truth = ball
    once, again = (run_volume(AUTO, volume, engine(truth)) for _ in range(2))
    assert np.array_equal(once.mask, again.mask)
    assert [o.confidence for o in once.outcomes] == [o.confidence for o in again.outcomes]


@pytest.mark.parametrize("reached", [1, 9, 14, 40])
def test_a_resumed_run_comes_to_the_same_and_asks_no_slice_again(ball, reached):
    volume, truth = ball
    watch = Record()
    whole = run_volume(AUTO, volume, engine(truth), observers=[watch])
    assert [o.index for o in watch.settled_] != sorted(o.index for o in watch.settled_)
    assert sorted(o.index for o in watch.settled_) == list(range(60))
    size = whole.grid.size
    known = {o.index: from_record(to_record(o), size) for o in watch.settled_[:reached]}
    rest = Record()
    few = engine(truth)
    resumed = run_volume(AUTO, volume, few, observers=[rest], known=known)
    assert np.array_equal(resumed.mask, whole.mask)
    assert [o.stop for o in resumed.outcomes] == [o.stop for o in whole.outcomes]
    assert not set(known) & set(few.policy.asked)
    assert sorted([*known, *(o.index for o in rest.settled_)]) == list(range(60))


def test_the_agent_repairs_what_was_carried_wrongly():
    """A waist between two looks: nothing but a look can tell."""
    volume, truth = scene(((45, 40, 30), 24, 60))
    thin = np.zeros_like(truth)
    thin[40:50, 35:45] = truth[40:50, 35:45]
    truth = np.where((np.arange(60) % 12 > 3) & (np.arange(60) % 12 < 9), thin, truth)
    data = np.where(truth, 100, -80) + np.random.default_rng(1).normal(0, 6, truth.shape)
    volume = Volume(data.astype(np.int16), volume.affine, Modality.CT, volume.source)
    result = run_volume(AUTO, volume, engine(truth))
    checks = [o for o in result.outcomes if "carried mask" in o.detail]
    assert any(len(o.steps) > 1 for o in checks)
    for outcome in checks:
        there = result.grid.cut(truth, outcome.index)
        assert dice(rle.decode(outcome.mask), there) > 0.85


def test_the_agent_approves_a_carried_mask_with_one_look():
    volume, truth = scene(((45, 40, 30), 24, 60))
    result = run_volume(AUTO, volume, engine(truth))
    checks = [o for o in result.outcomes if o.detail.startswith("approved")]
    assert checks
    for outcome in checks:
        assert (len(outcome.steps), outcome.stop, outcome.final_turn) == (1, StopReason.TERMINATED, None)
        assert outcome.found
        assert outcome.confidence > 0.8
        assert from_record(to_record(outcome), result.grid.size).mask == outcome.mask


def test_a_deadline_keeps_what_there_is_and_says_so(ball):
    volume, truth = ball
    limits = Limits(cancelled=threading.Event())
    slow = engine(truth, on_ask=lambda expert: len(expert.asked) > 12 and limits.cancelled.set())
    began = time.perf_counter()
    result = run_volume(AUTO, volume, slow, limits)
    assert time.perf_counter() - began < 5
    assert result.status == "incomplete"
    assert {o.stop for o in result.outcomes if not o.steps} == {StopReason.CANCELLED}
    assert all(o.conclusive or o.stop is StopReason.CANCELLED for o in result.outcomes)
    assert result.mask.any()
    resumed = run_volume(AUTO, volume, engine(truth), known={o.index: o for o in result.outcomes if o.conclusive})
    assert np.array_equal(resumed.mask, run_volume(AUTO, volume, engine(truth)).mask)


def test_a_slice_that_fails_is_left_out_and_told(ball):
    volume, truth = ball
    result = run_volume(AUTO, volume, engine(truth, broken={24}))
    assert [o.index for o in result.unfinished] == [24]
    assert result.unfinished[0].stop is StopReason.FAILED
    assert result.outcomes[23].found
    assert result.outcomes[25].found


def test_an_engine_that_is_down_is_asked_once(ball):
    volume, truth = ball
    dead = engine(truth, broken=range(60))
    result = run_volume(AUTO, volume, dead)
    assert len(dead.policy.asked) < 10
    assert {o.stop for o in result.outcomes} == {StopReason.FAILED}
    assert not result.mask.any()


class Failing(GraphCut):
    """Breaks down when a mask is carried."""

    def start(self, views, limits=None):
        raise EngineError("out of memory")


def test_a_segmenter_that_fails_is_told(ball):
    volume, truth = ball
    looked = run_volume(AUTO, volume, engine(truth))
    known = {o.index: o for o in looked.outcomes if o.steps}
    result = run_volume(AUTO, volume, Engine("test", Expert(truth), Failing(), 8), known=known)
    assert {o.stop for o in result.outcomes if o.index not in known and o.index in range(12, 45)} <= {StopReason.FAILED}
    assert "out of memory" in result.answer


def test_slices_of_an_annotator_count_from_the_start(ball):
    volume, truth = ball
    (played,) = run(RunRequest("ball", slices="29", max_turns=8), volume, engine(truth)).outcomes
    own = replace(played, steps=tuple(replace(step, actor=Actor.ANNOTATOR) for step in played.steps))
    result = run_volume(AUTO, volume, engine(truth), known={29: own})
    assert result.outcomes[29] is own
    assert "29" in result.outcomes[28].detail + result.outcomes[30].detail


def test_every_plane(ball):
    volume, truth = ball
    for plane in Plane:
        result = run_volume(RunRequest("ball", plane, "auto", 8), volume, engine(truth))
        assert dice(result.mask > 0, truth) > 0.93, plane


def test_an_episode_from_a_given_mask_keeps_the_best_supported_one(ball):
    volume, truth = ball
    view = View(ViewGrid(volume, Plane.AXIAL), 28, Window(-160, 240, "soft"))
    mask = view.grid.cut(truth, 28)
    episode = Episode(view, "ball", 4, given=Given(rle.encode(mask), 0.7, ()))
    assert np.array_equal(episode.observation().mask, mask)
    assert episode.observation().turn == 1
    assert episode.decide(Decision(render(Reply("right", Terminate("done"))), 0.9)) is None
    outcome = episode.outcome()
    assert (outcome.stop, outcome.confidence, outcome.final_turn) == (StopReason.TERMINATED, 0.9, None)
    assert np.array_equal(rle.decode(outcome.mask), mask)


@pytest.fixture(scope="module")
def sam2(tmp_path_factory):
    torch = pytest.importorskip("torch")
    from lib.engines.tiny.sam2 import make_tiny_sam2
    from lib.segmenters.sam2 import Sam2
    from lib.segmenters.sam2_load import load_sam2

    torch.set_num_threads(1)
    made = make_tiny_sam2(tmp_path_factory.mktemp("sam2"), image_size=128, train_steps=60)
    return Sam2(load_sam2(made, device=torch.device("cpu")))


def test_sam2_carries_by_its_memory_from_both_sides(sam2):
    volume, truth = scene(((45, 40, 15), 22, 19), count=30, mm=4.0)
    expert = Expert(truth)
    result = run_volume(RunRequest("ball", slices="auto", max_turns=4), volume, Engine("test", expert, sam2, batch=4))
    assert dice(result.mask > 0, truth) > 0.85
    carried = [o for o in result.outcomes if o.stop is StopReason.PROPAGATED]
    assert carried
    assert any(" and " in o.detail for o in carried)


def test_the_liver_of_a_ct_with_a_quarter_of_the_calls(data):
    (case,) = find_cases(data, ["ct_abdomen_ts_small"])
    for few, every in evaluate_case(case, build_engine(), ["liver"], ("auto", "all")):
        assert every.turns >= 4 * few.turns
        assert every.dice - few.dice <= 0.02
