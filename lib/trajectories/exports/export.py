"""`export`: trajectories of a store as rows for a training framework, in a folder that appears whole or not at all.

The same store and settings give the same bytes. Nothing in the rows names a patient, an image or a person.
"""

import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib.errors import InputError
from lib.imaging import rle
from lib.trajectories.exports.card import CARD, Tally, to_card, write_card
from lib.trajectories.exports.conversations import reserved, supervised
from lib.trajectories.exports.rows import Format, Row
from lib.trajectories.exports.sharegpt import ShareGpt
from lib.trajectories.exports.splits import PARTS, parse_shares, part_of, together
from lib.trajectories.exports.trl import TrlGrpo, TrlSft
from lib.trajectories.exports.turns import ELSEWHERE, Sample, left_out, read_turns
from lib.trajectories.exports.verl import VerlEpisodes, VerlTurns
from lib.trajectories.grade import Dropped
from lib.trajectories.grading import counting
from lib.trajectories.replay import view_of
from lib.trajectories.rewards.recipes import Parts, recipe_named
from lib.trajectories.rewards.state import Reference
from lib.trajectories.selection import Selection
from lib.trajectories.store import Grading, Summary, TrajectoryStore
from lib.trajectories.trajectory import Source, Trajectory

if TYPE_CHECKING:
    from lib.engines.tokens import TokenCounter

FORMATS: Mapping[tuple[str, str], Callable[[Path, bool], Format]] = {
    ("sharegpt", "sft"): ShareGpt,
    ("trl", "sft"): TrlSft,
    ("trl", "grpo"): TrlGrpo,
    ("verl", "turn"): VerlTurns,
    ("verl", "episode"): VerlEpisodes,
}
"""Format and kind of rows; the first kind of a format is its default."""

NO_REWARD = "every grading of it was dropped"
NOT_GRADED = "not graded"
REJECTED = "rejected by an annotator"
REPLACED = "a correction towards a label that was replaced since"
TOO_POOR = "its reward is too low"
OTHER_LESSON = "of another lesson"
RESERVED_WORD = "a text holds the mark of a picture or of a message"
TOO_LONG = "over the token budget"
TWICE = "the same row stands there already"


@dataclass(frozen=True)
class ExportRequest:
    """What to export, and how."""

    format: str
    rows: str = ""
    """"sft", "grpo", "turn" or "episode", as the format has them."""
    history: bool = False
    """Whether earlier turns stand in a row: as the engine that will be trained is configured."""
    split: str = "1"
    """Shares of train, validation and test."""
    recipe: str = ""
    """Whose gradings count: the default recipe's."""
    annotator: str = ""
    """Only this annotator's gradings."""
    label: str = ""
    engine: str = ""
    source: str = ""
    lessons: tuple[str, ...] = ()
    since: str = ""
    until: str = ""
    min_reward: float | None = None
    """Mean over the gradings that count."""
    ungraded: bool = False
    """Whether trajectories without a grading are taken too: the clicks of annotators and experts are right all the same."""
    budget: int | None = None
    """Rows of more tokens are left out."""

    @property
    def kind(self) -> str:
        """`rows`, or the format's default. Raises InputError for a format or a kind that there is not."""
        kinds = [kind for name, kind in FORMATS if name == self.format]
        if not kinds:
            raise InputError(f"format {self.format!r} is unknown: use {', '.join(sorted({n for n, _ in FORMATS}))}", "format")
        if self.rows and self.rows not in kinds:
            raise InputError(f"{self.format} has no rows {self.rows!r}: use {' or '.join(kinds)}", "rows")
        return self.rows or kinds[0]

    @property
    def selection(self) -> Selection:
        """Raises InputError for a source that there is not."""
        if self.source and self.source not in set(Source):
            raise InputError(f"source {self.source!r} is unknown: use {', '.join(Source)}", "source")
        return Selection(
            label=self.label,
            engine=self.engine,
            source=Source(self.source) if self.source else None,
            since=self.since,
            until=self.until,
        )


@dataclass(frozen=True)
class Exported:
    """What was written."""

    folder: Path
    rows: Mapping[str, int]
    """By part."""
    card: Mapping[str, Any]


def export(
    request: ExportRequest,
    store: TrajectoryStore,
    folder: Path,
    model: Path | None = None,
    overwrite: bool = False,
    on_done: Callable[[int, int], None] = lambda done, of: None,
) -> Exported:
    """Write the rows of the chosen trajectories into `folder`.

    With `model`, the folder of a Qwen2.5-VL checkpoint, the tokens of every row are counted by its own processor. `on_done` is
    told how many of how many trajectories are done. Raises InputError when a setting is not understood, nothing is left to
    write, or `folder` exists; with `overwrite` an earlier export there is replaced.
    """
    folder = folder.absolute()
    if folder.exists() and not (overwrite and (folder / CARD).is_file()):
        remedy = "it is no earlier export" if overwrite else "name another, or replace an earlier export with --overwrite"
        raise InputError(f"{folder} exists: {remedy}", "output")
    making = FORMATS[request.format, request.kind]
    counter = _counter(model, request.budget)
    draft = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    earlier = draft.with_suffix(".earlier")
    draft.mkdir(parents=True)
    try:
        card = _Work(request, store, making(draft, request.history), counter).write(draft, on_done)
        if folder.exists():
            folder.rename(earlier)
        draft.rename(folder)
    finally:
        if earlier.exists() and not folder.exists():
            earlier.rename(folder)
        for leftover in (draft, earlier):
            shutil.rmtree(leftover, ignore_errors=True)
    return Exported(folder, {part: counts["rows"] for part, counts in card["parts"].items()}, card)


class _Work:
    """One export."""

    def __init__(self, request: ExportRequest, store: TrajectoryStore, form: Format, counter: "TokenCounter | None"):
        self._request, self._store, self._format, self._counter = request, store, form, counter
        self._shares = parse_shares(request.split)
        self._recipe = recipe_named(request.recipe)
        self._tally = Tally()
        self._written: set[str] = set()

    def write(self, draft: Path, on_done: Callable[[int, int], None]) -> dict[str, Any]:
        """All files; the card."""
        chosen = self._chosen
        optimal = self._optimal(chosen)
        for number, (trajectory, gradings) in enumerate(self._read(chosen)):
            sample = self._sample(trajectory, gradings)
            self._add(sample, optimal.get(_scene(trajectory)))
            on_done(number + 1, len(chosen))
        self._format.finish()
        if not self._written:
            raise InputError(f"nothing to export: {self._why_nothing()}", "store")
        self._verify()
        settings = {name: value for name, value in asdict(self._request).items() if value not in ("", None, ())}
        settings |= {"rows": self._request.kind}
        if self._request.annotator:
            settings["annotator"] = self._annotator(self._request.annotator)
        card = to_card(self._tally, settings, self._recipe.name)
        write_card(draft, card, self._format.guide(max(self._tally.tokens, default=None)))
        return card

    @cached_property
    def _judging(self) -> Parts:
        """Says when no useful click is left; the published rewards do not."""
        recipe = self._recipe if isinstance(self._recipe, Parts) else recipe_named()
        assert isinstance(recipe, Parts)
        return recipe

    @cached_property
    def _groups(self) -> dict[str, str]:
        """Patient -> the group of patients that must stay together; of all images, so that filters do not move a patient."""
        return together(self._store.contents())

    @cached_property
    def _chosen(self) -> dict[str, tuple[Grading, ...]]:
        """The trajectories to export, by key, with the gradings that count."""
        gradings = self._store.gradings(self._request.selection)
        newest = self._store.newest_labels()
        rejected = {(rejection.run, rejection.target) for rejection in self._store.rejections()}
        chosen = {}
        for summary in self._store.summaries(self._request.selection):
            counted = counting([one for one in gradings.get(summary.key, []) if self._counts(one)], self._recipe.name)
            found = tuple(one for one in counted if not isinstance(one.grade, Dropped))
            reason = REJECTED if (summary.run, summary.target) in rejected else self._reason(summary, found, bool(counted))
            if summary.source is Source.CORRECTION and not any(one.label.key in newest for one in counted):
                reason = reason or REPLACED
            if reason:
                self._tally.dropped_trajectories[reason] += 1
            else:
                chosen[summary.key] = found
        return chosen

    def _counts(self, grading: Grading) -> bool:
        return not self._request.annotator or grading.label.annotator == self._request.annotator

    def _reason(self, summary: Summary, gradings: tuple[Grading, ...], graded: bool) -> str:
        """Why a trajectory is not exported; empty when it is."""
        if self._request.lessons and summary.lesson not in self._request.lessons:
            return OTHER_LESSON
        if not gradings:
            if graded:
                return NO_REWARD
            return "" if self._request.ungraded and self._request.min_reward is None else NOT_GRADED
        least = self._request.min_reward
        reward = sum(one.grade.total for one in gradings if not isinstance(one.grade, Dropped)) / len(gradings)
        return TOO_POOR if least is not None and reward < least else ""

    def _read(self, chosen: Mapping[str, tuple[Grading, ...]]) -> Iterator[tuple[Trajectory, tuple[Grading, ...]]]:
        for trajectory in self._store.select(self._request.selection):
            if trajectory.key in chosen:
                yield trajectory, chosen[trajectory.key]

    def _sample(self, trajectory: Trajectory, gradings: tuple[Grading, ...]) -> Sample:
        masks = (rle.decode(self._store.blobs.mask(one.reference)) for one in gradings)
        view = view_of(trajectory, self._store.blobs)
        return Sample(trajectory, view, gradings, tuple(Reference(mask) for mask in masks), self._judging)

    def _optimal(self, chosen: Mapping[str, tuple[Grading, ...]]) -> dict[tuple[str, str], int]:
        """For each picture and prompt the first turn at which some episode could have stopped."""
        fewest: dict[tuple[str, str], int] = {}
        for trajectory, gradings in self._read(chosen) if self._request.kind != "sft" else ():
            scene, sample = _scene(trajectory), self._sample(trajectory, gradings)
            for turn in read_turns(sample) if gradings else ():
                if turn.number < fewest.get(scene, turn.number + 1) and sample.done(turn.mask):
                    fewest[scene] = turn.number
        return fewest

    def _add(self, sample: Sample, optimal: int | None) -> None:
        trajectory = sample.trajectory
        turns = read_turns(sample)
        self._tally.dropped_steps.update(left_out(trajectory))
        for turn in turns if self._request.kind == "sft" else ():
            if turn.recorded and not supervised(turn):
                self._tally.dropped_steps[turn.fault or ELSEWHERE] += 1
        group = self._groups[trajectory.origin.patient]
        part = part_of(group, self._shares)
        kept = [self._put(part, row) for row in self._format.rows(sample, turns, optimal or self._judging.turns[0])]
        if any(kept):
            annotators = sorted({self._annotator(grading.label.annotator) for grading in sample.gradings})
            self._tally.add_trajectory(part, group, sample, annotators)

    def _put(self, part: str, row: Row) -> bool:
        """Write a row, or count why not."""
        if row.digest in self._written:
            reason = TWICE
        elif reserved(row.messages):
            reason = RESERVED_WORD
        else:
            tokens = None if self._counter is None else self._counter.count(row.messages).total
            reason = TOO_LONG if tokens is not None and tokens > (self._request.budget or tokens) else ""
            if tokens is not None and not reason:
                self._tally.tokens.append(tokens)
        if reason:
            self._tally.dropped_rows[reason] += 1
            return False
        self._written.add(row.digest)
        self._format.put(part, row)
        self._tally.add_row(part, row)
        return True

    def _verify(self) -> None:
        """Read all files again. Raises RuntimeError when a row or a picture is not as it was meant."""
        for part in PARTS:
            found = list(self._format.written(part))
            if len(found) != self._tally.rows[part]:
                raise RuntimeError(f"{part} has {len(found)} rows, {self._tally.rows[part]} were written")
            if any(marks != pictures for marks, pictures in found):
                raise RuntimeError(f"{part} has a row whose marks and pictures differ in number")

    def _annotator(self, name: str) -> str:
        return self._store.hashed("annotator", name)[:8]

    def _why_nothing(self) -> str:
        reasons = self._tally.dropped_trajectories + self._tally.dropped_rows + self._tally.dropped_steps
        if not reasons:
            return "no trajectory matches"
        return "; ".join(f"{count} x {reason}" for reason, count in Counter(reasons).most_common(3))


def _scene(trajectory: Trajectory) -> tuple[str, str]:
    return trajectory.picture, trajectory.prompt


def _counter(model: Path | None, budget: int | None) -> "TokenCounter | None":
    if model is None:
        if budget is not None:
            raise InputError("the budget is in tokens: name the --model whose processor counts them", "budget")
        return None
    from lib.engines.tokens import TokenCounter

    return TokenCounter(model)
