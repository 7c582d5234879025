"""OHIF at `/ohif/`: the viewer of MONAI Label's wheel as it is, and our extension for it from `apps/ohif`.

OHIF loads the extensions and modes that its configuration names by address, so nothing of it is rebuilt or changed. Files are
looked up in threads; requests share nothing.
"""

import re
from pathlib import Path

import monailabel.endpoints
from fastapi import APIRouter
from starlette.responses import FileResponse, Response

VIEWER = Path(next(iter(monailabel.endpoints.__path__))).resolve() / "static" / "ohif"
EXTENSION = Path(__file__).resolve().parent.parent.parent / "apps" / "ohif"
_CONFIG = "app-config.js"
_TYPES = {".js": "text/javascript", ".mjs": "text/javascript", ".css": "text/css", ".wasm": "application/wasm"}
_HASHED = re.compile(r"(.*\.bundle\.[0-9a-f]{20}\.js|[0-9a-f]{20}\.wasm)")
"""Files whose names change with their content."""
_ALWAYS = {"Cache-Control": "no-cache"}
_FOREVER = {"Cache-Control": "private, max-age=31536000, immutable"}


def ohif_routes(viewer: Path = VIEWER, extension: Path = EXTENSION) -> APIRouter:
    """`/ohif/ibis/NAME`: our files. `/ohif/app-config.js`: the viewer's configuration, then ours. The rest is the viewer's;
    addresses that are no files are its pages, which are all the same one."""
    router = APIRouter(prefix="/ohif", include_in_schema=False)

    @router.get(f"/{_CONFIG}")
    def config() -> Response:
        text = "\n".join((folder / _CONFIG).read_text(encoding="utf-8") for folder in (viewer, extension))
        return Response(text, media_type=_TYPES[".js"], headers=_ALWAYS)

    @router.get("/ibis/{name}")
    def ours(name: str) -> Response:
        path = extension / name
        if path.suffix not in _TYPES or not path.is_file():
            return Response(status_code=404)
        return FileResponse(path, media_type=_TYPES[path.suffix], headers=_ALWAYS)

    @router.get("/{path:path}")
    def stock(path: str) -> Response:
        found = (viewer / path).resolve()
        if not (found.is_relative_to(viewer) and found.is_file()):
            found = viewer / "index.html"
        headers = _FOREVER if _HASHED.fullmatch(found.name) else _ALWAYS
        return FileResponse(found, media_type=_TYPES.get(found.suffix), headers=headers)

    return router
