"""The proxy for OHIF, and the PACS's page of the API."""

import logging
import socket
import threading
import time
from contextlib import contextmanager

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from starlette.testclient import TestClient

from lib.imaging.cache import VolumeCache
from lib.imaging.phantom import make_phantom, write_series
from lib.server.pacs import proxy
from lib.server.pacs.build import WithoutQuery
from lib.server.pacs.datastore import PacsDatastore
from lib.server.pacs.poller import Poller
from lib.server.pacs.proxy import proxy_routes
from lib.server.pacs.routes import pacs_routes
from lib.server.pacs.settings import pacs_settings
from lib.server.pacs.web import DicomWeb
from lib.server.process import free_port
from tests.server.fakepacs import FakePacs
from tests.server.test_pacs_web import ids


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("series")
    write_series(make_phantom(1, spacing=(8.0, 8.0, 80.0)), folder)
    return sorted(folder.iterdir())


@pytest.fixture
def pacs(files):
    with FakePacs(files) as running:
        yield running


@pytest.fixture
def stored() -> list[int]:
    return []


@pytest.fixture
def browser(pacs, stored):
    web = DicomWeb(pacs.url, ("label", "server"), timeout_s=1)
    app = FastAPI()
    app.include_router(proxy_routes(web, lambda: stored.append(1)))
    with TestClient(app) as client:
        yield client


def test_query_strings_reach_the_pacs_as_they_are(browser, pacs):
    query = "limit=1&offset=0&PatientName=*M%C3%BCller%5E*&includefield=00081030%2C00080060&StudyDate=20200101-20201231"
    answer = browser.get(f"/proxy/dicom/qido/studies?{query}")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/dicom+json"
    assert len(answer.json()) == 1
    assert pacs.asked[-1] == ("GET", "studies", query)
    assert browser.get("/proxy/dicom/studies?limit=0").json() == []


def test_logins_and_cookies_stay_on_their_side(browser, pacs):
    answer = browser.get("/proxy/dicom/qido/series", headers={"Authorization": "Bearer mine", "Cookie": "a=b", "X-Own": "1"})
    given = pacs.requests[-1]
    assert given["authorization"].startswith("Basic ")
    assert not {"cookie", "x-own"} & given.keys()
    assert not {"set-cookie", "connection", "transfer-encoding"} & {name.lower() for name in answer.headers}


def test_an_image_comes_through(browser, pacs):
    study, series = ids(pacs)
    uid = next(iter(pacs.held))
    answer = browser.get(f"/proxy/dicom/wado/studies/{study}/series/{series}/instances/{uid}")
    assert pacs.held[uid] in answer.content
    assert answer.headers["content-type"].startswith("multipart/related")
    assert len(browser.get(f"/proxy/dicom/qido/studies/{study}/series/{series}/metadata").json()) == len(pacs.held)


@pytest.mark.parametrize(
    "path",
    [
        "servers",
        "instances/../../system",
        "studies/..%2f..%2fsystem",
        "wado/servers/x/stow",
        "studies/1.2/%2e%2e/%2e%2e/patients",
        "qido/studies//evil",
        "wado/studies/1?x/../..",
        "qido/",
        "studies/1.2;rm",
    ],
)
def test_nothing_but_dicomweb_can_be_reached(browser, pacs, path):
    answer = browser.get(f"/proxy/dicom/{path}")
    assert answer.status_code in (404, 422) or pacs.asked[-1][1].startswith("studies/1")
    assert not any("system" in asked or "servers" in asked or "patients" in asked for _, asked, _ in pacs.asked)


def test_only_new_instances_can_be_written(browser, pacs, stored, files):
    for path in ("wado/studies/1.2/series", "qido/series", "studies/1.2/reject/x"):
        assert browser.post(f"/proxy/dicom/{path}", content=b"x").status_code == 405
    assert browser.delete("/proxy/dicom/wado/studies/1.2").status_code == 405
    assert pacs.asked == []
    content = files[0].read_bytes()
    body = b"--b\r\nContent-Type: application/dicom\r\n\r\n" + content + b"\r\n--b--\r\n"
    kind = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=b'}
    answer = browser.post("/proxy/dicom/wado/studies", content=iter([body[:1000], body[1000:]]), headers=kind)
    assert answer.status_code == 200
    assert stored == [1]
    assert content in pacs.held.values()


def test_a_pacs_that_is_away_silent_or_locked_is_told_apart(browser, pacs):
    pacs.fault = lambda method, path: 401
    answer = browser.get("/proxy/dicom/qido/studies")
    assert (answer.status_code, "login" in answer.json()["detail"]) == (502, True)
    pacs.fault = lambda method, path: (404, '{"Message": "unknown"}')
    assert browser.get("/proxy/dicom/qido/studies/1.2/series").json() == {"Message": "unknown"}
    pacs.fault = lambda method, path: None
    pacs.silent_s = 3
    answer = browser.get("/proxy/dicom/qido/studies")
    assert (answer.status_code, "in time" in answer.json()["detail"]) == (504, True)
    pacs.stop()
    answer = browser.get("/proxy/dicom/qido/studies")
    assert (answer.status_code, "cannot be reached" in answer.json()["detail"]) == (502, True)


def test_an_image_that_is_cut_off_does_not_look_whole(browser, pacs):
    study, series = ids(pacs)
    pacs.fault = lambda method, path: 0
    with pytest.raises((httpx.HTTPError, RuntimeError, ExceptionGroup)):
        browser.get(f"/proxy/dicom/wado/studies/{study}/series/{series}/instances/{next(iter(pacs.held))}")


def test_the_access_log_names_no_patients():
    record = logging.LogRecord("uvicorn.access", 20, "", 0, '%s - "%s %s HTTP/%s" %d', (), None)
    record.args = ("127.0.0.1:1", "GET", "/proxy/dicom/qido/studies?PatientName=MILLER", "1.1", 200)
    assert WithoutQuery().filter(record)
    assert "MILLER" not in record.getMessage()


def test_what_the_pacs_sends_does_not_run_as_a_page_of_this_server(browser, pacs):
    pacs.fault = lambda method, path: (200, "<script>alert(1)</script>")
    headers = browser.get("/proxy/dicom/studies/1.2.3").headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-security-policy"] == "sandbox; default-src 'none'"


@contextmanager
def served(web: DicomWeb):
    """The proxy on a real socket: its port."""
    app = FastAPI()
    app.include_router(proxy_routes(web, lambda: None))
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="critical", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield port
    server.should_exit = True
    thread.join()


def stalled(port: int) -> socket.socket:
    """A browser that asks for something large and takes only its beginning."""
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(b"GET /proxy/dicom/studies/1.2.3 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    connection.recv(10)
    return connection


def test_a_browser_that_takes_nothing_is_hung_up_on(pacs, monkeypatch):
    monkeypatch.setattr(proxy, "LIMITS", httpx.Limits(max_connections=1))
    pacs.fault = lambda method, path: (200, "x" * 2**25) if path == "studies/1.2.3" else None
    web = DicomWeb(pacs.url)
    web.timeout = httpx.Timeout(5, read=1, pool=0.3)
    with served(web) as port, stalled(port):
        url = f"http://127.0.0.1:{port}/proxy/dicom/studies"
        busy = httpx.get(url)
        assert (busy.status_code, "too many" in busy.json()["detail"]) == (503, True)
        time.sleep(1.5)
        assert httpx.get(url).status_code == 200


@pytest.mark.parametrize("query", [b"PatientName=A#B", b"PatientName=M\xc3\xbcller"])
def test_a_query_that_is_not_encoded_is_no_error_of_the_server(pacs, query):
    with served(DicomWeb(pacs.url, timeout_s=1)) as port, socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"GET /proxy/dicom/studies?" + query + b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert int(connection.recv(100).split()[1]) in (200, 400, 422)


def test_the_page_of_the_pacs_shows_as_many_labels_as_asked_for(pacs, tmp_path):
    settings = pacs_settings({}).model_copy(update={"timeout_s": 1.0})
    store = PacsDatastore(DicomWeb(pacs.url, timeout_s=1), tmp_path, settings, {}, VolumeCache(1))
    (tmp_path / "label.nrrd").write_bytes(b"kept")
    keys = [store.outbox.new_key() for _ in range(3)]
    for key in keys:
        store.outbox.add(key, "1.2.3", tmp_path / "label.nrrd", {}, "ann", now=False)
    app = FastAPI()
    app.include_router(pacs_routes(store, Poller(store, 1)))
    with TestClient(app) as client:
        items = {limit: client.get(f"/ibis/pacs?limit={limit}").json()["outbox"]["items"] for limit in (0, 2, 100)}
        assert [len(found) for found in items.values()] == [0, 2, 3]
        assert [item["id"] for item in items[2]] == keys[:0:-1]
        assert client.get("/ibis/pacs?limit=-1").status_code == 422
        assert client.get("/ibis/pacs").json()["waiting"] == []
