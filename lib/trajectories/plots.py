"""The statistics of a store as a picture."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lib.imaging.files import replacing
from lib.trajectories.quality import WeekQuality
from lib.trajectories.statistics import Statistics


def write_plot(path: Path, found: Statistics, weeks: Sequence[WeekQuality]) -> None:
    """Dice and reward histograms, the IoU turn by turn, and the agent's Dice week by week, as one PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, ((dice, reward), (curve, time)) = pyplot.subplots(2, 2, figsize=(12, 8), layout="constrained")
    dice.hist(found.dice, bins=np.linspace(0, 1, 21))
    dice.set(title=f"Dice, {len(found.dice)} gradings", xlabel="Dice with the final label", ylabel="trajectories")
    for recipe, rewards in found.rewards.items():
        reward.hist(rewards.totals, bins=20, alpha=0.6, label=f"{recipe} ({len(rewards.totals)})")
    reward.set(title="reward", xlabel="total of the episode", ylabel="trajectories")
    turns = [point.turn for point in found.curve]
    curve.plot(turns, [point.iou for point in found.curve], marker="o")
    curve.fill_between(turns, [point.lower for point in found.curve], [point.upper for point in found.curve], alpha=0.2)
    curve.set(title="IoU after each turn: mean and quartiles", xlabel="turn", ylabel="IoU with the final label", ylim=(0, 1))
    names = sorted({one.week for one in weeks})
    for engine, weights in sorted({(one.engine, one.weights) for one in weeks}):
        values = {
            one.week: one.dice for one in weeks if (one.engine, one.weights) == (engine, weights) and one.dice is not None
        }
        time.plot([names.index(week) for week in values], list(values.values()), marker="o", label=f"{engine} {weights[:8]}")
    time.set(title="the agent's Dice by week of the label", ylim=(0, 1), ylabel="mean Dice of a volume")
    time.set_xticks(range(len(names)), names, rotation=30)
    for axes in (dice, reward, curve, time):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as draft:
        figure.savefig(draft, dpi=110)
    pyplot.close(figure)
