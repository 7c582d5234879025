from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lib.agent.anatomy import anatomy
from lib.agent.policy import Observation
from lib.agent.protocol import Click, Reply, Terminate, parse
from lib.errors import UnknownTarget
from lib.imaging.planes import Plane, ViewGrid
from lib.imaging.views import View
from lib.imaging.volume import Modality, Volume
from lib.imaging.windows import Window
from lib.policies.evidence import evidence
from lib.policies.rules import ENOUGH, MAX_CLICKS, RulesPolicy


@pytest.fixture(scope="module")
def body() -> Volume:
    """An elliptic trunk with an arm, in every slice but the last."""
    i, j = np.indices((90, 70))
    trunk = ((i - 40) / 30) ** 2 + ((j - 35) / 20) ** 2 <= 1
    hu = np.full((90, 70, 5), -1000, np.int16)
    hu[trunk | ((i - 80) ** 2 + (j - 35) ** 2 <= 25)] = 40
    hu[:, :, 4] = -1000
    return Volume(hu, np.diag([4.0, 4, 4, 1]), Modality.CT, Path("body"))


def _observe(volume: Volume, index: int, mask: np.ndarray | None = None, actions: tuple = (), prompt: str = "body"):
    view = View(ViewGrid(volume, Plane.AXIAL), index, Window(-160, 240, "test"))
    return Observation(prompt, view, mask, actions)


def _decide(observation: Observation) -> tuple[Reply, float | None]:
    (decision,) = RulesPolicy().decide([observation])
    reply = parse(decision.reply)
    assert isinstance(reply, Reply)
    return reply, decision.support


def _target(volume: Volume, index: int) -> np.ndarray:
    return evidence(volume, anatomy()["body"]).view(ViewGrid(volume, Plane.AXIAL), index)


def test_an_empty_slice_is_absent_at_once_and_is_never_rendered(body: Volume, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise AssertionError("the view was rendered")

    monkeypatch.setattr(View, "grey", refuse)
    reply, support = _decide(_observe(body, 4))
    assert isinstance(reply.action, Terminate)
    assert "absent" in reply.action.answer
    assert support is None


def test_the_first_click_is_in_the_middle_of_the_target(body: Volume):
    reply, support = _decide(_observe(body, 2))
    assert isinstance(reply.action, Click)
    assert reply.action.positive
    assert reply.action.point.pixel(90, 70) == (40, 34)
    assert "40 HU" in reply.thought
    assert support is None


def test_a_good_mask_is_approved(body: Volume):
    target = _target(body, 2)
    mask = target & ~np.pad(np.ones((1, 90), bool), ((0, 69), (0, 0)))
    reply, support = _decide(_observe(body, 2, mask))
    assert isinstance(reply.action, Terminate)
    assert support is not None
    assert support >= ENOUGH
    assert "cm2" in reply.action.answer


def test_the_clicks_lead_to_the_target_and_never_repeat(body: Volume):
    target = _target(body, 2)
    mask, actions, supports = None, (), []
    rows, columns = np.indices(target.shape)
    for _ in range(MAX_CLICKS + 1):
        reply, support = _decide(_observe(body, 2, mask, actions))
        supports.append(support)
        if isinstance(reply.action, Terminate):
            break
        assert reply.action not in actions
        column, row = reply.action.point.pixel(90, 70)
        disc = (rows - row) ** 2 + (columns - column) ** 2 <= 144
        before = np.zeros_like(target) if mask is None else mask
        mask = before | (disc & target) if reply.action.positive else before & ~disc
        actions = (*actions, reply.action)
    assert isinstance(reply.action, Terminate)
    assert supports[1] < supports[-1]
    assert np.count_nonzero(mask & target) / np.count_nonzero(mask | target) == pytest.approx(supports[-1])
    assert supports[-1] > 0.85


def test_a_wrong_region_gets_a_negative_click(body: Volume):
    mask = _target(body, 2).copy()
    mask[:12] = True
    reply, _ = _decide(_observe(body, 2, mask))
    assert isinstance(reply.action, Click)
    assert not reply.action.positive
    assert "too much" in reply.thought or "not body" in reply.thought


def test_clicks_that_do_not_help_come_to_an_end(body: Volume):
    useless, actions = np.zeros((70, 90), bool), ()
    for _ in range(MAX_CLICKS + 1):
        reply, _ = _decide(_observe(body, 2, useless, actions))
        if isinstance(reply.action, Terminate):
            break
        assert reply.action not in actions
        actions = (*actions, reply.action)
    assert isinstance(reply.action, Terminate)


def test_a_mask_where_nothing_is_expected_is_removed(body: Volume):
    mask = np.zeros((70, 90), bool)
    mask[20:40, 20:40] = True
    reply, support = _decide(_observe(body, 4, mask))
    assert isinstance(reply.action, Click)
    assert not reply.action.positive
    assert support == 0


def test_other_modalities_are_refused_but_for_the_body(body: Volume):
    magnetic = replace(body, modality=Modality.MR)
    RulesPolicy().check(magnetic, "body")
    RulesPolicy().check(body, "liver")
    with pytest.raises(UnknownTarget, match=r"Hounsfield units and this image is MR"):
        RulesPolicy().check(magnetic, "liver")
    with pytest.raises(UnknownTarget, match="Without weights I know"):
        RulesPolicy().check(body, "gizmo")


def test_pictures_are_accepted(picture):
    RulesPolicy().check(picture(np.zeros((20, 20), np.uint8)), "liver")


def test_windows_follow_the_target():
    policy = RulesPolicy()
    assert policy.window_preset("right lung") == "lung"
    assert policy.window_preset("gizmo") is None
    assert "liver" in policy.structures
