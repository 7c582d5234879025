"""Driving the review page in a real browser."""

import gzip
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import nibabel
import numpy as np
import pytest

from lib.imaging.phantom import Phantom
from lib.imaging.planes import Plane, ViewGrid, VoxelIndex
from tests.e2e.conftest import voxel_in

FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync --disable-dev-shm-usage"
)
PATIENCE_S = 60
SIZE = {"width": 1280, "height": 800}
_SCROLL = """async () => {
  const stage = document.getElementById("stage"), slice = document.getElementById("hud-slice");
  const last = Number(document.getElementById("strip").getAttribute("aria-valuemax"));
  const frame = () => new Promise(requestAnimationFrame);
  const began = performance.now();
  let painted = 0, longest = 0, since = began;
  for (let at = 0; at < last;) {
    if (slice.textContent === `Slice ${at}`) {
      const now = performance.now();
      longest = Math.max(longest, now - since);
      since = now;
      painted++;
      at++;
      stage.dispatchEvent(new WheelEvent("wheel", { deltaY: 120, bubbles: true, cancelable: true }));
    }
    await frame();
  }
  return { slices: painted, seconds: (performance.now() - began) / 1000, longest: longest / 1000 };
}"""

_SLOW = """() => {
  const before = window.fetch;
  window.fetch = async (address, options) => {
    if (options?.method === "POST") await new Promise(resolve => setTimeout(resolve, 500));
    return before(address, options);
  };
}"""


@contextmanager
def browser() -> Iterator:
    """The system's Chromium. Skips where there is none."""
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("chromium is not on the PATH (apt-get install chromium): the review page is not tried in a browser")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=path, args=FLAGS.split())
        try:
            yield chromium
        finally:
            chromium.close()


class Reviewer:
    """A person at the page. `faults` holds what the page threw or was not allowed to do."""

    def __init__(self, chromium, url: str, name: str, scheme: str = "dark"):
        self.url = url
        context = chromium.new_context(viewport=SIZE, color_scheme=scheme)
        context.add_init_script(f"if (location.protocol !== 'about:') localStorage.setItem('ibis-user', {name!r})")
        context.route(lambda address: not address.startswith((url, "data:", "blob:")), lambda route: route.abort())
        self.page = context.new_page()
        self.page.set_default_timeout(PATIENCE_S * 1000)
        self.faults: list[str] = []
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("console", lambda said: self.faults.append(said.text) if "Content Security" in said.text else None)

    def open(self, link: str = "") -> None:
        self.page.goto("about:blank")
        self.page.goto(f"{self.url}/ibis/{link}")

    def text(self, name: str) -> str:
        return self.page.locator(f"#{name}").text_content() or ""

    def until(self, expression: str, patience_s: float = PATIENCE_S) -> None:
        """Wait for a JavaScript expression to be true. The page's own rules forbid what Playwright would do for that."""
        deadline = time.monotonic() + patience_s
        while not self.page.evaluate(f"() => Boolean({expression})"):
            assert time.monotonic() < deadline, f"never: {expression}; notices: {self.text('notices')!r}"
            self.page.wait_for_timeout(20)

    def until_painted(self) -> None:
        self.until("/^Slice \\d+$/.test(document.getElementById('hud-slice').textContent)")

    def choose(self, image: str) -> None:
        self.page.locator("#images").get_by_role("button", name=image).first.click()
        self.until(f"document.getElementById('where').textContent === '{image}'")
        self.until_painted()

    def start(self, prompt: str, slices: str = "all") -> None:
        self.page.fill("#prompt", prompt)
        if slices in ("all", "auto"):
            self.page.select_option("#run-slices", slices)
        else:
            self.page.select_option("#run-slices", "some")
            self.page.fill("#run-some", slices)
        self.page.click("#start")
        self.until("document.getElementById('run-title').textContent !== '' && !document.getElementById('run').hidden")

    def run_id(self) -> str:
        self.until("location.hash.includes('run=')")
        return re.search(r"run=([0-9a-f]{16})", self.page.url)[1]

    def slow(self) -> None:
        """From now on every change takes half a second longer to reach the server."""
        self.page.evaluate(_SLOW)

    def until_status(self, *words: str) -> None:
        self.until(f"{list(words)!r}.includes(document.getElementById('run-status').textContent)")

    def go_to(self, index: int) -> None:
        """By the strip, as a person with the keyboard does."""
        strip = self.page.locator("#strip")
        strip.focus()
        strip.press("Home")
        for _ in range(index // 10):
            strip.press("PageUp")
        for _ in range(index % 10):
            strip.press("ArrowRight")
        self.until(f"document.getElementById('hud-slice').textContent === 'Slice {index}'")

    def click_at(self, x: float, y: float, modifiers: tuple = ()) -> None:
        """Press the left button at a point of the view, 0..1. The picture must not have been zoomed."""
        room = self.page.locator("#canvas").bounding_box()
        width, height = self.page.evaluate("() => document.getElementById('stage').dataset.size.split(',')")
        scale = min(room["width"] / int(width), room["height"] / int(height))
        left = room["x"] + (room["width"] - int(width) * scale) / 2
        top = room["y"] + (room["height"] - int(height) * scale) / 2
        for key in modifiers:
            self.page.keyboard.down(key)
        self.page.mouse.click(left + x * int(width) * scale, top + y * int(height) * scale)
        for key in modifiers:
            self.page.keyboard.up(key)


def mask(http: httpx.Client, key: str) -> np.ndarray:
    """A run's mask `[i, j, k]`, as the server gives it."""
    answer = http.get(f"/ibis/runs/{key}/mask?format=nii.gz").raise_for_status()
    return np.asarray(nibabel.Nifti1Image.from_bytes(gzip.decompress(answer.content)).dataobj)


def steps_of(http: httpx.Client, key: str, index: int) -> list[dict]:
    """The turns of a slice of a run, as its trace has them."""
    slices = http.get(f"/ibis/runs/{key}/trace").raise_for_status().json()["slices"]
    return next(one["steps"] for one in slices if one["index"] == index)


def labelled(http: httpx.Client) -> list[str]:
    """The images with a final label."""
    return [one["id"] for one in http.get("/ibis/images").json()["images"] if one["labelled"]]


def view_point(phantom: Phantom, voxel: list[int]) -> tuple[int, float, float]:
    """The axial slice of a voxel, and its place in the view, 0..1."""
    index, point = ViewGrid(phantom.volume, Plane.AXIAL).to_view(VoxelIndex(*voxel))
    return index, point.x, point.y


def finished(reviewer: Reviewer, phantom: Phantom, prompt: str = "liver") -> tuple[str, int]:
    """A run of one slice of the image `ct`, shown at its end; and the slice."""
    index, _, _ = view_point(phantom, voxel_in(phantom.labels[prompt]))
    reviewer.open()
    reviewer.choose("ct")
    reviewer.start(prompt, slices=str(index))
    reviewer.until_status("complete")
    reviewer.go_to(index)
    return reviewer.run_id(), index


def scroll_rate(reviewer: Reviewer, image: str, plane: int = 1) -> tuple[float, float]:
    """Wheel through all slices of a plane (1 axial, 2 coronal, 3 sagittal) as fast as the page paints them.

    Slices per second and the longest wait in seconds, with all loading. A slice counts when it is on the screen.
    """
    reviewer.open()
    reviewer.choose(image)
    reviewer.page.keyboard.press(str(plane))
    reviewer.page.wait_for_timeout(100)
    strip = reviewer.page.locator("#strip")
    strip.focus()
    strip.press("Home")
    found = reviewer.page.evaluate(_SCROLL)
    return found["slices"] / found["seconds"], found["longest"]


def first_paint(reviewer: Reviewer, link: str) -> tuple[float, float]:
    """Seconds from opening a link to a run: to the browser's first contentful paint, and to slice and turns."""
    reviewer.open()
    reviewer.page.goto("about:blank")
    began = time.perf_counter()
    reviewer.page.goto(f"{reviewer.url}/ibis/{link}")
    reviewer.until_painted()
    reviewer.until("document.getElementById('turns').children.length > 0")
    whole = time.perf_counter() - began
    paint = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
    return reviewer.page.evaluate(f"() => {paint}") / 1000, whole
