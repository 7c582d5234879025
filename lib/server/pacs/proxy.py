"""`/proxy/dicom`: what OHIF reads from the PACS, and stores in it, through this server.

Streams both ways on the event loop and never blocks it. Only DICOMweb resources can be reached, with the PACS's login and
without what the browser sent to this server for itself.
"""

import re
from collections.abc import AsyncIterator, Callable

import httpx
from fastapi import APIRouter, HTTPException
from starlette.requests import Request
from starlette.responses import StreamingResponse

from lib.server.pacs.web import LIMITS, DicomWeb

_RESOURCES = re.compile(r"(studies|series|instances)(/(?!\.+(/|$))[A-Za-z0-9._~,:@+-]+)*/?")
"""No segment is "." or "..", and none needs encoding."""
_SENT = ("accept", "accept-encoding", "content-type", "range", "if-none-match", "if-modified-since")
"""Request headers that go to the PACS; among those left out are the login to this server and its cookies."""
_GIVEN = (
    "content-type",
    "content-encoding",
    "content-length",
    "content-range",
    "content-location",
    "accept-ranges",
    "etag",
    "last-modified",
    "cache-control",
    "vary",
    "warning",
    "retry-after",
)
"""Answer headers that go to the browser; left out are those of one connection only (RFC 9110 7.6.1), cookies and logins."""


def proxy_routes(web: DicomWeb, stored: Callable[[], None]) -> APIRouter:
    """The stock paths; `stored` is called when something was stored in the PACS."""
    router = APIRouter(prefix="/proxy/dicom", include_in_schema=False)
    http = httpx.AsyncClient(auth=web.auth, timeout=web.timeout, limits=LIMITS, follow_redirects=False)

    async def passed(request: Request, service: str, path: str) -> StreamingResponse:
        if not _RESOURCES.fullmatch(path):
            raise HTTPException(404, "path: the proxy serves studies, series and instances of the PACS")
        if request.method == "POST" and path.rstrip("/") != "studies":
            raise HTTPException(405, "the proxy reads from the PACS, and stores new instances at studies")
        if service == "qido" and path.rstrip("/").endswith("metadata"):
            service = "wado"
        if request.method == "POST":
            service = "stow"
        address = httpx.URL(web.address(service, path)).copy_with(query=request.scope["query_string"] or None)
        headers = {name: request.headers[name] for name in _SENT if name in request.headers}
        headers.setdefault("accept-encoding", "identity")
        content = request.stream() if request.method == "POST" else None
        try:
            question = http.build_request(request.method, address, headers=headers, content=content)
            try:
                answer = await http.send(question, stream=True)
            except httpx.RemoteProtocolError:
                if content is not None:
                    raise
                answer = await http.send(question, stream=True)  # the connection was closed while it was idle
        except httpx.TimeoutException as error:
            raise HTTPException(504, "the PACS does not answer in time") from error
        except httpx.HTTPError as error:
            raise HTTPException(502, f"the PACS cannot be reached ({type(error).__name__})") from error
        if answer.status_code in (401, 407):
            await answer.aclose()
            raise HTTPException(502, "the PACS does not accept this server's login (MONAI_LABEL_DICOMWEB_USERNAME, _PASSWORD)")
        if request.method == "POST" and answer.is_success:
            stored()
        given = {name: answer.headers[name] for name in _GIVEN if name in answer.headers}
        return StreamingResponse(_body(answer), answer.status_code, given)

    @router.api_route("/{service}/{path:path}", methods=["GET", "HEAD", "POST"])
    async def of_service(request: Request, service: str, path: str) -> StreamingResponse:
        if service in ("wado", "qido", "stow"):
            return await passed(request, service, path)
        return await passed(request, "", f"{service}/{path}")

    @router.api_route("/{path}", methods=["GET", "HEAD", "POST"])
    async def of_none(request: Request, path: str) -> StreamingResponse:
        return await passed(request, "", path)

    return router


async def _body(answer: httpx.Response) -> AsyncIterator[bytes]:
    """The bytes as the PACS sends them; closes the connection also when the browser hangs up."""
    try:
        async for chunk in answer.aiter_raw():
            yield chunk
    finally:
        await answer.aclose()
