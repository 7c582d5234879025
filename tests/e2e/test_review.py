"""The review page in a real browser, on a real server: watch, stop, correct, accept; with keyboard, light and dark."""

import httpx
import nibabel
import numpy as np
import pytest

from lib.imaging.masks import write_volume
from lib.imaging.phantom import make_phantom
from lib.imaging.planes import Plane, ViewGrid
from lib.server.process import ServerProcess
from tests.e2e.conftest import voxel_in
from tests.e2e.reviewing import Reviewer, browser, finished, first_paint, mask, scroll_rate, view_point

pytestmark = pytest.mark.e2e

LONG = "bones; liver; spleen; body; left kidney; lungs"
AXE = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}


@pytest.fixture(scope="module")
def ct():
    return make_phantom(3, spacing=(4.0, 4.0, 8.0))


@pytest.fixture(scope="module")
def server(ct, tmp_path_factory):
    folder = tmp_path_factory.mktemp("review")
    write_volume(folder / "ct.nii.gz", ct.volume)
    noise = np.random.default_rng(1).integers(-200, 300, (512, 512, 1), dtype=np.int16)
    big = noise + np.arange(300, dtype=np.int16)
    nibabel.save(nibabel.Nifti1Image(big, np.diag([0.7, 0.7, 1.0, 1.0])), folder / "big.nii")
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


def test_a_run_is_watched_turn_by_turn_and_stopped(reviewer, http):
    reviewer.open()
    reviewer.choose("ct")
    reviewer.start(LONG)
    seen = {}
    while len(seen) < 4:
        reviewer.until("/^Turn/.test(document.getElementById('hud-turn').textContent)")
        names = ["run-status", "hud-slice", "hud-turn", "hud-action", "thought"]
        state = reviewer.page.evaluate("names => names.map(id => document.getElementById(id).textContent)", names)
        assert state[0] in ("running", "waiting")
        if state[3]:
            seen[state[1], state[2].split(" of")[0]] = state
    assert all("click" in one[3] or "Terminate" in one[3] for one in seen.values())
    assert any(len(one[4]) > 20 for one in seen.values())
    reviewer.page.click("#stop")
    reviewer.until_status("stopped")
    assert http.get(f"/ibis/runs/{reviewer.run_id()}").json()["status"] == "cancelled"
    reviewer.page.click("#resume")
    reviewer.until_status("running", "waiting")
    reviewer.page.keyboard.press("s")
    reviewer.until_status("stopped")


def test_a_click_corrects_the_mask_and_can_be_taken_back(reviewer, http, ct, tmp_path):
    key, index = finished(reviewer, ct)
    before = mask(http, key)
    assert f"mask {np.count_nonzero(before)} pixels" in reviewer.page.locator("#stage").get_attribute("aria-label")
    _, x, y = view_point(ct, voxel_in(ct.labels["spleen"], voxel_in(ct.labels["liver"])[2]))
    reviewer.page.keyboard.press("Shift+P")
    reviewer.page.keyboard.press("p")
    reviewer.click_at(x, y)
    reviewer.until("document.getElementById('hud-state').textContent.includes('corrected')")
    after = mask(http, key)
    assert (before != after).any()
    assert f"mask {np.count_nonzero(after)} pixels" in reviewer.page.locator("#stage").get_attribute("aria-label")
    step = http.get(f"/ibis/runs/{key}/trace").json()["slices"][0]["steps"][-1]
    assert (step["actor"], step["action"]["kind"]) == ("annotator", "positive")
    assert step["action"]["x"] == pytest.approx(x, abs=0.01)
    assert step["action"]["y"] == pytest.approx(y, abs=0.01)
    reviewer.page.keyboard.press("Control+z")
    reviewer.until("!document.getElementById('hud-state').textContent.includes('corrected')")
    assert (mask(http, key) == before).all()
    reviewer.click_at(x, y, modifiers=("Shift",))
    reviewer.until("document.getElementById('hud-state').textContent.includes('corrected')")
    assert http.get(f"/ibis/runs/{key}/trace").json()["slices"][0]["steps"][-1]["action"]["kind"] == "negative"
    reviewer.page.keyboard.press("l")
    reviewer.until("document.getElementById('lock').textContent === 'Unlock'")
    reviewer.click_at(x, y)
    reviewer.until("document.getElementById('notices').textContent.includes('This slice is locked: unlock it first.')")
    reviewer.page.keyboard.press("l")
    reviewer.until("document.getElementById('lock').textContent === 'Lock'")
    reviewer.page.keyboard.press("c")
    reviewer.until("document.getElementById('turns').lastElementChild.textContent.includes('Terminate')")
    reviewer.until_status("complete")
    assert index == http.get(f"/ibis/runs/{key}/trace").json()["slices"][0]["index"]
    with reviewer.page.expect_download() as saved:
        reviewer.page.click("#download")
    assert saved.value.suggested_filename == f"{key}.nii.gz"
    assert (np.asarray(nibabel.load(saved.value.path().rename(tmp_path / "mask.nii.gz")).dataobj) == mask(http, key)).all()


def test_the_keyboard_alone_is_enough(reviewer, http, ct):
    key, _ = finished(reviewer, ct)
    before = mask(http, key)
    reviewer.page.locator("#stage").focus()
    for pressed in ("1", "n", "Shift+ArrowLeft", "ArrowDown", "Enter"):
        reviewer.page.keyboard.press(pressed)
    reviewer.until("document.getElementById('hud-state').textContent.includes('corrected')")
    point = http.get(f"/ibis/runs/{key}/trace").json()["slices"][0]["steps"][-1]["action"]
    width, height = ViewGrid(ct.volume, Plane.AXIAL).size
    assert (point["x"], point["y"]) == (pytest.approx(0.5 - 10 / width, abs=1e-3), pytest.approx(0.5 + 1 / height, abs=1e-3))
    assert (mask(http, key) != before).any() or before.any()
    reviewer.page.keyboard.press("?")
    assert reviewer.page.locator("#keys").is_visible()
    reviewer.page.keyboard.press("Escape")
    assert not reviewer.page.locator("#keys").is_visible()


def test_a_link_leads_to_the_turn_and_turns_can_be_stepped_through(reviewer, ct):
    key, index = finished(reviewer, ct)
    link = f"#run={key}&target=1&plane=axial&slice={index}&turn=1"
    reviewer.open(link)
    reviewer.until_painted()
    reviewer.until("document.getElementById('hud-turn').textContent.startsWith('Turn 1 of')")
    assert reviewer.text("hud-slice") == f"Slice {index}"
    turns = int(reviewer.text("hud-turn").split()[-1])
    for turn in range(2, turns + 1):
        reviewer.page.keyboard.press("ArrowRight")
        reviewer.until(f"document.getElementById('hud-turn').textContent === 'Turn {turn} of {turns}'")
    reviewer.page.keyboard.press("ArrowRight")
    reviewer.until("document.getElementById('hud-turn').textContent === 'Result'")
    reviewer.page.keyboard.press("ArrowLeft")
    reviewer.until(f"location.hash.endsWith('turn={turns}')")
    reviewer.page.keyboard.press("2")
    reviewer.until("location.hash.includes('plane=coronal')")
    reviewer.until("document.getElementById('summary').textContent.includes('works on axial slices')")
    reviewer.page.keyboard.press("1")
    reviewer.until(f"document.getElementById('hud-slice').textContent === 'Slice {index}'")


def test_window_zoom_and_pan_by_mouse(reviewer):
    reviewer.open()
    reviewer.choose("ct")
    room = reviewer.page.locator("#stage").bounding_box()
    x, y = room["x"] + room["width"] / 2, room["y"] + room["height"] / 2
    before = reviewer.text("hud-window")
    reviewer.page.mouse.move(x, y)
    reviewer.page.mouse.down(button="right")
    reviewer.page.mouse.move(x + 60, y - 40, steps=4)
    reviewer.page.mouse.up(button="right")
    reviewer.until(f"document.getElementById('hud-window').textContent !== {before!r}")
    scale = reviewer.page.evaluate("() => document.getElementById('hud-bar').style.width")
    reviewer.page.keyboard.down("Control")
    reviewer.page.mouse.wheel(0, -300)
    reviewer.page.keyboard.up("Control")
    reviewer.until(f"document.getElementById('hud-bar').style.width !== {scale!r}")
    slice_ = reviewer.text("hud-slice")
    reviewer.page.mouse.wheel(0, 120)
    reviewer.until(f"document.getElementById('hud-slice').textContent !== {slice_!r}")
    reviewer.page.keyboard.press("f")
    reviewer.until(f"document.getElementById('hud-bar').style.width === {scale!r}")


def test_what_goes_wrong_is_said_in_a_sentence(reviewer, ct, server):
    reviewer.open()
    reviewer.choose("ct")
    reviewer.start("liver", slices="0-1")
    reviewer.page.click("#another")
    reviewer.page.fill("#prompt", "liver")
    reviewer.page.fill("#run-some", "900")
    reviewer.page.click("#start")
    reviewer.until("document.getElementById('run-status').textContent === 'failed'")
    assert "slice 900 does not exist" in reviewer.text("run-answer").lower()
    reviewer.open("#run=0123456789abcdef")
    reviewer.until("document.getElementById('notices').textContent.includes('does not exist')")
    reviewer.open("#image=nothing")
    reviewer.until("document.getElementById('notices').textContent.includes('does not exist')")
    reviewer.page.context.route("**/ibis/images/ct?*", lambda route: route.abort())
    reviewer.page.locator("#images").get_by_role("button", name="ct").first.click()
    reviewer.until("document.getElementById('notices').textContent.includes('The server cannot be reached.')")


def test_names_keep_people_apart(reviewer, chromium, server, ct):
    key, _ = finished(reviewer, ct)
    other = Reviewer(chromium, server.url, "Åsa; a stranger")
    other.open(f"#run={key}")
    other.until("document.getElementById('notices').textContent.includes('does not exist')")
    other.until("document.getElementById('runs').textContent.includes('None yet.')")
    other.page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_use_it(chromium, server, ct, scheme):
    from axe_playwright_python.sync_playwright import Axe

    person = Reviewer(chromium, server.url, f"axe-{scheme}", scheme)
    axe = Axe()

    def check(what: str) -> None:
        found = axe.run(person.page, options=AXE).response["violations"]
        grave = [
            (one["id"], [node["html"][:120] for node in one["nodes"]])
            for one in found
            if one["impact"] in ("serious", "critical")
        ]
        assert grave == [], what

    person.open()
    person.until("document.getElementById('images').children.length > 0")
    check("nothing chosen")
    person.choose("ct")
    check("form")
    finished(person, ct)
    check("run")
    person.page.click("#tab-worst")
    check("where to look")
    person.page.click("#tab-label")
    check("label")
    person.page.keyboard.press("?")
    check("help")
    person.page.keyboard.press("Escape")
    person.page.click("#identity")
    check("name and token")
    person.page.context.close()


def test_the_label_is_submitted_and_graded(reviewer, http, ct):
    key, _ = finished(reviewer, ct)
    reviewer.page.click("#tab-label")
    reviewer.page.click("#submit")
    reviewer.until("document.getElementById('notices').textContent.includes('is stored')")
    reviewer.until("document.querySelector('#gradings .grading')")
    assert "Dice 100 %" in reviewer.text("gradings")
    assert http.get(f"/ibis/runs/{key}/gradings").json()["gradings"][0]["slices"]


def test_rewards_are_shown_and_a_reason_is_sent(reviewer, ct):
    """Against the routes' contract: a server that grades is not needed to see how gradings look."""
    key, index = finished(reviewer, ct)
    turn = {"turn": 1, "total": 0.75, "parts": {"click_place": 0.25, "progress": 0.5}}
    slice_ = {"index": index, "iou": 0.91, "total": 1.5, "parts": {"answer": 1.0, "mask_iou": 0.5}, "steps": [turn]}
    facts = {"id": "g1", "annotator": "ann", "source": "page", "time": "2026-01-02T03:04:05+00:00", "target": 1, "dice": 0.953}
    store = {"gradings": [], "rejections": []}
    sent = []

    def gradings(route):
        route.fulfill(json=store)

    def label(route):
        sent.append((route.request.method, route.request.post_data))
        store["gradings"] = [{**facts, "slices": [slice_]}]
        route.fulfill(json={"image": "ct", "label": "ct", "grading": "queued"})

    def reject(route):
        sent.append((route.request.method, route.request.post_data_json))
        store["rejections"] = [{"reason": "wrong organ", "annotator": "ann", "time": 0, "target": 1}]
        route.fulfill(json={})

    reviewer.page.context.route("**/gradings?*", gradings)
    reviewer.page.context.route("**/label?*", label)
    reviewer.page.context.route("**/reject?*", reject)
    reviewer.open(f"#run={key}&slice={index}")
    reviewer.until_painted()
    reviewer.page.click("#tab-label")
    reviewer.until("document.getElementById('submit').getAttribute('aria-disabled') === 'false'")
    reviewer.page.click("#submit")
    reviewer.until("document.getElementById('gradings').textContent.includes('Dice 95 %')")
    reviewer.page.get_by_text("Parts of the reward").click()
    assert reviewer.page.get_by_text("mask iou").is_visible()
    assert reviewer.page.get_by_text("Turn 1: 0.75").is_visible()
    reviewer.page.click("#reject button")
    reviewer.until("document.getElementById('notices').textContent.includes('Say in a few words')")
    reviewer.page.fill("#reason", "wrong organ")
    reviewer.page.click("#reject button")
    reviewer.until("document.getElementById('gradings').textContent.includes('Rejected: wrong organ')")
    reviewer.page.click("#tab-turns")
    reviewer.until("document.getElementById('turns').firstElementChild.textContent.includes('Reward 0.75')")
    assert sent == [("PUT", None), ("POST", {"reason": "wrong organ"})]


def test_a_token_is_asked_for_and_sent(reviewer, server):
    shown = []

    def door(route):
        shown.append(route.request.headers.get("authorization"))
        if shown[-1] == "Bearer s3cret":
            route.continue_()
        else:
            route.fulfill(status=401, json={"detail": "a token is needed: send it as 'Authorization: Bearer TOKEN'"})

    reviewer.page.context.route(f"{server.url}/ibis/images?*", door)
    reviewer.open()
    reviewer.until("document.getElementById('who').open")
    reviewer.until("document.getElementById('notices').textContent.includes('A token is needed')")
    reviewer.page.fill("#who-token", "s3cret")
    reviewer.page.locator("#who").get_by_role("button", name="Save").click()
    reviewer.until("document.getElementById('images').textContent.includes('ct')")
    assert shown == [None, "Bearer s3cret"]
    assert reviewer.page.evaluate("() => localStorage.getItem('ibis-token')") is None


def test_the_theme_is_chosen_and_kept(reviewer):
    reviewer.open()
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = reviewer.page.evaluate(f"() => {ground}")
    reviewer.page.click("#theme")
    reviewer.until(f"{ground} !== {dark!r}")
    reviewer.open()
    reviewer.until(f"{ground} !== {dark!r}")
    assert reviewer.text("theme") == "Theme: light"


def test_it_is_quick(reviewer, ct, capsys):
    key, _ = finished(reviewer, ct)
    paint, whole = first_paint(reviewer, f"#run={key}")
    rate, longest = scroll_rate(reviewer, "big")
    with capsys.disabled():
        print(
            f"\nreview page: first paint {paint:.2f} s, slice and turns {whole:.2f} s; 512 x 512 x 300: {rate:.0f} slices/s, "
            f"longest wait {longest:.2f} s"
        )
    assert paint < 5
    assert rate > 5
