"""Our HTTP routes: `/infer/` without blocking the server, stock routes off the event loop, and what we add under `/ibis/`."""

import asyncio
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, File, Form, HTTPException, UploadFile
from fastapi.responses import HTMLResponse
from monailabel.endpoints import activelearning, datastore, session
from monailabel.endpoints.infer import ResultType, send_response
from monailabel.interfaces.app import MONAILabelApp
from starlette.responses import Response

from lib.agent.trace_page import render_page
from lib.errors import InputError
from lib.imaging.cache import VolumeCache
from lib.infers.task import http_error
from lib.server.runstore import RunStore
from lib.server.store import StudiesDatastore

_RESERVED = ("model", "image", "series", "session", "description", "device", "limits", "save_label", "label_tag")
"""Keys of the server's own request that a client's params must not set."""
_SUFFIX = re.compile(r"(\.[A-Za-z0-9]{1,5}){0,2}")


def stock_routes() -> APIRouter:
    """The stock functions that read and write files, as ordinary routes: FastAPI runs those in threads, so that a download or
    a conversion does not stop the server."""
    router = APIRouter()
    router.add_api_route("/datastore/image", datastore.download_image, methods=["GET"], tags=["Datastore"])
    router.add_api_route("/datastore/image", _has_image, methods=["HEAD"], tags=["Datastore"])
    router.add_api_route("/datastore/image", datastore.add_image, methods=["PUT"], tags=["Datastore"])
    router.add_api_route("/datastore/", datastore.add_image, methods=["PUT"], include_in_schema=False)
    router.add_api_route("/datastore/label", datastore.save_label, methods=["PUT"], tags=["Datastore"])
    router.add_api_route("/datastore/label", datastore.download_label, methods=["GET"], tags=["Datastore"])
    router.add_api_route("/session/", session.create_session, methods=["PUT"], tags=["Session"])
    router.add_api_route("/activelearning/{strategy}", activelearning.sample, methods=["POST"], tags=["ActiveLearning"])
    return router


def _has_image(image: str, check_sum: str | None = None) -> Any:
    return datastore.download_image(image, check_only=True, check_sum=check_sum)


def infer_routes(app: MONAILabelApp, workers: int) -> APIRouter:
    """`POST /infer/{model}`: the stock contract, with the work in a pool of `workers` threads."""
    router = APIRouter()
    pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="infer")

    @router.post("/infer/{model}", tags=["Infer"], summary="Run inference: waits for the mask, never blocks the server")
    async def infer(
        background_tasks: BackgroundTasks,
        model: str,
        image: str = "",
        session_id: str = "",
        params: Annotated[str, Form(description="options as a JSON object")] = "{}",
        file: Annotated[UploadFile | None, File(description="an image to use instead of a stored one")] = None,
        label: Annotated[UploadFile | None, File(description="not used by this app's models")] = None,
        output: ResultType | None = None,
    ) -> Any:
        if model not in app._infers:
            raise HTTPException(404, f"model {model!r} does not exist: this server has {', '.join(app._infers)}")
        options = _options(params)
        if output is ResultType.dicom_seg:
            options["result_extension"] = ".seg.dcm"

        def work() -> dict[str, Any]:
            with _image(app, image, session_id, file) as located:
                return app.infer({**options, **located, "model": model})

        result = await asyncio.get_running_loop().run_in_executor(pool, work)
        if output is ResultType.dicom_seg:
            result["dicom_seg"] = result["file"]
        return send_response(app.datastore(), result, output, background_tasks)

    return router


def run_routes(runs: RunStore, volumes: VolumeCache) -> APIRouter:
    """`/ibis/runs/{key}`: what the agent did, after the fact."""
    router = APIRouter(prefix="/ibis/runs", tags=["IBIS"])

    @router.get("/{key}/trace", summary="The trace of a finished run: every thought, click and mask, as JSON")
    def trace(key: str) -> dict[str, Any]:
        return _found(runs.trace(key), key)

    @router.get("/{key}/trace.html", summary="The trace as one self-contained page", response_class=HTMLResponse)
    def page(key: str) -> Response:
        record = _found(runs.trace(key), key)
        where = _found(runs.image(key), key)
        try:
            volume = volumes.get(where)
            return HTMLResponse(render_page(record, volume))
        except (InputError, FileNotFoundError) as error:
            raise HTTPException(410, f"the image of run {key} is gone or has changed: {error}") from error

    return router


def _found(value: Any, key: str) -> Any:
    if value is None:
        raise HTTPException(404, f"run {key!r} does not exist, or is no longer kept")
    return value


def _options(params: str) -> dict[str, Any]:
    try:
        options = json.loads(params or "{}")
    except json.JSONDecodeError as error:
        raise HTTPException(422, f"params: not valid JSON ({error})") from error
    if not isinstance(options, dict):
        raise HTTPException(422, "params: must be a JSON object")
    for key in _RESERVED:
        if key in options:
            raise HTTPException(422, f"{key}: cannot be set in params")
    return options


@contextmanager
def _image(app: MONAILabelApp, image: str, session_id: str, file: UploadFile | None) -> Iterator[dict[str, str]]:
    """The request keys that say where the image is. An upload is kept until the work is done."""
    if file is not None:
        suffix = "".join(Path(file.filename or "").suffixes[-2:])
        handle, name = tempfile.mkstemp(prefix="ibis-upload-", suffix=suffix if _SUFFIX.fullmatch(suffix) else "")
        try:
            with os.fdopen(handle, "wb") as target:
                shutil.copyfileobj(file.file, target)
            yield {"image": name}
        finally:
            os.unlink(name)
    elif session_id:
        sessions = app.sessions()
        found = sessions.get_session(session_id) if sessions else None
        if found is None:
            raise HTTPException(404, f"session {session_id!r} does not exist or has expired")
        yield {"image": found.image}
    elif image:
        store = app.datastore()
        series = store.series(image) if isinstance(store, StudiesDatastore) else None
        if series is not None:
            yield {"image": str(series.folder), "series": series.uid}
            return
        try:
            path = store.get_image_uri(image)
        except InputError as error:
            raise http_error(error) from error
        if not path or not os.path.exists(path):
            raise HTTPException(404, f"image {image!r} does not exist in this server's store")
        yield {"image": path}
    else:
        raise HTTPException(422, "image: name an image of the store, a session, or send a file")
