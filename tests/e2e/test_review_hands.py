"""The review page under quick hands, keys and odd links: nothing is lost, nothing jumps."""

import httpx
import numpy as np
import pytest
from PIL import Image

from lib.imaging.masks import write_volume
from lib.imaging.phantom import make_phantom
from lib.server.process import ServerProcess
from tests.e2e.conftest import voxel_in
from tests.e2e.reviewing import Reviewer, browser, finished, labelled, steps_of, view_point

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def ct():
    return make_phantom(3, spacing=(4.0, 4.0, 8.0))


@pytest.fixture(scope="module")
def server(ct, tmp_path_factory):
    folder = tmp_path_factory.mktemp("review")
    write_volume(folder / "ct.nii.gz", ct.volume)
    grey = np.random.default_rng(1).integers(0, 255, (120, 160), dtype=np.uint8)
    Image.fromarray(grey).save(folder / "photo.png")
    with ServerProcess(folder, tmp_path_factory.mktemp("log") / "server.log") as running:
        yield running


@pytest.fixture(scope="module")
def chromium():
    with browser() as found:
        yield found


@pytest.fixture
def reviewer(chromium, server, request):
    person = Reviewer(chromium, server.url, request.node.name)
    yield person
    assert person.faults == []
    person.page.context.close()


@pytest.fixture
def http(server, request):
    with httpx.Client(base_url=server.url, timeout=60, headers={"X-IBIS-User": request.node.name}) as client:
        yield client


def test_clicks_one_upon_the_other_all_arrive_and_undo_takes_the_last(reviewer, http, ct):
    key, index = finished(reviewer, ct)
    _, x, y = view_point(ct, voxel_in(ct.labels["liver"]))
    before = len(steps_of(http, key, index))
    posts = []
    reviewer.page.on("request", lambda sent: posts.append(sent.url) if sent.method == "POST" else None)
    reviewer.page.keyboard.press("p")
    reviewer.slow()
    for place in range(4):
        reviewer.click_at(x, y + 0.03 * place)
    reviewer.page.keyboard.press("Control+z")
    reviewer.until("document.getElementById('live').textContent.includes('was taken back')")
    assert [url.partition("?")[0].rpartition("/")[2] for url in posts] == ["clicks"] * 4 + ["undo"]
    placed = steps_of(http, key, index)[before:]
    assert [one["action"]["y"] for one in placed] == pytest.approx([y + 0.03 * place for place in range(4)], abs=0.01)
    assert [one["undone"] for one in placed] == [False, False, False, True]


def test_another_image_can_be_opened_while_a_click_is_under_way(reviewer, http, ct):
    key, index = finished(reviewer, ct)
    before = len(steps_of(http, key, index))
    reviewer.slow()
    reviewer.page.keyboard.press("p")
    with reviewer.page.expect_response("**/clicks?*"):
        reviewer.click_at(0.5, 0.5)
        reviewer.page.keyboard.press("u")
        reviewer.page.locator("#images").get_by_role("button", name="photo").first.click()
        reviewer.until("document.getElementById('where').textContent === 'photo'")
    reviewer.until("document.getElementById('notices').textContent !== ''")
    assert reviewer.text("notices") == "Another run was opened before your click could be taken back: it stays.Close"
    assert len(steps_of(http, key, index)) == before + 1


def test_the_focus_stays_with_who_uses_keys(reviewer, http, ct):
    index, _, _ = view_point(ct, voxel_in(ct.labels["liver"]))
    reviewer.open(f"#image=ct&slice={index}")
    reviewer.until_painted()
    reviewer.page.fill("#prompt", "liver")
    reviewer.page.select_option("#run-slices", "this")
    reviewer.page.focus("#start")
    reviewer.page.keyboard.press("Enter")
    reviewer.until_status("complete")
    assert reviewer.page.evaluate("() => document.activeElement.id") == "run-title"
    reviewer.page.click("#tab-label")
    assert reviewer.page.is_visible("#label-before") == ("ct" in labelled(http))
    reviewer.page.focus("#submit")
    reviewer.page.keyboard.press("Enter")
    reviewer.page.keyboard.press("Enter")
    reviewer.until("document.querySelector('#gradings .grading')")
    assert reviewer.page.evaluate("() => document.activeElement.id") == "submit"
    reviewer.until("!document.getElementById('label-before').hidden")
    assert "on the slices that have an answer; everything else in it stays" in " ".join(reviewer.text("label-before").split())
    assert labelled(http) == ["ct"]


def test_keys_of_one_character_can_be_switched_off(reviewer):
    mode = "document.getElementById('stage').dataset.mode"
    reviewer.open()
    reviewer.choose("ct")
    reviewer.page.keyboard.press("?")
    reviewer.page.get_by_label("Letters, digits and signs are keys").uncheck()
    reviewer.page.keyboard.press("Escape")
    for _ in ("at once", "after opening the page again"):
        reviewer.page.locator("#stage").focus()
        slice_ = reviewer.text("hud-slice")
        reviewer.page.keyboard.press("p")
        reviewer.page.keyboard.press("?")
        reviewer.page.keyboard.press("ArrowUp")
        reviewer.until(f"document.getElementById('hud-slice').textContent !== {slice_!r}")
        assert reviewer.page.evaluate(f"() => {mode}") == "browse"
        assert not reviewer.page.locator("#keys").is_visible()
        reviewer.open()
        reviewer.choose("ct")
    reviewer.page.click("#help")
    reviewer.page.get_by_label("Letters, digits and signs are keys").check()
    reviewer.page.keyboard.press("Escape")
    reviewer.page.keyboard.press("p")
    reviewer.until(f"{mode} === 'positive'")


def test_a_link_beyond_the_image_leads_to_its_end(reviewer, http, ct):
    key, _ = finished(reviewer, ct)
    for link, image in ((f"run={key}", "ct"), (f"run={key}&target=1", "ct"), ("image=ct", "ct"), ("image=photo", "photo")):
        if link.startswith("image"):
            reviewer.choose(image)
        planes = http.get(f"/ibis/images/{image}").json()["planes"]
        for plane in ("coronal", "axial"):
            reviewer.page.evaluate("hash => { location.hash = hash }", f"{link}&plane={plane}&slice=9999")
            seen = plane if plane in planes else "axial"
            reviewer.until(f"document.getElementById('hud-slice').textContent === 'Slice {planes[seen]['slices'] - 1}'")
            reviewer.until(f"document.getElementById('hud-state').textContent.startsWith({seen!r})")
            reviewer.until(f"location.hash.includes('plane={seen}&slice={planes[seen]['slices'] - 1}')")


@pytest.mark.parametrize("y", [0.3, 0.7])
def test_notices_neither_move_the_picture_nor_cover_the_click(reviewer, ct, y):
    finished(reviewer, ct)
    reviewer.page.keyboard.press("2")
    reviewer.page.keyboard.press("p")
    room = reviewer.page.locator("#canvas").bounding_box()
    reviewer.click_at(0.5, y)
    reviewer.until("document.getElementById('notices').textContent.includes('change to that plane to click')")
    assert reviewer.page.locator("#canvas").bounding_box() == room
    box = reviewer.page.locator(".notice").bounding_box()
    middle = room["y"] + room["height"] / 2
    assert room["y"] < box["y"] < box["y"] + box["height"] < room["y"] + room["height"]
    assert box["y"] > middle if y < 0.5 else box["y"] + box["height"] < middle
    reviewer.page.keyboard.press("Escape")
    assert reviewer.text("notices") == ""
