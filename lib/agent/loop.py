"""The loop: episodes go through a policy and a segmenter in batches, each for as many turns as it needs."""

import time
from collections.abc import Iterable, Iterator
from itertools import islice

from lib.agent.engine import Engine
from lib.agent.episode import Episode, Outcome
from lib.agent.limits import Limits, StopReason
from lib.agent.protocol import Click
from lib.errors import EngineError


class Observer:
    """Who wants to watch: a progress bar, a recorder. Called from the run's own thread, between forward passes."""

    def started(self, episode: Episode) -> None:
        """The episode's slice is about to be looked at."""

    def stepped(self, episode: Episode) -> None:
        """The episode's last step is complete."""

    def ended(self, episode: Episode) -> None:
        """The episode has its stop reason."""

    def settled(self, outcome: Outcome) -> None:
        """A slice has its outcome: an episode's, or one that was brought from another slice. Of two for one slice the later
        counts."""


def play(episodes: Iterable[Episode], engine: Engine, limits: Limits, observers: Iterable[Observer] = ()) -> Iterator[Episode]:
    """Play all episodes to their end and yield each as it ends, `engine.batch` at a time: where one ends, the next begins."""
    waiting = iter(episodes)
    watchers = tuple(observers)
    active: list[Episode] = []
    _join(active, islice(waiting, engine.batch), watchers)
    while active:
        reason = limits.reached()
        for episode in active:
            if reason is not None:
                episode.end(reason)
        if reason is None:
            _turn(active, engine, limits, watchers)
        for episode in active:
            if episode.stop is not None:
                for watcher in watchers:
                    watcher.ended(episode)
                yield episode
        active = [episode for episode in active if episode.stop is None]
        _join(active, islice(waiting, engine.batch - len(active)), watchers)


def _join(active: list[Episode], fresh: Iterable[Episode], watchers: tuple[Observer, ...]) -> None:
    for episode in fresh:
        active.append(episode)
        for watcher in watchers:
            watcher.started(episode)


def place(
    episode: Episode, clicks: Iterable[Click], engine: Engine, limits: Limits, observers: Iterable[Observer] = ()
) -> None:
    """Place a person's clicks on one episode, in order. The episode stays open unless a limit or a failure ends it."""
    for click in clicks:
        reason = limits.reached()
        if reason is not None:
            episode.end(reason)
            return
        episode.annotate(click)
        _segment([(episode, click)], engine, limits, tuple(observers))
        if episode.stop is not None:
            return


def _turn(active: list[Episode], engine: Engine, limits: Limits, watchers: tuple[Observer, ...]) -> None:
    try:
        decisions = engine.policy.decide([episode.observation() for episode in active], limits)
    except EngineError as error:
        decisions = [error] * len(active)
    clicks = []
    for episode, decision in zip(active, decisions, strict=True):
        if isinstance(decision, EngineError):
            _fail(episode, decision, limits)
            continue
        click = episode.decide(decision)
        if click is not None:
            clicks.append((episode, click))
        else:
            for watcher in watchers:
                watcher.stepped(episode)
    _segment(clicks, engine, limits, watchers)


def _segment(clicks: list[tuple[Episode, Click]], engine: Engine, limits: Limits, watchers: tuple[Observer, ...]) -> None:
    began = time.perf_counter()
    _start([episode for episode, _ in clicks if episode.state is None], engine, limits)
    clicks = [(episode, click) for episode, click in clicks if episode.stop is None]
    if not clicks:
        return
    try:
        predictions = engine.segmenter.click([episode.state for episode, _ in clicks], [click for _, click in clicks], limits)
    except EngineError as error:
        predictions = [error] * len(clicks)
    seconds = (time.perf_counter() - began) / len(clicks)
    for (episode, _), prediction in zip(clicks, predictions, strict=True):
        if isinstance(prediction, EngineError):
            _fail(episode, prediction, limits)
            continue
        episode.apply(prediction, seconds)
        for watcher in watchers:
            watcher.stepped(episode)


def _start(fresh: list[Episode], engine: Engine, limits: Limits) -> None:
    if not fresh:
        return
    try:
        states = engine.segmenter.start([episode.view for episode in fresh], limits)
    except EngineError as error:
        states = [error] * len(fresh)
    for episode, state in zip(fresh, states, strict=True):
        if isinstance(state, EngineError):
            _fail(episode, state, limits)
        else:
            episode.state = state


def _fail(episode: Episode, error: EngineError, limits: Limits) -> None:
    """A model that was interrupted did not fail."""
    reason = limits.reached()
    if reason is not None:
        episode.end(reason)
    else:
        episode.end(StopReason.FAILED, str(error))
