"""The server itself: errors that say what is wrong, doors that stay shut, answers while it works."""

import io
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from lib.imaging.load import load_volume
from lib.imaging.masks import write_mask
from lib.imaging.phantom import write_series
from lib.server.process import ROOT, free_port
from tests.e2e.conftest import form
from tests.e2e.test_clients import OHIF, nrrd_array

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/infer/nobody?image=nifti", {}, 404, "ibis_agent"),
        ("/infer/ibis_agent?image=nobody", {"prompt": "liver"}, 404, "nobody"),
        ("/infer/ibis_agent", {"prompt": "liver"}, 422, "image:"),
        ("/infer/ibis_agent?session_id=nobody", {"prompt": "liver"}, 404, "session"),
        ("/infer/ibis_agent?image=nifti", {}, 422, "prompt:"),
        ("/infer/ibis_agent?image=nifti", {"prompt": "gizmo"}, 422, "liver"),
        ("/infer/ibis_agent?image=nifti", {"prompt": "liver", "max_turns": 0}, 422, "max_turns:"),
        ("/infer/ibis_agent?image=nifti", {"prompt": "liver", "max_turns": "many"}, 422, "max_turns:"),
        ("/infer/ibis_agent?image=nifti", {"prompt": ["liver"]}, 422, "prompt:"),
        ("/infer/ibis_agent?image=nifti", {"prompt": "liver", "slices": "9999"}, 422, "slices:"),
        ("/infer/ibis_agent?image=nifti", {"prompt": "liver", "plane": "tilted"}, 422, "plane:"),
        ("/infer/ibis_agent?image=nifti", {"prompt": "liver", "window": "dark"}, 422, "window:"),
        ("/infer/ibis_agent?image=nifti", {"prompt": "liver", "result_extension": ".exe"}, 422, "result_extension:"),
        ("/infer/ibis_agent?image=nifti", {"prompt": "liver", "image": "/etc/passwd"}, 422, "image:"),
        ("/infer/ibis_agent?image=nifti", {"label_prompt": [99]}, 422, "label_prompt:"),
        ("/infer/ibis_click_2d?image=nifti", {"foreground": [[9999, 0, 0]]}, 422, "foreground:"),
        ("/infer/ibis_click_2d?image=nifti", {"foreground": [[1, 2]]}, 422, "foreground:"),
        ("/infer/ibis_click_2d?image=nifti", {"background": "x"}, 422, "background:"),
        ("/infer/ibis_click_3d?image=nifti", {}, 422, "foreground:"),
        ("/infer/ibis_agent?image=../nifti", {"prompt": "liver"}, 422, "image:"),
        ("/infer/ibis_agent?image=/etc/passwd", {"prompt": "liver"}, 422, "image:"),
        ("/infer/ibis_agent?image=nifti&output=dicom_seg", {"prompt": "liver"}, 422, "DICOM"),
    ],
)
def test_bad_requests_get_a_status_and_a_sentence(server, path, body, status, words):
    answer = httpx.post(server.url + path, data=form(**body), timeout=60)
    assert answer.status_code == status, answer.text[:300]
    assert words in answer.json()["detail"]


def test_broken_json_and_broken_uploads(server):
    answer = httpx.post(f"{server.url}/infer/ibis_agent?image=nifti", data={"params": "{"}, timeout=60)
    assert (answer.status_code, "params:" in answer.json()["detail"]) == (422, True)
    answer = httpx.post(f"{server.url}/infer/ibis_agent?image=nifti", data={"params": "[]"}, timeout=60)
    assert answer.status_code == 422
    for name, content in (("a.nii.gz", b""), ("a.nii.gz", b"\x1f\x8b junk"), ("a.dcm", b"\0" * 500), ("a.png", b"\x89PNG\r\n")):
        files = {"file": (name, content)}
        answer = httpx.post(f"{server.url}/infer/ibis_agent", data=form(prompt="liver"), files=files, timeout=60)
        assert answer.status_code == 422, (name, answer.text)
        assert answer.json()["detail"].startswith("image:")
    label = {"label": ("x.nrrd", b"NRRD")}
    answer = httpx.put(f"{server.url}/datastore/label?image=nobody", data=form(), files=label, timeout=60)
    assert (answer.status_code, "nobody" in answer.json()["detail"]) == (404, True)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/reload"),
        ("POST", "/reload/"),
        ("GET", "/logs/"),
        ("GET", "/logs/?lines=10"),
        ("PUT", "/model/ibis_agent"),
        ("DELETE", "/model/ibis_agent"),
    ],
)
def test_closed_stock_routes(server, method, path):
    assert httpx.request(method, server.url + path).status_code == 404


@pytest.mark.parametrize("image", ["../x", "..", "a/b", "/tmp/x", "a\\b", "%2e%2e", ".hidden", "a b"])
def test_nothing_is_written_outside_the_store(server, studies, image):
    before = {path for path in studies.parent.iterdir()}
    query = image if "%" in image else httpx.QueryParams({"image": image})["image"]
    answer = httpx.put(f"{server.url}/datastore/image", params={"image": query}, files={"file": ("x.nii.gz", b"x")})
    assert answer.status_code == 422
    tag = httpx.put(
        f"{server.url}/datastore/label", params={"image": "nifti", "tag": query}, files={"label": ("x.nrrd", b"x")}, data=form()
    )
    assert tag.status_code == 422
    assert {path for path in studies.parent.iterdir()} == before


def test_sessions_do_not_unpack_archives(server):
    answer = httpx.put(f"{server.url}/session/?uncompress=true", files={"files": ("x.zip", b"PK")})
    assert answer.status_code == 422


def test_four_clients_at_once_get_what_each_gets_alone_and_info_answers_meanwhile(server):
    names = [f"copy{number}" for number in range(4)]

    def ask(name: str) -> np.ndarray:
        url = f"{server.url}/infer/ibis_agent?image={name}&output=image"
        answer = httpx.post(url, data=form(**OHIF, prompt="liver"), timeout=300)
        answer.raise_for_status()
        return nrrd_array(answer.content)[0]

    alone = [ask(name) for name in names]
    waits, done = [], threading.Event()

    def watch() -> None:
        with httpx.Client() as session:
            while not done.is_set():
                began = time.perf_counter()
                session.get(f"{server.url}/info/").raise_for_status()
                waits.append(time.perf_counter() - began)
                time.sleep(0.01)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(ask, names))
    done.set()
    watcher.join()
    for one, other in zip(alone, together, strict=True):
        assert one.any()
        assert np.array_equal(one, other)
    # Blocking would make /info/ wait for a whole run; how many milliseconds it takes is for `bench` to say.
    assert len(waits) > 10
    assert sorted(waits)[len(waits) // 2] < 1


def test_a_file_added_while_the_server_runs_is_found(server, studies, phantom):
    write_series(phantom, studies / "later")
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if "later" in httpx.get(f"{server.url}/datastore/?output=all").json()["objects"]:
            break
        time.sleep(1)
    answer = httpx.head(f"{server.url}/datastore/image?image=later", timeout=60)
    assert answer.status_code == 200


def test_the_stock_command_starts_the_app(tmp_path, studies):
    port = free_port()
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = [
        "monailabel",
        "start_server",
        "--app",
        ".",
        "--studies",
        str(studies),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline:
            assert process.poll() is None, (tmp_path / "log").read_text()[-2000:]
            try:
                info = httpx.get(f"http://127.0.0.1:{port}/info/", timeout=5).json()
                break
            except httpx.TransportError:
                time.sleep(0.5)
        assert "ibis_agent" in info["models"]
        assert httpx.post(f"http://127.0.0.1:{port}/infer/nobody?image=x").status_code == 404
        assert httpx.post(f"http://127.0.0.1:{port}/reload").status_code == 404
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


def test_pages_of_other_sites_may_not_read_answers(server):
    answer = httpx.get(f"{server.url}/info/", headers={"Origin": "https://elsewhere.example"})
    assert "access-control-allow-origin" not in answer.headers


def test_work_stops_when_its_client_hangs_up(server):
    url = f"{server.url}/infer/ibis_agent?image=patient_one_ct&output=json"
    for _ in range(2):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url, data=form(prompt="bones; liver; spleen; body; left kidney; lungs"), timeout=1)
    began = time.perf_counter()
    answer = httpx.post(
        f"{server.url}/infer/ibis_click_2d?image=copy0", data=form(foreground=[[20, 20, 5]], background=[]), timeout=120
    )
    assert answer.status_code == 200
    assert time.perf_counter() - began < 60


def test_points_keep_to_the_budget(server):
    points = [[i % 40 + 5, i // 40 + 5, 5] for i in range(900)]
    body = form(foreground=points, background=[], budget_s=0.5)
    answer = httpx.post(f"{server.url}/infer/ibis_click_2d?image=copy0&output=json", data=body, timeout=60)
    assert answer.json()["status"] == "incomplete"


def test_deep_and_long_params_are_bad_input(server):
    for params in (
        "[" * 100_000,
        '{"a":' * 600 + "1" + "}" * 600,
        '{"prompt": ' + "9" * 5000 + "}",
        '{"slices": "' + "9" * 5000 + '"}',
    ):
        answer = httpx.post(f"{server.url}/infer/ibis_agent?image=nifti", data={"params": params}, timeout=60)
        assert answer.status_code == 422, answer.text[:200]


def test_uploads_are_checked_and_leave_nothing(server, studies):
    import tempfile

    before = set(os.listdir(tempfile.gettempdir()))
    for name, content, image in (
        ("x.exe", b"x", "x"),
        ("x.nii.gz", b"", "x"),
        ("x.json", b"{}", "datastore_v2"),
        ("x.nrrd", b"x", "patient_one_ct"),
        ("a b.nii.gz", b"x", ""),
    ):
        files = {"file": (name, content)}
        answer = httpx.put(f"{server.url}/datastore/image?image={image}", files=files, data=form(), timeout=60)
        assert answer.status_code == 422, (name, answer.text)
    for params in ("[1]", "{"):
        label = {"label": ("x.nrrd", b"NRRD")}
        answer = httpx.put(f"{server.url}/datastore/label?image=nifti", files=label, data={"params": params}, timeout=60)
        assert answer.status_code == 422
    assert not {name for name in set(os.listdir(tempfile.gettempdir())) - before if name.startswith(("ibis-", "tmp"))}
    assert not (studies / "x.exe").exists()


def test_labelled_images_can_be_fetched_as_an_archive(server, studies, tmp_path):
    volume = load_volume(studies / "copy3.nii.gz")
    write_mask(tmp_path / "x.nrrd", (volume.data > 0).astype(np.uint8), volume)
    url = f"{server.url}/datastore/label?image=copy3"
    label = {"label": ("x.nrrd", (tmp_path / "x.nrrd").read_bytes())}
    assert httpx.put(url, files=label, data=form(), timeout=60).status_code == 200
    refused = httpx.put(url, files={"label": ("x.nrrd", b"NRRD0004 anything")}, data=form(), timeout=60)
    assert refused.status_code == 422, "no label: the earlier one stays"
    answer = httpx.get(f"{server.url}/datastore/dataset", timeout=60)
    assert any("copy3" in name for name in zipfile.ZipFile(io.BytesIO(answer.content)).namelist())
