"""`/infer/` without blocking the server, and the engine under `/ibis/`."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, File, Form, HTTPException, UploadFile
from monailabel.endpoints.infer import ResultType, send_response
from monailabel.interfaces.app import MONAILabelApp
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request

from lib.agent.engine import Engine
from lib.agent.limits import Limits
from lib.engines.hotswap import describe, exchange
from lib.infers.task import SEG
from lib.server.images import located, uploaded
from lib.server.uploads import json_object

_RESERVED = frozenset(
    ("model", "image", "image_id", "series", "session", "description", "device", "limits", "save_label", "label_tag")
)
"""Keys of the server's own request that a client's params must not set."""
_POLL_S = 0.25
"""How often a waiting request looks whether its client is still there."""
_WAITING = 256
"""How many requests may wait for their runs at a time; they hold a thread each, which does nothing else."""


def infer_routes(app: MONAILabelApp, stopping: Event) -> APIRouter:
    """`POST /infer/{model}`: the stock contract. The tasks give their work to the queue and wait for it here.

    Work is cancelled between two turns when its client hangs up, or when the server is `stopping`.
    """
    router = APIRouter()
    pool = ThreadPoolExecutor(max_workers=_WAITING, thread_name_prefix="waiting")

    @router.post("/infer/{model}", tags=["Infer"], summary="Run inference: waits for the mask, never blocks the server")
    async def infer(
        request: Request,
        background_tasks: BackgroundTasks,
        model: str,
        image: str = "",
        session_id: str = "",
        client_id: str = "",
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
        options["client_id"] = client_id or options.get("client_id") or request.headers.get("X-IBIS-User")
        limits = Limits()

        def ask(where: dict[str, str]) -> dict[str, Any]:
            result: dict[str, Any] = app.infer({**options, **where, "model": model, "limits": limits})
            return result

        def work() -> dict[str, Any]:
            if limits.cancelled.is_set():
                raise HTTPException(499, "cancelled before it began")
            if file is None:
                return ask(located(app, image, session_id))
            with uploaded(file) as where:
                return ask(where)

        future = pool.submit(work)
        waiting = asyncio.wrap_future(future)
        while not (await asyncio.wait([waiting], timeout=_POLL_S))[0]:
            if stopping.is_set() or await request.is_disconnected():
                limits.cancelled.set()
                future.cancel()
        if waiting.cancelled():
            raise HTTPException(499, "cancelled before it began")
        result = waiting.result()
        if output is ResultType.dicom_seg:
            result["dicom_seg"] = result["file"]
        return send_response(app.datastore(), result, output, background_tasks)

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
