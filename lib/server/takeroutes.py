"""`/ibis/runs/{id}/...`: the annotator takes over, and hands back."""

from collections import defaultdict
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from lib.agent.episode import Outcome
from lib.agent.limits import Limits
from lib.agent.protocol import Click
from lib.agent.record import to_record
from lib.errors import InputError
from lib.imaging.cache import VolumeCache
from lib.imaging.planes import ViewGrid, ViewPoint, VoxelIndex
from lib.server.jobroutes import User, problems
from lib.server.jobs.runs import Runs
from lib.server.jobs.schema import Accepted
from lib.server.jobs.takeover import Takeover

_Target = Annotated[int, Field(ge=1, description="1 for the first target of the run")]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")
    target: _Target = 1


class Point(BaseModel):
    """A click: either a place in the view of a slice, or a voxel of the image file."""

    model_config = ConfigDict(extra="forbid")
    positive: bool = True
    slice: int | None = Field(None, ge=0)
    x: float | None = Field(None, ge=0, le=1, description="column / width of the view")
    y: float | None = Field(None, ge=0, le=1, description="row / height of the view")
    voxel: tuple[int, int, int] | None = Field(None, description="[i, j, k]; instead of slice, x and y")


class Clicks(_Body):
    """Clicks to add."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"target": 1, "clicks": [{"slice": 42, "x": 0.31, "y": 0.52}]}]}
    )
    clicks: list[Point] = Field(min_length=1, max_length=1000)


class Undo(_Body):
    """Which click to take back."""

    slice: int = Field(ge=0)
    turn: int = Field(ge=1)


class Lock(_Body):
    """Which slices to lock or to unlock."""

    slices: list[int] = Field(min_length=1, max_length=10_000)
    locked: bool = True


class Continue(_Body):
    """Where the agent is to go on."""

    slices: list[int] | None = Field(None, max_length=10_000, description="left out: those that were clicked on last")
    turns: int = Field(20, ge=1, le=100, description="most turns on each slice")


class SliceView(BaseModel):
    """A slice after a change: its record, as in the trace."""

    slice: int
    outcome: dict[str, Any]

    @classmethod
    def of(cls, outcome: Outcome) -> "SliceView":
        return cls(slice=outcome.index, outcome=to_record(outcome))


def takeover_routes(runs: Runs, takeover: Takeover, volumes: VolumeCache) -> APIRouter:
    """Clicks, undo, locks, and letting the agent go on."""
    router = APIRouter(prefix="/ibis/runs/{key}", tags=["IBIS"])

    @router.post(
        "/clicks",
        summary="Place your own clicks on the run's mask; answers with the new masks",
        description="They become steps of the same episodes, with you as the actor. 409 while the agent works on the run, and "
        "for a locked slice.",
        responses=problems(404, 409, 410, 422),
    )
    def clicks(key: str, body: Clicks, asker: User) -> list[SliceView]:
        asked, _ = runs.asked(key, asker)
        grid = ViewGrid(volumes.get(asked.image), asked.targets[min(body.target, len(asked.targets)) - 1].request.plane)
        placed: dict[int, list[Click]] = defaultdict(list)
        for point in body.clicks:
            index, click = _click(point, grid)
            placed[index].append(click)
        changed = takeover.click(key, asker, body.target, placed, Limits())
        return [SliceView.of(outcome) for outcome in changed.values()]

    @router.post(
        "/undo",
        summary="Take one click back, yours or the agent's; the others are replayed",
        responses=problems(404, 409, 410, 422),
    )
    def undone(key: str, body: Undo, asker: User) -> SliceView:
        return SliceView.of(takeover.undo(key, asker, body.target, body.slice, body.turn))

    @router.post(
        "/lock",
        status_code=204,
        summary="Lock slices: neither agent nor propagation nor clicks change them",
        responses=problems(404, 409, 410, 422),
    )
    def locked(key: str, body: Lock, asker: User) -> None:
        takeover.lock(key, asker, body.target, body.slices, body.locked)

    @router.post(
        "/continue",
        status_code=202,
        summary="Let the agent go on from where you left it; watch the run's events",
        responses=problems(404, 409, 410, 422, 429, 503),
    )
    def proceed(key: str, body: Continue, asker: User) -> Accepted:
        takeover.proceed(key, asker, body.target, body.slices, body.turns, Limits())
        return Accepted.of(key)

    return router


def _click(point: Point, grid: ViewGrid) -> tuple[int, Click]:
    """The slice, and the click on its view. Raises InputError with the field "clicks"."""
    if point.voxel is not None and point.slice is point.x is point.y is None:
        index, place = grid.to_view(VoxelIndex(*point.voxel))
        return index, Click(place, point.positive)
    if point.voxel is not None or point.slice is None or point.x is None or point.y is None:
        raise InputError("a click has either voxel, or slice, x and y", "clicks")
    grid.check(point.slice)
    return point.slice, Click(ViewPoint(point.x, point.y), point.positive)
