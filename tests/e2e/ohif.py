"""Driving the bundled OHIF in a real browser that lives in the PACS's network namespace."""

import base64
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.e2e.orthanc import Site

FLAGS = (
    "--no-sandbox --use-gl=angle --use-angle=swiftshader --enable-unsafe-swiftshader --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync --disable-dev-shm-usage"
)
PATIENCE_MS = 60_000
SIZE = {"width": 1280, "height": 800}
LABELMAP = "window.services.segmentationService.getLabelmapVolume('1')"
_RENDERED = """() => {
  const grid = window.services?.viewportGridService?.getState().viewports;
  const shown = window.cornerstone?.getRenderingEngines()[0]?.getViewports() ?? [];
  return grid?.size >= 3 && shown.length >= 3 && shown.every(viewport => viewport.viewportStatus === "rendered");
}"""
_VOXELS = f"""() => {{
  const labelmap = {LABELMAP}, voxels = labelmap.voxelManager.getCompleteScalarDataArray();
  let text = "";
  for (let at = 0; at < voxels.length; at += 32768) text += String.fromCharCode(...voxels.slice(at, at + 32768));
  return {{ size: [...labelmap.dimensions], data: btoa(text) }};
}}"""
_SEGMENTS = """() => Object.values(window.services.segmentationService.getSegmentation('1').segments)
  .map(segment => [segment.label, segment.segmentIndex])"""
_PLACE = f"""([i, j, k]) => {{
  const viewport = window.cornerstone.getRenderingEngines()[0].getViewports()[0];
  const world = {LABELMAP}.imageData.indexToWorld([i, j, k]);
  viewport.jumpToWorld(world);
  const [x, y] = viewport.worldToCanvas(world), box = viewport.element.getBoundingClientRect();
  return [box.x + x, box.y + y];
}}"""


@contextmanager
def browser(folder: Path, site: Site) -> Iterator:
    """The system's Chromium, inside the site's namespace; `folder` takes what starts it. Skips where there is none."""
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("chromium is not on the PATH (apt-get install chromium): OHIF is not tried in a browser")
    from playwright.sync_api import sync_playwright

    inside = folder / "chromium"
    inside.write_text(f'#!/bin/sh\nexec ip netns exec {site.namespace.name} {path} "$@"\n', encoding="utf-8")
    inside.chmod(0o755)
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=inside, args=FLAGS.split())
        try:
            yield chromium
        finally:
            chromium.close()


class Ohif:
    """A person at the viewer. Nothing outside the namespace is asked for; `faults` holds what the page threw, `asked` the
    addresses that it asked the PACS for."""

    def __init__(self, chromium, url: str):
        self.url = url
        context = chromium.new_context(viewport=SIZE)
        context.route(lambda address: not address.startswith((url, "data:", "blob:")), lambda route: route.abort())
        self.page = context.new_page()
        self.page.set_default_timeout(PATIENCE_MS)
        self.faults: list[str] = []
        self.asked: list[str] = []
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url) if "/proxy/dicom/" in request.url else None)

    def close(self) -> None:
        self.page.context.close()

    # The study list

    def open_list(self) -> None:
        self.page.goto(f"{self.url}/ohif/")
        self.page.locator("td").first.wait_for()

    def patients(self) -> list[str]:
        """The names in the list, by the row's first cell."""
        rows = self.page.evaluate("[...document.querySelectorAll('td')].map(cell => cell.textContent)")
        return sorted({found[0] for row in rows if (found := re.match(r"PHANTOM, SEED\d+?(?=PHANTOM|$)", row))})

    def open_study(self, patient: str) -> None:
        """By its row and the button of the mode."""
        self.page.locator("td", has_text=patient).first.click()
        notice = self.page.get_by_role("button", name="Confirm and Hide")
        if notice.count():
            notice.click()
        self.page.locator("a", has_text="MONAI Label").click()
        self.page.locator(".monaiLabelPanel").wait_for()
        self.page.wait_for_function(_RENDERED)

    # MONAI Label's own panel

    def connect(self) -> None:
        self.page.locator(".monaiLabelPanel .settingsTable button").click()
        self.page.get_by_text("Options / Configurations").wait_for()
        self.page.wait_for_function(f"{LABELMAP} !== null")

    def type_prompt(self, text: str) -> None:
        """Into the options dialog, which loses what is typed until something was edited: until it stays."""
        self.page.get_by_text("Options / Configurations").click()
        form = self.page.locator(".optionsForm")
        form.locator("select[name=selectSection]").select_option("infer")
        form.locator("select[name=selectName]").select_option("ibis_agent")
        field = form.locator("[id='inferibis_agentprompt']")
        for _ in range(10):
            field.fill(text)
            self.page.wait_for_timeout(400)
            if field.input_value() == text:
                break
        assert field.input_value() == text
        self.page.get_by_role("button", name="Confirm", exact=True).click()
        form.wait_for(state="detached")

    def tab(self, number: int):
        """1 Active Learning, 2 Auto-Segmentation, 3 Point Prompts, 4 Class Prompts; opened."""
        switch = self.page.locator(f"#tab-{number}")
        if not switch.is_checked():
            self.page.locator(f"label[for=tab-{number}]").click()
        return self.page.locator(".tab", has=switch)

    def run(self, number: int) -> bytes:
        """Press Run in a tab; returns the mask file that the viewer got, when it has drawn it."""
        before = self.page.evaluate("performance.now()")
        self.page.evaluate(
            """() => { window.drawn = 0; window.cornerstone.eventTarget.addEventListener(
            "CORNERSTONE_TOOLS_SEGMENTATION_DATA_MODIFIED", () => { window.drawn = performance.now(); }); }"""
        )
        with self.page.expect_response(re.compile(r"/infer/")) as answered:
            self.tab(number).get_by_role("button", name="Run", exact=True).click()
        assert answered.value.status == 200, answered.value.text()
        self.page.wait_for_function("before => window.drawn > before", arg=before)
        return answered.value.body()

    # The labelmap

    def labels(self) -> tuple[np.ndarray, dict[str, int]]:
        """uint8 `[i, j, k]` as cornerstone holds it, and the value of each segment."""
        found = self.page.evaluate(_VOXELS)
        voxels = np.frombuffer(base64.b64decode(found["data"]), np.uint8).reshape(found["size"], order="F")
        names = self.page.evaluate(_SEGMENTS)
        return voxels, dict(names)

    def go_to(self, voxel: list[int]) -> tuple[float, float]:
        """Show the slice of a voxel in the first viewport, and say where on the page the voxel is."""
        x, y = self.page.evaluate(_PLACE, voxel)
        self.page.wait_for_timeout(300)
        return x, y

    def place_point(self, voxel: list[int]) -> None:
        """Click on a voxel in the first viewport, with the tool that is active, until there is one more annotation."""
        count = "window.cornerstoneTools.annotation.state.getAnnotationManager().getNumberOfAllAnnotations()"
        before = self.page.evaluate(count)
        self.page.mouse.click(*self.go_to(voxel))
        self.page.wait_for_function(f"before => {count} > before", arg=before)

    def picture(self, path: Path) -> np.ndarray:
        """uint8 `[row, column, RGB]` of the whole page; kept at `path`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=path)
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))

    # The agent's panel

    def ask_agent(self, prompt: str, slices: str = "all") -> None:
        self.page.fill("#ibis-prompt", prompt)
        self.page.select_option("#ibis-slices", slices)
        self.page.click("#ibis-run")

    def until_idle(self) -> str:
        """Wait until the agent's panel can be used again; what it says then."""
        self.page.wait_for_function("!document.getElementById('ibis-run').disabled")
        return self.page.locator("#ibis-status").text_content() or ""
