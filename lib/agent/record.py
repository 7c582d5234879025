"""Outcomes as plain JSON, and back: for traces, and for runs that go on after a restart."""

from collections.abc import Mapping
from typing import Any

from lib.agent.episode import Actor, Given, Outcome, Step
from lib.agent.limits import StopReason
from lib.agent.protocol import Action, Click, ProtocolError, ProtocolFault, Terminate
from lib.imaging import rle
from lib.imaging.planes import ViewPoint
from lib.imaging.rle import Rle
from lib.imaging.windows import Window


def to_record(outcome: Outcome) -> dict[str, Any]:
    """An outcome as JSON. Masks are COCO run lengths of the view's size; a step that left the mask as it was has null.

    `mask` stands only where no step made it: the slice's mask was brought from another slice. `given` stands only where an
    episode began with such a mask.
    """
    record = {
        "index": outcome.index,
        "window": window_record(outcome.window),
        "stop_reason": outcome.stop.value,
        "stop_detail": outcome.detail,
        "answer": outcome.answer,
        "confidence": _rounded(outcome.confidence),
        "final_turn": outcome.final_turn,
        "chosen_because": outcome.chosen_because,
        "steps": [step_record(step) for step in outcome.steps],
    }
    if outcome.given is not None:
        record["given"] = {
            "mask": outcome.given.mask,
            "score": outcome.given.score,
            "clicks": [_action_record(click) for click in outcome.given.clicks],
        }
    return record | ({"mask": outcome.mask} if outcome.final_turn is None and outcome.found else {})


def from_record(record: Mapping[str, Any], size: tuple[int, int]) -> Outcome:
    """The outcome that `to_record` wrote; `size` is (width, height) of the view. Scores come back with four decimals."""
    steps = tuple(_step(one) for one in record["steps"])
    final = record["final_turn"]
    mask: Rle | None = record.get("mask")
    if final is not None:
        mask = next(step.mask for step in steps if step.turn == final)
    return Outcome(
        index=record["index"],
        window=Window(**record["window"]),
        stop=StopReason(record["stop_reason"]),
        detail=record["stop_detail"],
        answer=record["answer"],
        steps=steps,
        mask=mask if mask is not None else rle.empty(*size),
        final_turn=final,
        chosen_because=record["chosen_because"],
        confidence=record["confidence"],
        given=_given(record["given"]) if "given" in record else None,
    )


def window_record(window: Window) -> dict[str, Any]:
    return {"name": window.name, "low": window.low, "high": window.high}


def step_record(step: Step) -> dict[str, Any]:
    """One step of a record's `steps`."""
    return {
        "turn": step.turn,
        "actor": step.actor.value,
        "reply": step.reply,
        "thought": step.thought,
        "action": _action_record(step.action),
        "mask": step.mask,
        "score": _rounded(step.score),
        "support": _rounded(step.support),
        "seconds": {"policy": round(step.policy_seconds, 5), "segmenter": round(step.segmenter_seconds, 5)},
        "details": dict(step.details),
        "undone": step.undone,
    }


def _given(record: Mapping[str, Any]) -> Given:
    clicks = (_action(click, "") for click in record["clicks"])
    return Given(record["mask"], record["score"], tuple(click for click in clicks if isinstance(click, Click)))


def _step(record: Mapping[str, Any]) -> Step:
    return Step(
        turn=record["turn"],
        actor=Actor(record["actor"]),
        reply=record["reply"],
        thought=record["thought"],
        action=_action(record["action"], record["reply"]),
        mask=record["mask"],
        score=record["score"],
        support=record["support"],
        policy_seconds=record["seconds"]["policy"],
        segmenter_seconds=record["seconds"]["segmenter"],
        details=record["details"],
        undone=record["undone"],
    )


def _action_record(action: Action | ProtocolError) -> dict[str, Any]:
    if isinstance(action, Click):
        return {"kind": "positive" if action.positive else "negative", "x": action.point.x, "y": action.point.y}
    if isinstance(action, ProtocolError):
        return {"kind": "error", "detail": action.fault.value}
    return {"kind": "terminate", "detail": action.answer}


def _action(record: Mapping[str, Any], reply: str) -> Action | ProtocolError:
    if record["kind"] == "terminate":
        return Terminate(record["detail"])
    if record["kind"] == "error":
        return ProtocolError(ProtocolFault(record["detail"]), reply)
    return Click(ViewPoint(record["x"], record["y"]), positive=record["kind"] == "positive")


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
