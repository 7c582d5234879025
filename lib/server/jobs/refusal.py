"""Why the server does not do what it was asked."""

from collections.abc import Mapping
from types import MappingProxyType

from starlette.requests import Request
from starlette.responses import JSONResponse, Response


class Refusal(Exception):
    """An HTTP status and a sentence; raised in any thread that works for a request."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] = MappingProxyType({})):
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers


def answer_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return JSONResponse({"detail": error.detail}, status_code=error.status, headers=dict(error.headers))
