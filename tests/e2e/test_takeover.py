"""Agent and annotator on one mask, over HTTP: in turns, taken back, locked, kept over a restart."""

import json
import time

import httpx
import nibabel
import numpy as np
import pytest

from lib.imaging.masks import write_volume
from lib.imaging.phantom import make_phantom
from lib.server.process import ServerProcess
from tests.e2e.conftest import form, voxel_in

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def ct():
    return make_phantom(3, spacing=(4.0, 4.0, 8.0))


@pytest.fixture(scope="module")
def folder(ct, tmp_path_factory):
    path = tmp_path_factory.mktemp("takeover")
    write_volume(path / "ct.nii.gz", ct.volume)
    return path


@pytest.fixture(scope="module")
def server(folder, tmp_path_factory):
    with ServerProcess(folder, tmp_path_factory.mktemp("log") / "server.log") as running:
        yield running


class User:
    """A client with a name."""

    def __init__(self, url, name):
        self.http = httpx.Client(base_url=url, timeout=120, headers={"X-IBIS-User": name})
        self.name = name

    def run(self, prompt, **options):
        key = self.http.post("/ibis/runs", json={"image": "ct", "prompt": prompt, **options}).raise_for_status().json()["id"]
        return key, self.wait(key)

    def wait(self, key):
        for _ in range(1200):
            state = self.http.get(f"/ibis/runs/{key}").raise_for_status().json()
            if state["status"] not in ("queued", "running"):
                return state
            time.sleep(0.05)
        raise AssertionError(state)

    def post(self, key, what, **body):
        return self.http.post(f"/ibis/runs/{key}/{what}", json=body)

    def steps(self, key, index):
        trace = self.http.get(f"/ibis/runs/{key}/trace").raise_for_status().json()
        return next(one for one in trace["slices"] if one["index"] == index)["steps"]

    def mask(self, key):
        answer = self.http.get(f"/ibis/runs/{key}/mask?format=nii.gz").raise_for_status()
        import gzip

        return np.asarray(nibabel.Nifti1Image.from_bytes(gzip.decompress(answer.content)).dataobj)

    def click(self, model, label, foreground, background=()):
        params = form(label=label, foreground=foreground, background=list(background), client_id=self.name)
        answer = self.http.post(f"/infer/{model}?image=ct&output=json", data=params)
        assert answer.status_code == 200, answer.text
        body = answer.json()
        return body.get("params", body)


@pytest.fixture
def user(server, request):
    return User(server.url, request.node.name)


def middle(ct, structure):
    i, j, k = voxel_in(ct.labels[structure])
    return k, [i, j, k]


def test_agent_two_clicks_agent_and_undo(user, ct):
    k, inside = middle(ct, "liver")
    _, elsewhere = middle(ct, "spleen")
    key, state = user.run("liver", slices=str(k))
    assert state["status"] == "complete"
    before = user.mask(key)
    assert user.post(key, "clicks", clicks=[{"voxel": inside, "positive": False}]).status_code == 200
    assert user.post(key, "clicks", clicks=[{"voxel": [elsewhere[0], elsewhere[1], k]}]).status_code == 200
    clicked = user.steps(key, k)
    assert user.http.get(f"/ibis/runs/{key}/trace").json()["voxels"] == np.count_nonzero(user.mask(key))
    assert [step["actor"] for step in clicked][-2:] == ["annotator", "annotator"]
    assert (user.mask(key) != before).any()
    assert user.post(key, "continue", turns=3).status_code == 202
    user.wait(key)
    continued = user.steps(key, k)
    assert continued[len(clicked)]["actor"] == "agent"
    turn = next(step["turn"] for step in continued if step["actor"] == "annotator")
    undone = user.post(key, "undo", slice=k, turn=turn)
    assert undone.status_code == 200
    final = user.steps(key, k)
    assert [step["undone"] for step in final] == [step["turn"] == turn for step in final]
    assert user.post(key, "undo", slice=k, turn=turn).status_code == 422
    again = user.http.get(f"/ibis/runs/{key}/trace.html")
    assert again.status_code == 200


def test_a_locked_slice_is_never_changed(user, ct):
    k, inside = middle(ct, "liver")
    key, _ = user.run("liver", slices=f"{k - 1}-{k}")
    before = user.mask(key)
    assert user.post(key, "lock", slices=[k]).status_code == 204
    refused = user.post(key, "clicks", clicks=[{"voxel": inside, "positive": False}])
    assert (refused.status_code, "locked" in refused.json()["detail"]) == (409, True)
    refused = user.post(key, "continue", slices=[k])
    assert (refused.status_code, "locked" in refused.json()["detail"]) == (409, True)
    assert user.wait(key)["status"] == "complete"
    assert (user.mask(key) == before).all()
    assert user.post(key, "lock", slices=[k], locked=False).status_code == 204
    assert user.post(key, "clicks", clicks=[{"voxel": inside, "positive": False}]).status_code == 200
    assert (user.mask(key) != before).any()


def test_a_viewers_clicks_correct_the_agents_mask_and_only_the_new_one_is_a_step(user, ct):
    k, inside = middle(ct, "liver")
    key, _ = user.run("liver", slices=str(k))
    agent = len(user.steps(key, k))
    first = user.click("ibis_click_2d", "liver", [inside])
    assert first["run"] == key
    assert len(user.steps(key, k)) == agent + 1
    other = [inside[0] + 3, inside[1], k]
    user.click("ibis_click_2d", "liver", [inside], [other])
    steps = user.steps(key, k)
    assert len(steps) == agent + 2
    user.click("ibis_click_2d", "liver", [inside], [other])
    assert len(user.steps(key, k)) == agent + 2
    user.click("ibis_click_2d", "liver", [inside])
    assert [step["undone"] for step in user.steps(key, k)] == [False] * (agent + 1) + [True]


def test_users_never_meet_and_targets_never_mix(server, ct):
    k, inside = middle(ct, "liver")
    one, two = User(server.url, "one"), User(server.url, "two")
    key, _ = one.run("liver", slices=str(k))
    assert two.http.get(f"/ibis/runs/{key}").status_code == 404
    assert two.post(key, "clicks", clicks=[{"voxel": inside}]).status_code == 404
    assert two.click("ibis_click_2d", "liver", [inside])["run"] != key
    assert one.click("ibis_click_2d", "spleen", [inside])["run"] != key
    nameless = one.click("ibis_click_2d", "", [inside])["run"]
    assert nameless != key
    near = [inside[0] + 1, inside[1], k]
    assert one.click("ibis_click_2d", "", [inside, near])["run"] == nameless
    assert one.click("ibis_click_2d", "", [[inside[0] - 2, inside[1], k]])["run"] != nameless


def test_clicks_in_three_dimensions_go_on_from_each_other(user, ct):
    _, inside = middle(ct, "spleen")
    first = user.click("ibis_click_3d", "spleen", [inside])
    carried = [one["index"] for one in first["slices"] if one["carried"]]
    assert carried
    corner = [inside[0], inside[1], inside[2] + 1]
    second = user.click("ibis_click_3d", "spleen", [inside, corner])
    assert second["run"] == first["run"]
    trace = user.http.get(f"/ibis/runs/{first['run']}/trace").raise_for_status().json()
    assert trace["voxels"] == second["voxels"]
    assert user.http.get(f"/ibis/runs/{first['run']}/trace.html").status_code == 200
    assert corner[2] not in [one["index"] for one in second["slices"] if one["carried"]]


def test_every_slice_of_a_run_over_key_slices_can_be_corrected(user, ct):
    key, state = user.run("liver", slices="auto")
    assert state["status"] == "complete"
    trace = user.http.get(f"/ibis/runs/{key}/trace").json()
    drawn = [one for one in trace["slices"] if one.get("mask") or any(step["mask"] for step in one["steps"])]
    carried = [one["index"] for one in drawn if one["stop_reason"] == "propagated"]
    looked = [one["index"] for one in drawn if one["steps"]]
    assert carried
    assert looked
    before = user.mask(key)
    for index in (carried[0], looked[len(looked) // 2]):
        # Nothing lies in the very corner: the click must leave the mask as it was, but for what drawing it again changed.
        answer = user.post(key, "clicks", clicks=[{"slice": index, "x": 0.01, "y": 0.01, "positive": False}])
        assert answer.status_code == 200, answer.text
    after = user.mask(key)
    changed = np.count_nonzero(before != after, axis=(0, 1))
    assert set(np.nonzero(changed)[0]) <= {carried[0], looked[len(looked) // 2]}
    for index in (carried[0], looked[len(looked) // 2]):
        common = np.count_nonzero(before[:, :, index] & after[:, :, index])
        assert 2 * common > 0.7 * (np.count_nonzero(before[:, :, index]) + np.count_nonzero(after[:, :, index]))


def test_what_was_done_outlives_the_server(folder, ct, tmp_path):
    k, inside = middle(ct, "liver")
    with ServerProcess(folder, tmp_path / "first.log") as first:
        user = User(first.url, "patient")
        key, _ = user.run("liver", slices=str(k))
        user.click("ibis_click_2d", "liver", [inside])
        user.post(key, "lock", slices=[k - 1])
        before, steps = user.mask(key), user.steps(key, k)
    with ServerProcess(folder, tmp_path / "second.log") as second:
        user = User(second.url, "patient")
        assert (user.mask(key) == before).all()
        assert json.dumps(user.steps(key, k)) == json.dumps(steps)
        assert user.click("ibis_click_2d", "liver", [inside])["run"] == key
        assert len(user.steps(key, k)) == len(steps)
        assert user.post(key, "clicks", clicks=[{"voxel": [*inside[:2], k - 1]}]).status_code == 409


@pytest.mark.parametrize(
    ("what", "body", "status", "word"),
    [
        ("clicks", {"clicks": []}, 422, "clicks"),
        ("clicks", {"clicks": [{"slice": 3}]}, 422, "clicks"),
        ("clicks", {"clicks": [{"slice": 9999, "x": 0.5, "y": 0.5}]}, 422, "9999"),
        ("clicks", {"clicks": [{"voxel": [9999, 0, 0]}]}, 422, "outside"),
        ("clicks", {"target": 7, "clicks": [{"slice": 3, "x": 0.5, "y": 0.5}]}, 404, "target 7"),
        ("undo", {"slice": 3, "turn": 1}, 422, "slice 3"),
        ("lock", {"slices": [9999]}, 422, "9999"),
        ("continue", {"slices": [9999]}, 422, "9999"),
        ("continue", {}, 422, "no slice was clicked on"),
    ],
)
def test_what_cannot_be_done_is_said(user, ct, what, body, status, word):
    k, _ = middle(ct, "liver")
    key, _ = user.run("liver", slices=str(k))
    answer = user.post(key, what, **body)
    assert answer.status_code == status, answer.text
    assert word in answer.text
