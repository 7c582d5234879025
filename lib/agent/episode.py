"""The episode: the steps for one prompt on one slice, with one stop reason. Single use, never reset."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import numpy as np

from lib.agent.conduct import CORRECTED, Conduct
from lib.agent.limits import StopReason
from lib.agent.policy import Decision, Observation, Past
from lib.agent.protocol import Action, Click, ProtocolError, Reply, Terminate, render
from lib.agent.segmenter import Prediction, State
from lib.imaging import rle
from lib.imaging.overlays import OVERLAYS, Overlay
from lib.imaging.rle import Rle
from lib.imaging.views import View
from lib.imaging.windows import Window

SAME_CLICK = 3
"""The same click so many times in a row ends the episode; the last one is not applied (as released)."""


class Actor(StrEnum):
    """Who took a step."""

    AGENT = "agent"
    ANNOTATOR = "annotator"
    EXPERT = "expert"
    """A simulated annotator, who clicks towards a reference mask."""


@dataclass(frozen=True, eq=False)
class Step:
    """Observation -> reply -> action -> new mask. Complete enough to show, and to replay."""

    turn: int
    """1 for the first."""
    actor: Actor
    reply: str
    """The policy's text as it came; empty for an annotator's click."""
    thought: str
    action: Action | ProtocolError
    mask: Rle | None = None
    """The mask after a click; None when the step left the mask as it was."""
    score: float | None = None
    """The segmenter's opinion of that mask, 0..1."""
    support: float | None = None
    """The policy's opinion of that mask, 0..1, as it gave it with its next decision."""
    policy_seconds: float = 0.0
    segmenter_seconds: float = 0.0
    details: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else the policy measured: token counts, log-probability."""
    undone: bool = False
    """Taken back later: kept for the record, with the mask that it made then, and no part of the episode any more."""


@dataclass(frozen=True)
class Given:
    """A mask brought from other slices, with which an episode begins."""

    mask: Rle
    score: float
    """The segmenter's opinion of it, 0..1."""
    clicks: tuple[Click, ...]
    """What draws about the same on this slice: the episode's own clicks go on from the segmenter's state after these."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What an episode came to."""

    index: int
    """The slice."""
    window: Window
    stop: StopReason
    detail: str
    """For a person: what exactly happened, where the reason alone does not say it."""
    answer: str
    """The policy's closing words, if it terminated."""
    steps: tuple[Step, ...]
    mask: Rle
    """The chosen mask, of the view's size."""
    final_turn: int | None
    """The turn whose mask was chosen; None when there is none, or no turn of this episode made it."""
    chosen_because: str
    confidence: float | None
    """Support or score of the chosen mask, 0..1; None when nobody gave one."""
    given: Given | None = None
    """What the episode began with; None for an episode from nothing."""

    @property
    def found(self) -> bool:
        """Whether anything of the target was drawn on the slice."""
        return rle.area(self.mask) > 0

    @property
    def conclusive(self) -> bool:
        """False when the episode was cut short, or never got a usable reply: an empty mask is then not an answer."""
        if self.stop is StopReason.PROTOCOL_ERROR:
            return self.final_turn is not None
        return self.stop not in (StopReason.DEADLINE, StopReason.CANCELLED, StopReason.FAILED)


class Episode:
    """Drives one prompt on one slice: hand it decisions and predictions, read observations and at last the outcome.

    Not shared between threads. The segmenter's state lives here and goes when the episode ends.
    """

    def __init__(
        self,
        view: View,
        prompt: str,
        max_turns: int,
        overlay: Overlay = OVERLAYS["inference"],
        conduct: Conduct = CORRECTED,
        given: Given | None = None,
        state: State | None = None,
        actor: Actor = Actor.AGENT,
    ):
        """`given` is a mask brought from other slices: the policy sees it first, approves it or clicks on from `state`, the
        segmenter's after the given clicks. `actor` is who the policy's decisions are recorded as."""
        self.view = view
        self.prompt = prompt
        self.max_turns = max_turns
        self.overlay = overlay
        self.conduct = conduct
        self.actor = actor
        self.state = state
        self.stop: StopReason | None = None
        self._detail = ""
        self._answer = ""
        self._steps: list[Step] = []
        self._mask: np.ndarray | None = None
        self._masks: Counter[str] = Counter()
        self._complaint = ""
        self._faults = 0
        self.given = given
        self._given: list[Step] = []
        if given is not None:
            self._mask = rle.decode(given.mask)
            self._given = [Step(0, Actor.AGENT, "", "", Terminate(), given.mask, given.score)]
            self._masks[given.mask["counts"]] += 1

    @property
    def steps(self) -> tuple[Step, ...]:
        return tuple(self._steps)

    def observation(self) -> Observation:
        """What the policy sees next."""
        actions = tuple(step.action for step in self._kept() if not isinstance(step.action, ProtocolError))
        return Observation(self.prompt, self.view, self._mask, actions, self._complaint, self.overlay, tuple(self._past()))

    def decide(self, decision: Decision) -> Click | None:
        """Take the policy's decision. Returns the click that the segmenter must now apply, or None when there is none:
        the episode has ended, or the reply was not of the grammar and the policy is to be asked again."""
        self._judge(decision.support)
        decision = replace(decision, reply=_storable(decision.reply))
        reply = self.conduct.parse(decision.reply)
        if isinstance(reply, ProtocolError):
            self._append(decision, "", reply)
            self._faults += 1
            self._complaint = reply.fault.value
            if self._faults > self.conduct.reasks:
                self.end(StopReason.PROTOCOL_ERROR, reply.fault.value)
            return None
        self._faults, self._complaint = 0, ""
        self._append(decision, reply.thought, reply.action)
        if isinstance(reply.action, Terminate):
            self._answer = reply.action.answer
            found = self._mask is not None and bool(self._mask.any())
            self.end(StopReason.TERMINATED if found else StopReason.ABSENT)
            return None
        if self._repeats(reply.action):
            self.end(StopReason.REPEATED_ACTION, f"{reply.action} for the {SAME_CLICK}rd time; it was not applied again")
            return None
        return reply.action

    def annotate(self, click: Click) -> Click:
        """Take a person's click; hand it to the segmenter and its prediction to `apply`."""
        self._steps.append(Step(len(self._steps) + 1, Actor.ANNOTATOR, "", "", click))
        return click

    def recall(self, step: Step, prediction: Prediction | None) -> None:
        """Take a step of an earlier episode of this slice, in order; `prediction` is what its click makes now, None for a step
        that has none."""
        if prediction is not None:
            step = replace(step, mask=rle.encode(prediction.mask), score=prediction.score)
            self._mask, self.state = prediction.mask, prediction.state
        self._steps.append(step)

    def apply(self, prediction: Prediction, seconds: float) -> None:
        """Take the segmenter's answer to the last click."""
        mask = rle.encode(prediction.mask)
        last = self._steps[-1]
        self._steps[-1] = replace(last, mask=mask, score=prediction.score, segmenter_seconds=seconds)
        self._mask, self.state = prediction.mask, prediction.state
        self._masks[mask["counts"]] += 1
        if last.actor is Actor.ANNOTATOR:
            return
        limit = self.conduct.same_mask
        if limit is not None and self._masks[mask["counts"]] >= limit:
            self.end(StopReason.NO_PROGRESS, f"the clicks led to the same mask {limit} times")
        elif len(self._steps) >= self.max_turns:
            self.end(StopReason.MAX_TURNS, f"{self.max_turns} turns")

    def end(self, reason: StopReason, detail: str = "") -> None:
        """End the episode; nothing follows."""
        self.stop, self._detail = reason, detail
        self.state = self._mask = None

    def outcome(self) -> Outcome:
        """The result; call after the end."""
        if self.stop is None:
            raise RuntimeError("the episode has not ended")
        chosen, because = self._choose()
        confidence = None
        if chosen is not None:
            confidence = chosen.support if chosen.support is not None else chosen.score
        return Outcome(
            index=self.view.index,
            window=self.view.window,
            stop=self.stop,
            detail=self._detail,
            answer=self._answer,
            steps=self.steps,
            mask=chosen.mask if chosen is not None and chosen.mask is not None else rle.empty(*self.view.size),
            final_turn=chosen.turn or None if chosen is not None else None,
            chosen_because=because,
            confidence=confidence,
            given=self.given,
        )

    def _choose(self) -> tuple[Step | None, str]:
        """The best-supported mask, not blindly the last."""
        masked = [step for step in (*self._given, *self._kept()) if step.mask is not None]
        if self.stop is StopReason.ABSENT or not masked:
            return None, "there is no mask"
        last = masked[-1]
        if last.actor is Actor.ANNOTATOR:
            return last, "the annotator's last click made it"
        if self.stop is StopReason.ANNOTATED:
            return last, "the annotator left it so"
        if self.stop is StopReason.TERMINATED and self.actor is Actor.EXPERT:
            return last, "the expert approved it"
        if not self.conduct.best_mask:
            return last, "the last one, as released"
        judged = [step for step in masked if step.support is not None]
        if judged:
            best = max(judged, key=lambda step: (step.support, step.turn))
            return best, "the agent approved it" if best is last else "the agent supported it best"
        if self.stop is StopReason.TERMINATED:
            return last, "the agent approved it"
        return max(masked, key=lambda step: (step.score, step.turn)), "the segmenter scored it best"

    def _append(self, decision: Decision, thought: str, action: Action | ProtocolError) -> None:
        turn = len(self._steps) + 1
        step = Step(
            turn, self.actor, decision.reply, thought, action, policy_seconds=decision.seconds, details=decision.details
        )
        self._steps.append(step)
        if isinstance(action, ProtocolError) and turn >= self.max_turns:
            self.end(StopReason.MAX_TURNS, f"{self.max_turns} turns")

    def _kept(self) -> list[Step]:
        return [step for step in self._steps if not step.undone]

    def _past(self) -> Iterator[Past]:
        shown: Rle | None = self._given[0].mask if self._given else None
        for step in self._kept():
            if not isinstance(step.action, ProtocolError):
                yield Past(shown, step.reply or render(Reply(step.thought, step.action)))
            shown = step.mask if step.mask is not None else shown

    def _judge(self, support: float | None) -> None:
        """Note the policy's opinion of the current mask on the step that made it."""
        if support is None:
            return
        for position in reversed(range(len(self._steps))):
            if self._steps[position].mask is not None and not self._steps[position].undone:
                self._steps[position] = replace(self._steps[position], support=support)
                return
        self._given = [replace(step, support=support) for step in self._given]

    def _repeats(self, click: Click) -> bool:
        recent = [step.action for step in self._kept()[-SAME_CLICK:]]
        return len(recent) == SAME_CLICK and all(action == click for action in recent)


def _storable(text: str) -> str:
    """Text without what no file or database takes: lone surrogates and NUL, which a server's JSON may hold."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "\ufffd")
