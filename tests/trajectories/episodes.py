"""Episodes for tests: outcomes put together from what was said and drawn."""

import numpy as np

from lib.agent.episode import Actor, Given, Outcome, Step
from lib.agent.limits import StopReason
from lib.agent.protocol import Action, Click, ProtocolError, Reply, Terminate, parse, render
from lib.imaging import rle
from lib.imaging.planes import ViewPoint
from lib.imaging.windows import Window

STOP = render(Reply("right", Terminate("done")))


def rect(top: int, bottom: int, left: int, right: int, shape: tuple[int, int] = (20, 40)) -> np.ndarray:
    """bool mask of `shape` with rows `top` to `bottom` and columns `left` to `right` filled, ends excluded."""
    mask = np.zeros(shape, bool)
    mask[top:bottom, left:right] = True
    return mask


def at(column: int, row: int, positive: bool = True, shape: tuple[int, int] = (20, 40)) -> Click:
    """A click on the centre of a pixel."""
    return Click(ViewPoint.of_pixel(column, row, shape[1], shape[0]), positive)


def said(action: Action) -> str:
    return render(Reply("so", action))


def outcome(
    played: list[tuple[str | Click, np.ndarray | None]],
    stop: StopReason | None = None,
    given: np.ndarray | None = None,
    shape: tuple[int, int] = (20, 40),
    undone: tuple[int, ...] = (),
    detail: str = "",
) -> Outcome:
    """`played` are pairs of what was said (a text by the agent, a click by an annotator) and the mask that it made. The last
    mask is the chosen one; without `stop` the last reply says why it ended."""
    steps = []
    for turn, (words, mask) in enumerate(played, 1):
        read = parse(words) if isinstance(words, str) else Reply("", words)
        action = read if isinstance(read, ProtocolError) else read.action
        steps.append(
            Step(
                turn=turn,
                actor=Actor.AGENT if isinstance(words, str) else Actor.ANNOTATOR,
                reply=words if isinstance(words, str) else "",
                thought="",
                action=action,
                mask=None if mask is None else rle.encode(mask),
                score=None if mask is None else 0.5,
                undone=turn in undone,
            )
        )
    drawn = [step for step in steps if step.mask is not None and not step.undone]
    start = None if given is None else Given(rle.encode(given), 0.5, ())
    final = drawn[-1].mask if drawn else start.mask if start else rle.empty(shape[1], shape[0])
    if stop is None:
        stopped = bool(steps) and isinstance(steps[-1].action, Terminate)
        stop = (StopReason.TERMINATED if rle.area(final) else StopReason.ABSENT) if stopped else StopReason.MAX_TURNS
    return Outcome(
        index=0,
        window=Window(0, 255, "stored"),
        stop=stop,
        detail=detail,
        answer="",
        steps=tuple(steps),
        mask=final,
        final_turn=drawn[-1].turn if drawn and stop is not StopReason.ABSENT else None,
        chosen_because="",
        confidence=None,
        given=start,
    )
