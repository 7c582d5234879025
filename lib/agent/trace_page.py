"""The trace page: one HTML file in which a person pages through a run, slice by slice and turn by turn.

The page needs no network and no server: pictures are data URLs, masks are decoded and blended in the browser, and a content
security policy forbids everything else. Prompts, replies and file names are untrusted: they travel as JSON, shown as text.
"""

import base64
import secrets
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from lib.errors import InputError
from lib.imaging.planes import Plane, ViewGrid
from lib.imaging.views import View
from lib.imaging.volume import Volume
from lib.imaging.windows import Window

_SCHEMA = 1
_JPEG_QUALITY = 85
_EDGES = {Plane.AXIAL: "APLR", Plane.CORONAL: "SILR", Plane.SAGITTAL: "SIPA"}
"""What lies at the top, bottom, left and right of a `ViewGrid` view."""
_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
)
_TEMPLATES.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}


def render_page(trace: dict[str, Any], volume: Volume) -> str:
    """A run as one self-contained HTML page, to be written as UTF-8.

    `trace` is the JSON object of schema 1 that a run records: masks are COCO compressed RLE (column-major, as pycocotools) of
    the view's `[height, width]`, clicks are normalised view points. `volume` is the image that the run looked at; its slices
    are rendered through the trace's plane and window, without a mask, as PNG, or as JPEG where the agent said "absent" at once.

    Raises InputError when the trace has another schema or was recorded on another image; ValueError when it holds NaN.
    """
    if trace.get("schema") != _SCHEMA:
        raise InputError(f"the trace has schema {trace.get('schema')!r}; this version shows schema {_SCHEMA}", "trace")
    grid = ViewGrid(volume, Plane(trace["plane"]))
    if tuple(trace["view_size"]) != grid.size:
        raise InputError(
            f"the trace was recorded on views of {_size(trace['view_size'])} pixels, but {volume.source} gives "
            f"{_size(grid.size)}: pass the image that the run looked at",
            "trace",
        )
    pictures = {record["index"]: _picture(grid, record.get("window", trace["window"]), record) for record in trace["slices"]}
    return _render(trace, pictures, None if volume.planar else grid.pixel_mm, grid.slice_count)


def render_recorded(trace: dict[str, Any], pictures: Mapping[int, bytes], pixel_mm: float | None) -> str:
    """As `render_page`, where the pictures were kept and the image was not.

    `pictures` are PNG files of the trace's view size, by slice; `pixel_mm` is the width of their pixels, None where the image
    has no physical size. What only the image tells, such as its shape, may be left out of the trace.
    """
    urls = {index: f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}" for index, content in pictures.items()}
    return _render(trace, urls, pixel_mm, None)


def _render(trace: dict[str, Any], pictures: Mapping[int, str], pixel_mm: float | None, slice_count: int | None) -> str:
    page = {
        "trace": trace,
        "pictures": pictures,
        "edges": "" if pixel_mm is None else _EDGES[Plane(trace["plane"])],
        "pixel_mm": pixel_mm,
        "slice_count": slice_count,
    }
    return _TEMPLATES.get_template("trace_page.html").render(page=page, nonce=secrets.token_urlsafe(16))


def _picture(grid: ViewGrid, window: dict[str, Any], record: dict[str, Any]) -> str:
    """One slice of the trace as a data URL."""
    grid.check(record["index"])
    image = View(grid, record["index"], Window(window["low"], window["high"], window["name"])).image()
    picture = Image.fromarray(image if grid.volume.colour is not None else image[:, :, 0])
    content = BytesIO()
    if record["stop_reason"] == "absent" and len(record["steps"]) <= 1:
        picture.save(content, "JPEG", quality=_JPEG_QUALITY)
        kind = "jpeg"
    else:
        picture.save(content, "PNG", optimize=True)
        kind = "png"
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode('ascii')}"


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
