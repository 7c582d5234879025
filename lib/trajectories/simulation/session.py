"""A session: one process's work on jobs, one after the other. Plays the episodes, records and grades them.

What is recorded already is not played again: keys of trajectories hold timings, so their identity here is the run (image,
seed, engine, strategy, length), the target, the slice and the lesson.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from lib.agent.engine import Engine
from lib.agent.episode import Actor, Episode, Given, Outcome
from lib.agent.limits import Limits, StopReason
from lib.agent.loop import Observer, play
from lib.agent.protocol import Click
from lib.agent.run import RunRequest
from lib.agent.segmenter import State
from lib.engines.evaluation import Case
from lib.errors import ImageError
from lib.imaging import rle
from lib.imaging.views import View
from lib.imaging.windows import Window, choose_window
from lib.policies.simulated import Intent, SimulatedPolicy, Task
from lib.policies.strategies import Strategy
from lib.policies.teacher import Teacher
from lib.trajectories.recorder import Work, build_trajectory, origin_of
from lib.trajectories.rewards import grade, recipe_named
from lib.trajectories.selection import Selection
from lib.trajectories.simulation.config import Lesson, Shares, simulation_config
from lib.trajectories.simulation.correction import exemplary, useful
from lib.trajectories.simulation.plan import Assignment, LabelledVolume, make_plan, seed_of
from lib.trajectories.simulation.targets import Job, Target, targets
from lib.trajectories.store import TrajectoryStore
from lib.trajectories.trajectory import Maker, Origin, Source, Trajectory

USER = "simulated"
_ON_TARGET = 0.2
"""Of a mask of something else, at most this share may lie on the target."""


@dataclass(frozen=True)
class Lessons:
    """What is to be simulated."""

    shares: Shares
    slices: int
    """Episodes of each structure, at most."""
    max_steps: int
    """Of an episode, its Terminate among them."""
    strategy: Strategy
    seed: int


@dataclass(frozen=True)
class Played:
    """What came of a job."""

    run: str = ""
    """The run that its episodes belong to; empty when the case could not be used."""
    lessons: Mapping[str, int] = field(default_factory=dict)
    """New episodes by lesson."""
    steps: int = 0
    reasoners: Mapping[str, int] = field(default_factory=dict)
    """Steps by whose words they have."""
    known: int = 0
    """Episodes that had been recorded before."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Episodes that were not recorded, by reason."""


class Session:
    """Not shared between threads; several processes may work on one store."""

    def __init__(
        self, store: TrajectoryStore, engine: Engine, lessons: Lessons, limits: Limits, teacher: Teacher | None = None
    ):
        """`engine` draws; its policy is not asked."""
        self.store = store
        self.limits = limits
        self._lessons = lessons
        self._teacher = teacher
        self._engine = replace(engine, policy=self._policy({}))
        self._room: _Room | None = None

    def work(self, job: Job) -> Played:
        """Play what of the job is not recorded yet. Cut short by the limits, it records what had ended."""
        if self._room is None or self._room.case is not job.case:
            try:
                self._room = _Room(job.case, self.store, self._engine, self._lessons)
            except ImageError as error:
                return Played(left_out={error.message: 1})
        room, chosen = self._room, self._lessons
        plan = make_plan(room.scene, job.target, room.others, simulation_config(), chosen.shares, chosen.slices, chosen.seed)
        fresh = [one for one in plan if (job.target.number, one.index, one.lesson) not in room.recorded]
        ended = self._play(room, job.target, fresh)
        left_out = Counter(why for _, why in ended if isinstance(why, str))
        outcomes = [(desk, outcome) for desk, outcome in ended if isinstance(outcome, Outcome)]
        trajectories = [self._trajectory(room, job.target, desk, outcome) for desk, outcome in outcomes]
        self.store.add(trajectories, job.case.name)
        self._grade(room, job.target)
        steps = [step for _, outcome in outcomes for step in outcome.steps]
        return Played(
            run=room.run,
            lessons=Counter(desk.assignment.lesson.value for desk, _ in outcomes),
            steps=len(steps),
            reasoners=Counter(str(step.details["reasoner"]) for step in steps),
            known=len(plan) - len(fresh),
            left_out=left_out,
        )

    def _play(self, room: "_Room", target: Target, assignments: Sequence[Assignment]) -> list[tuple["_Desk", Outcome | str]]:
        """Each assignment with its outcome, or the reason why it has none."""
        desks = [_Desk(one, room.view(target, one.index), room.scene.reference(target, one.index)) for one in assignments]
        given = self._begun(room, target, [desk for desk in desks if desk.assignment.lesson in _BEGIN_WITH_A_MASK])
        tasks: dict[View, Task] = {}
        episodes: dict[Episode, _Desk] = {}
        results: list[tuple[_Desk, Outcome | str]] = []
        for desk in desks:
            one = desk.assignment
            begin = given.get(one)
            if isinstance(begin, str):
                results.append((desk, begin))
                continue
            other = one.other.words if one.other is not None else ""
            errs = one.lesson is Lesson.RECOVER
            tasks[desk.view] = Task(target.words, desk.reference, self._lessons.max_steps - 1, one.seed, errs=errs, other=other)
            mask, state = begin if begin is not None else (None, None)
            episode = Episode(
                desk.view, one.prompt, self._lessons.max_steps, conduct=self._engine.conduct, given=mask, state=state,
                actor=Actor.EXPERT,
            )  # fmt: skip
            episodes[episode] = desk
        engine = replace(self._engine, policy=self._policy(tasks))
        for episode in play(episodes, engine, self.limits):
            desk, outcome = episodes[episode], episode.outcome()
            results.append((desk, _fault(desk.assignment.lesson, outcome) or exemplary(outcome)))
        return results

    def _begun(self, room: "_Room", target: Target, desks: Sequence["_Desk"]) -> dict[Assignment, tuple[Given, State] | str]:
        """The masks that episodes begin with, drawn by clicks, and the segmenter's states after them; or why there is none."""
        tasks: dict[View, Task] = {}
        episodes: dict[Episode, _Desk] = {}
        for desk in desks:
            shown = desk.assignment.other or target
            view = room.view(target, desk.assignment.index)
            reference = room.scene.reference(shown, desk.assignment.index)
            tasks[view] = Task(shown.words, reference, self._lessons.max_steps - 1, desk.assignment.seed)
            episodes[Episode(view, shown.words, self._lessons.max_steps, conduct=self._engine.conduct)] = desk
        states = _States()
        engine = replace(self._engine, policy=SimulatedPolicy(tasks, useful))
        found: dict[Assignment, tuple[Given, State] | str] = {}
        for episode in play(episodes, engine, self.limits, [states]):
            desk, outcome = episodes[episode], episode.outcome()
            drawn = [step for step in outcome.steps if step.mask is not None]
            mask = rle.decode(drawn[-1].mask) if drawn and drawn[-1].mask is not None else None
            if outcome.stop is not StopReason.TERMINATED or mask is None or not _fits(desk, mask):
                found[desk.assignment] = f"{desk.assignment.lesson}: the segmenter drew no mask to begin with"
                continue
            clicks = tuple(step.action for step in drawn if isinstance(step.action, Click))
            given = Given(rle.encode(mask), drawn[-1].score or 0.0, clicks)
            found[desk.assignment] = (given, states.of[episode])
        return found

    def _trajectory(self, room: "_Room", target: Target, desk: "_Desk", outcome: Outcome) -> Trajectory:
        one = desk.assignment
        work = Work(
            run=room.run,
            target=target.number,
            label=target.name,
            user=USER,
            image_id=room.case.name,
            request=RunRequest(one.prompt, desk.view.plane, str(one.index), self._lessons.max_steps),
            volume=room.scene.volume,
            engine=self._engine,
            source=Source.SIMULATION,
        )
        episode = f"{room.run}:{target.number}:{one.index}:{one.lesson}"
        origin = replace(room.origin, index=one.index)
        return build_trajectory(desk.view, outcome, work, self.store, origin, episode, one.lesson)

    def _grade(self, room: "_Room", target: Target) -> None:
        """Grade the structure's episodes that have no grade yet, also those of a session that was killed before it could."""
        open_ = [one for one in self.store.select(Selection(run=room.run, label=target.name, graded=False))]
        if not open_:
            return
        label = self.store.add_label(room.origin.image, target.name, "reference", "folder")
        recipe = recipe_named()
        for trajectory in open_:
            reference = room.scene.reference(target, trajectory.origin.index)
            result = grade(trajectory.outcome, reference, recipe)
            self.store.add_grading(trajectory.key, label, rle.encode(reference), recipe.name, result)

    def _policy(self, tasks: Mapping[View, Task]) -> SimulatedPolicy:
        return SimulatedPolicy(tasks, useful, self._lessons.strategy, self._teacher)


_BEGIN_WITH_A_MASK = (Lesson.MISMATCH, Lesson.APPROVE)


@dataclass(frozen=True, eq=False)
class _Desk:
    """An assignment with its view and its reference, bool `[height, width]`."""

    assignment: Assignment
    view: View
    reference: np.ndarray


def _fault(lesson: Lesson, outcome: Outcome) -> str:
    """Why an episode is not worth keeping; empty when it is."""
    if outcome.stop in (StopReason.FAILED, StopReason.CANCELLED, StopReason.DEADLINE):
        return ": ".join(filter(None, (outcome.stop.value, outcome.detail)))
    if lesson is Lesson.RECOVER and all(step.details["intent"] != Intent.WRONG for step in outcome.steps):
        return "recover: there was no room for a wrong click"
    return ""


def _fits(desk: _Desk, mask: np.ndarray) -> bool:
    """Whether a mask is what the lesson begins with: right for APPROVE, of something else for MISMATCH."""
    if desk.assignment.lesson is Lesson.APPROVE:
        return not useful(mask, desk.reference)
    return bool(mask.any()) and np.count_nonzero(mask & desk.reference) <= _ON_TARGET * np.count_nonzero(mask)


class _Room:
    """A case that is being worked on."""

    def __init__(self, case: Case, store: TrajectoryStore, engine: Engine, lessons: Lessons):
        self.case = case
        self.scene = LabelledVolume(case)
        self.others = [target for target in targets(case) if target.values]
        first = View(self.scene.grid, self.scene.grid.acquired[0], choose_window(self.scene.volume))
        self.origin: Origin = origin_of(first, store, case.name)
        identity = (self.origin.image, self.origin.content_hash, lessons.seed, lessons.max_steps, Maker.of(engine).weights)
        self.run = f"simulation-{seed_of(*identity):016x}"
        self._store = store
        self._preset = engine.policy.window_preset
        self._windows: dict[str, Window] = {}

    @cached_property
    def recorded(self) -> frozenset[tuple[int, int, str]]:
        """Target, slice and lesson of the run's episodes that are in the store."""
        return frozenset((one.target, one.slice, one.lesson) for one in self._store.summaries(Selection(run=self.run)))

    def view(self, target: Target, index: int) -> View:
        """A view of its own for each caller: tasks are told apart by it."""
        if target.name not in self._windows:
            self._windows[target.name] = choose_window(self.scene.volume, "auto", self._preset(target.words))
        return View(self.scene.grid, index, self._windows[target.name])


class _States(Observer):
    """Keeps the segmenter's states, which episodes let go at their end."""

    def __init__(self) -> None:
        self.of: dict[Episode, State] = {}

    def stepped(self, episode: Episode) -> None:
        if episode.state is not None:
            self.of[episode] = episode.state
