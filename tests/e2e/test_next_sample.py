"""Next Sample and scoring over HTTP, as Slicer and OHIF ask."""

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from lib.imaging.masks import write_volume
from lib.imaging.phantom import make_phantom
from lib.server.process import ServerProcess

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studies")
    for seed in range(3):
        write_volume(folder / f"case{seed}.nii.gz", make_phantom(seed, spacing=(8.0, 8.0, 20.0)).volume)
    with ServerProcess(folder, tmp_path_factory.mktemp("log") / "server.log") as running:
        yield running


def post(server, path, **body):
    return httpx.post(f"{server.url}{path}", json=body, timeout=60)


def children(pid: int) -> list[str]:
    listed = subprocess.run(["ps", "--ppid", str(pid), "-o", "args="], capture_output=True, text=True)
    return [line for line in listed.stdout.splitlines() if "monailabel.interfaces.utils.app" in line]


def test_next_sample_gives_each_annotator_an_image_of_their_own(server):
    with ThreadPoolExecutor(3) as pool:
        users = ("anna", "ben", "carla")
        answers = list(pool.map(lambda user: post(server, "/activelearning/random", client_id=user).json(), users))
    assert sorted(answer["id"] for answer in answers) == ["case0", "case1", "case2"]
    for answer in answers:
        assert os.path.exists(answer["path"])
        assert {"weight", "evidence", "labelled"} <= answer.keys()
    refused = post(server, "/activelearning/random", client_id="x" * 200)
    assert (refused.status_code, "client_id" in refused.json()["detail"]) == (422, True)


def test_a_run_is_evidence_and_unknown_names_are_404(server):
    asked = {"params": '{"prompt": "liver", "client_id": "anna"}'}
    ran = httpx.post(f"{server.url}/infer/ibis_agent?image=case1&output=json", data=asked, timeout=120)
    assert ran.status_code == 200
    listed = httpx.get(f"{server.url}/info/", timeout=60).json()
    assert {"ibis_gain", "random", "first", "random_uniform"} <= listed["strategies"].keys()
    assert listed["scoring"]["ibis_quality"]["weeks"] == []
    missing = post(server, "/activelearning/epistemic")
    assert (missing.status_code, "ibis_gain" in missing.json()["detail"]) == (404, True)
    assert post(server, "/scoring/dice").status_code == 404


def test_scores_are_computed_in_the_server_and_shown_as_stock_does(server):
    assert httpx.get(f"{server.url}/scoring/", timeout=60).status_code == 404
    task = post(server, "/scoring/ibis_quality")
    assert (task.status_code, task.json()["status"], task.json()["result"]["images"]) == (200, "DONE", 0)
    assert httpx.get(f"{server.url}/scoring/", timeout=60).json()["id"] == task.json()["id"]
    assert post(server, "/scoring/ibis_quality?run_sync=true").json() == {"weeks": [], "images": 0}
    assert children(server.pid) == []
