"""`/proxy/dicom`: what OHIF reads from the PACS, and stores in it, through this server.

Streams both ways on the event loop and never blocks it. Only DICOMweb resources can be reached, with the PACS's login and
without what the browser sent to this server for itself.
"""

import asyncio
import re
from collections.abc import Callable, Mapping
from contextlib import suppress

import httpx
from fastapi import APIRouter, HTTPException
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Message, Send

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


_HARMLESS = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "sandbox; default-src 'none'"}
"""What the PACS sends may come from anywhere: a browser that shows it must not run it as a page of this server."""


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
        try:
            address = httpx.URL(web.address(service, path)).copy_with(query=request.scope["query_string"] or None)
        except (httpx.InvalidURL, UnicodeDecodeError) as error:
            raise HTTPException(422, "query: must be percent-encoded") from error
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
        except httpx.PoolTimeout as error:
            raise HTTPException(503, "too many transfers from the PACS at a time, ask again later") from error
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
        return _Passed(answer, {**given, **_HARMLESS}, web.timeout.read)

    @router.api_route("/{service}/{path:path}", methods=["GET", "HEAD", "POST"])
    async def of_service(request: Request, service: str, path: str) -> StreamingResponse:
        if service in ("wado", "qido", "stow"):
            return await passed(request, service, path)
        return await passed(request, "", f"{service}/{path}")

    @router.api_route("/{path}", methods=["GET", "HEAD", "POST"])
    async def of_none(request: Request, path: str) -> StreamingResponse:
        return await passed(request, "", path)

    return router


class _Passed(StreamingResponse):
    """The PACS's answer as it comes; its connection is closed when the browser hangs up, or takes nothing for `patience_s`."""

    def __init__(self, answer: httpx.Response, headers: Mapping[str, str], patience_s: float | None):
        super().__init__(answer.aiter_raw(), answer.status_code, headers)
        self._answer = answer
        self._patience_s = patience_s

    async def stream_response(self, send: Send) -> None:
        async def send_soon(message: Message) -> None:
            async with asyncio.timeout(self._patience_s):
                await send(message)

        try:
            with suppress(TimeoutError):
                await super().stream_response(send_soon)
        finally:
            await self._answer.aclose()
