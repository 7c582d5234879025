"""What clients get when something goes wrong: a status that says whose fault it is, and a sentence."""

import errno
import json
import logging
import secrets
from collections.abc import Callable

from monailabel.interfaces.exception import MONAILabelException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from lib.errors import InputError

logger = logging.getLogger(__name__)


def _input(request: Request, error: Exception) -> Response:
    assert isinstance(error, InputError)
    detail = f"{error.field}: {error.message}" if error.field else error.message
    return JSONResponse({"detail": detail}, status_code=422)


def _stock(request: Request, error: Exception) -> Response:
    """MONAI Label's own exceptions: what it cannot find is 404, the rest is a request that it cannot carry out."""
    assert isinstance(error, MONAILabelException)
    status = 404 if "not found" in str(error.msg).lower() or "there is no" in str(error.msg).lower() else 422
    return JSONResponse({"detail": str(error.msg)}, status_code=status)


def _not_json(request: Request, error: Exception) -> Response:
    return JSONResponse({"detail": f"params: not valid JSON ({error})"}, status_code=422)


def _disk(request: Request, error: Exception) -> Response:
    assert isinstance(error, OSError)
    if error.errno in (errno.ENAMETOOLONG, errno.EISDIR, errno.EINVAL):
        return JSONResponse({"detail": f"a name in this request cannot be used: {error.strerror}"}, status_code=422)
    key = secrets.token_hex(4)
    logger.error("Error %s in %s %s", key, request.method, request.url.path, exc_info=error)
    return JSONResponse(
        {"detail": f"the server's disk: {error.strerror} (the log has the details under {key})"}, status_code=507
    )


def _unexpected(request: Request, error: Exception) -> Response:
    key = secrets.token_hex(4)
    logger.error("Error %s in %s %s", key, request.method, request.url.path, exc_info=error)
    detail = f"{type(error).__name__} while the server worked on this request; the log has the details under {key}"
    return JSONResponse({"detail": detail}, status_code=500)


HANDLERS: dict[type[Exception], Callable[[Request, Exception], Response]] = {
    InputError: _input,
    MONAILabelException: _stock,
    json.JSONDecodeError: _not_json,
    OSError: _disk,
    Exception: _unexpected,
}
