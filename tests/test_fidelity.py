"""`protocol: released` against the released procedure, on the same real model classes: picture for picture."""

import numpy as np
import pytest
import torch
from PIL import Image

from lib.agent.conduct import CONDUCTS
from lib.agent.engine import Engine
from lib.agent.limits import StopReason
from lib.agent.protocol import Click, ProtocolError, Reply, Terminate, parse_released
from lib.agent.results import write_results
from lib.agent.run import RunRequest, run
from lib.engines.benchmark.models import Models, Scripted
from lib.engines.benchmark.released import ReleasedLoop
from lib.engines.tiny.lesson import scenes
from lib.engines.tiny.qwen import make_tiny_qwen
from lib.engines.tiny.sam2 import make_tiny_sam2
from lib.imaging.load import load_volume
from lib.imaging.planes import Plane, ViewGrid
from lib.imaging.views import View
from lib.imaging.windows import choose_window
from lib.policies.qwen import QwenConfig, QwenPolicy, load_qwen
from lib.segmenters.graphcut import GraphCut
from lib.segmenters.sam2 import Sam2
from lib.segmenters.sam2_load import load_sam2
from tests.agent.scripted import Scripted as ScriptedReplies
from tests.agent.scripted import click

CPU = torch.device("cpu")
RELEASED = CONDUCTS["released"]


@pytest.fixture(scope="module")
def sam2(tmp_path_factory):
    return load_sam2(make_tiny_sam2(tmp_path_factory.mktemp("sam2")), device=CPU)


def both(models, language, policy, picture, folder, turns):
    """The pictures in `folder` after the released procedure, and after ours."""
    folder.mkdir(exist_ok=True)
    path = folder / "given.png"
    Image.fromarray(picture).save(path)
    volume = load_volume(path)
    view = View(ViewGrid(volume, Plane.AXIAL), 0, choose_window(volume))
    theirs, ours = folder / "theirs", folder / "ours"
    theirs.mkdir()
    ReleasedLoop(models, language, theirs).play([view], "liver", turns)
    engine = Engine("test", policy, Sam2(models.sam2, clamp=RELEASED.clamp), 4, conduct=RELEASED)
    result = run(RunRequest("liver", max_turns=turns), volume, engine)
    write_results(ours, [result])
    states = [sorted(path.name for path in place.glob("turn_*_state.png")) for place in (theirs, ours)]
    assert states[0] == states[1]
    for name in states[0]:
        assert (np.asarray(Image.open(theirs / name)) == np.asarray(Image.open(ours / name))).all(), name
    last = Image.open(theirs / f"turn_{len(states[0])}_state.png" if states[0] else path)
    assert (np.asarray(last.convert("RGB")) == np.asarray(Image.open(ours / "final_segmentation.png"))).all()
    assert (ours / "mask.png").is_file()
    return result


def test_the_taught_agent_plays_the_released_episode(tiny_qwen, sam2, tmp_path):
    config = QwenConfig(model=str(tiny_qwen), max_pixels=None)
    models = Models("tiny", load_qwen(config, CPU), config, sam2)
    supply, stops, turns = scenes(3), set(), 0
    for number in range(6):
        policy = QwenPolicy(config, CPU, models.language)
        result = both(models, models.language.model, policy, next(supply).picture, tmp_path / str(number), turns=6)
        stops.add(result.outcomes[0].stop)
        turns += len(result.outcomes[0].steps)
    assert turns > 6
    assert StopReason.FAILED not in stops


def test_ten_clicks_leave_the_released_pictures(sam2, tmp_path):
    import dataclasses

    config = QwenConfig(model=str(make_tiny_qwen(tmp_path / "qwen")), max_pixels=None)
    loaded = load_qwen(config, CPU)
    models = Models("tiny", loaded, config, sam2)
    policy = QwenPolicy(config, CPU, dataclasses.replace(loaded, model=Scripted(loaded, 60, seed=4)))
    picture = np.random.default_rng(1).integers(0, 255, (150, 200, 3), dtype=np.uint8)
    result = both(models, Scripted(loaded, 60, seed=4), policy, picture, tmp_path / "pictures", turns=10)
    assert result.outcomes[0].stop is StopReason.MAX_TURNS
    assert result.outcomes[0].final_turn == 10


def played(replies, conduct, picture, turns=20):
    engine = Engine("test", ScriptedReplies({0: replies}), GraphCut(), 1, conduct=CONDUCTS[conduct])
    pixels = np.full((64, 64), 40, np.uint8)
    pixels[20:40, 20:40] = 200
    return run(RunRequest("disc", max_turns=turns), picture(pixels), engine).outcomes[0]


def test_an_unusable_reply_ends_the_released_episode_and_not_the_corrected_one(picture):
    replies = [click(0.45, 0.45), "what?", "<think>t</think><action>Terminate</action>"]
    released, corrected = played(replies, "released", picture), played(replies, "corrected", picture)
    assert (released.stop, len(released.steps)) == (StopReason.PROTOCOL_ERROR, 2)
    assert (corrected.stop, len(corrected.steps)) == (StopReason.TERMINATED, 3)


def test_the_same_mask_ends_only_the_corrected_episode(picture):
    replies = [click(0.45, 0.45), click(0.46, 0.45), click(0.45, 0.45), click(0.46, 0.45), click(0.45, 0.45)]
    assert played(replies, "corrected", picture, 5).stop is StopReason.NO_PROGRESS
    assert played(replies, "released", picture, 5).stop is StopReason.MAX_TURNS


def test_the_third_same_click_ends_both(picture):
    for conduct in CONDUCTS:
        outcome = played([click(0.45, 0.45)], conduct, picture)
        assert (outcome.stop, len(outcome.steps)) == (StopReason.REPEATED_ACTION, 3)
        assert outcome.steps[2].mask is None


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("<think>a</think><action>Positive Point (0.5, 0.25)</action>", Click),
        ("hm <think>a</think> so <action>I say Negative Point (0.5,0.25) now</action> and on", Click),
        ("<action>Positive Point (0.1, 0.2) or rather Terminate</action>", Terminate),
        ("<action>Termination</action>", ProtocolError),
        ("<action>Positive Point (-0.5, 0.2)</action>", ProtocolError),
        ("<action>Positive Point (0.5, 1.7)</action>", ProtocolError),
        ("<action>Positive Point (0.5.1, 0.2)</action>", ProtocolError),
        ("<action>Positive Point (., .)</action>", ProtocolError),
        ("Positive Point (0.5, 0.2)", ProtocolError),
        ("", ProtocolError),
    ],
)
def test_the_released_parser(text, action):
    reply = parse_released(text)
    assert isinstance(reply.action if isinstance(reply, Reply) else reply, action)


def test_the_released_window_is_each_slices_own(phantom_slice):
    volume, engine = phantom_slice
    released = run(RunRequest("liver", slices="0-1"), volume, Engine("t", *engine, 1, conduct=RELEASED))
    low, high = np.percentile(volume.data[:, :, 1], (1, 99))
    assert released.outcomes[1].window.low == pytest.approx(low)
    assert released.outcomes[1].window.high == pytest.approx(high)
    assert released.outcomes[0].window != released.outcomes[1].window
    given = run(RunRequest("liver", slices="0-1", window="-100,200"), volume, Engine("t", *engine, 1, conduct=RELEASED))
    assert given.outcomes[1].window.low == -100
    corrected = run(RunRequest("liver", slices="0-1"), volume, Engine("t", *engine, 1))
    assert corrected.outcomes[0].window == corrected.outcomes[1].window


@pytest.fixture
def phantom_slice():
    from pathlib import Path

    from lib.imaging.volume import Modality, Volume

    rng = np.random.default_rng(0)
    data = rng.normal(40, [[[10.0, 60.0]]], (40, 40, 2)).astype(np.float32)
    volume = Volume(data, np.eye(4), Modality.CT, Path("two.nii"))
    stop = ["<think>t</think><action>Terminate</action>"]
    return volume, (ScriptedReplies({0: stop, 1: stop}), GraphCut())
