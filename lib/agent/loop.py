"""The loop: episodes go through a policy and a segmenter in batches, each for as many turns as it needs."""

import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

from lib.agent.engine import Engine
from lib.agent.episode import Episode, StopReason
from lib.agent.protocol import Click
from lib.errors import EngineError


class Observer(Protocol):
    """Who wants to watch: a progress bar, a recorder. Called from the run's own thread, between forward passes."""

    def stepped(self, episode: Episode) -> None:
        """The episode's last step is complete."""

    def ended(self, episode: Episode) -> None:
        """The episode has its stop reason."""


@dataclass(frozen=True)
class Limits:
    """What may end a run from outside. Checked between turns."""

    deadline: float | None = None
    """On the clock of `time.monotonic`."""
    cancelled: threading.Event = field(default_factory=threading.Event)

    def __deepcopy__(self, memo: object) -> "Limits":
        """The event is meant to be shared: MONAI Label copies requests on their way to a task."""
        return self

    def reached(self) -> StopReason | None:
        if self.cancelled.is_set():
            return StopReason.CANCELLED
        if self.deadline is not None and time.monotonic() >= self.deadline:
            return StopReason.DEADLINE
        return None


def play(episodes: Iterable[Episode], engine: Engine, limits: Limits, observers: Iterable[Observer] = ()) -> Iterator[Episode]:
    """Play all episodes to their end and yield each as it ends, `engine.batch` at a time: where one ends, the next begins."""
    waiting = iter(episodes)
    watchers = tuple(observers)
    active = list(islice(waiting, engine.batch))
    while active:
        reason = limits.reached()
        for episode in active:
            if reason is not None:
                episode.end(reason)
        if reason is None:
            _turn(active, engine, watchers)
        for episode in active:
            if episode.stop is not None:
                for watcher in watchers:
                    watcher.ended(episode)
                yield episode
        active = [episode for episode in active if episode.stop is None]
        active += islice(waiting, engine.batch - len(active))


def place(episode: Episode, clicks: Iterable[Click], engine: Engine, limits: Limits) -> None:
    """Place a person's clicks on one episode, in order. The episode stays open unless a limit or a failure ends it."""
    for click in clicks:
        reason = limits.reached()
        if reason is not None:
            episode.end(reason)
            return
        episode.annotate(click)
        _segment([(episode, click)], engine, ())
        if episode.stop is not None:
            return


def _turn(active: list[Episode], engine: Engine, watchers: tuple[Observer, ...]) -> None:
    try:
        decisions = engine.policy.decide([episode.observation() for episode in active])
    except EngineError as error:
        for episode in active:
            episode.end(StopReason.FAILED, str(error))
        return
    clicks = []
    for episode, decision in zip(active, decisions, strict=True):
        click = episode.decide(decision)
        if click is not None:
            clicks.append((episode, click))
        else:
            for watcher in watchers:
                watcher.stepped(episode)
    _segment(clicks, engine, watchers)


def _segment(clicks: list[tuple[Episode, Click]], engine: Engine, watchers: tuple[Observer, ...]) -> None:
    if not clicks:
        return
    began = time.perf_counter()
    try:
        fresh = [episode for episode, _ in clicks if episode.state is None]
        if fresh:
            for episode, state in zip(fresh, engine.segmenter.start([e.view for e in fresh]), strict=True):
                episode.state = state
        predictions = engine.segmenter.click([episode.state for episode, _ in clicks], [click for _, click in clicks])
    except EngineError as error:
        for episode, _ in clicks:
            episode.end(StopReason.FAILED, str(error))
        return
    seconds = (time.perf_counter() - began) / len(clicks)
    for (episode, _), prediction in zip(clicks, predictions, strict=True):
        episode.apply(prediction, seconds)
        for watcher in watchers:
            watcher.stepped(episode)
