"""What `/ibis/runs` and `/ibis/jobs` take and give, as JSON."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from lib.imaging.planes import Plane
from lib.infers.asked import Asked, Target
from lib.infers.options import AgentOptions
from lib.server.jobs.queue import Job
from lib.server.jobs.state import RunState, SliceState, Status


class RunBody(AgentOptions):
    """A run: an image, one or several targets, and the options of `ibis_agent`."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={"examples": [{"image": "patient_one_ct", "prompt": "liver; spleen", "slices": "20-60"}]},
    )

    image: str = Field("", max_length=255, description="id of an image of the store")
    session_id: str = Field("", max_length=255, description="instead of `image`: a session with an uploaded image")
    client_id: str | None = Field(None, description="whose run it is; or the header X-IBIS-User")
    budget_s: float | None = Field(  # type: ignore[assignment]
        None, gt=0, le=86_400, allow_inf_nan=False, description="seconds of work; left out: until it is done"
    )


class Problem(BaseModel):
    """What went wrong, in a sentence."""

    detail: str


class Links(BaseModel):
    """Where the run is."""

    run: str
    events: str
    mask: str
    trace: str

    @classmethod
    def to(cls, key: str) -> "Links":
        at = f"/ibis/runs/{key}"
        return cls(run=at, events=f"{at}/events", mask=f"{at}/mask", trace=f"{at}/trace.html")


class Accepted(BaseModel):
    """The run is queued."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"id": "0f3a9c5d7e1b2468", "urls": Links.to("0f3a9c5d7e1b2468").model_dump()}]}
    )
    id: str
    urls: Links

    @classmethod
    def of(cls, key: str) -> "Accepted":
        return cls(id=key, urls=Links.to(key))


class TargetView(BaseModel):
    """One thing that is looked for."""

    prompt: str
    name: str
    value: int = Field(description="voxel value in the mask")
    plane: Plane
    slices: str = Field(description="which ones, as asked")
    window: str = Field(description="as asked")
    max_turns: int

    @classmethod
    def of(cls, target: Target) -> "TargetView":
        request = target.request
        return cls(
            prompt=request.prompt,
            name=target.name,
            value=target.value,
            plane=request.plane,
            slices=request.slices,
            window=request.window,
            max_turns=request.max_turns,
        )


class RunItem(BaseModel):
    """A run in a list."""

    id: str
    status: Status
    created: float = Field(description="seconds since the epoch")
    image: str
    targets: list[TargetView]
    urls: Links

    @classmethod
    def parts(cls, key: str, asked: Asked, created: float, status: Status) -> dict[str, Any]:
        return {
            "id": key,
            "status": status,
            "created": created,
            "image": asked.image_id,
            "targets": [TargetView.of(target) for target in asked.targets],
            "urls": Links.to(key),
        }


class RunPage(BaseModel):
    """Some of a user's runs, newest first."""

    total: int
    runs: list[RunItem]


class SliceView(BaseModel):
    """One slice for one target."""

    target: int = Field(description="1 for the first")
    slice: int
    state: Literal["playing", "settled", "open"] = Field(description="open: started, and cut short before it had an outcome")
    turns: int
    stop_reason: str | None
    confidence: float | None
    conclusive: bool = Field(description="whether the outcome is an answer")
    locked: bool

    @classmethod
    def of(cls, target: int, index: int, slice_: SliceState) -> "SliceView":
        record = slice_.record or {}
        return cls(
            target=target,
            slice=index,
            state="playing" if slice_.playing else "settled" if slice_.record is not None else "open",
            turns=slice_.turns,
            stop_reason=record.get("stop_reason"),
            confidence=record.get("confidence"),
            conclusive=slice_.conclusive,
            locked=slice_.locked,
        )


class RunView(RunItem):
    """A run."""

    seq: int = Field(description="of its last event")
    settled: int = Field(description="slices with an answer, over all targets")
    total: int | None = Field(description="slices asked for, over all targets; null before the run has begun")
    answer: str
    notes: list[str]
    error: str
    slices: list[SliceView]

    @classmethod
    def of(cls, key: str, asked: Asked, created: float, state: RunState) -> "RunView":
        return cls(
            **RunItem.parts(key, asked, created, state.status),
            seq=state.seq,
            settled=state.settled,
            total=state.total,
            answer=state.answer,
            notes=list(state.notes),
            error=state.error,
            slices=[SliceView.of(target, index, one) for (target, index), one in sorted(state.slices.items())],
        )


class JobView(BaseModel):
    """A job. Those of others have neither id nor text."""

    id: str | None
    about: str | None
    mine: bool
    priority: Literal["click", "waited", "background"]
    created: float = Field(description="seconds since the epoch")
    position: int | None = Field(description="in the queue, 1 for the next; null when it runs")

    @classmethod
    def of(cls, job: Job, user: str, position: int | None) -> "JobView":
        mine = job.user == user
        return cls(
            id=job.key if mine else None,
            about=job.about if mine else None,
            mine=mine,
            priority=job.priority.name.lower(),  # type: ignore[arg-type]
            created=job.created,
            position=position,
        )


class JobsView(BaseModel):
    """What the server works on, and what waits."""

    running: list[JobView]
    waiting: list[JobView]
