"""The door: every request is checked here before any route sees it.

A pure ASGI middleware without state; it may be entered by any number of requests at once and never blocks.
"""

import base64
import binascii
import ipaddress
import json
import re
import secrets
from urllib.parse import parse_qsl

from starlette.types import ASGIApp, Receive, Scope, Send

from lib.server.names import NAME

_CLOSED = re.compile(r"/(reload|logs(/.*)?|infer/wsi(_v2)?(/.*)?)/?")
"""Stock routes that are not served: `reload` runs code, `logs` shows requests, `wsi` reads any path and blocks the server."""
_PROXY = "/proxy/"
_MODEL = re.compile(r"/model(/.*)?")
_IDENTIFIERS = ("image", "label", "id", "tag", "session_id")
MAX_BODY = 8 * 1024**3
"""Bytes of the largest upload."""


class Door:
    """Refuses what could leave the store, run code, or come from a stranger.

    `token`: who does not come from this machine must show it, as a bearer token or as the password of basic authentication.
    `open_to_all`: nobody is asked. Without either, only this machine may enter. This machine needs no token, but must name the
    server by an address, as localhost or by one of `hosts`: a page of another site that has its own name pointed here does not.
    """

    def __init__(self, app: ASGIApp, token: str, open_to_all: bool, hosts: frozenset[str] = frozenset()):
        self._app = app
        self._hosts = hosts
        self._token = token
        self._open = open_to_all

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            refusal = self._stranger(scope) or _unsafe(scope)
            if refusal is not None:
                await _refuse(send, *refusal)
                return
        elif scope["type"] == "websocket":
            return
        await self._app(scope, receive, send)

    def _stranger(self, scope: Scope) -> tuple[int, str] | None:
        if self._open or scope["method"] == "OPTIONS":
            return None
        if _is_local(scope):
            host = _host(scope)
            if host in self._hosts or host == "localhost" or _is_address(host) or self._shows_token(scope):
                return None
            return 403, f"host {host!r} is not a name of this server: start it with --conf hosts {host} if it should be"
        if not self._token:
            return 403, "this server answers its own machine only: start it with IBIS_TOKEN set, or with --conf auth none"
        if not self._shows_token(scope):
            return 401, "a token is needed: send it as 'Authorization: Bearer TOKEN', or as the password when asked"
        return None

    def _shows_token(self, scope: Scope) -> bool:
        shown = _shown_token(scope)
        return bool(self._token) and shown is not None and secrets.compare_digest(shown.encode(), self._token.encode())


def _host(scope: Scope) -> str:
    """The host that the client named, without its port, in lower case."""
    header = dict(scope["headers"]).get(b"host", b"").decode("latin-1").lower()
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0]


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_local(scope: Scope) -> bool:
    client = scope.get("client")
    if client is None:
        return True
    try:
        return ipaddress.ip_address(client[0]).is_loopback
    except ValueError:
        return False


def _shown_token(scope: Scope) -> str | None:
    header = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
    scheme, _, value = header.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode("utf-8").partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return None
    return None


def _unsafe(scope: Scope) -> tuple[int, str] | None:
    """Why a request is refused: HTTP status and reason."""
    path, method = scope["path"], scope["method"]
    raw = scope.get("raw_path", b"").lower()
    if _CLOSED.fullmatch(path) or (_MODEL.fullmatch(path) and method in ("PUT", "DELETE")):
        return 404, f"{method} {path} is not served here"
    if ".." in path.split("/") or "\\" in path or b"%2f" in raw or b"%5c" in raw or "\0" in path:
        return 422, "path: '..', backslashes and encoded slashes are not allowed"
    if path.startswith(_PROXY):
        if "%" in path:
            return 422, "path: an encoded character inside an encoded path is not allowed"
        if method not in ("GET", "HEAD") and not (method == "POST" and path.rstrip("/").endswith("/studies")):
            return 405, "the proxy reads from the PACS, and stores new instances at .../studies"
    query = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
    for name in _IDENTIFIERS:
        value = query.get(name, "")
        if ".." in value or any(c in "/\\" or ord(c) < 32 for c in value):
            return 422, f"{name}: {value!r} is not an identifier; path separators and '..' are not allowed"
    if method == "PUT" and path.rstrip("/").startswith("/datastore"):
        for name in ("tag",) if "label" in path or "info" in path else ("tag", "image"):
            if query.get(name) and not NAME.fullmatch(query[name]):
                return 422, f"{name}: {query[name]!r} cannot be a name: use letters, digits, '.', '_' and '-'"
    if path.rstrip("/") == "/session" and query.get("uncompress", "").lower() in ("true", "1", "yes", "on"):
        return 422, "uncompress: archives are not unpacked; send the image file itself"
    length = dict(scope["headers"]).get(b"content-length", b"0")
    if length.isdigit() and int(length) > MAX_BODY:
        return 413, f"the upload is larger than {MAX_BODY // 1024**3} GiB"
    return None


async def _refuse(send: Send, status: int, detail: str) -> None:
    headers = [(b"content-type", b"application/json")]
    if status == 401:
        headers.append((b"www-authenticate", b'Basic realm="IBIS Label", charset="UTF-8"'))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps({"detail": detail}).encode()})
