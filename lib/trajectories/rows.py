"""Trajectories as rows, and back. Masks are blobs; a row has their digests."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from lib.agent.record import from_record
from lib.imaging.rle import Rle
from lib.trajectories.blobs import Blobs
from lib.trajectories.tables import ImageRow, StepRow, TrajectoryRow
from lib.trajectories.trajectory import Maker, Origin, Source, Trajectory, observations


def image_row(origin: Origin, name: str | None) -> dict[str, Any]:
    return {
        "key": origin.image,
        "patient": origin.patient,
        "modality": origin.modality,
        "burned_in": origin.burned_in,
        "name": name,
    }


def trajectory_rows(trajectory: Trajectory, put_mask: Callable[[Rle], str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The trajectory's row, without its version, and those of its steps; `put_mask` stores a mask and gives its digest."""
    outcome, origin, maker = trajectory.outcome, trajectory.origin, trajectory.maker
    record = trajectory.record
    given = record.get("given")
    key = trajectory.key
    row = {
        "key": key,
        "schema": trajectory.schema,
        "episode": trajectory.episode,
        "source": trajectory.source.value,
        "lesson": trajectory.lesson,
        "kept_from": trajectory.kept_from,
        "run": trajectory.run,
        "target": trajectory.target,
        "user": trajectory.user,
        "created": trajectory.created,
        "image": origin.image,
        "content_hash": origin.content_hash,
        "plane": origin.plane,
        "slice": origin.index,
        "width": origin.size[0],
        "height": origin.size[1],
        "pixel_mm": origin.pixel_mm,
        "picture": trajectory.picture,
        "prompt": trajectory.prompt,
        "label": trajectory.label,
        "overlay": trajectory.overlay,
        "window": record["window"],
        "max_turns": trajectory.max_turns,
        "engine": maker.engine,
        "weights": maker.weights,
        "maker": {
            "policy": maker.policy,
            "segmenter": maker.segmenter,
            "protocol": maker.protocol,
            "details": dict(maker.details),
        },
        "given": None if given is None else given | {"mask": put_mask(given["mask"])},
        "stop": record["stop_reason"],
        "detail": record["stop_detail"],
        "answer": record["answer"],
        "final_turn": record["final_turn"],
        "chosen_because": record["chosen_because"],
        "confidence": record["confidence"],
        "mask": put_mask(outcome.mask),
    }
    steps = [
        step | {"trajectory": key, "observation": seen, "mask": None if step["mask"] is None else put_mask(step["mask"])}
        for step, seen in zip(record["steps"], observations(trajectory), strict=True)
    ]
    return row, steps


def to_trajectory(row: TrajectoryRow, image: ImageRow, steps: Iterator[StepRow], blobs: Blobs) -> Trajectory:
    """Raises InputError when a blob is gone."""
    record: dict[str, Any] = {
        "index": row.slice,
        "window": row.window,
        "stop_reason": row.stop,
        "stop_detail": row.detail,
        "answer": row.answer,
        "confidence": row.confidence,
        "final_turn": row.final_turn,
        "chosen_because": row.chosen_because,
        "steps": [_step_record(step, blobs) for step in steps],
        "mask": blobs.mask(row.mask),
    }
    if row.given is not None:
        record["given"] = row.given | {"mask": blobs.mask(row.given["mask"])}
    details: Mapping[str, Any] = row.maker["details"]
    return Trajectory(
        episode=row.episode,
        source=Source(row.source),
        run=row.run,
        target=row.target,
        user=row.user,
        created=row.created,
        origin=Origin(
            image=row.image,
            patient=image.patient,
            content_hash=row.content_hash,
            modality=image.modality,
            plane=row.plane,
            index=row.slice,
            size=(row.width, row.height),
            pixel_mm=row.pixel_mm,
            burned_in=image.burned_in,
        ),
        prompt=row.prompt,
        label=row.label,
        overlay=row.overlay,
        max_turns=row.max_turns,
        maker=Maker(row.engine, row.maker["policy"], row.maker["segmenter"], row.maker["protocol"], details),
        picture=row.picture,
        outcome=from_record(record, (row.width, row.height)),
        lesson=row.lesson,
        kept_from=row.kept_from,
        schema=row.schema,
    )


def _step_record(step: StepRow, blobs: Blobs) -> dict[str, Any]:
    names = ("turn", "actor", "reply", "thought", "action", "score", "support", "seconds", "details", "undone")
    return {name: getattr(step, name) for name in names} | {"mask": None if step.mask is None else blobs.mask(step.mask)}
