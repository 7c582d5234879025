"""The bundled OHIF in a real browser, on a real PACS: MONAI Label's own panel, and ours, until the label is in the PACS."""

import gzip
from collections.abc import Iterator
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pytest

from lib.imaging.phantom import make_phantom, write_series
from tests.e2e.conftest import voxel_in
from tests.e2e.ohif import Ohif, browser
from tests.e2e.orthanc import Site, site

pytestmark = pytest.mark.e2e

KEPT = Path(__file__).resolve().parents[2] / "out" / "ohif"
SEEDS = (3, 4)
NAME = "PHANTOM, SEED4"


@pytest.fixture(scope="module")
def phantoms():
    return {seed: make_phantom(seed, spacing=(4.0, 4.0, 10.0)) for seed in SEEDS}


@pytest.fixture(scope="module")
def running(phantoms, tmp_path_factory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("ohif")
    for seed, phantom in phantoms.items():
        write_series(phantom, folder / f"ct{seed}")
    files = [path for seed in SEEDS for path in sorted((folder / f"ct{seed}").iterdir())]
    with site(folder / "site", files) as found:
        yield found


@pytest.fixture(scope="module")
def chromium(running, tmp_path_factory):
    with browser(tmp_path_factory.mktemp("browser"), running) as found:
        yield found


@pytest.fixture
def viewer(chromium, running):
    person = Ohif(chromium, running.server.url)
    yield person
    assert person.faults == []
    person.close()


@pytest.fixture
def truth(phantoms):
    return phantoms[4].labels


def series_of(running: Site) -> str:
    (found,) = running.dicom("GET", "series", params={"PatientID": "PHANTOM-4", "Modality": "CT"}).json()
    return found["0020000E"]["Value"][0]


def newest_run(running: Site, user: str = "") -> tuple[str, dict[str, int], np.ndarray]:
    """Its id, the values of its targets, and its mask `[i, j, k]` in the image file's order."""
    run = running.ask("GET", "/ibis/runs", params={"client_id": user, "limit": 1}).json()["runs"][0]
    names = {target["name"]: target["value"] for target in run["targets"]}
    return run["id"], names, mask_of(running, run["id"], user)


def mask_of(running: Site, key: str, user: str = "") -> np.ndarray:
    answer = running.ask("GET", f"/ibis/runs/{key}/mask", params={"client_id": user, "format": "nii.gz"})
    assert answer.status_code == 200, answer.text
    return np.asarray(nibabel.Nifti1Image.from_bytes(gzip.decompress(answer.content)).dataobj)


def assert_only_in_order(shown: np.ndarray, mask: np.ndarray) -> None:
    """The same voxel for voxel; and a turned mask would have been noticed."""
    assert mask.any()
    assert np.array_equal(shown, mask)
    for axis in range(mask.ndim):
        assert not np.array_equal(shown, np.flip(mask, axis))


def coloured(picture: np.ndarray) -> int:
    """Pixels of the three viewports that are not grey."""
    room = picture[120:760, 300:990].astype(int)
    return int((np.ptp(room, axis=2) > 25).sum())


def test_the_study_list_is_filtered_by_the_pacs(viewer, running):
    viewer.open_list()
    assert viewer.patients() == ["PHANTOM, SEED3", "PHANTOM, SEED4"]
    viewer.asked.clear()
    viewer.page.locator("input[type=text]").first.fill("SEED4")
    viewer.page.wait_for_function("!document.body.textContent.includes('PHANTOM, SEED3')")
    assert viewer.patients() == ["PHANTOM, SEED4"]
    (asked,) = {address for address in viewer.asked if "PatientName" in address}
    assert "limit=" in asked
    found = running.ask("GET", asked.removeprefix(running.server.url)).json()
    assert [study["00100020"]["Value"] for study in found] == [["PHANTOM-4"]]


def test_monai_labels_own_panel(viewer, running, truth):
    viewer.open_list()
    viewer.open_study(NAME)
    assert viewer.page.input_value("#monailabelServerURL") == running.server.url
    viewer.connect()
    viewer.go_to(voxel_in(truth["liver"]))
    before = coloured(viewer.picture(KEPT / "connected.png"))

    viewer.type_prompt("the liver")
    sent = viewer.run(2)
    _, names, mask = newest_run(running)
    assert names == {"the liver": 1}
    voxels, segments = viewer.labels()
    assert_only_in_order(voxels == segments["target"], mask > 0)
    assert np.array_equal(np.frombuffer(sent[-mask.size :], np.uint8), mask.ravel(order="F"))
    viewer.go_to(voxel_in(truth["liver"]))
    assert coloured(viewer.picture(KEPT / "prompt.png")) > before + 1000

    viewer.type_prompt("")
    tab = viewer.tab(4)
    tab.locator("tr", has_text="spleen").locator("input").check()
    viewer.run(4)
    key, names, spleen = newest_run(running)
    voxels, segments = viewer.labels()
    assert_only_in_order(voxels == segments["spleen"], spleen == names["spleen"])
    assert np.array_equal(voxels == segments["target"], (mask > 0) & (spleen == 0))

    viewer.tab(3).locator("tr", has_text="kidney_left").click()
    meant = voxel_in(truth["kidney_left"])
    viewer.place_point(meant)
    with viewer.page.expect_request("**/infer/ibis_click_*") as asked:
        viewer.run(3)
    foreground = asked.value.post_data.split('"foreground":[[')[1].split("]")[0]
    point = [int(text) for text in foreground.split(",")]
    assert point[2] == meant[2]
    assert np.abs(np.subtract(point, meant)).max() <= 1, "a pixel of the screen is more than a voxel"
    voxels, segments = viewer.labels()
    other, _, clicked = newest_run(running)
    assert other != key
    assert voxels[tuple(point)] == segments["kidney_left"]
    assert_only_in_order((voxels == segments["kidney_left"])[:, :, point[2]], clicked[:, :, point[2]] > 0)
    viewer.picture(KEPT / "points.png")

    viewer.tab(1).get_by_role("button", name="Next Sample").click()
    assert "Series Instance UID2.25." in (viewer.page.locator(".nextSampleForm").text_content() or "")
    viewer.picture(KEPT / "next.png")


def test_from_prompt_to_submitted_label_without_leaving_the_viewer(viewer, running, truth, tmp_path):
    viewer.open_list()
    viewer.open_study(NAME)
    viewer.page.fill("#ibis-user", "ann")
    viewer.ask_agent("liver; spleen")
    viewer.page.wait_for_function("/^Slice \\d+, turn \\d+: .{20}/.test(document.getElementById('ibis-status').textContent)")
    viewer.picture(KEPT / "running.png")
    assert viewer.until_idle().startswith("liver: ")
    _, names, mask = newest_run(running, "ann")
    voxels, segments = viewer.labels()
    for name in ("liver", "spleen"):
        assert_only_in_order(voxels == segments[name], mask == names[name])

    viewer.page.locator("#ibis-prompt").scroll_into_view_if_needed()
    viewer.page.locator("button[data-tool=Brush], [data-cy=Brush]").first.click()
    x, y = viewer.go_to(voxel_in(truth["spleen"]))
    viewer.page.mouse.move(x, y)
    viewer.page.mouse.down()
    viewer.page.mouse.move(x + 6, y, steps=4)
    viewer.page.mouse.up()
    edited, segments = viewer.labels()
    assert not np.array_equal(edited, voxels)
    viewer.picture(KEPT / "edited.png")

    viewer.page.click("#ibis-submit")
    said = viewer.until_idle()
    assert said.startswith("The label is stored")
    assert "liver, spleen" in said
    stored = running.ask("GET", "/datastore/label", params={"label": series_of(running), "tag": "final"})
    (tmp_path / "label.nrrd").write_bytes(stored.content)
    label = nrrd.read(str(tmp_path / "label.nrrd"))[0]
    assert_only_in_order(label == 1, edited == segments["liver"])
    assert_only_in_order(label == 2, edited == segments["spleen"])
    info = running.ask("GET", "/datastore/label/info", params={"label": series_of(running), "tag": "final"}).json()
    assert info["label_info"] == [{"name": "liver", "idx": 1}, {"name": "spleen", "idx": 2}]


def test_the_panel_says_what_is_wrong_and_stops_a_run(viewer, running):
    viewer.open_list()
    viewer.open_study(NAME)
    viewer.page.click("#ibis-submit")
    assert viewer.until_idle() == "Nothing is drawn on this series yet."
    viewer.ask_agent("a unicorn")
    assert "unicorn" in viewer.until_idle()
    assert "ibis-wrong" in viewer.page.locator("#ibis-status").get_attribute("class")
    viewer.ask_agent("bones; liver; spleen; body")
    viewer.page.locator("#ibis-stop:enabled").wait_for()
    viewer.page.wait_for_function("document.getElementById('ibis-status').textContent.startsWith('Slice')")
    viewer.page.click("#ibis-stop")
    assert viewer.until_idle().startswith("Stopped")
    key, _, mask = newest_run(running)
    assert running.ask("GET", f"/ibis/runs/{key}").json()["status"] == "cancelled"
    assert np.array_equal(viewer.labels()[0] > 0, mask > 0)
