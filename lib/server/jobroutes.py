"""`/ibis/runs` and `/ibis/jobs`: runs that nobody has to wait for.

A run belongs to a user: what the client calls itself in the query or body as `client_id`, or in the header `X-IBIS-User`;
"anonymous" without. Runs of others are not listed, and 404. This keeps users apart, it does not prove who they are. The trace
alone is open to whoever has the run's id, 64 random bits: viewers open it as a plain link.
"""

import os
from threading import Event
from typing import Annotated, Any, Literal

from fastapi import APIRouter, BackgroundTasks, Depends, Header, HTTPException, Query
from fastapi.responses import FileResponse, HTMLResponse, StreamingResponse
from monailabel.interfaces.app import MONAILabelApp
from starlette.responses import Response

from lib.agent.trace_page import render_page
from lib.errors import InputError
from lib.imaging.cache import VolumeCache
from lib.infers.agent import AgentInfer
from lib.infers.task import SEG, Answer, image_of, user_of, write_answer
from lib.server.images import located
from lib.server.jobs.queue import JobQueue, Priority
from lib.server.jobs.runs import Runs
from lib.server.jobs.schema import Accepted, JobsView, JobView, Problem, RunBody, RunItem, RunPage, RunView
from lib.server.jobs.stream import event_stream

_EXTENSIONS = {"nrrd": ".nrrd", "nii.gz": ".nii.gz", "seg": SEG}
_UNBUFFERED = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
"""What keeps proxies from holding events back."""
_EXAMPLE = """event: step
data: {"seq":7,"time":"2026-11-22T15:04:05.123+00:00","kind":"step","target":1,"slice":31,"turn":1,"actor":"agent",\
"thought":"...","action":{"kind":"positive","x":0.3,"y":0.5},"score":0.91,"seconds":{"policy":0.01,"segmenter":0.02},\
"details":{},"change":{"size":[128,128],"counts":"..."}}
id: 7

"""
_WHAT = {
    404: "no such run of this user, or no longer kept",
    409: "not in the state for that",
    410: "the image is gone or has changed",
    422: "what is wrong with the request",
    429: "too many runs of this user",
    503: "the server is stopping",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """A route's `responses` for what it may refuse."""
    return {status: {"model": Problem, "description": _WHAT[status]} for status in statuses}


def user(client_id: str = "", x_ibis_user: Annotated[str, Header()] = "") -> str:
    """Whose request it is."""
    return user_of({"client_id": client_id or x_ibis_user})


User = Annotated[str, Depends(user)]


def job_routes(queue: JobQueue) -> APIRouter:
    """The queue, to look at."""
    router = APIRouter(prefix="/ibis/jobs", tags=["IBIS"])

    @router.get("", summary="What the server works on, and what waits: clicks first, then runs with a client that waits")
    def jobs(asker: User) -> JobsView:
        return JobsView(
            running=[JobView.of(job, asker, None) for job in queue.running()],
            waiting=[JobView.of(job, asker, position) for position, job in enumerate(queue.waiting(), start=1)],
        )

    return router


def run_routes(app: MONAILabelApp, agent: AgentInfer, runs: Runs, volumes: VolumeCache, stopping: Event) -> APIRouter:
    """Runs: ask, look, watch, cancel, resume, fetch."""
    router = APIRouter(prefix="/ibis/runs", tags=["IBIS"])

    @router.post(
        "",
        status_code=202,
        summary="Ask for a run; answers at once",
        responses=problems(404, 422, 429, 503),
    )
    def ask(body: RunBody, asker: User) -> Accepted:
        where = located(app, body.image, body.session_id)
        owner = asker if body.client_id is None else user_of({"client_id": body.client_id})
        asked = agent.asked(body, image_of(where, body.modality), where["image_id"], owner, body.budget_s)
        return Accepted.of(runs.start(asked, Priority.BACKGROUND).key)

    @router.get("", summary="Your runs, newest first")
    def listed(
        asker: User, limit: Annotated[int, Query(ge=1, le=200)] = 50, offset: Annotated[int, Query(ge=0)] = 0
    ) -> RunPage:
        mine = runs.of_user(asker)
        items = [
            RunItem(**RunItem.parts(key, asked, created, runs.status(key)))
            for key, asked, created in mine[offset : offset + limit]
        ]
        return RunPage(total=len(mine), runs=items)

    @router.get("/{key}", summary="A run: status, progress, every slice", responses=problems(404))
    def shown(key: str, asker: User) -> RunView:
        asked, created = runs.asked(key, asker)
        return RunView.of(key, asked, created, runs.state(key))

    @router.get(
        "/{key}/events",
        summary="What happens, as server-sent events",
        description="Every event of the run's journal: `event` is its kind, `id` its number, `data` the event as JSON. Goes on "
        "until the run has ended. To come back, send the last number as `Last-Event-ID` (or `?after=`): none is lost, none "
        "comes twice; 204 when the run has ended and there are no more.",
        response_class=StreamingResponse,
        responses={
            200: {"description": "the events", "content": {"text/event-stream": {"example": _EXAMPLE}}},
            204: {"description": "the run has ended and there are no more"},
            **problems(404),
        },
    )
    def events(
        key: str, asker: User, after: Annotated[int, Query(ge=0)] = 0, last_event_id: Annotated[int | None, Header(ge=0)] = None
    ) -> Response:
        runs.asked(key, asker)
        state = runs.state(key)
        after = after if last_event_id is None else last_event_id
        if state.status.ended and after >= state.seq:
            return Response(status_code=204)
        stream = event_stream(runs.folder(key), after, stopping)
        return StreamingResponse(stream, media_type="text/event-stream", headers=_UNBUFFERED)

    @router.delete(
        "/{key}",
        status_code=202,
        summary="Cancel a run; it ends at its next turn",
        description="What has been found so far is kept, and the run can be resumed. 409 when it has ended already.",
        responses=problems(404, 409),
    )
    def cancelled(key: str, asker: User) -> Accepted:
        runs.cancel(key, asker)
        return Accepted.of(key)

    @router.post(
        "/{key}/resume",
        status_code=202,
        summary="Go on with a run that was interrupted, cancelled, failed or incomplete",
        description="Slices with an answer are not looked at again.",
        responses=problems(404, 409, 429, 503),
    )
    def resumed(key: str, asker: User) -> Accepted:
        return Accepted.of(runs.resume(key, asker).key)

    @router.get(
        "/{key}/mask",
        summary="The mask as far as the run has come, on the image's grid",
        response_class=FileResponse,
        responses=problems(404, 410, 422),
    )
    def mask(
        key: str, asker: User, background: BackgroundTasks, format: Literal["nrrd", "nii.gz", "seg"] = "nrrd"
    ) -> FileResponse:
        asked, labels, volume = runs.labels(key, asker)
        names = {target.name: target.value for target in asked.targets}
        path = write_answer(Answer(labels, volume, names, {}), _EXTENSIONS[format], compress=True)
        background.add_task(os.unlink, path)
        return FileResponse(path, filename=f"{key}{_EXTENSIONS[format]}", background=background)

    @router.get(
        "/{key}/trace",
        summary="The trace of an ended run: every thought, click and mask, as JSON",
        responses=problems(404, 409),
    )
    def trace(key: str, target: Annotated[int, Query(ge=1, description="1 for the first")] = 1) -> dict[str, Any]:
        return runs.trace(key, target)

    @router.get(
        "/{key}/trace.html",
        summary="The trace as one self-contained page",
        response_class=HTMLResponse,
        responses=problems(404, 409, 410),
    )
    def page(key: str, target: Annotated[int, Query(ge=1)] = 1) -> Response:
        record = runs.trace(key, target)
        try:
            return HTMLResponse(render_page(record, volumes.get(runs.image(key))))
        except (InputError, FileNotFoundError) as error:
            raise HTTPException(410, f"the image of run {key} is gone or has changed since") from error

    return router
