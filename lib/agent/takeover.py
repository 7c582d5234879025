"""Agent and annotator in turns on one slice: its episode goes on from its steps, and any click can be taken back.

An episode is single use: going on means a new one that recalls the steps of the old. The segmenter's state is made again by
replaying the clicks, because a mask depends on all clicks before it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lib.agent.engine import Engine
from lib.agent.episode import Actor, Episode, Outcome
from lib.agent.limits import Limits, StopReason
from lib.agent.loop import Observer, place, play
from lib.agent.protocol import Click
from lib.agent.segmenter import Prediction, State
from lib.errors import EngineError, InputError
from lib.imaging.overlays import Overlay
from lib.imaging.views import View


@dataclass(frozen=True)
class Slice:
    """A slice that people and agent work on, and what both need to know of the run."""

    view: View
    prompt: str
    overlay: Overlay


def annotate(
    slice_: Slice,
    outcome: Outcome | None,
    clicks: Sequence[Click],
    engine: Engine,
    limits: Limits,
    observers: Sequence[Observer] = (),
) -> Outcome:
    """The slice with a person's clicks after what was done so far; `outcome` is None for a slice that nobody has touched.

    Raises EngineError when the segmenter cannot do its work; then nothing has changed.
    """
    episode = reopen(slice_, outcome, engine, limits, turns=len(clicks))
    place(episode, clicks, engine, limits, observers)
    return _closed(episode)


def undo(slice_: Slice, outcome: Outcome, turn: int, engine: Engine, limits: Limits) -> Outcome:
    """The slice without the click of `turn`: what came before and after it is replayed.

    Raises InputError with the field "turn" when there is no such click, or it has been taken back already.
    """
    step = next((step for step in outcome.steps if step.turn == turn), None)
    if step is None or not isinstance(step.action, Click) or step.mask is None or step.undone:
        raise InputError(f"turn {turn} of slice {outcome.index} is no click that can be taken back", "turn")
    episode = reopen(slice_, outcome, engine, limits, without=turn)
    return _closed(episode)


def go_on(
    slices: Sequence[tuple[Slice, Outcome | None]],
    turns: int,
    engine: Engine,
    limits: Limits,
    observers: Sequence[Observer] = (),
) -> list[Outcome]:
    """Let the agent go on, for at most `turns` more turns, on each slice from where it is now; batched."""
    episodes = [reopen(slice_, outcome, engine, limits, turns) for slice_, outcome in slices]
    return [episode.outcome() for episode in play(episodes, engine, limits, observers)]


def reopen(
    slice_: Slice,
    outcome: Outcome | None,
    engine: Engine,
    limits: Limits,
    turns: int = 0,
    without: int | None = None,
    actor: Actor = Actor.AGENT,
) -> Episode:
    """An open episode that has taken the steps of `outcome`, but for that of turn `without`; `actor` takes the next ones."""
    steps = () if outcome is None else outcome.steps
    given = None if outcome is None else outcome.given
    state = _started(slice_.view, engine, limits) if steps or given else None
    for click in () if given is None else given.clicks:
        state = _clicked(state, click, engine, limits).state
    most = len(steps) + turns
    episode = Episode(slice_.view, slice_.prompt, most, slice_.overlay, engine.conduct, given, state, actor)
    for step in steps:
        if step.turn == without:
            step = replace(step, undone=True)
        if step.mask is None or step.undone or not isinstance(step.action, Click):
            episode.recall(step, None)
        else:
            episode.recall(step, _clicked(episode.state, step.action, engine, limits))
    return episode


def _started(view: View, engine: Engine, limits: Limits) -> State:
    (state,) = engine.segmenter.start([view], limits)
    if isinstance(state, EngineError):
        raise state
    return state


def _clicked(state: State, click: Click, engine: Engine, limits: Limits) -> Prediction:
    (prediction,) = engine.segmenter.click([state], [click], limits)
    if isinstance(prediction, EngineError):
        raise prediction
    return prediction


def _closed(episode: Episode) -> Outcome:
    if episode.stop is None:
        episode.end(StopReason.ANNOTATED)
    outcome = episode.outcome()
    if outcome.stop is StopReason.FAILED:
        raise EngineError(outcome.detail)
    return outcome


def annotator_clicks(outcome: Outcome | None) -> list[Click]:
    """A person's clicks that still count, oldest first."""
    steps = () if outcome is None else outcome.steps
    return [s.action for s in steps if s.actor is Actor.ANNOTATOR and not s.undone and isinstance(s.action, Click)]
