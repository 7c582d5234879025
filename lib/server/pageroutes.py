"""The review page at `/ibis/`: the files of `apps/review`, as they are. Neither build step nor network is needed.

The files are read once, when the server starts, and never change after: requests share them without a lock and never block.
"""

from hashlib import blake2b
from pathlib import Path

from fastapi import APIRouter, HTTPException
from starlette.responses import Response

REVIEW = Path(__file__).resolve().parent.parent.parent / "apps" / "review"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}
_RULES = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
"""The page runs its own files only, and talks to its own server only."""
_ALWAYS = {"Cache-Control": "no-cache"}
_FOREVER = {"Cache-Control": "private, max-age=31536000, immutable"}


def page_routes(folder: Path = REVIEW) -> APIRouter:
    """`/ibis/`, and its scripts and styles under `/ibis/page/VERSION/`, where browsers keep them: the version is their content.

    In `index.html` an address that begins with `page/` stands for that of a file beside it.
    """
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix in _TYPES}
    version = blake2b(b"".join(files.values()), digest_size=8).hexdigest()
    index = files.pop("index.html").replace(b'"page/', f'"page/{version}/'.encode())
    router = APIRouter()

    @router.get("/ibis/", include_in_schema=False)
    async def page() -> Response:
        return Response(index, media_type=_TYPES[".html"], headers=_RULES | _ALWAYS)

    @router.get("/ibis/page/{asked}/{name}", include_in_schema=False)
    async def file(asked: str, name: str) -> Response:
        if asked != version or name not in files:
            raise HTTPException(404, f"{name!r} is no file of this version of the review page: load the page again")
        return Response(files[name], media_type=_TYPES[Path(name).suffix], headers=_RULES | _FOREVER)

    return router
