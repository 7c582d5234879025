"""The trace: a run as plain JSON, without pixels. With the image it rebuilds every picture that the agent saw."""

from datetime import UTC, datetime
from typing import Any

from lib.agent.episode import Outcome, Step
from lib.agent.protocol import Click, ProtocolError
from lib.agent.run import RunResult
from lib.imaging.overlays import overlay_named
from lib.imaging.windows import Window

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
        "window": _window(result.window),
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
        "slices": [_slice(outcome) for outcome in result.outcomes],
    }


def _slice(outcome: Outcome) -> dict[str, Any]:
    return {
        "index": outcome.index,
        "window": _window(outcome.window),
        "stop_reason": outcome.stop.value,
        "stop_detail": outcome.detail,
        "answer": outcome.answer,
        "confidence": _rounded(outcome.confidence),
        "final_turn": outcome.final_turn,
        "chosen_because": outcome.chosen_because,
        "steps": [_step(step) for step in outcome.steps],
    }


def _window(window: Window) -> dict[str, Any]:
    return {"name": window.name, "low": window.low, "high": window.high}


def _step(step: Step) -> dict[str, Any]:
    return {
        "turn": step.turn,
        "actor": step.actor.value,
        "reply": step.reply,
        "thought": step.thought,
        "action": _action(step),
        "mask": step.mask,
        "score": _rounded(step.score),
        "support": _rounded(step.support),
        "seconds": {"policy": round(step.policy_seconds, 5), "segmenter": round(step.segmenter_seconds, 5)},
        "details": dict(step.details),
    }


def _action(step: Step) -> dict[str, Any]:
    action = step.action
    if isinstance(action, Click):
        return {"kind": "positive" if action.positive else "negative", "x": action.point.x, "y": action.point.y}
    if isinstance(action, ProtocolError):
        return {"kind": "error", "detail": action.fault.value}
    return {"kind": "terminate", "detail": action.answer}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
