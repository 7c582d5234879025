"""From what an annotator does in a viewer to rewards: infer, points, submit, by the stock API; accept and reject by ours."""

import json
import time
from itertools import pairwise

import httpx
import numpy as np
import pytest

from lib.imaging import rle
from lib.imaging.load import load_volume
from lib.imaging.masks import write_mask
from lib.imaging.planes import Plane, ViewGrid
from lib.segmenters.graphcut import GraphCut
from lib.server.process import ServerProcess
from lib.trajectories.replay import replay
from lib.trajectories.selection import Selection
from lib.trajectories.store import TrajectoryStore
from lib.trajectories.trajectory import Source
from tests.e2e.conftest import form, voxel_in
from tests.e2e.test_clients import parts

pytestmark = pytest.mark.e2e

CASE = "ct_abdomen_pelvis_ts"
SLICES = "86-92"
SPLEEN = 1
SLICER = {"result_extension": ".nrrd", "result_dtype": "uint8", "client_id": "anna"}


@pytest.fixture(scope="module")
def image(data):
    return load_volume(data / CASE / "image.nii.gz")


@pytest.fixture(scope="module")
def truth(data):
    return load_volume(data / CASE / "labels.nii.gz").data == SPLEEN


@pytest.fixture(scope="module")
def studies(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("labelled")
    (folder / "abdomen.nii.gz").symlink_to(data / CASE / "image.nii.gz")
    return folder


@pytest.fixture(scope="module")
def server(studies, tmp_path_factory):
    with ServerProcess(studies, tmp_path_factory.mktemp("log") / "server.log") as running:
        yield running


@pytest.fixture(scope="module")
def store(server, studies):
    opened = TrajectoryStore(studies / ".ibis" / "trajectories")
    yield opened
    opened.close()


def infer(server, model, **params):
    answer = httpx.post(
        f"{server.url}/infer/{model}",
        params={"image": "abdomen"},
        files={"params": (None, json.dumps(SLICER | params))},
        timeout=120,
    )
    assert answer.status_code == 200, answer.text
    return parts(answer)[0]


def submit(server, path, names, user="anna"):
    info = [{"name": name, "idx": number} for number, name in enumerate(names, start=1)]
    with open(path, "rb") as file:
        answer = httpx.put(
            f"{server.url}/datastore/label",
            params={"image": "abdomen"},
            data=form(label_info=info, client_id=user),
            files={"label": (path.name, file)},
        )
    assert answer.status_code == 200, answer.text
    return answer.json()


def gradings(server, run, user="anna", at_least=1):
    """What the server says of a run's rewards, as soon as that many labels are graded."""
    until = time.monotonic() + 60
    while True:
        answer = httpx.get(f"{server.url}/ibis/runs/{run}/gradings", headers={"X-IBIS-User": user})
        assert answer.status_code == 200, answer.text
        found = answer.json()
        if (not found["waiting"] and len(found["gradings"]) >= at_least) or time.monotonic() > until:
            return found
        time.sleep(0.2)


@pytest.fixture(scope="module")
def run(server):
    """A run by text, then a point on its mask as SmartEdit sends it."""
    return infer(server, "ibis_agent", prompt="spleen", slices=SLICES)["runs"][0]["id"]


def test_a_submitted_label_grades_what_was_recorded(server, store, run, image, truth, tmp_path):
    grid = ViewGrid(image, Plane.AXIAL)
    point = voxel_in(truth, k=89)
    clicked = infer(server, "ibis_click_2d", foreground=[point], background=[], label="spleen")
    assert clicked
    write_mask(tmp_path / "label.nii.gz", truth.astype(np.uint8), image)
    assert submit(server, tmp_path / "label.nii.gz", ["spleen"]) == {"image": "abdomen", "label": "abdomen"}

    told = gradings(server, run)
    (grading,) = told["gradings"]
    assert (grading["annotator"], grading["source"], grading["target"]) == ("anna", "api", 1)
    assert [one["index"] for one in grading["slices"]] == list(range(86, 93))
    episodes = {t.origin.index: t for t in store.select(Selection(run=run, source=Source.RUN))}
    assert episodes.keys() == set(range(86, 93))
    assert {step.actor.value for step in episodes[89].outcome.steps} == {"agent", "annotator"}
    for one in grading["slices"]:
        outcome = episodes[one["index"]].outcome
        right = grid.enlarge(grid.cut(truth, one["index"]), 0)
        ious = [iou(None, right)]
        for step in outcome.steps:
            ious.append(ious[-1] if step.mask is None else iou(rle.decode(step.mask), right))
        assert one["iou"] == pytest.approx(iou(rle.decode(outcome.mask), right))
        assert one["dice"] == pytest.approx(2 * one["iou"] / (1 + one["iou"]))
        for step, (before, after) in zip(one["steps"], pairwise(ious), strict=True):
            if "progress" in step["parts"]:
                won, lost = (after - before) / max(1 - before, 1e-9), (after - before) / max(before, 1e-9)
                if {"stop", "absence"} & step["parts"].keys():  # a click that was no use any more wins nothing
                    won = 0.0
                assert step["parts"]["progress"] == pytest.approx(won if after > before else lost)
            acted = next(s for s in outcome.steps if s.turn == step["turn"])
            assert ("format" in step["parts"]) == (acted.actor.value == "agent")
            assert all(-1 <= value <= 1 for value in (*step["parts"].values(), step["total"]))


def iou(mask, right):
    mask = np.zeros_like(right) if mask is None else mask
    union = (mask | right).sum()
    return (mask & right).sum() / union if union else 1.0


def test_every_recorded_episode_replays_to_its_masks(store, run):
    episodes = list(store.select(Selection(run=run, newest=False)))
    assert len(episodes) >= 8
    assert all(one.identical for episode in episodes for one in replay(episode, store.blobs, GraphCut()))


def test_corrections_start_where_the_agent_was(store, run):
    for correction in store.select(Selection(run=run, source=Source.CORRECTION)):
        assert correction.outcome.steps[correction.kept_from - 1].actor.value in ("expert", "agent")
        assert all(one.identical for one in replay(correction, store.blobs, GraphCut()))


def test_a_second_annotator_is_a_second_grading_and_a_strange_name_is_told(server, run, image, truth, tmp_path):
    write_mask(tmp_path / "label.nii.gz", np.roll(truth, 2, axis=0).astype(np.uint8), image)
    submit(server, tmp_path / "label.nii.gz", ["spleen"], "ben")
    told = gradings(server, run, at_least=2)
    assert [one["annotator"] for one in told["gradings"]] == ["anna", "ben"]
    assert told["gradings"][0]["dice"] > told["gradings"][1]["dice"]
    submit(server, tmp_path / "label.nii.gz", ["Segment_1"], "ben")
    until = time.monotonic() + 30
    while not gradings(server, run)["notes"] and time.monotonic() < until:
        time.sleep(0.2)
    (note,) = gradings(server, run)["notes"]
    assert "'spleen'" in note
    assert "'Segment_1'" in note
    assert len(gradings(server, run)["gradings"]) == 2


def test_accepting_a_run_keeps_the_other_structures(server, run, image, tmp_path):
    headers = {"X-IBIS-User": "anna"}
    accepted = httpx.put(f"{server.url}/ibis/runs/{run}/label", headers=headers)
    assert accepted.status_code == 200, accepted.text
    assert accepted.json() == {"image": "abdomen", "label": "abdomen", "grading": "queued"}
    other = infer(server, "ibis_agent", prompt="liver", slices=SLICES)["runs"][0]["id"]
    assert httpx.put(f"{server.url}/ibis/runs/{other}/label", headers=headers).status_code == 200
    saved = httpx.get(f"{server.url}/datastore/label", params={"label": "abdomen", "tag": "final"})
    (tmp_path / "final.nrrd").write_bytes(saved.content)
    final = load_volume(tmp_path / "final.nrrd").data
    info = httpx.get(f"{server.url}/datastore/label/info", params={"label": "abdomen", "tag": "final"}).json()
    names = {one["idx"]: one["name"] for one in info["label_info"]}
    assert set(names.values()) >= {"spleen", "liver"}
    for name, key in (("spleen", run), ("liver", other)):
        mask = httpx.get(f"{server.url}/ibis/runs/{key}/mask", headers=headers)
        (tmp_path / "mask.nrrd").write_bytes(mask.content)
        drawn = load_volume(tmp_path / "mask.nrrd").data > 0
        value = next(value for value, own in names.items() if own == name)
        assert (final == value).sum() >= 0.99 * drawn.sum() > 0
    assert gradings(server, other)["gradings"][0]["dice"] == pytest.approx(1.0)


def test_what_is_wrong_is_told_and_nothing_stored(server, run, image, tmp_path):
    url = f"{server.url}/ibis/runs/{run}"
    headers = {"X-IBIS-User": "anna"}
    assert httpx.put(f"{url}/label", headers={"X-IBIS-User": "ben"}).status_code == 404
    assert httpx.post(f"{url}/reject", json={"reason": ""}, headers=headers).status_code == 422
    assert httpx.post(f"{url}/reject", json={"reason": "x", "target": 9}, headers=headers).status_code == 404
    assert httpx.put(f"{url}/label", data={"params": '{"aliases": [1]}'}, headers=headers).status_code == 422
    before = httpx.get(f"{server.url}/datastore/label/info", params={"label": "abdomen", "tag": "final"}).json()
    (tmp_path / "x.nii.gz").write_bytes(b"x")
    for info in ([{"name": "", "idx": 1}], "spleen", [{"name": "a", "idx": 1}, {"name": "b", "idx": 1}]):
        with open(tmp_path / "x.nii.gz", "rb") as file:
            answer = httpx.put(
                f"{server.url}/datastore/label",
                params={"image": "abdomen"},
                data=form(label_info=info),
                files={"label": ("x.nii.gz", file)},
            )
        assert answer.status_code == 422, answer.text
    assert httpx.get(f"{server.url}/datastore/label/info", params={"label": "abdomen", "tag": "final"}).json() == before


def test_rejecting_a_run_is_recorded_with_its_reason(server, store, run):
    answer = httpx.post(
        f"{server.url}/ibis/runs/{run}/reject", json={"reason": "the wrong side"}, headers={"X-IBIS-User": "anna"}
    )
    assert answer.status_code == 200
    assert [one["reason"] for one in gradings(server, run)["rejections"]] == ["the wrong side"]
    assert [one.reason for one in store.rejections(run)] == ["the wrong side"]
