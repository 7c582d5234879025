"""`/infer/` without blocking the server, and what we add under `/ibis/`."""

import asyncio
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, File, Form, HTTPException, UploadFile
from fastapi.responses import HTMLResponse
from monailabel.endpoints.infer import ResultType, send_response
from monailabel.interfaces.app import MONAILabelApp
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from lib.agent.engine import Engine
from lib.agent.limits import Limits
from lib.agent.trace_page import render_page
from lib.engines.hotswap import describe, exchange
from lib.errors import InputError
from lib.imaging.cache import VolumeCache
from lib.infers.task import SEG, http_error
from lib.server.runstore import RunStore
from lib.server.store import StudiesDatastore
from lib.server.uploads import json_object, received

_RESERVED = ("model", "image", "series", "session", "description", "device", "limits", "save_label", "label_tag")
"""Keys of the server's own request that a client's params must not set."""
_POLL_S = 0.25
"""How often a waiting request looks whether its client is still there."""


def infer_routes(app: MONAILabelApp, workers: int, stopping: Event) -> APIRouter:
    """`POST /infer/{model}`: the stock contract, with the work in a pool of `workers` threads.

    Work is cancelled between two turns when its client hangs up, or when the server is `stopping`.
    """
    router = APIRouter()
    pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="infer")

    @router.post("/infer/{model}", tags=["Infer"], summary="Run inference: waits for the mask, never blocks the server")
    async def infer(
        request: Request,
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
        options = json_object(params)
        for key in _RESERVED:
            if key in options:
                raise HTTPException(422, f"{key}: cannot be set in params")
        if output is ResultType.dicom_seg:
            options["result_extension"] = SEG
        limits = Limits()

        def work() -> dict[str, Any]:
            if limits.cancelled.is_set():
                raise HTTPException(499, "cancelled before it began")
            with _image(app, image, session_id, file) as located:
                return app.infer({**options, **located, "model": model, "limits": limits})

        job = asyncio.get_running_loop().run_in_executor(pool, work)
        while not (await asyncio.wait([job], timeout=_POLL_S))[0]:
            if stopping.is_set() or await request.is_disconnected():
                limits.cancelled.set()
        result = job.result()
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
            return HTMLResponse(render_page(record, volumes.get(where)))
        except (InputError, FileNotFoundError) as error:
            raise HTTPException(410, f"the image of run {key} is gone or has changed since") from error

    return router


class Weights(BaseModel):
    """Which weights to go on with."""

    model_config = ConfigDict(extra="forbid")
    model: str | None = Field(
        None, description="folder with a language model, in the weights folder; left out: the present one"
    )
    adapter: str | None = Field(
        None, description='folder with a LoRA adapter, in the weights folder; "" takes the present one away'
    )


def engine_routes(engine: Engine, weights: Path) -> APIRouter:
    """`/ibis/engine`: what decides and draws here, and other weights for it, from the folder `weights`."""
    router = APIRouter(prefix="/ibis/engine", tags=["IBIS"])

    @router.get("", summary="The engine: models, weights, devices, precision")
    def shown() -> dict[str, Any]:
        return describe(engine)

    @router.put("/weights", summary="Exchange weights or adapter; requests that run are not dropped")
    def exchanged(wanted: Weights) -> dict[str, Any]:
        exchange(engine, wanted.model, wanted.adapter, weights)
        return describe(engine)

    return router


def _found(value: Any, key: str) -> Any:
    if value is None:
        raise HTTPException(404, f"run {key!r} does not exist, or is no longer kept")
    return value


@contextmanager
def _image(app: MONAILabelApp, image: str, session_id: str, file: UploadFile | None) -> Iterator[dict[str, str]]:
    """The request keys that say where the image is. An upload is kept until the work is done."""
    if file is not None:
        with received(file) as path:
            yield {"image": str(path)}
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
        if not isinstance(store, StudiesDatastore) and image not in store.list_images():
            raise HTTPException(404, f"image {image!r} does not exist in the PACS, or is hidden by its search filter")
        try:
            path = store.get_image_uri(image)
        except InputError as error:
            raise http_error(error) from error
        if not path or not os.path.exists(path):
            raise HTTPException(404, f"image {image!r} does not exist in this server's store")
        yield {"image": path}
    else:
        raise HTTPException(422, "image: name an image of the store, a session, or send a file")
