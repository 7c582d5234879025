"""The trace page: what it shows is what the run saw, whatever the prompt says; in a browser where there is one."""

import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco

from lib.agent.trace_page import render_page, render_recorded
from lib.errors import InputError
from lib.imaging.overlays import blend, overlay_named
from lib.imaging.planes import Plane, ViewGrid, VoxelIndex
from lib.imaging.views import View
from lib.imaging.volume import Modality, Volume
from lib.imaging.windows import Window

WINDOW = Window(-160, 240, "abdomen")
INJECTION = (
    "liver</script><script>document.body.remove()</script><!--<script> "
    """<img src=x onerror="alert(1)"> \u2028 & "x' {{ 7*7 }}"""
)


def volume(shape=(48, 40, 6), spacing=(1.0, 1.5, 3.0), **facts) -> Volume:
    """A noisy ball, stored LPS with anisotropic voxels."""
    rng = np.random.default_rng(7)
    distance = np.linalg.norm([(x - n / 2) / n for x, n in zip(np.indices(shape), shape, strict=True)], axis=0)
    data = np.where(distance < 0.4, 60, -400) + rng.normal(0, 30, shape)
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    return Volume(data.astype(np.float32), affine, Modality.CT, Path("ball.nii.gz"), **facts)


def step(turn: int, kind: str, mask: np.ndarray | None = None, thought: str = "") -> dict:
    encoded = None
    if mask is not None:
        runs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        encoded = {"size": list(mask.shape), "counts": runs["counts"].decode("ascii")}
    clicked = kind in ("positive", "negative")
    return {
        "turn": turn,
        "actor": "agent",
        "reply": f"<think>{thought}</think><action>...</action>",
        "thought": thought,
        "action": {"kind": kind, "x": 0.51 if clicked else None, "y": 0.42 if clicked else None, "detail": ""},
        "answer": "",
        "mask": encoded,
        "pixels": int(mask.sum()) if mask is not None else 0,
        "score": 0.9 if clicked else None,
        "support": 0.88,
        "seconds": {"policy": 0.01, "segmenter": 0.03},
    }


def episode(index: int, steps: list[dict], stop_reason: str = "terminated", final_turn: int | None = None) -> dict:
    return {
        "index": index,
        "stop_reason": stop_reason,
        "stop_detail": "",
        "confidence": None if stop_reason in ("absent", "failed") else 0.93,
        "final_turn": final_turn,
        "chosen_because": "the agent approved it",
        "steps": steps,
    }


def trace_of(image: Volume, slices: list[dict], plane: Plane = Plane.AXIAL, prompt: str = "liver") -> dict:
    overlay = overlay_named("inference")
    return {
        "schema": 1,
        "created": "2026-11-22T10:31:07+00:00",
        "prompt": prompt,
        "answer": f"I looked for: {prompt}",
        "status": "complete",
        "engine": {"policy": "rules", "segmenter": "graphcut"},
        "image": {
            "name": image.source.name,
            "modality": str(image.modality),
            "shape": list(image.data.shape),
            "spacing_mm": list(image.spacing),
            "axcodes": image.axcodes,
            "warnings": ["Slice 3 was never received."],
        },
        "plane": str(plane),
        "window": {"name": WINDOW.name, "low": WINDOW.low, "high": WINDOW.high},
        "overlay": {"name": overlay.name, "colour": list(overlay.colour), "alpha": overlay.alpha, "rounded": overlay.rounded},
        "view_size": list(ViewGrid(image, plane).size),
        "max_turns": 20,
        "seconds": 12.3,
        "timings": {"policy": 1.2, "segmenter": 8.1},
        "voxels": 12345,
        "volume_ml": 55.5,
        "slices": slices,
    }


class Document(HTMLParser):
    """The page as a browser's parser sees it: every tag, and what the scripts hold."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text: list[str] = []
        self._inside = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text.append(data)

    def attributes(self, **wanted: str) -> list[dict[str, str | None]]:
        return [attrs for _, attrs in self.tags if all(attrs.get(name) == value for name, value in wanted.items())]


def page_of(html: str) -> dict:
    return json.loads(Document(html).scripts[0])


def picture(url: str) -> tuple[str, np.ndarray]:
    kind, content = re.fullmatch(r"data:image/(\w+);base64,(.+)", url).groups()
    return kind, np.asarray(Image.open(BytesIO(base64.b64decode(content))).convert("RGB"))


@pytest.mark.parametrize("plane", Plane)
def test_pictures_are_the_views_without_a_mask(plane):
    image = volume()
    grid = ViewGrid(image, plane)
    mask = np.ones(grid.size[::-1], bool)
    slices = [
        episode(0, [step(1, "terminate")], "absent"),
        episode(2, [step(1, "positive", mask), step(2, "terminate")], final_turn=1),
        episode(3, [step(1, "error"), step(2, "terminate")], "absent"),
        episode(4, [], "failed"),
    ]
    pictures = page_of(render_page(trace_of(image, slices, plane), image))["pictures"]
    assert sorted(pictures) == ["0", "2", "3", "4"]
    for index, url in pictures.items():
        kind, pixels = picture(url)
        expected = View(grid, int(index), WINDOW).image()
        if index == "0":
            assert kind == "jpeg"
            assert np.abs(pixels.astype(int) - expected).mean() < 6
        else:
            assert kind == "png"
            np.testing.assert_array_equal(pixels, expected)


def test_colour_pictures_keep_their_colours_and_have_no_anatomy():
    colour = np.random.default_rng(3).integers(0, 256, (30, 20, 1, 3), dtype=np.uint8)
    image = volume((30, 20, 1), (1.0, 1.0, 1.0), colour=colour, planar=True)
    page = page_of(render_page(trace_of(image, [episode(0, [], "failed")]), image))
    np.testing.assert_array_equal(picture(page["pictures"]["0"])[1], View(ViewGrid(image, Plane.AXIAL), 0, WINDOW).image())
    assert (page["edges"], page["pixel_mm"]) == ("", None)


@pytest.mark.parametrize("plane", Plane)
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, -1, 1), (1, -1, -1)])
def test_edge_letters_name_the_side_of_the_patient(plane, flips):
    image = volume((9, 9, 9), (1.0, 1.0, 1.0))
    image = Volume(image.data, np.diag([*flips, 1]).astype(float), image.modality, image.source)
    edges = page_of(render_page(trace_of(image, [], plane), image))["edges"]
    grid = ViewGrid(image, plane)
    _, middle = grid.to_view(VoxelIndex(4, 4, 4))
    away = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}
    for letter, (across, down) in zip(edges, [(0, -1), (0, 1), (-1, 0), (1, 0)], strict=True):
        moved = VoxelIndex(*(4 + 3 * v * flip for v, flip in zip(away[letter], flips, strict=True)))
        _, point = grid.to_view(moved)
        assert np.sign([point.x - middle.x, point.y - middle.y]).tolist() == [across, down]


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=80) | st.sampled_from([INJECTION, "</SCRIPT >", "<!--<script", "]]>", "\ud800"]))
def test_untrusted_text_stays_data(text):
    image = volume((6, 6, 2), (1.0, 1.0, 1.0))
    trace = trace_of(image, [episode(1, [step(1, "terminate", thought=text)], "absent")], prompt=text)
    trace["image"]["name"] = text
    html = render_page(trace, image)
    html.encode("utf-8")
    document = Document(html)
    assert [tag for tag, _ in document.tags].count("script") == 2
    assert json.loads(document.scripts[0])["trace"] == trace


def test_needs_no_network_and_forbids_it():
    image = volume()
    html = render_page(trace_of(image, [episode(1, [], "failed")], prompt=INJECTION), image)
    document = Document(html)
    assert not re.search(
        r"https?://|@import|url\(|\bfetch\(|innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", html
    )
    assert not [tag for tag, attrs in document.tags if "src" in attrs or tag in ("link", "img", "iframe", "object")]
    assert not [name for _, attrs in document.tags for name in attrs if name.startswith("on")]
    policy = document.attributes(**{"http-equiv": "Content-Security-Policy"})[0]["content"]
    nonces = {attrs["nonce"] for tag, attrs in document.tags if tag in ("script", "style")}
    assert len(nonces) == 1
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert policy.count(f"'nonce-{nonces.pop()}'") == 2
    assert "unsafe" not in policy


def test_a_long_series_stays_small():
    count = 8
    image = volume((512, 512, count), (0.8, 0.8, 5.0))
    mask = np.ones((512, 512), bool)
    slices = [episode(i, [step(1, "positive", mask)], final_turn=1) for i in range(count)]
    assert len(render_page(trace_of(image, slices), image)) < 10e6 * count / 41


def test_another_schema_image_or_slice_is_refused():
    image = volume()
    trace = trace_of(image, [episode(1, [], "failed")])
    with pytest.raises(InputError, match="schema 2; this version shows schema 1"):
        render_page(trace | {"schema": 2}, image)
    with pytest.raises(InputError, match=r"48 x 60 pixels, but ball\.nii\.gz gives 30 x 30"):
        render_page(trace, volume((30, 20, 6)))
    with pytest.raises(InputError, match="slice 6 does not exist"):
        render_page(trace_of(image, [episode(6, [], "failed")]), image)
    with pytest.raises(ValueError, match="JSON"):
        render_page(trace | {"seconds": float("nan")}, image)


def masks_of(height: int, width: int) -> list[np.ndarray]:
    """Masks that use every part of the run-length code: long runs, shrinking runs, a first and a last pixel."""
    rng = np.random.default_rng(11)
    rows, columns = np.indices((height, width))
    corner, middle = np.zeros((height, width), bool), (rows - height / 2) ** 2 + (columns - width / 3) ** 2 < (height / 4) ** 2
    corner[0, 0] = corner[-1, -1] = True
    full, empty = np.ones((height, width), bool), np.zeros((height, width), bool)
    return [corner, middle, full, empty, rng.random((height, width)) < 0.5, middle ^ (rng.random((height, width)) < 0.02)]


PROBE = """
(async () => {
  const bytes = data => btoa(Array.from(data, byte => String.fromCharCode(byte)).join(""));
  const shown = {};
  for (const slice of slices) {
    const image = await picture(slice.index);
    shown[slice.index] = slice.steps.map((_, i) => {
      const mask = maskAfter(slice, i);
      return bytes((mask ? blend(image, decode(mask), trace.overlay) : image).data);
    });
  }
  document.body.dataset.shown = JSON.stringify(shown);
  document.body.dataset.worst = worstFirst().map(slice => slice.index).join(" ");
})();
"""


def browse(html: str, folder: Path) -> Document:
    """The document after headless Chromium ran the page and PROBE."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not on the PATH (apt-get install chromium): the page is not tried in a browser")
    nonce = re.search(r'<script nonce="([^"]+)"', html)[1]
    file = folder / "page.html"
    file.write_text(html.replace("</body>", f'<script nonce="{nonce}">{PROBE}</script></body>'), encoding="utf-8")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --virtual-time-budget=10000 --dump-dom"
    command = [chromium, *flags.split(), f"--user-data-dir={folder / 'profile'}", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120, check=True)
    return Document(done.stdout)


def test_in_a_browser_masks_and_colours_are_ours_and_the_prompt_is_text(tmp_path):
    image = volume((160, 70, 6), (1.0, 2.0, 3.0))
    grid = ViewGrid(image, Plane.AXIAL)
    width, height = grid.size
    masks = masks_of(height, width)
    clicks = [step(i + 1, "positive" if i % 2 else "negative", mask, thought=INJECTION) for i, mask in enumerate(masks)]
    # Unusable replies and Terminate leave the mask as it is.
    steps = [step(1, "error"), *({**one, "turn": one["turn"] + 1} for one in clicks), step(8, "error"), step(9, "terminate")]
    after = [None, *masks, masks[-1], masks[-1]]
    slices = [episode(4, steps, final_turn=3), episode(1, [], "failed"), episode(2, [step(1, "terminate")], "absent")]
    document = browse(render_page(trace_of(image, slices, prompt=INJECTION), image), tmp_path)

    areas = {attrs["data-index"]: attrs["data-areas"] for _, attrs in document.tags if "data-areas" in attrs}
    expected = [0 if mask is None else int(mask.sum()) for mask in after]
    assert areas == {"1": "", "2": "0", "4": " ".join(map(str, expected))}
    assert list(areas) == ["1", "2", "4"]
    assert [int(attrs["data-area"]) for _, attrs in document.tags if "data-area" in attrs] == expected

    body = next(attrs for tag, attrs in document.tags if tag == "body")
    assert body["data-worst"] == "1 4 2"
    shown = json.loads(body["data-shown"])["4"]
    view = View(grid, 4, WINDOW).image()
    for mask, encoded in zip(after, shown, strict=True):
        pixels = np.frombuffer(base64.b64decode(encoded), np.uint8).reshape(height, width, 4)[..., :3]
        np.testing.assert_array_equal(pixels, view if mask is None else blend(view, mask, overlay_named("inference")))

    assert INJECTION in document.text
    assert not document.attributes(src="x")
    assert document.attributes(id="canvas")[0]["aria-label"].startswith(
        f"Slice 4, turn 3: Positive click, mask {masks[1].sum():,}"
    )


def test_in_a_browser_a_recorded_run_needs_no_image_and_says_what_each_step_was_worth(tmp_path):
    pixels = np.random.default_rng(5).integers(0, 256, (40, 60), dtype=np.uint8)
    content = BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    whole = np.ones((40, 60), bool)
    worth = {"by": INJECTION, "iou": 0.5, "dice": 0.667, "total": -0.001, "parts": {"progress": 0.25}}
    clicked = step(1, "positive", whole) | {"grades": [worth]}
    kept = episode(7, [clicked, step(2, "terminate")], final_turn=1) | {"grades": [worth]}
    untouched = episode(9, [step(1, "terminate")]) | {
        "given": {"mask": clicked["mask"]},
        "grades": [{"by": "a", "dropped": "b"}],
    }
    trace = trace_of(volume(), [kept, untouched])
    for name in ("voxels", "volume_ml"):
        del trace[name]
    trace |= {"view_size": [60, 40], "image": {"name": "trajectory", "modality": "CT", "warnings": []}}
    document = browse(render_recorded(trace, {7: content.getvalue(), 9: content.getvalue()}, 0.8), tmp_path)

    areas = {attrs["data-index"]: attrs["data-areas"] for _, attrs in document.tags if "data-areas" in attrs}
    assert areas == {"7": "2400 2400", "9": "2400"}
    body = next(attrs for tag, attrs in document.tags if tag == "body")
    first = json.loads(body["data-shown"])["7"][0]
    shown = np.frombuffer(base64.b64decode(first), np.uint8).reshape(40, 60, 4)[..., :3]
    np.testing.assert_array_equal(shown, blend(np.repeat(pixels[..., None], 3, 2), whole, overlay_named("inference")))
    assert f"Against the label of {INJECTION}: Dice 0.667, reward 0.00 (progress 0.25)." in document.text
    assert "axial, 2 slices" in document.text
    assert not document.attributes(src="x")
