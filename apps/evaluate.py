"""`evaluate`: an engine against reference masks, as a table."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from apps import models
from apps.console import console

if TYPE_CHECKING:
    from lib.engines.evaluation import Score


def evaluate(
    data: Annotated[Path, typer.Argument(help="folder with a manifest.json that names images, references and labels")],
    engine: models.Engine = "",
    case: Annotated[
        list[str] | None, typer.Option(help="only cases whose path contains this; may be given several times")
    ] = None,
    structure: Annotated[list[str] | None, typer.Option(help="only these structures; may be given several times")] = None,
    slices: Annotated[str, typer.Option(help='what the agent looks at: "all", "auto", "every 4" or "12, 20-35"')] = "all",
    compare: Annotated[bool, typer.Option("--compare", help="beside it the same with all slices looked at")] = False,
) -> None:
    """Compare an engine's masks with reference masks: Dice where present, false voxels where absent."""
    from lib.engines.build import build_engine
    from lib.engines.evaluation import evaluate_case, find_cases

    built = build_engine(engine)
    if compare:
        table = Table(
            "case", "structure", "slices", "Dice", "false voxels", "policy calls", "seconds", "fewer calls", "Dice loss"
        )
    else:
        table = Table("case", "structure", "Dice", "reference ml", "mask ml", "false voxels", "turns", "seconds")
    skipped: list[str] = []
    carried: list[tuple[float, float]] = []
    for item in find_cases(data, case or []):
        with console.status(f"{item.name}"):
            for scores in evaluate_case(item, built, structure or [], (slices, "all") if compare else (slices,)):
                score = scores[0]
                if score.skipped:
                    skipped.append(f"{item.name}, {score.structure}: {score.skipped}")
                    continue
                carried += score.carried
                for row in _compared(scores, slices) if compare else [_row(score)]:
                    table.add_row(item.name, score.structure, *row)
    console.print(table)
    if len(carried) > 2:
        console.print(_calibration(carried), highlight=False)
    for line in skipped:
        console.print(f"not compared: {line}", highlight=False)


def _row(score: "Score") -> list[str]:
    return [
        "absent" if score.dice is None else f"{score.dice:.3f}",
        f"{score.reference_ml:.1f}",
        f"{score.mask_ml:.1f}",
        str(score.false_voxels) if score.dice is None else "",
        str(score.turns),
        f"{score.seconds:.1f}",
    ]


def _compared(scores: "Sequence[Score]", slices: str) -> list[list[str]]:
    """The rows of both ways to pick slices; what the first saves and loses stands in its row."""
    rows = []
    for text, score in zip((slices, "all"), scores, strict=True):
        overlap, *_, absent, turns, seconds = _row(score)
        rows.append([text, overlap, absent, turns, seconds])
    few, all_slices = scores
    saved = f"{all_slices.turns / max(1, few.turns):.1f} x"
    lost = "" if few.dice is None or all_slices.dice is None else f"{all_slices.dice - few.dice:+.3f}"
    return [[*rows[0], saved, lost], [*rows[1], "", ""]]


def _calibration(carried: "Sequence[tuple[float, float]]") -> str:
    """How well the confidence of carried slices, given as (confidence, Dice), tells their Dice."""
    import numpy as np
    from scipy.stats import spearmanr

    confidence, overlap = np.array(carried).T
    linear, ranks = np.corrcoef(confidence, overlap)[0, 1], spearmanr(confidence, overlap).statistic
    return (
        f"{len(carried)} slices carried from others: Dice {overlap.mean():.3f}, confidence {confidence.mean():.3f}; "
        f"correlation of the two: {linear:.2f} (Pearson), {ranks:.2f} (Spearman)"
    )
