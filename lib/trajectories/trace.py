"""Recorded episodes as a trace page: pictures come from the store, the image is not needed."""

from collections.abc import Mapping, Sequence
from typing import Any

from lib.agent.record import to_record, window_record
from lib.agent.trace import SCHEMA
from lib.agent.trace_page import render_recorded
from lib.imaging.overlays import overlay_named
from lib.trajectories.grade import Dropped
from lib.trajectories.selection import Selection
from lib.trajectories.store import Grading, TrajectoryStore
from lib.trajectories.trajectory import Trajectory


def trace_page(store: TrajectoryStore, trajectory: Trajectory, whole_run: bool = False) -> str:
    """A trajectory as an HTML page, with its gradings; of the `whole_run` all slices of its target, as they are now.

    Raises InputError when a picture is gone from the store.
    """
    found = [trajectory]
    if whole_run:
        wanted = Selection(run=trajectory.run, source=trajectory.source)
        found = [one for one in store.select(wanted) if one.target == trajectory.target]
    gradings = store.gradings(Selection(run=trajectory.run, newest=False))
    pictures = {one.origin.index: store.blobs.picture_path(one.picture).read_bytes() for one in found}
    return render_recorded(to_trace(found, gradings), pictures, trajectory.origin.pixel_mm or None)


def to_trace(found: Sequence[Trajectory], gradings: Mapping[str, Sequence[Grading]]) -> dict[str, Any]:
    """The trace of episodes of one run and target, one for each slice, as `lib.agent.trace` has it; without what only the image
    tells. A slice and its steps also have `grades`, one for each grading."""
    first = found[0]
    overlay = overlay_named(first.overlay)
    steps = [step for one in found for step in one.outcome.steps]
    shown = sum(one.outcome.found for one in found)
    single = f"{first.prompt}: {first.outcome.answer or first.outcome.detail or first.outcome.stop.value}"
    return {
        "schema": SCHEMA,
        "created": first.created,
        "prompt": first.prompt,
        "answer": single if len(found) == 1 else f"{first.prompt}: on {shown} of {len(found)} slices",
        "status": "complete" if all(one.conclusive for one in found) else "incomplete",
        "engine": {
            "name": first.maker.engine,
            "policy": first.maker.policy,
            "segmenter": first.maker.segmenter,
            "protocol": first.maker.protocol,
        },
        "image": {
            "name": f"trajectory {first.key[:8]} of image {first.origin.image[:8]}",
            "modality": first.origin.modality,
            "content_hash": first.origin.content_hash,
            "warnings": [],
        },
        "plane": first.origin.plane,
        "window": window_record(first.outcome.window),
        "overlay": {"name": overlay.name, "colour": list(overlay.colour), "alpha": overlay.alpha, "rounded": overlay.rounded},
        "view_size": list(first.origin.size),
        "max_turns": first.max_turns,
        "seconds": round(sum(step.policy_seconds + step.segmenter_seconds for step in steps), 3),
        "timings": {
            "policy": round(sum(step.policy_seconds for step in steps), 3),
            "segmenter": round(sum(step.segmenter_seconds for step in steps), 3),
        },
        "turns": len(steps),
        "slices": [_slice(one, gradings.get(one.key, ())) for one in found],
    }


def _slice(one: Trajectory, gradings: Sequence[Grading]) -> dict[str, Any]:
    record = to_record(one.outcome)
    record["grades"] = [_grade(grading) for grading in gradings]
    by_turn: dict[int, list[dict[str, Any]]] = {}
    for grading in gradings:
        for step in () if isinstance(grading.grade, Dropped) else grading.grade.steps:
            worth = {"by": _by(grading), "iou": step.iou_after, "total": step.total, "parts": dict(step.parts)}
            by_turn.setdefault(step.turn, []).append(worth)
    record["steps"] = [step | {"grades": by_turn.get(step["turn"], [])} for step in record["steps"]]
    return record


def _grade(grading: Grading) -> dict[str, Any]:
    grade = grading.grade
    if isinstance(grade, Dropped):
        return {"by": _by(grading), "dropped": grade.reason}
    return {"by": _by(grading), "dice": grade.dice, "total": grade.total, "parts": dict(grade.parts)}


def _by(grading: Grading) -> str:
    return f"{grading.label.annotator} ({grading.recipe})"
