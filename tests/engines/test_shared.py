"""Parts behind lanes: several copies, several users, one answer."""

import threading

import numpy as np
import pytest
import torch

from lib.agent.engine import Engine
from lib.agent.limits import Limits, StopReason
from lib.agent.policy import Decision
from lib.agent.protocol import Click
from lib.agent.run import RunRequest, run
from lib.engines.shared import SharedPolicy, SharedSegmenter
from lib.engines.tiny.sam2 import make_tiny_sam2
from lib.errors import EngineError, InputError
from lib.imaging import rle
from lib.imaging.planes import Plane, ViewGrid, ViewPoint
from lib.imaging.views import View
from lib.imaging.volume import Modality, Volume
from lib.imaging.windows import Window
from lib.policies.qwen import QwenConfig, QwenPolicy
from lib.segmenters.graphcut import GraphCut
from lib.segmenters.sam2 import Sam2
from lib.segmenters.sam2_load import load_sam2

CPU = torch.device("cpu")


def discs(slices, seed, tmp_path):
    """A volume `[64, 64, slices]` of grey 0..255 with a bright disc on every slice but the last."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:64, :64]
    data = rng.normal(40, 8, (64, 64, slices)).clip(0, 255).astype(np.float32)
    for index in range(slices - 1):
        x, y = rng.integers(16, 48, 2)
        data[..., index][(rows - x) ** 2 + (columns - y) ** 2 < 100] += 150
    return Volume(data, np.diag([1.0, 1.0, 2.0, 1.0]), Modality.OTHER, tmp_path / f"{seed}.nii")


def views_of(volume):
    grid = ViewGrid(volume, Plane.AXIAL)
    return [View(grid, index, Window(0, 255, "given")) for index in grid.acquired]


@pytest.fixture(scope="module")
def sam2(tmp_path_factory):
    return load_sam2(make_tiny_sam2(tmp_path_factory.mktemp("sam2"), train_steps=40), device=CPU)


@pytest.fixture(scope="module")
def engine(tiny_qwen, sam2):
    policy = SharedPolicy([QwenPolicy(QwenConfig(model=str(tiny_qwen)), CPU)], max_batch=16, max_wait=0.02)
    return Engine("tiny", policy, SharedSegmenter([Sam2(sam2)], max_batch=16, max_wait=0.02), 8)


def trail(result):
    """Everything that was said and drawn, without the clock."""
    return [
        (outcome.index, outcome.stop, [(step.reply, step.action, step.mask, step.score) for step in outcome.steps])
        for outcome in result.outcomes
    ]


def test_users_at_once_get_bit_for_bit_what_they_get_alone(engine, tmp_path):
    volumes = [discs(7, seed, tmp_path) for seed in range(3)]
    requests = [RunRequest(prompt, max_turns=4) for prompt in ("bright disc", "liver", "spleen")]
    alone = [trail(run(request, volume, engine)) for request, volume in zip(requests, volumes, strict=True)]
    together = [None] * 3

    def play(number):
        together[number] = trail(run(requests[number], volumes[number], engine))

    threads = [threading.Thread(target=play, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone
    assert sum(len(steps) for _, _, steps in alone[0]) > 7


def test_their_slices_shared_batches(engine, tmp_path):
    volumes = [discs(3, seed, tmp_path) for seed in (10, 11)]
    batches = []

    def play(volume):
        result = run(RunRequest("bright disc", max_turns=2), volume, engine)
        batches.extend(step.details["batch"] for outcome in result.outcomes for step in outcome.steps)

    threads = [threading.Thread(target=play, args=(volume,)) for volume in volumes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(batches) > 3


def test_copies_on_several_devices_answer_as_one(sam2, tmp_path):
    views = views_of(discs(6, 4, tmp_path))
    clicks = [Click(ViewPoint(0.3 + 0.05 * n, 0.5), True) for n in range(6)]
    one, three = Sam2(sam2), SharedSegmenter([Sam2(sam2) for _ in range(3)], max_batch=4, max_wait=0)
    expected = one.click(one.start(views), clicks)
    states = three.start(views)
    assert len({state.copy for state in states}) > 1
    found = three.click(states, clicks)
    assert [rle.encode(p.mask) for p in found] == [rle.encode(p.mask) for p in expected]
    again = three.click([p.state for p in found], clicks[::-1])
    assert [p.score for p in again] == [p.score for p in one.click([p.state for p in expected], clicks[::-1])]


def test_masks_are_propagated_through_a_lane(sam2, tmp_path):
    views = views_of(discs(5, 4, tmp_path))
    mask = np.zeros((64, 64), bool)
    mask[20:40, 20:40] = True
    shared = SharedSegmenter([Sam2(sam2)], max_batch=4, max_wait=0)
    direct = list(Sam2(sam2).propagate(views, mask))
    assert len(direct) == 4
    through = list(shared.propagate(views, mask))
    assert [(m.tobytes(), s) for m, s in through] == [(m.tobytes(), s) for m, s in direct]
    stopped = Limits()
    stopped.cancelled.set()
    assert list(shared.propagate(views, mask, stopped)) == []
    with pytest.raises(EngineError, match="no memory"):
        next(SharedSegmenter([GraphCut()], 4, 0).propagate(views, mask))


def test_weights_are_exchanged_on_all_copies_or_on_none():
    class Copy:
        name, structures = "copy", ()

        def __init__(self, takes):
            self.takes, self.about = takes, {"weights": "old"}

        def swap(self, model=None, adapter=None):
            if model not in self.takes:
                raise InputError(f"{model} does not fit", "model")
            self.about = {"weights": model}

    copies = [Copy({"old", "new", "large"}), Copy({"old", "new"})]
    policy = SharedPolicy(copies, 4, 0)
    policy.swap("new", None)
    assert [copy.about["weights"] for copy in copies] == ["new", "new"]
    with pytest.raises(InputError, match="large does not fit"):
        policy.swap("large", None)
    assert [copy.about["weights"] for copy in copies] == ["new", "new"]


def test_an_error_stays_with_its_slice(tmp_path):
    class Choosy:
        name, structures, about = "choosy", (), {}

        def check(self, volume, prompt): ...

        def window_preset(self, prompt): ...

        def decide(self, observations, limits=None):
            if any(one.view.index == 1 for one in observations):
                raise EngineError("slice 1 is not for me")
            return [Decision("<think>no</think><action>Terminate</action>") for _ in observations]

    engine = Engine("t", SharedPolicy([Choosy()], 8, 0.01), GraphCut(), 4)
    result = run(RunRequest("disc"), discs(4, 1, tmp_path), engine)
    assert [outcome.stop for outcome in result.outcomes] == [
        *(StopReason.ABSENT, StopReason.FAILED, StopReason.ABSENT, StopReason.ABSENT)
    ]
    assert result.outcomes[1].detail == "slice 1 is not for me"
    with pytest.raises(InputError, match="no weights"):
        engine.policy.swap("x", None)
