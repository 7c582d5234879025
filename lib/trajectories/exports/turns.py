"""The turns of a recorded episode as training sees them: what was shown, what is right to do there, and what is wrong."""

from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from statistics import fmean

import numpy as np

from lib.agent.episode import Actor, Step
from lib.agent.policy import Observation
from lib.agent.protocol import Action, Click, ProtocolError, Reply, Terminate, parse, render
from lib.errors import EngineError
from lib.imaging import rle
from lib.imaging.overlays import overlay_named
from lib.imaging.rle import Rle
from lib.imaging.views import View
from lib.policies.reasoning import Scene
from lib.policies.simulated import NOT_TO_LEARN, SimulatedPolicy, Task
from lib.policies.strategies import part_at
from lib.trajectories.grade import Grade, StepGrade
from lib.trajectories.rewards.recipes import Parts
from lib.trajectories.rewards.state import Reference, useful_error
from lib.trajectories.simulation.correction import in_words
from lib.trajectories.store import Grading
from lib.trajectories.trajectory import Source, Trajectory

DIGITS = 4
"""Decimals of the coordinates that the grammar writes."""

USELESS = "a click of no use"
EARLY = "a stop although a useful click was left"
MISPLACED = "a click against the label, or where none was useful"
INTENDED = "an error that was made on purpose, or a stop for want of turns"
UNDRAWN = "a click that was not applied"
UNGRADED = "no grading says whether it was right"
UNSAID = "no reasoning, or one with tags in it"
UNDONE = "taken back"
MALFORMED = "a reply that is not of the grammar"
ELSEWHERE = "learned with the episode that it goes on from"


@dataclass(frozen=True, eq=False)
class Sample:
    """A trajectory, what it was seen on, and the gradings that count for it, none of them dropped."""

    trajectory: Trajectory
    view: View
    gradings: tuple[Grading, ...]
    references: tuple[Reference, ...]
    """The label of each grading in the view."""
    recipe: Parts
    """Says when no useful click is left."""

    @cached_property
    def grades(self) -> list[Grade]:
        return [grading.grade for grading in self.gradings if isinstance(grading.grade, Grade)]

    @property
    def reward(self) -> float | None:
        """Mean over the gradings; None when there is none."""
        return fmean(grade.total for grade in self.grades) if self.grades else None

    @property
    def reference(self) -> Reference | None:
        """The label of the newest grading: the one that states and expert replies go by."""
        return self.references[-1] if self.references else None

    @property
    def target(self) -> str:
        """Its name in words."""
        return in_words(self.trajectory.prompt)

    def done(self, mask: np.ndarray | None) -> bool:
        """Whether no label leaves a useful click on this mask, bool `[height, width]`."""
        return all(useful_error(mask, reference, self.recipe) is None for reference in self.references)


@dataclass(frozen=True, eq=False)
class Turn:
    """A state of an episode and the reply to it."""

    number: int
    """1 for the first; turns that were taken back, and replies that were not of the grammar, are not counted."""
    shown: Rle | None
    """The mask that was painted on the picture; None while there was none."""
    clicks: tuple[Click, ...]
    """What drew it."""
    actions: tuple[Action, ...]
    """All earlier actions."""
    reply: Reply
    """Coordinates as the grammar writes them."""
    actor: Actor
    fault: str = ""
    """Why the reply must not be learned; empty when it is right."""
    own: bool = True
    """False for what stands in the trajectory only as the way to where it begins."""
    recorded: bool = True
    """False for the state after the last click, to which nobody replied."""

    @property
    def text(self) -> str:
        return render(self.reply)

    @property
    def mask(self) -> np.ndarray | None:
        """`shown` as bool `[height, width]`."""
        return None if self.shown is None else rle.decode(self.shown)


def read_turns(sample: Sample) -> list[Turn]:
    """The turns that count, in order, and after an episode that did not end with a stop the state at its end.

    A click of an annotator or an expert is right unless it lies against the label; one of the agent when it lies right and made
    the mask better; a stop when no useful click is left. Where an annotator gave no reasons, the templates of the simulated one
    state what is to be seen. At the end of an episode without a stop the reply is the expert's, learned when it is a stop.
    """
    trajectory = sample.trajectory
    outcome = trajectory.outcome
    first = trajectory.kept_from if trajectory.source is Source.CORRECTION else 1
    state = Turn(
        number=1,
        shown=None if outcome.given is None else outcome.given.mask,
        clicks=() if outcome.given is None else outcome.given.clicks,
        actions=(),
        reply=Reply("", Terminate()),
        actor=Actor.EXPERT,
        recorded=False,
    )
    turns: list[Turn] = []
    for step in outcome.steps:
        if step.undone or isinstance(step.action, ProtocolError):
            continue
        reply = Reply(step.thought.strip(), _written(step.action))
        turn = replace(state, reply=reply, actor=step.actor, own=step.turn >= first, recorded=True)
        turn = replace(turn, fault=_fault(sample, step, turn))
        if not turn.fault and not reply.thought:
            turn = _explained(sample, turn)
        turns.append(turn)
        state = replace(state, number=turn.number + 1, actions=(*turn.actions, reply.action), own=turn.own)
        if isinstance(reply.action, Click) and step.mask is not None:
            state = replace(state, shown=step.mask, clicks=(*turn.clicks, reply.action))
    if not (turns and isinstance(turns[-1].reply.action, Terminate)):
        after = expert_reply(sample, state)
        if after is not None:
            fault = "" if isinstance(after.action, Terminate) else USELESS
            turns.append(replace(state, reply=after, fault=fault))
    return turns


def expert_reply(sample: Sample, turn: Turn) -> Reply | None:
    """What a simulated annotator replies in this state; None for a trajectory without a reference."""
    if sample.reference is None:
        return None
    task = Task(sample.target, sample.reference.mask, most=1, seed=_seed(sample, turn))
    policy = SimulatedPolicy({sample.view: task}, lambda mask, reference: not sample.done(mask))
    overlay = overlay_named(sample.trajectory.overlay)
    (decision,) = policy.decide([Observation(sample.trajectory.prompt, sample.view, turn.mask, (), overlay=overlay)])
    if isinstance(decision, EngineError) or decision.details["intent"] in NOT_TO_LEARN:
        return None
    reply = parse(decision.reply)
    return reply if isinstance(reply, Reply) else None


def left_out(trajectory: Trajectory) -> list[str]:
    """Of the steps that are no turn, why."""
    steps = trajectory.outcome.steps
    return [UNDONE if step.undone else MALFORMED for step in steps if step.undone or isinstance(step.action, ProtocolError)]


def _fault(sample: Sample, step: Step, turn: Turn) -> str:
    """Why a step must not be learned; empty when it is right."""
    if turn.reply.thought and parse(turn.text) != turn.reply:
        return UNSAID
    if step.details.get("intent") in NOT_TO_LEARN:
        return INTENDED
    graded = [one for grade in sample.grades for one in grade.steps if one.turn == step.turn]
    if isinstance(step.action, Terminate):
        if not sample.references:
            return UNGRADED if step.actor is Actor.AGENT else ""
        return "" if sample.done(turn.mask) else EARLY
    if step.mask is None:
        return UNDRAWN
    placement = [one.parts["placement"] for one in graded if "placement" in one.parts]
    if step.actor is not Actor.AGENT:
        return MISPLACED if placement and fmean(placement) < 0 else ""
    return _agents_fault(graded, placement)


def _agents_fault(graded: list[StepGrade], placement: list[float]) -> str:
    if not graded:
        return UNGRADED
    gain = fmean(one.iou_after - one.iou_before for one in graded)
    return "" if gain > 0 and (not placement or fmean(placement) > 0) else USELESS


def _explained(sample: Sample, turn: Turn) -> Turn:
    """The turn with what is to be seen in place of the reasons that a person did not write."""
    action, reference = turn.reply.action, sample.reference
    if reference is None:
        return replace(turn, fault=UNSAID)
    if isinstance(action, Terminate):
        said = expert_reply(sample, turn)
        return replace(turn, fault=UNSAID) if said is None else replace(turn, reply=replace(said, action=action))
    mask = np.zeros_like(reference.mask) if turn.mask is None else turn.mask
    wrong = reference.mask & ~mask if action.positive else mask & ~reference.mask
    part = part_at(wrong, action.point)
    kind = "add" if action.positive else "remove"
    if action.positive and not (mask & reference.mask).any():
        kind, part = "start" if turn.mask is None else "start_again", reference.mask
    part = part if part.any() else wrong
    if not part.any():
        return replace(turn, fault=UNSAID)
    scene = Scene(sample.view, sample.target, mask, reference.mask)
    thought = scene.thought(kind, part, np.random.default_rng(_seed(sample, turn)))
    return replace(turn, reply=Reply(thought, action))


def _seed(sample: Sample, turn: Turn) -> int:
    digest = blake2b(f"{sample.trajectory.key}:{turn.number}".encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big")


def _written(action: Action) -> Action:
    """The action as the grammar writes it."""
    if isinstance(action, Terminate):
        return Terminate(action.answer.strip())
    point = replace(action.point, x=round(action.point.x, DIGITS), y=round(action.point.y, DIGITS))
    return replace(action, point=point)
