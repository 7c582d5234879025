"""`evaluate`: an engine against reference masks, as a table."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from apps import models
from apps.console import console


def evaluate(
    data: Annotated[Path, typer.Argument(help="folder with a manifest.json that names images, references and labels")],
    engine: models.Engine = "",
    case: Annotated[
        list[str] | None, typer.Option(help="only cases whose path contains this; may be given several times")
    ] = None,
    structure: Annotated[list[str] | None, typer.Option(help="only these structures; may be given several times")] = None,
) -> None:
    """Compare an engine's masks with reference masks: Dice where present, false voxels where absent."""
    from lib.engines.build import build_engine
    from lib.engines.evaluation import evaluate_case, find_cases

    built = build_engine(engine)
    table = Table("case", "structure", "Dice", "reference ml", "mask ml", "false voxels", "turns", "seconds")
    skipped = []
    for item in find_cases(data, case or []):
        with console.status(f"{item.name}"):
            for score in evaluate_case(item, built, structure or []):
                if score.skipped:
                    skipped.append(f"{item.name}, {score.structure}: {score.skipped}")
                    continue
                table.add_row(
                    item.name,
                    score.structure,
                    "absent" if score.dice is None else f"{score.dice:.3f}",
                    f"{score.reference_ml:.1f}",
                    f"{score.mask_ml:.1f}",
                    str(score.false_voxels) if score.dice is None else "",
                    str(score.turns),
                    f"{score.seconds:.1f}",
                )
    console.print(table)
    for line in skipped:
        console.print(f"not compared: {line}", highlight=False)
