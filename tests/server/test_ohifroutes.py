import re

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from lib.server.ohifroutes import EXTENSION, VIEWER, ohif_routes


@pytest.fixture(scope="module")
def http():
    app = FastAPI()
    app.include_router(ohif_routes())
    return TestClient(app)


def test_the_viewers_configuration_ends_with_ours(http):
    text = http.get("/ohif/app-config.js").text
    assert text.startswith((VIEWER / "app-config.js").read_text(encoding="utf-8"))
    named = re.findall(r'push\("(/ohif/[^"]+)"\)', text)
    assert len(named) == 2
    for address in named:
        assert http.get(address).headers["content-type"].startswith("text/javascript")


def test_every_module_that_is_imported_is_served(http):
    for path in EXTENSION.glob("*.js"):
        for name in re.findall(r'from "\./([^"]+)"', path.read_text(encoding="utf-8")):
            assert http.get(f"/ohif/ibis/{name}").status_code == 200, (path.name, name)
    assert http.get("/ohif/ibis/panel.css").headers["content-type"].startswith("text/css")


def test_pages_are_the_viewers_one_page_and_files_are_files(http):
    page = (VIEWER / "index.html").read_bytes()
    for address in ("/ohif/", "/ohif/monai-label?StudyInstanceUIDs=1.2.3", "/ohif/viewer"):
        assert http.get(address).content == page
    assert http.get("/ohif/").headers["cache-control"] == "no-cache"
    bundle = next(VIEWER.glob("app.bundle.*.js"))
    answer = http.get(f"/ohif/{bundle.name}")
    assert "immutable" in answer.headers["cache-control"]
    assert answer.headers["content-type"].startswith("text/javascript")
    asset = next((VIEWER / "assets").iterdir())
    assert http.get(f"/ohif/assets/{asset.name}").content == asset.read_bytes()


@pytest.mark.parametrize("path", ["/ohif/%2e%2e/ohif.py", "/ohif/../../ohif.py", "/ohif//etc/passwd"])
def test_nothing_outside_the_viewer_is_served(http, path):
    answer = http.get(path)
    assert answer.status_code == 404 or answer.content == (VIEWER / "index.html").read_bytes()


@pytest.mark.parametrize("name", ["unknown.js", "README.md", "..%2f..%2fmain.py"])
def test_only_our_own_scripts_and_styles_are_served_as_ours(http, name):
    answer = http.get(f"/ohif/ibis/{name}")
    assert answer.status_code == 404 or answer.content == (VIEWER / "index.html").read_bytes()
