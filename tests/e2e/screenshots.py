"""The README's pictures, `make screenshots`: the demo's phantom in the viewers, as docs/ohif.png and docs/review.png."""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

from lib.imaging.phantom import make_phantom, write_series
from lib.server.pacs.orthanc import why_not
from lib.server.process import ServerProcess
from tests.e2e.conftest import voxel_in
from tests.e2e.ohif import Ohif
from tests.e2e.ohif import browser as ohif_browser
from tests.e2e.orthanc import Site, site
from tests.e2e.reviewing import Reviewer
from tests.e2e.reviewing import browser as review_browser

DOCS = Path(__file__).resolve().parents[2] / "docs"
COLOURS = 255
MOST_BYTES = 500_000
PROMPT = "liver; spleen"
SOME = (3, 4)
_ZOOM = """factor => {
  for (const viewport of window.cornerstone.getRenderingEngines()[0].getViewports()) {
    viewport.setZoom(viewport.getZoom() * factor);
    viewport.render();
  }
}"""


def ohif(chromium, running: Site, patient: str, voxel: list[int]) -> bytes:
    viewer = Ohif(chromium, running.server.url)
    viewer.open_list()
    viewer.open_study(patient)
    viewer.page.fill("#ibis-user", "Ann")
    viewer.page.locator("#ibis-user").blur()
    viewer.ask_agent(PROMPT)
    viewer.until_idle()
    viewer.page.locator("[data-cy=side-panel-header-left]").click()
    viewer.page.wait_for_timeout(1000)
    viewer.page.evaluate(_ZOOM, 1.45)
    viewer.go_to(voxel)
    viewer.page.wait_for_timeout(1000)
    picture = viewer.page.screenshot()
    viewer.close()
    return picture


def review(chromium, server: ServerProcess, image: str) -> bytes:
    """The surest slice with some turns, but not too many to be seen."""
    reviewer = Reviewer(chromium, server.url, "Ann")
    reviewer.open()
    reviewer.choose(image)
    reviewer.start("liver")
    reviewer.until_status("complete")
    http = httpx.Client(base_url=server.url, headers={"X-IBIS-User": "Ann"})
    key = http.get("/ibis/runs").json()["runs"][0]["id"]
    slices = http.get(f"/ibis/runs/{key}").json()["slices"]
    some = [found for found in slices if found["turns"] in SOME and found["confidence"]]
    reviewer.go_to(max(some, key=lambda found: found["confidence"])["slice"])
    reviewer.page.wait_for_timeout(1000)
    picture = reviewer.page.screenshot()
    reviewer.page.context.close()
    return picture


def keep(picture: bytes, path: Path, scratch: Path) -> None:
    """Write a PNG with a palette. Raises ValueError when it is too large for a README."""
    shot = scratch / path.name
    shot.write_bytes(picture)
    with Image.open(shot) as image:
        image.convert("RGB").quantize(COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(path, optimize=True)
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes: at most {MOST_BYTES}")
    print(path)


def main() -> None:
    reason = why_not() or ("" if shutil.which("chromium") else "chromium is not installed: apt-get install chromium")
    if reason:
        sys.exit(f"error: {reason}")
    os.environ["OMP_NUM_THREADS"] = "1"
    phantom = make_phantom(0)
    with tempfile.TemporaryDirectory(prefix="ibis-screenshots-") as name:
        scratch = Path(name)
        series = scratch / "studies" / "phantom0"
        write_series(phantom, series)
        liver = phantom.labels["liver"]
        voxel = voxel_in(liver, int(np.argmax((liver.sum(axis=(0, 1)) > 0) * phantom.labels["spleen"].sum(axis=(0, 1)))))
        with site(scratch / "site", sorted(series.iterdir())) as running, ohif_browser(scratch, running) as chromium:
            keep(ohif(chromium, running, "PHANTOM, SEED0", voxel), DOCS / "ohif.png", scratch)
        with ServerProcess(series.parent, scratch / "server.log") as server, review_browser() as chromium:
            keep(review(chromium, server, series.name), DOCS / "review.png", scratch)


if __name__ == "__main__":
    main()
