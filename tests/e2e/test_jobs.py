"""Runs that nobody waits for, against real servers: events from a socket, cancel, kill -9, resume."""

import json
import os
import random
import signal
import threading
import time
from pathlib import Path

import httpx
import nibabel
import numpy as np
import pytest

from lib.imaging.masks import write_volume
from lib.imaging.phantom import make_phantom
from lib.server.jobs.journal import read_events
from lib.server.process import ServerProcess
from tests.e2e.conftest import form, voxel_in

pytestmark = pytest.mark.e2e

PATIENCE_S = 120
LONG = "bones; liver; spleen; body; left kidney; lungs"


def ask(url: str, **body) -> str:
    answer = httpx.post(f"{url}/ibis/runs", json=body, timeout=60)
    assert answer.status_code == 202, answer.text
    assert answer.json()["urls"]["run"] == f"/ibis/runs/{answer.json()['id']}"
    return answer.json()["id"]


def shown(url: str, key: str, **query) -> dict:
    answer = httpx.get(f"{url}/ibis/runs/{key}", params=query, timeout=60)
    answer.raise_for_status()
    return answer.json()


def watch(url: str, key: str, after: int | None = None, at_most: int = 10**9) -> list[dict]:
    """Events from the socket, until the server ends the stream or there are `at_most`."""
    headers = {} if after is None else {"Last-Event-ID": str(after)}
    events: list[dict] = []
    with httpx.stream("GET", f"{url}/ibis/runs/{key}/events", headers=headers, timeout=PATIENCE_S) as stream:
        if stream.status_code == 204:
            return events
        assert stream.headers["content-type"].startswith("text/event-stream")
        for line in stream.iter_lines():
            if line.startswith("data: "):
                events.append(json.loads(line.removeprefix("data: ")))
            if line.startswith("id: "):
                assert int(line.removeprefix("id: ")) == events[-1]["seq"]
            if len(events) >= at_most:
                break
    return events


def wait_until(url: str, key: str, *statuses: str) -> dict:
    deadline = time.monotonic() + PATIENCE_S
    while (state := shown(url, key))["status"] not in statuses:
        assert time.monotonic() < deadline, state["status"]
        time.sleep(0.02)
    return state


def mask(url: str, key: str, folder: Path) -> np.ndarray:
    answer = httpx.get(f"{url}/ibis/runs/{key}/mask?format=nii.gz", timeout=60)
    assert answer.status_code == 200, answer.text
    (folder / "mask.nii.gz").write_bytes(answer.content)
    return np.asarray(nibabel.load(folder / "mask.nii.gz").dataobj)


def test_a_run_from_asking_to_the_mask(server, phantom, tmp_path):
    key = ask(server.url, image="patient_one_ct", prompt="liver; spleen", client_id="me")
    assert httpx.get(f"{server.url}/ibis/runs/{key}").status_code == 404
    mine = {"X-IBIS-User": "me"}
    with httpx.stream("GET", f"{server.url}/ibis/runs/{key}/events", headers=mine, timeout=PATIENCE_S) as stream:
        kinds = [line.removeprefix("event: ") for line in stream.iter_lines() if line.startswith("event: ")]
    assert kinds[0] == "queued"
    assert kinds[-1] == "done"
    assert {"started", "slice_started", "step", "slice_settled"} <= set(kinds)
    state = shown(server.url, key, client_id="me")
    assert (state["status"], state["settled"]) == ("complete", state["total"])
    assert [target["value"] for target in state["targets"]] == [1, 2]
    assert all(slice_["state"] == "settled" and slice_["stop_reason"] for slice_ in state["slices"])
    listed = httpx.get(f"{server.url}/ibis/runs?limit=1", headers=mine).json()
    assert [run["id"] for run in listed["runs"]] == [key]
    for kind in ("nrrd", "nii.gz", "seg"):
        answer = httpx.get(f"{server.url}/ibis/runs/{key}/mask?format={kind}", headers=mine, timeout=60)
        assert (answer.status_code, len(answer.content) > 100) == (200, True)
    for path in ("trace", "trace.html"):
        assert httpx.get(f"{server.url}/ibis/runs/{key}/{path}?target=2", timeout=60).status_code == 200
    assert httpx.delete(f"{server.url}/ibis/runs/{key}", headers=mine).status_code == 409
    assert httpx.post(f"{server.url}/ibis/runs/{key}/resume", headers=mine).status_code == 409
    assert httpx.delete(f"{server.url}/ibis/runs/{key}").status_code == 404


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"image": "nobody", "prompt": "liver"}, 404, "nobody"),
        ({"session_id": "nobody", "prompt": "liver"}, 404, "session"),
        ({"prompt": "liver"}, 422, "image"),
        ({"image": "nifti"}, 422, "prompt"),
        ({"image": "nifti", "prompt": "liver", "max_turns": 0}, 422, "max_turns"),
        ({"image": "nifti", "prompt": "liver", "colour": "red"}, 422, "colour"),
        ({"image": "nifti", "prompt": "liver", "client_id": "x" * 200}, 422, "client_id"),
        ({"image": "../nifti", "prompt": "liver"}, 404, "nifti"),
    ],
)
def test_bad_runs_get_a_status_and_a_sentence(server, body, status, words):
    answer = httpx.post(f"{server.url}/ibis/runs", json=body, timeout=60)
    assert answer.status_code == status
    assert words in answer.text


def test_what_cannot_be_carried_out_is_failed_with_a_sentence(server):
    key = ask(server.url, image="nifti", prompt="gizmo")
    assert "gizmo" in wait_until(server.url, key, "failed")["error"]


def test_events_come_while_the_run_goes_on_and_a_reconnect_loses_and_doubles_none(server):
    key = ask(server.url, image="nifti", prompt="liver; lungs", slices="25-60")
    first = watch(server.url, key, at_most=40)
    assert shown(server.url, key)["status"] == "running"
    second = watch(server.url, key, after=first[-1]["seq"], at_most=60)
    rest = watch(server.url, key, after=second[-1]["seq"])
    assert [event["seq"] for event in [*first, *second, *rest]] == list(range(1, rest[-1]["seq"] + 1))
    assert rest[-1]["kind"] == "done"
    assert watch(server.url, key) == [*first, *second, *rest]
    assert watch(server.url, key, after=rest[-1]["seq"]) == []


def test_cancel_takes_less_than_half_a_second_and_what_was_found_stays(server, tmp_path):
    took = []
    for _ in range(3):  # other work on this machine may be in the way of one of them
        key = ask(server.url, image="nifti", prompt=LONG)
        settled = [event for event in watch(server.url, key, at_most=150) if event["kind"] == "slice_settled"]
        ended: list[float] = []
        watcher = threading.Thread(target=lambda key=key, ended=ended: (watch(server.url, key), ended.append(time.monotonic())))
        watcher.start()
        time.sleep(0.3)
        began = time.monotonic()
        assert httpx.delete(f"{server.url}/ibis/runs/{key}").status_code == 202
        watcher.join()
        took.append(ended[0] - began)
        state = shown(server.url, key)
        assert state["status"] == "cancelled"
        assert len(settled) <= state["settled"] < state["total"]
    assert min(took) < 0.5
    assert mask(server.url, key, tmp_path).any()


def test_the_queue_can_be_seen_and_clicks_do_not_wait_in_it(server, phantom):
    keys = [ask(server.url, image="nifti", prompt=LONG, client_id="busy") for _ in range(4)]
    jobs = httpx.get(f"{server.url}/ibis/jobs?client_id=busy").json()
    assert [job["position"] for job in jobs["waiting"]] == list(range(1, len(jobs["waiting"]) + 1))
    assert {job["id"] for job in jobs["running"] + jobs["waiting"]} == set(keys)
    for job in (other := httpx.get(f"{server.url}/ibis/jobs").json())["waiting"] + other["running"]:
        assert (job["id"], job["about"], job["mine"]) == (None, None, False)
    body = form(foreground=[voxel_in(phantom.labels["spleen"])], background=[])
    answer = httpx.post(f"{server.url}/infer/ibis_click_2d?image=nifti&output=json", data=body, timeout=60)
    assert answer.status_code == 200
    assert {shown(server.url, key, client_id="busy")["status"] for key in keys} <= {"running", "queued"}
    for key in reversed(keys):
        httpx.delete(f"{server.url}/ibis/runs/{key}?client_id=busy")


def test_who_waits_gets_what_there_is_in_time(server):
    began = time.monotonic()
    body = form(prompt=LONG, timeout=1.0, client_id="hasty")
    answer = httpx.post(f"{server.url}/infer/ibis_agent?image=nifti&output=json", data=body, timeout=60).json()
    assert time.monotonic() - began < 10
    assert answer["status"] == "incomplete"
    key = answer["runs"][0]["id"]
    state = shown(server.url, key, client_id="hasty")
    assert (state["status"], 0 < state["settled"] < state["total"]) == ("incomplete", True)
    wrong = httpx.post(f"{server.url}/infer/ibis_agent?image=nifti", data=form(prompt="liver", timeout="soon"), timeout=60)
    assert (wrong.status_code, "timeout:" in wrong.json()["detail"]) == (422, True)


def test_a_session_image_can_be_run_on(server, studies):
    with open(studies / "nifti.nii.gz", "rb") as file:
        session = httpx.put(f"{server.url}/session/", files={"files": ("x.nii.gz", file)}, timeout=60).json()["session_id"]
    key = ask(server.url, session_id=session, prompt="liver", slices="30-34")
    assert wait_until(server.url, key, "complete")["total"] == 5


def test_the_api_is_described_with_examples(server):
    paths = httpx.get(f"{server.url}/openapi.json").json()["paths"]
    assert set(paths["/ibis/runs/{key}/events"]["get"]["responses"]) == {"200", "204", "404", "422"}
    assert "text/event-stream" in paths["/ibis/runs/{key}/events"]["get"]["responses"]["200"]["content"]
    assert set(paths["/ibis/runs"]["post"]["responses"]) == {"202", "404", "422", "429", "503"}
    assert {"/ibis/jobs", "/ibis/runs/{key}/mask", "/ibis/runs/{key}/resume"} <= set(paths)


@pytest.fixture(scope="module")
def one_image(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    write_volume(folder / "a.nii.gz", make_phantom(3, spacing=(5.0, 5.0, 15.0)).volume)
    return folder


def test_kill_9_at_random_moments_and_resume_to_the_same_mask(one_image, tmp_path):
    dice = random.Random(5)
    log, arguments = tmp_path / "log", ("--conf", "cache_mb=64")
    with ServerProcess(one_image, log, arguments) as server:
        whole = ask(server.url, image="a", prompt="liver; lungs")
        total = wait_until(server.url, whole, "complete")["total"]
        expected = mask(server.url, whole, tmp_path)
    key, before = "", []
    for _ in range(4):
        with ServerProcess(one_image, log, arguments) as server:
            if key:
                assert shown(server.url, key)["status"] == "interrupted"
                assert _settled(one_image, key)[: len(before)] == before
                httpx.post(f"{server.url}/ibis/runs/{key}/resume").raise_for_status()
            else:
                key = ask(server.url, image="a", prompt="liver; lungs")
            enough = len(before) + dice.randint(1, total // 6)
            while len(_settled(one_image, key)) < enough:
                time.sleep(0.01)
            time.sleep(dice.uniform(0, 0.05))
            os.killpg(server.pid, signal.SIGKILL)
        found = _settled(one_image, key)
        assert found[: len(before)] == before
        before = found
    with ServerProcess(one_image, log, arguments) as server:
        assert shown(server.url, key)["status"] == "interrupted"
        assert shown(server.url, key)["settled"] == len(before)
        httpx.post(f"{server.url}/ibis/runs/{key}/resume").raise_for_status()
        state = wait_until(server.url, key, "complete")
        assert np.array_equal(mask(server.url, key, tmp_path), expected)
    found = _settled(one_image, key)
    assert len(found) == len(set(found)) == state["total"] == total


def test_a_server_that_is_told_to_stop_marks_its_runs(one_image, tmp_path):
    with ServerProcess(one_image, tmp_path / "log") as server:
        keys = [ask(server.url, image="a", prompt=LONG) for _ in range(4)]
        events = watch(server.url, keys[0], at_most=20)
        assert events
    kinds = [read_events(one_image / ".ibis" / "runs" / key, at_most=2**30)[0][-1]["kind"] for key in keys]
    assert kinds == ["interrupted"] * 4


def _settled(studies: Path, key: str) -> list[tuple[int, int]]:
    events, _ = read_events(studies / ".ibis" / "runs" / key, at_most=2**30)
    return [(event["target"], event["slice"]) for event in events if event["kind"] == "slice_settled" and event["conclusive"]]
