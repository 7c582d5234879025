"""The numbered defects of the released code, and the right behaviour here: protocol, geometry, inference loop, reward.

Those of its data and exports (23 to 31, 37 to 39) are in test_export_defects.py; 24 has a half in each.
"""

import ast
import threading
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest

from lib.agent.engine import Engine
from lib.agent.limits import UNLIMITED, StopReason
from lib.agent.policy import Observation, Past
from lib.agent.prompts import IMAGE_MARK, SYSTEM, turn_prompt
from lib.agent.protocol import Click, ProtocolError, ProtocolFault, Reply, Terminate, parse, render
from lib.agent.results import write_results
from lib.agent.run import RunRequest, run
from lib.agent.takeover import Slice, annotate, undo
from lib.errors import EngineError, InputError
from lib.imaging import rle
from lib.imaging.overlays import OVERLAYS, blend
from lib.imaging.planes import Plane, ViewGrid, ViewPoint
from lib.imaging.views import View
from lib.imaging.volume import Modality, Volume
from lib.imaging.windows import Window, choose_window
from lib.policies.clicks import largest_error
from lib.policies.conversation import conversation
from lib.segmenters.graphcut import GraphCut
from lib.trajectories.grade import Dropped, Grade
from lib.trajectories.rewards import Reference, State, grade, recipe_named, score_reply
from tests.agent.scripted import STOP, Scripted, click, engine
from tests.trajectories.episodes import at, outcome, rect, said

ROOT = Path(__file__).resolve().parents[2]
CORRECTED = recipe_named("corrected")
TRUTH = rect(0, 10, 0, 10)
PERFECT, OPEN = State(Reference(TRUTH), TRUTH, 1), State(Reference(TRUTH), None, 1)
CENTRE = click(0.5, 0.5)


@pytest.fixture
def ball() -> Volume:
    """A bright ball of radius 12 in a dark CT `[48, 40, 4]`, whose voxels are 6.5 mm high."""
    grid = np.indices((48, 40, 4)) - np.array([24, 20, 2])[:, None, None, None]
    data = np.where((grid[:2] ** 2).sum(axis=0) < 144, 100, -80) + np.random.default_rng(0).normal(0, 5, grid.shape[1:])
    return Volume(data.astype(np.int16), np.diag([1.0, 1.0, 6.5, 1.0]), Modality.CT, Path("ball.nii.gz"))


def play(volume, script, playing=None, **request):
    playing = playing or engine({0: script})
    return run(RunRequest("ball", slices="0", **request), volume, playing).outcomes[0]


def fault(text):
    read = parse(text)
    assert isinstance(read, ProtocolError), text
    return read.fault


class Counting(GraphCut):
    """Counts the masks that it draws."""

    def __init__(self):
        self.drawn = 0

    def click(self, states, clicks, limits=UNLIMITED):
        self.drawn += len(clicks)
        return super().click(states, clicks, limits)


class Dead(GraphCut):
    def click(self, states, clicks, limits=UNLIMITED):
        raise EngineError("the segmentation server is gone")


def test_01_both_stop_words_are_understood_and_one_is_written():
    words = [render(Reply("ok", Terminate("done"))).replace("Terminate", word) for word in ("Terminate", "Termination")]
    assert "Terminate\n" in words[0]
    first, second = (score_reply(text, PERFECT, None, CORRECTED) for text in words)
    assert first == second
    assert first.parts["stop"] == 1


def test_02_a_reply_without_newlines_is_worth_the_same():
    text = said(at(5, 5))
    assert score_reply(text.replace("\n", ""), OPEN, TRUTH, CORRECTED) == score_reply(text, OPEN, TRUTH, CORRECTED)


def test_03_blanks_in_the_action_are_worth_the_same():
    text = said(at(5, 5))
    blanks = text.replace("Positive", "  Positive").replace(", ", " ,  ").replace(")", " )  ")
    assert blanks != text
    assert score_reply(blanks, OPEN, TRUTH, CORRECTED) == score_reply(text, OPEN, TRUTH, CORRECTED)


@pytest.mark.parametrize(
    ("action", "why"),
    [
        ("Positive Point (0.5, 1.7)", ProtocolFault.RANGE),
        ("Positive Point (-0.5, 0.7)", ProtocolFault.RANGE),
        ("Positive Point (.,.)", ProtocolFault.ACTION),
        ("Positive Point (0.5.1, 0.2)", ProtocolFault.ACTION),
        ("Positive Point (0.5, 0.5), do not Terminate yet", ProtocolFault.ACTION),
    ],
)
def test_04_the_parser_is_strict_and_asks_once_more(ball, action, why):
    text = f"<think>t</think><action>{action}</action>"
    assert fault(text) is why
    assert play(ball, [text, CENTRE, STOP]).stop is StopReason.TERMINATED
    assert play(ball, [text, text, STOP]).stop is StopReason.PROTOCOL_ERROR


@pytest.mark.parametrize(
    "text",
    [
        f"well {CENTRE}",
        f"{CENTRE} there",
        CENTRE + CENTRE,
        CENTRE + "<answer>a liver</answer>",
        CENTRE.replace("0.5000", "5e-1"),
    ],
    ids=["junk before", "junk behind", "two actions", "an answer to a click", "scientific notation"],
)
def test_05_the_format_reward_is_a_full_match(text):
    assert score_reply(text, OPEN, None, CORRECTED).parts["format"] == -1
    assert score_reply(CENTRE, OPEN, None, CORRECTED).parts["format"] == 1


def test_06_the_literal_image_marker_is_a_setting():
    for refining in (False, True):
        assert turn_prompt("liver", refining).user.count(IMAGE_MARK) == 1
        assert IMAGE_MARK not in turn_prompt("liver", refining, image_mark=False).user


def test_07_every_state_has_the_system_text_and_the_refinement_sentence(ball):
    view = View(ViewGrid(ball, Plane.AXIAL), 0, choose_window(ball))
    mask = rect(10, 20, 10, 20, (40, 48))
    system, first = conversation(Observation("liver", view, None, ()))
    again = conversation(Observation("liver", view, mask, (), past=(Past(None, CENTRE),)), history=True)
    assert system.text == SYSTEM
    assert first.text == "<image>liver"
    assert [message.role for message in again] == ["system", "user", "assistant", "user"]
    assert again[3].text == turn_prompt("liver", refining=True).user


def test_08_a_click_is_its_pixel_to_four_decimals_and_never_outside():
    for column in range(512):
        read = parse(said(at(column, 0, shape=(512, 512))))
        assert isinstance(read, Reply)
        assert isinstance(read.action, Click)
        assert read.action.point.pixel(512, 512) == (column, 0)
    assert ViewPoint(1.0, 1.0).pixel(512, 400) == (511, 399)


def test_09_however_a_volume_is_stored_the_agent_sees_the_same_picture():
    canonical = nibabel.Nifti1Image(np.random.default_rng(0).integers(0, 99, (4, 5, 6)).astype(np.int16), np.eye(4))
    shown = ViewGrid(Volume(canonical.get_fdata(), canonical.affine, Modality.CT, Path("a")), Plane.AXIAL)
    for axes, signs in product(permutations(range(3)), product((1, -1), repeat=3)):
        stored = canonical.as_reoriented(np.column_stack([axes, signs]))
        grid = ViewGrid(Volume(stored.get_fdata(), stored.affine, Modality.CT, Path("a")), Plane.AXIAL)
        back = np.zeros(stored.shape)
        for index in range(6):
            picture = grid.cut(grid.volume.data, index)
            assert (picture == shown.cut(shown.volume.data, index)).all()
            grid.paste(picture, index, back)
        assert (back == stored.get_fdata()).all()


def test_10_one_window_for_the_volume_recorded_and_never_half_given(ball):
    result = run(RunRequest("ball", window="percentile"), ball, engine({i: [STOP] for i in range(4)}))
    assert {one.window for one in result.outcomes} == {result.window}
    assert (result.window.low, result.window.high) != (0, 255)
    with pytest.raises(InputError, match="two numbers"):
        choose_window(ball, ",300")


def test_11_pixels_are_square_and_clicks_go_back_to_their_voxel(ball):
    grid = ViewGrid(ball, Plane.SAGITTAL)
    assert grid.size == (40, 26)
    voxel = grid.to_voxel(7, ViewPoint(0.5, 0.99))
    assert (voxel.i, voxel.j, voxel.k) == (7, 20, 0)
    assert grid.to_view(voxel)[0] == 7


def test_12_one_overlay_paints_what_the_agent_sees(ball):
    view = View(ViewGrid(ball, Plane.AXIAL), 0, Window(-200, 200, "given"))
    mask = rect(10, 20, 10, 20, (40, 48))
    for overlay in OVERLAYS.values():
        seen = Observation("ball", view, mask, (), overlay=overlay).picture()
        assert (seen == blend(view.image(), mask, overlay)).all()
    grey = np.full((1, 1, 3), 120, np.uint8)
    assert blend(grey, np.ones((1, 1), bool), OVERLAYS["inference"]).ravel().tolist() == [85, 127, 85]
    assert blend(grey, np.ones((1, 1), bool), OVERLAYS["training"]).ravel().tolist() == [60, 188, 60]


def test_13_pictures_are_capped_as_in_training():
    from lib.policies.exchange import capped
    from lib.policies.openai import OpenAIConfig

    assert OpenAIConfig.model_fields["max_pixels"].default == 262144
    large = capped(np.zeros((1024, 2048, 3), np.uint8), 262144)
    assert large.shape[0] * large.shape[1] <= 262144
    assert large.shape[1] == pytest.approx(2 * large.shape[0], abs=2)


def test_14_the_reward_sees_the_mask_that_the_episode_had(ball):
    """After two clicks the mask depends on the first: what the reward judges is the recorded state, not the clicks anew."""
    result = play(ball, [CENTRE, click(0.5, 0.6, False), STOP])
    made = [rle.decode(step.mask) for step in result.steps if step.mask is not None]
    graded = grade(result, made[0], CORRECTED)
    assert isinstance(graded, Grade)
    assert [step.iou_after for step in graded.steps] == [1, *[Reference(made[0]).iou(made[1])] * 2]


def test_15_precision_does_not_depend_on_how_a_device_is_spelt(monkeypatch):
    torch = pytest.importorskip("torch")
    from lib.segmenters import sam2
    from lib.segmenters.sam2_load import LoadedSam2

    class Placeless:
        """torch, on a machine that has any device."""

        def __getattr__(self, name):
            return getattr(torch, name)

        @staticmethod
        def tensor(values, device):
            return torch.tensor(values)

    monkeypatch.setattr(sam2, "torch", Placeless())
    used = {}
    for device in ("cuda", "cuda:0", "cuda:1", "cpu"):
        model = SimpleNamespace(no_mem_embed=SimpleNamespace(device=torch.device(device)))
        used[device] = sam2.Sam2(LoadedSam2(model, "sam2", 8, 0, "", ""), precision="bfloat16").about["precision"]
    assert used == {"cuda": "bfloat16", "cuda:0": "bfloat16", "cuda:1": "bfloat16", "cpu": "float32"}


def test_16_episodes_go_in_batches_share_nothing_and_write_no_files(ball, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scripts = {i: [click(0.5, 0.3 + 0.1 * i), STOP] for i in range(4)}
    alone = [run(RunRequest("ball", slices=str(i)), ball, engine(scripts)).outcomes[0].mask for i in range(4)]
    results = {}

    def ask(number):
        results[number] = run(RunRequest("ball"), ball, engine(scripts))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [[one.mask for one in results[number].outcomes] for number in range(2)] == [alone, alone]
    assert results[0].engine.policy.asked[0] == [0, 1, 2, 3]
    assert not any(tmp_path.iterdir())


def test_17_the_mask_is_saved_on_the_source_grid_with_its_trace(ball, tmp_path):
    result = run(RunRequest("ball"), ball, engine({i: [CENTRE, STOP] for i in range(4)}))
    write_results(tmp_path, [result])
    saved = nibabel.load(tmp_path / "mask.nii.gz")
    assert np.allclose(saved.affine, ball.affine)
    assert (np.asarray(saved.dataobj) == result.mask).all()
    assert (tmp_path / "trace.json").is_file()


def test_18_the_reason_of_the_end_is_told_and_the_best_mask_is_kept(ball):
    result = play(ball, [CENTRE, (click(0.05, 0.05), 0.95), (click(0.9, 0.9), 0.1), click(0.1, 0.9)], max_turns=3)
    assert result.stop is StopReason.MAX_TURNS
    assert all(step.mask is not None for step in result.steps)
    assert result.final_turn == 1
    assert result.chosen_because == "the agent supported it best"


def test_19_going_back_and_forth_ends_the_episode(ball):
    result = play(ball, [CENTRE, click(0.52, 0.5)] * 10)
    assert result.stop is StopReason.NO_PROGRESS
    assert len(result.steps) < 10


def test_20_a_click_is_taken_back_by_replaying_the_others(ball):
    slice_ = Slice(View(ViewGrid(ball, Plane.AXIAL), 0, choose_window(ball)), "ball", OVERLAYS["inference"])
    clicks = [Click(ViewPoint(x, y), positive) for x, y, positive in ((0.5, 0.5, True), (0.1, 0.1, True), (0.5, 0.6, False))]
    playing = Engine("test", Scripted({}), GraphCut(), 1)
    back = undo(slice_, annotate(slice_, None, clicks, playing, UNLIMITED), 2, playing, UNLIMITED)
    assert back.mask == annotate(slice_, None, [clicks[0], clicks[2]], playing, UNLIMITED).mask
    assert back.steps[1].undone


def test_21_an_absent_target_can_be_said_and_is_right(ball):
    result = play(ball, [STOP])
    assert result.stop is StopReason.ABSENT
    graded = grade(result, np.zeros((40, 48), bool), CORRECTED)
    assert isinstance(graded, Grade)
    assert (graded.iou, graded.dice, graded.parts["absence"]) == (1, 1, 1)


def test_22_the_border_of_the_picture_is_an_edge():
    error = largest_error(None, np.ones((21, 31), bool))
    assert error is not None
    assert error.click.point.pixel(31, 21) == (15, 10)
    assert error.radius == 11


def test_24_one_threshold_and_one_binarisation():
    enough = rect(0, 9, 0, 10)
    assert Reference(TRUTH).iou(enough) == CORRECTED.enough_iou
    assert score_reply(STOP, State(Reference(TRUTH), enough, 1), None, CORRECTED).parts["stop"] == 1
    with pytest.raises(InputError, match="bool"):
        grade(outcome([(STOP, None)]), TRUTH.astype(np.uint8) * 128, CORRECTED)


def test_32_stopping_on_a_right_mask_beats_clicking_on():
    for turn in (1, 3, 10, 25):
        state = replace(PERFECT, turn=turn)
        stop = score_reply(STOP, state, None, CORRECTED)
        for after in (TRUTH, None, rect(0, 5, 0, 10)):
            assert stop.total > score_reply(said(at(30, 15)), state, after, CORRECTED).total
    past = score_reply(STOP, State(Reference(TRUTH), rect(0, 5, 0, 10), 1, 0.9), None, CORRECTED)
    assert past.parts["overshoot"] == pytest.approx(-0.4)


def test_33_a_long_episode_costs_no_more_than_a_bound():
    lengths = [score_reply(STOP, replace(PERFECT, turn=turn), None, CORRECTED).parts["length"] for turn in (5, 20, 25, 1000)]
    assert lengths == [0, -1, -1, -1]


def test_34_a_dead_segmenter_is_no_reward(ball):
    result = play(ball, [CENTRE, STOP], Engine("test", Scripted({0: [CENTRE, STOP]}), Dead(), 1))
    dropped = grade(result, np.ones((40, 48), bool), CORRECTED)
    assert dropped == Dropped("failed: the segmentation server is gone")


def test_35_every_click_is_drawn_once_and_none_for_the_reward(ball):
    segmenter = Counting()
    script = [CENTRE, click(0.5, 0.6), STOP]
    result = play(ball, script, Engine("test", Scripted({0: script}), segmenter, 1))
    assert segmenter.drawn == 2
    assert isinstance(grade(result, np.ones((40, 48), bool), CORRECTED), Grade)
    assert segmenter.drawn == 2


def test_36_no_failure_is_swallowed_and_actions_are_read_in_one_place():
    readers = set()
    for folder in ("agent", "policies", "segmenters", "trajectories"):
        for path in (ROOT / "lib" / folder).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.ExceptHandler) and not isinstance(node.body[-1], ast.Raise):
                    caught = "" if node.type is None else ast.unparse(node.type)
                    assert caught not in ("", "Exception", "BaseException"), f"{path}:{node.lineno} catches everything"
            if "(Positive|Negative) Point" in text:
                readers.add(path.relative_to(ROOT).as_posix())
    assert readers == {"lib/agent/protocol.py", "lib/trajectories/rewards/released.py"}
