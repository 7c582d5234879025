"""The desk: what a run has on its slices so far. It plays episodes where the strategy wants a look."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from lib.agent.episode import Actor, Episode, Given, Outcome
from lib.agent.limits import Limits, StopReason
from lib.agent.loop import Observer, play
from lib.agent.run import RunRequest, RunResult
from lib.agent.segmenter import State
from lib.imaging import rle
from lib.imaging.overlays import overlay_named
from lib.imaging.views import View
from lib.imaging.windows import slice_window


class Desk:
    """For one run; not shared between threads."""

    def __init__(
        self,
        first: RunResult,
        request: RunRequest,
        limits: Limits,
        observers: Sequence[Observer],
        known: Mapping[int, Outcome],
    ):
        """`first` is the run of the first looks. Slices of `known` on which an annotator worked count as looked at too."""
        self.grid, self.engine, self.request, self.limits = first.grid, first.engine, request, limits
        self.looked: dict[int, Outcome] = {}
        self.cut: tuple[StopReason, str] | None = None
        """Why nothing more can be done, and what exactly happened: a limit, or an engine that gives no answers."""
        self._window = first.window
        self._slice_window = (
            first.engine.conduct.slice_window and request.window.strip().lower() in ("", "auto") and not first.volume.planar
        )
        self._observers = observers
        self._known = known
        self._masks: dict[int, np.ndarray] = {}
        annotated = (o for o in known.values() if any(step.actor is Actor.ANNOTATOR for step in o.steps))
        self._keep([*first.outcomes, *annotated])

    @property
    def seen(self) -> dict[int, bool]:
        """Whether the target was found, for the slices that were looked at with an answer."""
        return {index: outcome.found for index, outcome in self.looked.items() if outcome.conclusive}

    @property
    def open(self) -> list[int]:
        """The slices that were not looked at, ascending."""
        return [index for index in self.grid.acquired if index not in self.looked]

    def known(self, index: int) -> Outcome | None:
        """What an earlier run settled on the slice."""
        return self._known.get(index)

    def view(self, index: int) -> View:
        own = slice_window(self.grid.cut(self.grid.volume.data, index)) if self._slice_window else self._window
        return View(self.grid, index, own)

    def mask(self, index: int) -> np.ndarray:
        """bool `[height, width]` of a slice that was looked at."""
        if index not in self._masks:
            self._masks[index] = rle.decode(self.looked[index].mask)
        return self._masks[index]

    def look(self, indices: Iterable[int], given: Mapping[int, tuple[Given, State | None]] | None = None) -> None:
        """Play the slices' episodes in one batch, from a mask, and the segmenter's state for it, where they are given. What is
        known is not played again."""
        wanted = list(indices)
        given = given or {}
        overlay = overlay_named(self.request.overlay)
        prompt, turns, conduct = self.request.prompt.strip(), self.request.max_turns, self.engine.conduct
        episodes = (
            Episode(self.view(index), prompt, turns, overlay, conduct, *given.get(index, ()))
            for index in wanted
            if index not in self._known
        )
        outcomes = [self._known[index] for index in wanted if index in self._known]
        for episode in play(episodes, self.engine, self.limits, self._observers):
            outcome = episode.outcome()
            if outcome.index in given:
                how = "approved" if outcome.stop is StopReason.TERMINATED and len(outcome.steps) == 1 else "begun"
                outcome = replace(outcome, detail="; ".join(filter(None, [f"{how} with a carried mask", outcome.detail])))
            outcomes.append(outcome)
            self.settle(outcome)
        self._keep(outcomes)

    def settle(self, outcome: Outcome) -> None:
        for watcher in self._observers:
            watcher.settled(outcome)

    def stopped(self) -> bool:
        """Whether the work has been cut short."""
        reason = self.limits.reached()
        if reason is not None and self.cut is None:
            self.cut = (reason, "")
        return self.cut is not None

    def _keep(self, outcomes: Sequence[Outcome]) -> None:
        self.looked |= {outcome.index: outcome for outcome in outcomes}
        silent = outcomes and not any(outcome.conclusive for outcome in outcomes)
        if silent and self.cut is None and (outcomes[0].stop is StopReason.FAILED or not self.seen):
            self.cut = (outcomes[0].stop, outcomes[0].detail)
