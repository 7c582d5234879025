"""What the review page is made of: its files, the slices it gets, and its reading of masks and journals."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lib.agent.episode import Actor, Step
from lib.agent.protocol import Click
from lib.imaging import rle
from lib.imaging.cache import VolumeCache
from lib.imaging.load import load_volume
from lib.imaging.masks import write_volume
from lib.imaging.planes import Plane, ViewGrid, ViewPoint
from lib.imaging.stacks import Encoding
from lib.imaging.views import View
from lib.imaging.volume import Modality, Volume
from lib.imaging.windows import choose_window
from lib.server import imageroutes
from lib.server.errors import HANDLERS
from lib.server.imageroutes import image_routes
from lib.server.jobs.recorder import mask_change
from lib.server.pageroutes import REVIEW, page_routes
from lib.server.store import StudiesDatastore

SHAPE = (20, 14, 6)


class App:
    """As much of the MONAI Label app as these routes use."""

    def __init__(self, folder):
        self._store = StudiesDatastore(str(folder), extensions=["*.nii.gz", "*.png"], auto_reload=False, read_only=False)

    def datastore(self):
        return self._store


def volume(data: np.ndarray, axes: str = "LPS", spacing=(1.0, 1.5, 4.0), modality=Modality.CT) -> Volume:
    """A volume whose array axes run along `axes`."""
    affine = np.eye(4)
    for axis, code in enumerate(axes):
        column = np.zeros(3)
        column["RAS".index(code) if code in "RAS" else "LPI".index(code)] = 1 if code in "RAS" else -1
        affine[:3, axis] = column * spacing[axis]
    return Volume(data, affine, modality, REVIEW)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(5)
    write_volume(tmp_path / "ct.nii.gz", volume(rng.integers(-1000, 1200, SHAPE).astype(np.int16), "PSR"))
    write_volume(tmp_path / "mr.nii.gz", volume(rng.gamma(2, 700, SHAPE).astype(np.float32), "RAI", modality=Modality.MR))
    write_volume(tmp_path / "huge.nii.gz", volume(rng.integers(0, 60_000, SHAPE).astype(np.int32)))
    from PIL import Image

    Image.fromarray(rng.integers(0, 255, (9, 12, 3), dtype=np.uint8)).save(tmp_path / "photo.png")
    return tmp_path


@pytest.fixture
def client(folder):
    app = FastAPI()
    app.router.routes.extend(image_routes(App(folder), VolumeCache(2**28)).routes)
    app.router.routes.extend(page_routes().routes)
    app.exception_handlers.update(HANDLERS)
    return TestClient(app)


def slices(client, image: str, plane: str, first: int, count: int = 1) -> np.ndarray:
    """Grey values `[slice, row, column]`, or RGB with a last axis, read as the page reads them."""
    shown = client.get(f"/ibis/images/{image}").json()
    view, stored = shown["planes"][plane], shown["stored"]
    answer = client.get(f"/ibis/images/{image}/slices/{plane}/{first}?count={count}")
    assert answer.status_code == 200, answer.text
    if stored["colour"]:
        return np.frombuffer(answer.content, np.uint8).reshape(-1, view["height"], view["width"], 3)
    found = np.frombuffer(answer.content, "<i2").reshape(-1, view["height"], view["width"])
    return found * stored["slope"] + stored["intercept"]


def test_the_list_names_the_images(client, folder):
    found = client.get("/ibis/images").json()["images"]
    assert [(one["id"], one["labelled"]) for one in found] == [(name, False) for name in ("ct", "huge", "mr", "photo")]


@pytest.mark.parametrize("image", ["ct", "mr", "huge"])
@pytest.mark.parametrize("plane", list(Plane))
def test_slices_are_what_the_agent_sees(client, folder, image, plane):
    source = load_volume(folder / f"{image}.nii.gz")
    window = choose_window(source)
    grid = ViewGrid(source, plane)
    found = slices(client, image, plane, 0, 64)
    assert len(found) == grid.slice_count
    for index, values in enumerate(found):
        seen = View(grid, index, window).grey().astype(int)
        assert np.abs(window.apply(values) - seen).max() <= 1


def test_a_picture_keeps_its_colours(client, folder):
    source = load_volume(folder / "photo.png")
    assert client.get("/ibis/images/photo").json()["planes"].keys() == {"axial"}
    found = slices(client, "photo", "axial", 0)
    assert (found[0] == View(ViewGrid(source, Plane.AXIAL), 0, choose_window(source)).image()).all()


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([np.int16, np.uint8, np.uint16, np.int32, np.float32]).flatmap(
        lambda kind: arrays(kind, (3, 4, 2), elements=st.integers(0, 255) if kind is np.uint8 else st.integers(0, 30_000))
    ),
    st.sampled_from([Modality.CT, Modality.MR]),
)
def test_no_value_is_lost_beyond_half_a_step(data, modality):
    encoding = Encoding.of(volume(data, modality=modality))
    stored = np.rint((data.astype(float) - encoding.intercept) / encoding.slope)
    assert stored.min() >= -32768
    assert stored.max() <= 32767
    assert np.abs(stored * encoding.slope + encoding.intercept - data).max() <= encoding.slope / 2 + 1e-6


def test_unchanged_slices_are_not_sent_again(client):
    first = client.get("/ibis/images/ct/slices/axial/1?count=2")
    assert first.headers["x-ibis-shape"].startswith("2,")
    tag = {"If-None-Match": f'"other", W/{first.headers["etag"]}'}
    again = client.get("/ibis/images/ct/slices/axial/1?count=2", headers=tag)
    assert (again.status_code, again.content) == (304, b"")
    assert client.get("/ibis/images/ct/slices/axial/2?count=2", headers=tag).status_code == 200


@pytest.mark.parametrize(
    ("path", "status", "word"),
    [
        ("nothing", 404, "nothing"),
        ("ct/slices/axial/999", 422, "999"),
        ("ct/slices/axial/-1", 422, "-1"),
        ("ct/slices/oblique/0", 422, "axial"),
        ("ct/slices/axial/0?count=0", 422, "count"),
        ("ct/slices/axial/0?count=1000", 422, "count"),
    ],
)
def test_what_cannot_be_shown_is_said(client, path, status, word):
    answer = client.get(f"/ibis/images/{path}")
    assert answer.status_code == status
    assert word in answer.text


def test_the_page_is_whole_and_runs_nothing_from_elsewhere(client):
    page = client.get("/ibis/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["cache-control"] == "no-cache"
    rules = page.headers["content-security-policy"]
    assert "default-src 'none'" in rules
    assert "unsafe" not in rules
    assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|\sstyle=|https?://", page.text)
    linked = re.findall(r'(?:src|href)="(page/[^"]+)"', page.text)
    names = {link.rsplit("/", 1)[1] for link in linked}
    assert names == {path.name for path in REVIEW.iterdir()} - {"index.html"}
    for link in linked:
        file = client.get(f"/ibis/{link}")
        kind = "text/javascript" if link.endswith(".js") else "text/css"
        assert file.headers["content-type"] == f"{kind}; charset=utf-8"
        assert "immutable" in file.headers["cache-control"]
        assert file.headers["x-content-type-options"] == "nosniff"
        assert not re.search(r"https?://|\beval\(|innerHTML|insertAdjacentHTML|document\.write", file.text)
        for imported in re.findall(r'from "\./([^"]+)"', file.text):
            assert imported in names, f"{link} imports {imported}"


def test_an_older_version_and_other_files_are_not_served(client):
    version = re.search(r"page/([0-9a-f]{16})/main\.js", client.get("/ibis/").text)[1]
    assert client.get(f"/ibis/page/{version}/main.js").status_code == 200
    for path in ("0" * 16 + "/main.js", f"{version}/index.html", f"{version}/nothing.js", f"{version}/..%2fserve.py"):
        assert client.get(f"/ibis/page/{path}").status_code == 404


def test_every_element_that_a_script_asks_for_is_there():
    page = (REVIEW / "index.html").read_text()
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    for script in REVIEW.glob("*.js"):
        for name in re.findall(r'\belement\("([^"]+)"\)', script.read_text()):
            assert name in ids, f"{script.name} asks for #{name}"
    for attribute in ("for", "aria-labelledby", "aria-describedby", "aria-controls"):
        for names in re.findall(rf'\b{attribute}="([^"]+)"', page):
            assert set(names.split()) <= {*ids, "keys-title"}, names


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """Runs a script with the page's modules beside it: JSON in, JSON out."""
    program = shutil.which("node")
    if program is None:
        pytest.skip("node is not on the PATH (apt-get install nodejs): the page's own reading of masks is not tried")
    folder = tmp_path_factory.mktemp("page")
    shutil.copytree(REVIEW, folder, dirs_exist_ok=True)
    (folder / "package.json").write_text('{"type": "module"}')

    def run(script: str, given):
        read = 'import { readFileSync } from "node:fs"; const given = JSON.parse(readFileSync(0, "utf8"));\n'
        (folder / "try.js").write_text(f"{read}{script}")
        done = subprocess.run([program, folder / "try.js"], input=json.dumps(given), capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


MASKS = """import { Mask } from "./mask.js";
console.log(JSON.stringify(given.map(([a, b]) => {
  const one = Mask.of(a), two = Mask.of(b), both = one.xor(two);
  return [[...one.pixels], one.area, [...both.pixels], both.area];
})));"""


def test_masks_are_read_as_they_were_written(node):
    rng = np.random.default_rng(3)
    sizes = [(1, 1), (1, 9), (9, 1), (7, 5), (64, 48), (130, 257)]
    pairs = [(rng.random(size) < p, rng.random(size) < q) for size in sizes for p in (0, 0.02, 0.5, 1) for q in (0, 0.3, 1)]
    disc = np.hypot(*np.indices((200, 180)) - 90) < 60
    pairs.append((disc, np.roll(disc, 7, axis=1)))
    found = node(MASKS, [[rle.encode(a), rle.encode(b)] for a, b in pairs])
    for (a, b), (pixels, area, both, both_area) in zip(pairs, found, strict=True):
        assert (np.array(pixels, bool).reshape(a.shape) == a).all()
        assert (np.array(both, bool).reshape(a.shape) == (a ^ b)).all()
        assert (area, both_area) == (int(a.sum()), int((a ^ b).sum()))


FOLD = """import { Run } from "./run.js";
const run = new Run({ id: "r", image: "ct", targets: [{ prompt: "liver", plane: "axial" }], status: "queued" });
console.log(JSON.stringify(given.map(event => {
  run.apply(event);
  const slice = run.slice(1, 4);
  return [run.status, slice && slice.steps.map((_, i) => [...slice.maskAfter(i)?.pixels ?? []]), slice?.area ?? 0];
})));"""


def test_the_mask_grows_with_the_events_of_a_journal(node):
    rng = np.random.default_rng(4)
    masks = [rng.random((12, 10)) < 0.4 for _ in range(4)]
    click = Click(ViewPoint(0.5, 0.5), positive=True)
    events = [
        {"kind": "queued"},
        {"kind": "started", "slices": [[4]], "content_hash": "x"},
        {"kind": "slice_started", "target": 1, "slice": 4},
    ]
    steps: list[Step] = []
    for turn, mask in enumerate(masks, start=1):
        steps.append(Step(turn, Actor.AGENT, "", "", click, rle.encode(mask)))
        action = {"kind": "positive", "x": 0.5, "y": 0.5}
        step = {"turn": turn, "actor": "agent", "thought": "", "action": action, "change": mask_change(steps)}
        events.append({"kind": "step", "target": 1, "slice": 4, **step})
    events.append({"kind": "step", "target": 1, "slice": 4, "turn": 5, "action": {"kind": "terminate"}, "change": None})
    found = node(FOLD, [{"seq": seq, **event} for seq, event in enumerate(events, start=1)])
    assert [status for status, _, _ in found] == ["queued", *["running"] * (len(events) - 1)]
    for turn, mask in enumerate([*masks, masks[-1]], start=1):
        _, shown, area = found[turn + 2]
        assert (np.array(shown[-1], bool).reshape(mask.shape) == mask).all()
        assert area == mask.sum()


ACROSS = """import { across } from "./across.js";
import { Mask } from "./mask.js";
const slices = given.masks.map((mask, index) => ({ index, mask: Mask.of(mask) }));
console.log(JSON.stringify(given.wanted.map(([to, index]) =>
  [...across(slices, given.from, to, index, given.planes)?.pixels ?? []])));"""


@pytest.mark.parametrize("axes", ["LPS", "RAS", "PSR", "IAL"])
@pytest.mark.parametrize("plane", list(Plane))
def test_masks_are_cut_across_as_the_views_lie(node, axes, plane):
    data = np.zeros((20, 14, 8), np.uint8)
    data[3:9, 2:11, 1:4] = 1
    data[12:, 9:, 5:] = 1
    source = volume(data, axes, spacing=(1.0, 1.0, 2.0))
    grids = {other: ViewGrid(source, other) for other in Plane}
    own = grids[plane]
    cuts = [own.enlarge(own.cut(data, index), 0).astype(bool) for index in range(own.slice_count)]
    wanted = [(other, index) for other, grid in grids.items() if other is not plane for index in range(grid.slice_count)]
    planes = {other: {"slices": g.slice_count, "width": g.size[0], "height": g.size[1]} for other, g in grids.items()}
    given = {"masks": [rle.encode(cut) for cut in cuts], "from": plane, "wanted": wanted, "planes": planes}
    for (other, index), pixels in zip(wanted, node(ACROSS, given), strict=True):
        grid = grids[other]
        expected = grid.enlarge(grid.cut(data, index), 0).astype(bool)
        found = np.array(pixels, bool).reshape(expected.shape) if pixels else np.zeros_like(expected)
        assert (found == expected).all(), (plane, other, index)


def test_an_answer_is_not_larger_than_a_browser_takes(client, monkeypatch):
    plane = client.get("/ibis/images/ct").json()["planes"]["axial"]
    each = plane["width"] * plane["height"] * 2
    monkeypatch.setattr(imageroutes, "_MOST_BYTES", 3 * each + 1)
    answer = client.get("/ibis/images/ct/slices/axial/0?count=64")
    assert len(answer.content) == 3 * each
    assert answer.headers["x-ibis-shape"].startswith("3,")
    monkeypatch.setattr(imageroutes, "_MOST_BYTES", 1)
    assert len(client.get("/ibis/images/ct/slices/axial/0?count=64").content) == each
