"""The trace: a run as plain JSON, without pixels. With the image it rebuilds every picture that the agent saw."""

from datetime import UTC, datetime
from typing import Any

from lib.agent.record import to_record, window_record
from lib.agent.run import RunResult
from lib.imaging.overlays import overlay_named

SCHEMA = 1


def to_trace(result: RunResult) -> dict[str, Any]:
    """The trace of a run. Masks are COCO run lengths of the view's size, a step that left the mask as it was has null."""
    volume, request = result.volume, result.request
    overlay = overlay_named(request.overlay)
    steps = [step for outcome in result.outcomes for step in outcome.steps]
    return {
        "schema": SCHEMA,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "prompt": request.prompt,
        "answer": result.answer,
        "status": result.status,
        "engine": {
            "name": result.engine.name,
            "policy": result.engine.policy.name,
            "segmenter": result.engine.segmenter.name,
            "protocol": result.engine.conduct.name,
            "policy_details": dict(result.engine.policy.about),
            "segmenter_details": dict(result.engine.segmenter.about),
        },
        "image": {
            "name": volume.source.name,
            "modality": volume.modality.value,
            "shape": list(volume.data.shape),
            "spacing_mm": list(volume.spacing),
            "axcodes": volume.axcodes,
            "content_hash": volume.content_hash,
            "warnings": list(volume.warnings),
        },
        "plane": request.plane.value,
        "window": window_record(result.window),
        "overlay": {"name": overlay.name, "colour": list(overlay.colour), "alpha": overlay.alpha, "rounded": overlay.rounded},
        "view_size": list(result.grid.size),
        "max_turns": request.max_turns,
        "seconds": round(result.seconds, 3),
        "timings": {
            "policy": round(sum(step.policy_seconds for step in steps), 3),
            "segmenter": round(sum(step.segmenter_seconds for step in steps), 3),
        },
        "turns": len(steps),
        "voxels": result.voxels,
        "volume_ml": round(result.volume_ml, 3),
        "slices": [to_record(outcome) for outcome in result.outcomes],
    }
