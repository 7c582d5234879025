"""The cold-start learning curve: how good the mask is after each click of the plain lessons, read from the store."""

import csv
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lib.imaging.files import replacing
from lib.trajectories.grade import Grade
from lib.trajectories.selection import Selection
from lib.trajectories.simulation.config import Lesson
from lib.trajectories.store import TrajectoryStore

ALL = "all"
"""Name of the curve of all structures together."""
_LINES = 10
"""At most so many structures have a line of their own in the plot."""


@dataclass(frozen=True, eq=False)
class Curve:
    """Of one structure. Position n of each array is after n clicks; 0 is before the first.

    An episode that ended earlier keeps its last mask, so that every position stands for all episodes.
    """

    structure: str
    episodes: int
    iou_mean: np.ndarray
    iou_sd: np.ndarray
    """Between episodes."""
    dice_mean: np.ndarray
    dice_sd: np.ndarray


def learning_curves(store: TrajectoryStore, runs: Collection[str]) -> list[Curve]:
    """The curve of all structures first, then each structure's, those with the most episodes first; empty without episodes."""
    found: dict[str, list[list[float]]] = {}
    for run in sorted(runs):
        selection = Selection(run=run)
        plain = {one.key: one.label for one in store.summaries(selection) if one.lesson == Lesson.PLAIN}
        for key, gradings in store.gradings(selection).items():
            grade = gradings[-1].grade
            if key in plain and isinstance(grade, Grade):
                found.setdefault(plain[key], []).append(_overlaps(grade))
    if not found:
        return []
    length = max(len(one) for episodes in found.values() for one in episodes)
    ordered = sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))
    everything = [one for _, episodes in ordered for one in episodes]
    return [_curve(name, episodes, length) for name, episodes in [(ALL, everything), *ordered]]


def write_csv(path: Path, curves: Sequence[Curve]) -> None:
    """One row for each structure and number of clicks."""
    with replacing(path) as draft, open(draft, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["structure", "episodes", "clicks", "iou_mean", "iou_sd", "dice_mean", "dice_sd"])
        for curve in curves:
            columns = (curve.iou_mean, curve.iou_sd, curve.dice_mean, curve.dice_sd)
            for clicks, values in enumerate(zip(*columns, strict=True)):
                writer.writerow([curve.structure, curve.episodes, clicks, *(f"{value:.4f}" for value in values)])


def write_plot(path: Path, curves: Sequence[Curve]) -> None:
    """The curves as PNG: all with the spread between episodes, and the structures with the most episodes beside it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.8), sharey=True, layout="constrained")
    everything, structures = curves[0], curves[1 : 1 + _LINES]
    clicks = np.arange(len(everything.iou_mean))
    for name, mean, spread in (
        ("IoU", everything.iou_mean, everything.iou_sd),
        ("Dice", everything.dice_mean, everything.dice_sd),
    ):
        left.plot(clicks, mean, marker="o", label=f"mean {name}")
        left.fill_between(clicks, np.clip(mean - spread, 0, 1), np.clip(mean + spread, 0, 1), alpha=0.15)
    left.set(title=f"all structures, {everything.episodes} episodes", xlabel="clicks", ylabel="overlap", ylim=(0, 1))
    for curve in structures:
        right.plot(clicks, curve.iou_mean, marker=".", label=f"{curve.structure} ({curve.episodes})")
    right.set(title="mean IoU by structure", xlabel="clicks")
    for axes in (left, right):
        axes.legend(fontsize="small", loc="lower right")
        axes.grid(alpha=0.3)
    with replacing(path) as draft:
        figure.savefig(draft, dpi=120)
    pyplot.close(figure)


def _overlaps(grade: Grade) -> list[float]:
    """IoU before the first click and after each; the last step is the Terminate."""
    return [grade.steps[0].iou_before, *(step.iou_after for step in grade.steps[:-1])]


def _curve(structure: str, episodes: Sequence[Sequence[float]], length: int) -> Curve:
    iou = np.array([[*one, *[one[-1]] * (length - len(one))] for one in episodes])
    dice = 2 * iou / (1 + iou)
    return Curve(structure, len(episodes), iou.mean(axis=0), iou.std(axis=0), dice.mean(axis=0), dice.std(axis=0))


def totals(found: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Counts added up, the largest first."""
    names = {name for one in found for name in one}
    counts = {name: sum(one.get(name, 0) for one in found) for name in names}
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
