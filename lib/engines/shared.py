"""A policy and a segmenter behind lanes: what goes through them from several runs and users shares their batches.

Threads: safe from any thread, like the parts themselves; `lib.engines.lane` says what blocks.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np

from lib.agent.limits import UNLIMITED, Bound
from lib.agent.policy import Decision, Observation, Policy
from lib.agent.protocol import Click
from lib.agent.segmenter import Prediction, Propagator, Segmenter, State
from lib.engines.lane import Lane, Work
from lib.errors import EngineError, InputError
from lib.imaging.views import View
from lib.imaging.volume import Volume


@runtime_checkable
class Exchangeable(Protocol):
    """A policy whose weights can be exchanged while it works."""

    def swap(self, model: str | None = None, adapter: str | None = None) -> None: ...


class SharedPolicy:
    """Implements `lib.agent.policy.Policy` with equal copies of one, each on its own device."""

    def __init__(self, copies: Sequence[Policy], max_batch: int, max_wait: float):
        self.copies = tuple(copies)
        self.name = copies[0].name
        self.structures = copies[0].structures
        self._swapping = threading.Lock()
        self.lane: Lane[Observation, Decision] = Lane(
            self.name, [_decider(copy) for copy in copies], max_batch=max_batch, max_wait=max_wait
        )

    @property
    def about(self) -> Mapping[str, str]:
        return _about(self.copies)

    def check(self, volume: Volume, prompt: str) -> None:
        self.copies[0].check(volume, prompt)

    def window_preset(self, prompt: str) -> str | None:
        return self.copies[0].window_preset(prompt)

    def swap(self, model: str | None, adapter: str | None) -> None:
        """See `lib.policies.qwen.QwenPolicy.swap`; all copies or none. Raises InputError for policies without weights too."""
        with self._swapping:
            copies = [copy for copy in self.copies if isinstance(copy, Exchangeable)]
            if not copies:
                raise InputError(f"the policy {self.name} has no weights to exchange", "model")
            before = self.copies[0].about
            for number, copy in enumerate(copies):
                try:
                    copy.swap(model, adapter)
                except InputError:
                    for done in copies[:number]:
                        done.swap(before["weights"], before.get("adapter", ""))
                    raise

    def close(self) -> None:
        self.lane.close()

    def decide(self, observations: Sequence[Observation], limits: Bound = UNLIMITED) -> list[Decision | EngineError]:
        return self.lane.submit(observations, limits)


@dataclass(frozen=True, eq=False)
class _Held:
    """A state, and which copy of the segmenter made it."""

    copy: int
    state: State


@dataclass(frozen=True, eq=False)
class _Start:
    view: View


@dataclass(frozen=True, eq=False)
class _Click:
    state: State
    click: Click


@dataclass(frozen=True, eq=False)
class _Follow:
    propagation: Iterator[tuple[np.ndarray, float]]


_Task = _Start | _Click | _Follow


class SharedSegmenter:
    """Implements `lib.agent.segmenter.Segmenter` and `Propagator` with equal copies of one, each on its own device.

    A view always goes to the same copy, so that its embedding is found again.
    """

    def __init__(self, copies: Sequence[Segmenter], max_batch: int, max_wait: float):
        self.copies = tuple(copies)
        self.name = copies[0].name
        self._lanes = [
            Lane(f"{self.name}-{number}", [_worker(copy)], max_batch, max_wait) for number, copy in enumerate(copies)
        ]

    @property
    def about(self) -> Mapping[str, str]:
        return _about(self.copies)

    def start(self, views: Sequence[View], limits: Bound = UNLIMITED) -> list[State | EngineError]:
        places = [self._place(view) for view in views]
        states = self._submit(places, [_Start(view) for view in views], limits)
        return [
            state if isinstance(state, EngineError) else _Held(place, state)
            for place, state in zip(places, states, strict=True)
        ]

    def click(
        self, states: Sequence[State], clicks: Sequence[Click], limits: Bound = UNLIMITED
    ) -> list[Prediction | EngineError]:
        places = [state.copy for state in states]
        tasks = [_Click(state.state, click) for state, click in zip(states, clicks, strict=True)]
        predictions = self._submit(places, tasks, limits)
        return [
            prediction if isinstance(prediction, EngineError) else replace(prediction, state=_Held(place, prediction.state))
            for place, prediction in zip(places, predictions, strict=True)
        ]

    def propagate(
        self, views: Sequence[View], mask: np.ndarray, limits: Bound = UNLIMITED
    ) -> Iterator[tuple[np.ndarray, float]]:
        place = self._place(views[0])
        propagator = self.copies[place]
        if not isinstance(propagator, Propagator):
            raise EngineError(f"{self.name} has no memory to propagate with")
        propagation = propagator.propagate(views, mask, limits)
        while True:
            (followed,) = self._lanes[place].submit([_Follow(propagation)], limits)
            if isinstance(followed, EngineError) and limits.reached() is None:
                raise followed
            if followed is None or isinstance(followed, EngineError):
                return
            yield followed

    def close(self) -> None:
        for lane in self._lanes:
            lane.close()

    def _place(self, view: View) -> int:
        return hash((view.volume.content_hash, view.plane, view.index)) % len(self.copies)

    def _submit(self, places: Sequence[int], tasks: Sequence[_Task], limits: Bound) -> list[Any]:
        """The results of tasks of several copies, in order; the copies work at the same time."""
        results: list[Any] = [None] * len(tasks)
        shares: dict[int, list[int]] = {}
        for position, place in enumerate(places):
            shares.setdefault(place, []).append(position)
        orders = {
            place: self._lanes[place].order([tasks[position] for position in positions], limits)
            for place, positions in shares.items()
        }
        for place, positions in shares.items():
            for position, result in zip(positions, orders[place](), strict=True):
                results[position] = result
        return results


def _decider(policy: Policy) -> Work[Observation, Decision]:
    return lambda batch, limits: policy.decide(batch, limits)


def _worker(segmenter: Segmenter) -> Work[_Task, Any]:
    def work(batch: list[_Task], limits: Bound) -> list[Any]:
        results: list[Any] = [None] * len(batch)
        starts = [position for position, task in enumerate(batch) if isinstance(task, _Start)]
        views = [task.view for task in batch if isinstance(task, _Start)]
        for position, state in zip(starts, segmenter.start(views, limits) if views else [], strict=True):
            results[position] = state
        clicks = [(position, task) for position, task in enumerate(batch) if isinstance(task, _Click)]
        if clicks:
            states = [task.state for _, task in clicks]
            predictions = segmenter.click(states, [task.click for _, task in clicks], limits)
            for (position, _), prediction in zip(clicks, predictions, strict=True):
                results[position] = prediction
        for position, task in enumerate(batch):
            if isinstance(task, _Follow):
                results[position] = _follow(task)
        return results

    return work


def _follow(task: _Follow) -> tuple[np.ndarray, float] | EngineError | None:
    """One slice further; None at the end. A failure is a value: a generator that has failed cannot be tried again."""
    try:
        return next(task.propagation, None)
    except EngineError as error:
        return error


def _about(copies: Sequence[Policy] | Sequence[Segmenter]) -> dict[str, str]:
    return {**copies[0].about, "device": ", ".join(copy.about.get("device", "") for copy in copies)}
