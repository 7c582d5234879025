"""`/activelearning/` and `/scoring/`: the stock contract, without blocking the server, and 404 for what there is not.

Stock MONAI Label picks the next sample in its event loop, where a DICOM series may have to be converted, and scores in a second
interpreter that builds the whole app and may overwrite the datastore's index.
"""

from collections import deque
from datetime import datetime
from typing import Annotated, Any
from uuid import uuid4

from fastapi import APIRouter, Body, HTTPException
from monailabel.endpoints.activelearning import sample
from monailabel.interfaces.app import MONAILabelApp
from starlette.requests import Request

from lib.infers.task import user_of
from lib.server.uploads import SUFFIX

_REMEMBERED = 20
_TIME = "%Y-%m-%d %H:%M:%S"
_JSON = Annotated[dict[str, Any] | None, Body()]


def task_routes(app: MONAILabelApp) -> APIRouter:
    """`POST /activelearning/{strategy}`, `POST /scoring/{method}` and `GET /scoring/`. They run in threads of their own."""
    router = APIRouter()
    tasks: deque[dict[str, Any]] = deque(maxlen=_REMEMBERED)

    @router.post("/activelearning/{strategy}", tags=["ActiveLearning"], summary="The image to be labelled next")
    def next_sample(request: Request, strategy: str, params: _JSON = None) -> dict[str, Any]:
        if strategy not in app._strategies:
            raise HTTPException(404, f"strategy {strategy!r} does not exist: this server has {', '.join(app._strategies)}")
        options = params or {}
        options["client_id"] = user_of({"client_id": options.get("client_id") or request.headers.get("X-IBIS-User")})
        found: dict[str, Any] = sample(strategy, options)
        suffix = SUFFIX.search(found.get("path", ""))
        # 3D Slicer keeps what it downloads under `name`, and tells by the suffix how to read it.
        return {**found, "name": found["id"] + suffix[0]} if suffix else found

    @router.post("/scoring/{method}", tags=["Scoring"], summary="Compute a score, wait for it")
    def score(method: str, params: _JSON = None, run_sync: bool = False) -> Any:
        if method not in app._scoring_methods:
            there = ", ".join(app._scoring_methods) or "none"
            raise HTTPException(404, f"scoring method {method!r} does not exist: this server has {there}")
        request = {**(params or {}), "method": method}
        began = datetime.now()
        result = app.scoring(request)
        task = {
            "id": str(uuid4()),
            "status": "DONE",
            "request": request,
            "start_ts": began.strftime(_TIME),
            "end_ts": datetime.now().strftime(_TIME),
            "details": [],
            "result": result,
        }
        tasks.append(task)
        return result if run_sync else task

    @router.get("/scoring/", tags=["Scoring"], summary="The last score, or the last few")
    def scored(all: bool = False, check_if_running: bool = False) -> Any:
        if check_if_running or not tasks:
            raise HTTPException(404, f"No Scoring Tasks {'are currently Running' if check_if_running else 'Found'}")
        return list(tasks) if all else tasks[-1]

    return router
