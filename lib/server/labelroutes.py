"""`/ibis/runs/{id}/label`, `/reject`, `/gradings`: the annotator's verdict on a run, and what it was worth."""

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, File, Form, UploadFile
from pydantic import BaseModel, ConfigDict, Field

from lib.errors import InputError
from lib.imaging.cache import VolumeCache
from lib.imaging.planes import ViewGrid
from lib.infers.asked import Asked
from lib.server.finallabels import FinalLabels, Part
from lib.server.jobroutes import User, problems
from lib.server.jobs.refusal import Refusal
from lib.server.jobs.runs import Runs
from lib.server.jobs.schema import Problem
from lib.server.labels import LabelDesk
from lib.server.uploads import json_object, received
from lib.trajectories.grade import Dropped
from lib.trajectories.grading import Extent
from lib.trajectories.matching import label_names
from lib.trajectories.selection import Selection
from lib.trajectories.store import Grading, Summary, TrajectoryStore
from lib.trajectories.trajectory import Source


class Rejected(BaseModel):
    """Why a run is of no use."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"reason": "the wrong organ", "target": 1}]})
    reason: str = Field(min_length=1, max_length=2000)
    target: int = Field(1, ge=1, description="1 for the first target of the run")


class RejectionView(BaseModel):
    reason: str
    annotator: str
    time: str
    target: int


class Kept(BaseModel):
    """Where a final label is, and what happens with it."""

    image: str
    label: str
    grading: str = Field(description='"queued": GET .../gradings has the rewards soon')


class StepView(BaseModel):
    turn: int
    total: float
    parts: dict[str, float]


class SliceGrade(BaseModel):
    index: int
    iou: float | None
    dice: float | None
    total: float | None
    parts: dict[str, float]
    steps: list[StepView]
    dropped: str = Field(description="why there is no reward; empty when there is one")
    version: int = Field(description="of the episode: it is recorded anew when someone goes on with it")


class GradingView(BaseModel):
    """The episodes of a target against one label."""

    id: str
    annotator: str
    source: str
    time: str
    target: int
    dice: float | None = Field(description="mean over the slices")
    total: float | None = Field(description="mean over the slices")
    slices: list[SliceGrade]


class Gradings(BaseModel):
    waiting: int = Field(description="labels of this image that are not graded yet")
    notes: list[str] = Field(description="what the annotator should know about the last label")
    gradings: list[GradingView]
    rejections: list[RejectionView]


def label_routes(runs: Runs, finals: FinalLabels, desk: LabelDesk, store: TrajectoryStore, volumes: VolumeCache) -> APIRouter:
    """Accept, reject, and see the rewards."""
    router = APIRouter(prefix="/ibis/runs/{key}", tags=["IBIS"])

    @router.put(
        "/label",
        summary="Make the run's masks the final label of its image; the recorded episodes are graded against it",
        description="Without a file the masks are taken as they are, on the slices that have an answer: what an earlier final "
        "label has on others, and its other structures, stay. With a file (`label`) that is the whole final label; `params` "
        "names its values (`label_info` as viewers send it) and may say what a name means for the run: `aliases`, such as "
        '{"Segment_1": "liver"}.',
        responses=problems(404, 409, 410, 422),
    )
    def accepted(
        key: str,
        asker: User,
        label: Annotated[UploadFile | None, File()] = None,
        params: Annotated[str, Form()] = "{}",
    ) -> Kept:
        asked, _ = runs.asked(key, asker)
        given = json_object(params)
        aliases = _aliases(given.get("aliases", {}))
        if label is not None:
            names = label_names(given.get("label_info"))
            with received(label) as path:
                stored = finals.store(asked.image_id, volumes.get(asked.image), path, names, asker, aliases)
        else:
            stored = _accept(key, asker, asked, runs, finals)
        return Kept(image=asked.image_id, label=stored, grading="queued")

    @router.post("/reject", summary="Say that a run is of no use, and why", responses=problems(404, 422))
    def rejected(key: str, body: Rejected, asker: User) -> RejectionView:
        asked, _ = runs.asked(key, asker)
        if body.target > len(asked.targets):
            raise Refusal(404, f"target {body.target}: run {key} has {len(asked.targets)}")
        kept = store.reject(key, body.target, asker, body.reason)
        return RejectionView(reason=kept.reason, annotator=kept.annotator, time=kept.created, target=kept.target)

    @router.get(
        "/gradings",
        summary="The run's rewards, part by part, for each annotator's label; and its rejections",
        responses={404: {"model": Problem, "description": "no such run of this user, or no longer kept"}},
    )
    def gradings(key: str, asker: User) -> Gradings:
        asked, _ = runs.asked(key, asker)
        reports = desk.reports(asked.image_id)
        notes = [reports[-1].problem, *reports[-1].notes] if reports else []
        selection = Selection(run=key, source=Source.RUN, newest=False)
        episodes = {episode.key: episode for episode in store.summaries(selection)}
        return Gradings(
            waiting=desk.waiting(asked.image_id),
            notes=[note for note in notes if note],
            gradings=_views(episodes, store.gradings(selection)),
            rejections=[
                RejectionView(reason=one.reason, annotator=one.annotator, time=one.created, target=one.target)
                for one in store.rejections(key)
            ],
        )

    return router


def _accept(key: str, user: str, asked: Asked, runs: Runs, finals: FinalLabels) -> str:
    """The run's masks as the final label, as far as they are answers, beside what an earlier one has."""
    state = runs.state(key)
    if not state.status.ended:
        raise Refusal(409, f"the agent works on run {key}: wait for its end, or cancel it")
    _, labels, volume = runs.labels(key, user)
    parts = []
    for number, target in enumerate(asked.targets, start=1):
        grid = ViewGrid(volume, target.request.plane)
        slices = frozenset(state.known(number, grid.size))
        if slices:
            parts.append(Part(target.name, labels == target.value, Extent(grid.plane.value, slices)))
    if not parts:
        raise Refusal(409, f"run {key} has no answer yet: there is nothing to accept")
    return finals.accept(asked.image_id, volume, parts, user)


def _aliases(given: Any) -> dict[str, str]:
    if not isinstance(given, dict) or not all(isinstance(text, str) for pair in given.items() for text in pair):
        raise InputError("must be an object of texts: what a name of the label means", "aliases")
    return given


def _views(episodes: Mapping[str, Summary], found: Mapping[str, list[Grading]]) -> list[GradingView]:
    by_label: dict[str, list[Grading]] = {}
    for gradings in (one for key, one in found.items() if key in episodes):
        for grading in gradings:
            by_label.setdefault(grading.label.key, []).append(grading)
    views = [_view(episodes, gradings) for gradings in by_label.values()]
    return sorted(views, key=lambda view: (view.time, view.target))


def _view(episodes: Mapping[str, Summary], gradings: list[Grading]) -> GradingView:
    slices = [_slice(episodes[grading.trajectory], grading) for grading in gradings]
    label = gradings[0].label
    return GradingView(
        id=label.key,
        annotator=label.annotator,
        source=label.source,
        time=label.created,
        target=episodes[gradings[0].trajectory].target,
        dice=_mean([one.dice for one in slices]),
        total=_mean([one.total for one in slices]),
        slices=sorted(slices, key=lambda one: (one.index, one.version)),
    )


def _slice(episode: Summary, grading: Grading) -> SliceGrade:
    grade = grading.grade
    if isinstance(grade, Dropped):
        return SliceGrade(
            index=episode.slice,
            iou=None,
            dice=None,
            total=None,
            parts={},
            steps=[],
            dropped=grade.reason,
            version=episode.version,
        )
    return SliceGrade(
        index=episode.slice,
        iou=grade.iou,
        dice=grade.dice,
        total=grade.total,
        parts=dict(grade.parts),
        steps=[StepView(turn=step.turn, total=step.total, parts=dict(step.parts)) for step in grade.steps],
        dropped="",
        version=episode.version,
    )


def _mean(values: list[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None
