"""`/ibis/images`: the store's images as the review page shows them. Read only."""

import os
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query
from monailabel.interfaces.app import MONAILabelApp
from pydantic import BaseModel, Field
from starlette.responses import Response

from lib.config import load_config
from lib.imaging.cache import VolumeCache
from lib.imaging.planes import Plane, ViewGrid
from lib.imaging.stacks import Stacks
from lib.imaging.volume import Modality, Volume
from lib.imaging.windows import Window, WindowPresets, choose_window
from lib.infers.task import image_of
from lib.server.images import located
from lib.server.jobroutes import problems
from lib.server.store import StudiesDatastore

_MOST = 64
"""Slices of one answer."""
_MOST_BYTES = 16 * 1024**2
"""Of one answer with several slices."""


class ImageItem(BaseModel):
    """An image in a list."""

    id: str
    name: str = Field(description="of its file or folder; the id where the store knows no other")
    labelled: bool = Field(description="whether it has a final label")


class ImageList(BaseModel):
    """All images of the store, by name."""

    images: list[ImageItem]


class WindowItem(BaseModel):
    """Values from black to white."""

    name: str
    low: float
    high: float

    @classmethod
    def of(cls, window: Window) -> "WindowItem":
        return cls(name=window.name, low=window.low, high=window.high)


class PlaneItem(BaseModel):
    """The views along one plane."""

    slices: int
    width: int = Field(description="of every view, in pixels")
    height: int
    pixel_mm: float | None = Field(description="edge of a pixel; null for a picture")
    step_mm: float | None = Field(description="from one slice to the next; null for a picture")
    acquired: list[int] = Field(description="slices that hold data")

    @classmethod
    def of(cls, grid: ViewGrid) -> "PlaneItem":
        width, height = grid.size
        across = {Plane.SAGITTAL: 0, Plane.CORONAL: 1, Plane.AXIAL: 2}[grid.plane]
        volume = grid.volume
        return cls(
            slices=grid.slice_count,
            width=width,
            height=height,
            pixel_mm=None if volume.planar else grid.pixel_mm,
            step_mm=None if volume.planar else volume.spacing[volume.orientation.axes[across]],
            acquired=list(grid.acquired),
        )


class Stored(BaseModel):
    """How slices travel."""

    colour: bool = Field(description="RGB, a byte each; else int16, little-endian")
    slope: float = Field(description="grey value = stored * slope + intercept")
    intercept: float


class ImageView(BaseModel):
    """An image: what a viewer must know before it asks for slices."""

    id: str
    modality: Modality
    content_hash: str
    shape: list[int] = Field(description="[i, j, k] of the file")
    spacing_mm: list[float]
    axcodes: str
    planar: bool = Field(description="a picture: no anatomical axes")
    warnings: list[str]
    stored: Stored
    planes: dict[Plane, PlaneItem]
    window: WindowItem = Field(description="the one to begin with")
    windows: list[WindowItem] = Field(description="those to choose from")


def image_routes(app: MONAILabelApp, volumes: VolumeCache) -> APIRouter:
    """List, geometry, and slices before any window."""
    router = APIRouter(prefix="/ibis/images", tags=["IBIS"])
    stacks = Stacks()

    def volume_of(image: str) -> Volume:
        return volumes.get(image_of(located(app, image, "")))

    @router.get("", summary="The images of the store")
    def listed() -> ImageList:
        store = app.datastore()
        open_ones = set(store.get_unlabeled_images())
        items = [
            ImageItem(id=image, name=_name(store, image), labelled=image not in open_ones) for image in store.list_images()
        ]
        return ImageList(images=sorted(items, key=lambda item: (item.name.casefold(), item.id)))

    @router.get("/{image}", summary="An image's planes, windows and encoding", responses=problems(404, 422))
    def shown(image: str) -> ImageView:
        volume = volume_of(image)
        encoding = stacks.encoding(volume)
        planes = [Plane.AXIAL] if volume.planar else list(Plane)
        return ImageView(
            id=image,
            modality=volume.modality,
            content_hash=volume.content_hash,
            shape=list(volume.data.shape),
            spacing_mm=list(volume.spacing),
            axcodes=volume.axcodes,
            planar=volume.planar,
            warnings=list(volume.warnings),
            stored=Stored(colour=encoding.colour, slope=encoding.slope, intercept=encoding.intercept),
            planes={plane: PlaneItem.of(ViewGrid(volume, plane)) for plane in planes},
            window=WindowItem.of(choose_window(volume)),
            windows=[WindowItem.of(window) for window in _windows(volume)],
        )

    @router.get(
        "/{image}/slices/{plane}/{first}",
        summary="Slices before any window, as raw bytes",
        description="`count` views from slice `first` on, fewer at the end and where they are large (`X-IBIS-Shape` says how "
        "many): `[slice, row, column]`, int16 little-endian, or "
        "`[slice, row, column, 3]` bytes of RGB for a colour picture. Size and meaning of the numbers: `GET /ibis/images/ID`. "
        "Pixels are square, as the agent's views are: points and masks of a run lie on them without any change.",
        response_class=Response,
        responses={
            200: {"description": "the values", "content": {"application/octet-stream": {}}},
            304: {"description": "unchanged"},
            **problems(404, 422),
        },
    )
    def slices(
        image: str,
        plane: Plane,
        first: int,
        count: Annotated[int, Query(ge=1, le=_MOST)] = 1,
        if_none_match: Annotated[str, Header()] = "",
    ) -> Response:
        volume = volume_of(image)
        grid = ViewGrid(volume, plane)
        grid.check(first)
        width, height = grid.size
        each = width * height * (2 if volume.colour is None else 3)
        number = min(count, grid.slice_count - first, max(1, _MOST_BYTES // each))
        tag = f'"{volume.content_hash}-{plane.value}-{first}-{number}"'
        headers = {
            "ETag": tag,
            "Cache-Control": "private, no-cache",
            "X-IBIS-Shape": f"{number},{height},{width}",
            "X-Content-Type-Options": "nosniff",
        }
        if tag in (one.strip().removeprefix("W/") for one in if_none_match.split(",")):
            return Response(status_code=304, headers=headers)
        stack = stacks.cut(grid, first, number)
        return Response(stack.data.cast("B"), media_type="application/octet-stream", headers=headers)

    return router


def _name(store: Any, image: str) -> str:
    """What a person calls the image."""
    if not isinstance(store, StudiesDatastore):
        return image
    name = os.path.normpath(str(store.get_image_info(image).get("name") or image))
    return image if name == "." else name


def _windows(volume: Volume) -> list[Window]:
    """The windows that suit a volume, the one to begin with among them."""
    if volume.colour is not None:
        return [choose_window(volume)]
    if volume.modality is not Modality.CT:
        low, high = float(volume.data.min()), float(volume.data.max())
        return [choose_window(volume), *([Window(low, high, "full range")] if low < high else [])]
    names = load_config("windows", WindowPresets).ct
    return [Window(preset.low, preset.high, name) for name, preset in names.items()] + [choose_window(volume, "percentile")]
