"""The filling: masks for the slices that nobody looked at, checked by the agent here and there, and their outcomes."""

from collections.abc import Iterable
from itertools import pairwise

from lib.agent.episode import Given, Outcome
from lib.agent.limits import StopReason
from lib.agent.protocol import Click
from lib.agent.segmenter import State
from lib.engines.volumes.carrying import draw, tissue_of
from lib.engines.volumes.confidence import Signs, estimate, trust
from lib.engines.volumes.desk import Desk
from lib.engines.volumes.propagation import Carried, propagate
from lib.engines.volumes.shapes import iou
from lib.engines.volumes.strategy import slice_mm, strategy
from lib.engines.volumes.survey import Gap, gaps
from lib.errors import EngineError
from lib.imaging import rle
from lib.imaging.rle import Rle


class Filling:
    """For one run, after its survey; not shared between threads."""

    def __init__(self, desk: Desk):
        self._desk = desk
        self._config = strategy()
        self._mm = slice_mm(desk.grid)
        self._carried: dict[Gap, dict[int, Carried]] = {}
        self._failed: dict[Gap, str] = {}

    def carry(self, open_gaps: Iterable[Gap]) -> list[Gap]:
        """Fill the gaps that have the target at an end; returns those."""
        filled = []
        for gap in open_gaps:
            if self._desk.stopped():
                break
            masks = {end: self._desk.mask(end) for end in (gap.low, gap.high) if end is not None}
            if not any(mask.any() for mask in masks.values()):
                continue
            desk, reach = self._desk, self._config.reach_mm
            try:
                self._carried[gap] = propagate(gap, masks, desk.view, desk.engine, desk.limits, reach)
                filled.append(gap)
            except EngineError as error:
                self._failed[gap] = str(error)
        return filled

    def check(self) -> None:
        """Show the agent carried masks, at intervals and where confidence is lowest. Where it clicks, the slice is a look like
        any other, and what is left of its gap is carried anew and checked if in doubt."""
        due = self._due(list(self._carried))
        while due and not self._desk.stopped():
            given = {index: self._given(index, self._carried[gap][index]) for gap, index in due.items()}
            self._desk.look(given, given)
            repaired = []
            for gap, index in due.items():
                outcome = self._desk.looked[index]
                if outcome.conclusive and any(isinstance(step.action, Click) for step in outcome.steps):
                    ends = {end: True for end in (gap.low, index, gap.high) if end is not None}
                    repaired += self.carry(gaps(ends, gap.slices))
                    if not self._desk.stopped():
                        del self._carried[gap]
            due = self._doubtful(repaired)

    def outcomes(self) -> list[Outcome]:
        """Of the slices that nobody looked at, ascending."""
        carried = {index: (gap, one) for gap, found in self._carried.items() for index, one in found.items()}
        failed = {index: reason for gap, reason in self._failed.items() for index in gap.slices}
        outcomes = []
        for index in self._desk.open:
            settled = self._desk.known(index)
            gap, one = carried.get(index, (None, None))
            if settled is not None:
                outcomes.append(settled)
            elif self._desk.cut is not None:
                reason, detail = self._desk.cut
                outcomes.append(self._outcome(index, reason, detail, one))
            elif index in failed:
                outcomes.append(self._outcome(index, StopReason.FAILED, failed[index], None))
            elif gap is not None and one is not None:
                ends = " and ".join(str(end) for end in (gap.low, gap.high) if end is not None and self._desk.mask(end).any())
                detail = f"from slice{'s' if 'and' in ends else ''} {ends}"
                outcomes.append(self._outcome(index, StopReason.PROPAGATED, detail, one, self._confidence(gap, index)))
            else:
                outcomes.append(self._outcome(index, StopReason.ABSENT, self._inference(index), None))
        return outcomes

    def _due(self, filled: list[Gap]) -> dict[Gap, int]:
        """The slices to check first: the worst of each gap in doubt, and one for every `check_mm` of carried slices."""
        due, unchecked = self._doubtful(filled), 0.0
        for gap in sorted(filled, key=lambda gap: gap.slices):
            unchecked = 0.0 if gap in due else unchecked + len(self._carried[gap]) * self._mm
            if unchecked >= self._config.check_mm:
                due[gap], unchecked = self._worst(gap), 0.0
        return due

    def _doubtful(self, filled: list[Gap]) -> dict[Gap, int]:
        worst = {gap: self._worst(gap) for gap in filled if len(self._carried[gap]) * self._mm > self._config.end_mm}
        return {gap: index for gap, index in worst.items() if self._confidence(gap, index) < self._config.doubtful}

    def _worst(self, gap: Gap) -> int:
        return min(self._carried[gap], key=lambda index: (self._confidence(gap, index), index))

    def _confidence(self, gap: Gap, index: int) -> float:
        """Estimated Dice of a carried slice."""
        desk, one = self._desk, self._carried[gap][index]
        ends = [end for end in (gap.low, gap.high) if end is not None and desk.mask(end).any()]
        near = {end: 1 / abs(index - end) for end in ends}
        signs = Signs(
            agreement=one.agreement,
            continuity=iou(desk.mask(ends[0]), desk.mask(ends[-1])) if len(ends) == 2 else 0.0,
            trust=sum(trust(desk.looked[end]) * weight for end, weight in near.items()) / sum(near.values()),
            distance_cm=min(abs(index - end) for end in ends) * self._mm / 10,
        )
        return estimate(signs, self._config.confidence)

    def _given(self, index: int, carried: Carried) -> tuple[Given, State | None]:
        """The carried mask, and a state of the segmenter in which clicks have drawn about the same."""
        desk, view, mask = self._desk, self._desk.view(index), rle.decode(carried.mask)
        drawn = draw(view, mask, tissue_of(view, mask), desk.engine, desk.limits)
        return Given(carried.mask, carried.score, drawn.clicks), drawn.state

    def _inference(self, index: int) -> str:
        """Why the target is not on a slice that nobody looked at."""
        seen = self._desk.seen
        below = max((look for look in seen if look < index), default=None)
        above = min((look for look in seen if look > index), default=None)
        near = [look for look in (below, above) if look is not None]
        if any(seen[look] for look in near):
            return f"inferred: the target ended on the way from slice {next(look for look in near if seen[look])}"
        if not any(seen.values()):
            distances = [high - low for low, high in pairwise(sorted(seen))]
            return f"inferred: {len(seen)} slices, at most {max(distances, default=1) * self._mm:.1f} mm apart, show nothing"
        return f"inferred: absent on slice{'s' if len(near) == 2 else ''} {' and '.join(map(str, near))}"

    def _outcome(
        self, index: int, stop: StopReason, detail: str, carried: Carried | None, confidence: float | None = None
    ) -> Outcome:
        empty: Rle = rle.empty(*self._desk.grid.size)
        return Outcome(
            index=index,
            window=self._desk.view(index).window,
            stop=stop,
            detail=detail,
            answer="",
            steps=(),
            mask=empty if carried is None else carried.mask,
            final_turn=None,
            chosen_because="there is no mask" if carried is None else "carried from other slices",
            confidence=confidence,
        )
