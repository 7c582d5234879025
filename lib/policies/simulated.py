"""The `simulated` policy: an annotator who knows the reference mask, clicks towards it, and says what is to be seen.

It writes the same grammar as a model. Its decisions depend on the task and on the observation alone, so equal seeds give equal
episodes, in any batch and any process. Safe to call from several threads: it shares nothing.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from hashlib import blake2b
from types import MappingProxyType

import numpy as np
from scipy import ndimage

from lib.agent.limits import UNLIMITED, Bound
from lib.agent.policy import Decision, Observation
from lib.agent.protocol import Action, Click, Reply, Terminate, render
from lib.errors import EngineError
from lib.imaging import rle
from lib.imaging.planes import ViewPoint
from lib.imaging.views import View
from lib.policies.clicks import largest_error
from lib.policies.language import LanguagePolicy
from lib.policies.reasoning import Scene
from lib.policies.strategies import Strategy, depths, part_at, pick
from lib.policies.teacher import Draft, Teacher

_LAST_ERROR = 3
"""The deliberate error comes at this turn or before."""
_NEAR = 3
"""A misplaced positive point lies so many pixels from the target at least,"""
_FAR = 0.12
"""and so much of the picture's longer side at most."""
_LIKELY = 0.2
"""Of the places for it, the share whose grey is most like the target's."""


class Intent(StrEnum):
    """What a decision is for; stands in `Decision.details` as "intent"."""

    ADD = "add"
    REMOVE = "remove"
    WRONG = "wrong"
    """A deliberate error, for the next step to correct; never to be learned."""
    RECOVER = "recover"
    """Takes back what a wrong click did."""
    DISCARD = "discard"
    """Takes out a mask that shows something else than was asked for."""
    APPROVE = "approve"
    """Terminates because no useful click is left."""
    ABSENT = "absent"
    """Terminates because the target is not there."""
    SPENT = "spent"
    """Terminates because there are no clicks left, or they change nothing: not to be learned."""


NOT_TO_LEARN = frozenset({Intent.WRONG, Intent.SPENT})


@dataclass(frozen=True, eq=False)
class Task:
    """What is to be shown on one view."""

    target: str
    """Its name in words, without an article."""
    reference: np.ndarray
    """bool `[height, width]`; empty where the target is not on the slice."""
    most: int
    """After so many clicks of its own it terminates."""
    seed: int = 0
    begin: int = 0
    """How many actions the episode had before: an agent's, whose work goes on."""
    errs: bool = False
    """Whether one click is deliberately wrong, and then corrected."""
    other: str = ""
    """What the episode's given mask shows, in words, where that is not the target."""


Useful = Callable[[np.ndarray | None, np.ndarray], bool]
"""Whether a click on a mask (None: there is none yet) is still useful, given the reference; both bool `[height, width]`. While
anything is drawn of an absent target, and nothing of a present one, it is."""


@dataclass(frozen=True, eq=False)
class _Move:
    action: Action
    intent: Intent
    thought: str


class SimulatedPolicy(LanguagePolicy):
    """`tasks` says for each view, by identity, what is to be shown there. With a `teacher` the words are a model's where its
    text passes the checks: `details` has "reasoner", which is "teacher", "templates", or "templates: " and the reason."""

    name = "simulated"

    def __init__(
        self,
        tasks: Mapping[View, Task],
        useful: Useful,
        strategy: Strategy = Strategy.CENTER,
        teacher: Teacher | None = None,
    ):
        super().__init__()
        self._tasks = tasks
        self._useful = useful
        self._strategy = strategy
        self._teacher = teacher
        about = {} if teacher is None else dict(teacher.about)
        self.about: Mapping[str, str] = MappingProxyType({"strategy": strategy.value} | about)

    def decide(self, observations: Sequence[Observation], limits: Bound = UNLIMITED) -> list[Decision | EngineError]:
        began = time.perf_counter()
        moves = [_Turn(self._tasks[one.view], one, self._useful, self._strategy).move() for one in observations]
        reasoners = ["templates"] * len(moves)
        if self._teacher is not None:
            drafts = [Draft(one, move.thought, move.action) for one, move in zip(observations, moves, strict=True)]
            told = self._teacher.explain(drafts, limits)
            for position, text in enumerate(told):
                reasoners[position] = "teacher" if text.usable else f"templates: {text.fault}"
                if text.usable:
                    moves[position] = replace(moves[position], thought=text.words)
        share = (time.perf_counter() - began) / max(1, len(moves))
        return [
            Decision(
                render(Reply(move.thought, move.action)),
                seconds=share,
                details={"intent": move.intent.value, "reasoner": reasoner},
            )
            for move, reasoner in zip(moves, reasoners, strict=True)
        ]


class _Turn:
    """One observation of a task."""

    def __init__(self, task: Task, observation: Observation, useful: Useful, strategy: Strategy):
        self._task, self._observation, self._strategy = task, observation, strategy
        self._satisfied = not useful(observation.mask, task.reference)
        self._reference = task.reference
        self._blank = observation.mask is None
        self._mask = np.zeros_like(task.reference) if observation.mask is None else observation.mask
        self._clicks = [action for action in observation.actions if isinstance(action, Click)]
        self._own = [action for action in observation.actions[task.begin :] if isinstance(action, Click)]
        self._scene = Scene(observation.view, task.target, self._mask, task.reference, task.other)
        digest = blake2b(f"{task.seed}:{observation.turn}".encode(), digest_size=8).digest()
        self._rng = np.random.default_rng(int.from_bytes(digest, "big"))

    def move(self) -> _Move:
        if self._errs_now():
            error = self._wrong()
            if error is not None:
                return error
        if self._satisfied:
            return self._content()
        if len(self._own) >= self._task.most or self._stuck():
            return self._spent()
        click, intent = self._next()
        return self._spent() if click is None else self._clicked(click, intent)

    def _errs_now(self) -> bool:
        if not self._task.errs or any(self._misplaced(click) for click in self._own):
            return False
        return self._satisfied or self._observation.turn == 1 + self._task.seed % _LAST_ERROR

    def _misplaced(self, click: Click) -> bool:
        column, row = click.point.pixel(*self._observation.view.size)
        return bool(self._reference[row, column]) != click.positive

    def _next(self) -> tuple[Click | None, Intent]:
        """The next click. A misplaced last click is corrected where it was, a wrong mask taken out before anything is added."""
        missed, extra = self._reference & ~self._mask, self._mask & ~self._reference
        last = self._clicks[-1] if self._clicks else None
        if last is not None and self._misplaced(last):
            damage = part_at(extra if last.positive else missed, last.point)
            if damage.any():
                return self._pick(self._mask ^ damage, ()), Intent.RECOVER
        avoid = [click.point for click in self._clicks if not self._misplaced(click)]
        if self._task.other and self._observation.turn == 1:
            return self._pick(self._mask & self._reference, avoid), Intent.DISCARD
        click = self._pick(self._reference, avoid)
        return click, Intent.ADD if click is not None and click.positive else Intent.REMOVE

    def _pick(self, wanted: np.ndarray, avoid: Sequence[ViewPoint]) -> Click | None:
        return pick(self._strategy, self._mask, wanted, avoid, self._rng)

    def _clicked(self, click: Click, intent: Intent) -> _Move:
        part = part_at(self._reference & ~self._mask if click.positive else self._mask & ~self._reference, click.point)
        if intent is Intent.RECOVER:
            kind = "recover_add" if click.positive else "recover_remove"
        elif intent is Intent.ADD and not (self._mask & self._reference).any():
            kind, part = "start" if self._blank else "start_again", self._reference
        else:
            kind = intent.value
        return _Move(click, intent, self._scene.thought(kind, part, self._rng))

    def _content(self) -> _Move:
        """Nothing is left to do."""
        if not self._reference.any():
            thought = self._scene.thought("absent" if self._blank else "cleared", self._reference, self._rng)
            return _Move(Terminate(self._scene.answer("absent", self._rng)), Intent.ABSENT, thought)
        error = largest_error(self._mask, self._reference)
        rest = 0.0 if error is None else error.radius
        thought = self._scene.thought("approve", self._mask, self._rng, rest)
        return _Move(Terminate(self._scene.answer("segmented", self._rng)), Intent.APPROVE, thought)

    def _spent(self) -> _Move:
        thought = self._scene.thought("spent", self._mask ^ self._reference, self._rng)
        answer = self._scene.answer("partly" if self._mask.any() else "absent", self._rng)
        return _Move(Terminate(answer), Intent.SPENT, thought)

    def _stuck(self) -> bool:
        """Whether own clicks led to a mask that stood there before, other than by taking back a misplaced one."""
        if self._blank or (len(self._clicks) > 1 and self._misplaced(self._clicks[-2])):
            return False
        now = rle.encode(self._mask)["counts"]
        earlier = self._observation.past[self._task.begin :]
        return any(past.mask is not None and past.mask["counts"] == now for past in earlier)

    def _wrong(self) -> _Move | None:
        """A misplaced click: beside the target where the grey is like it, or inside what is rightly covered; None without
        room for either."""
        beside, inside = self._beside(), depths(self._mask & self._reference)
        inside = inside >= max(1.0, inside.max() / 2)
        positive = bool(beside.any()) and (not inside.any() or self._rng.random() < 0.6)
        places = np.argwhere(beside if positive else inside)
        if places.size == 0:
            return None
        row, column = (int(n) for n in places[int(self._rng.integers(len(places)))])
        width, height = self._observation.view.size
        spot = np.zeros_like(self._reference)
        spot[row, column] = True
        click = Click(ViewPoint.of_pixel(column, row, width, height), positive)
        kind = "wrong_remove" if not positive else "wrong_start" if self._blank else "wrong_add"
        return _Move(click, Intent.WRONG, self._scene.thought(kind, spot, self._rng))

    def _beside(self) -> np.ndarray:
        """Where tissue near the target looks most like it."""
        if not self._reference.any():
            return np.zeros_like(self._reference)
        distance = ndimage.distance_transform_edt(~self._reference)
        room = (distance >= _NEAR) & (distance <= max(2 * _NEAR, _FAR * max(distance.shape))) & ~self._mask
        if not room.any():
            return room
        grey = self._observation.view.grey().astype(np.float32)
        unlike = np.abs(ndimage.uniform_filter(grey, 3) - np.median(grey[self._reference]))
        return room & (unlike <= np.quantile(unlike[room], _LIKELY))
