"""`export`: recorded trajectories as training data for LLaMA-Factory, TRL or verl."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from apps.console import console, progress_bar


def export(
    format: Annotated[str, typer.Argument(help="sharegpt (LLaMA-Factory), trl or verl")],
    output: Annotated[Path, typer.Option(help="folder to write; it must not exist")],
    store: Annotated[Path, typer.Option(help="folder of the trajectories")] = Path("out/trajectories"),
    url: Annotated[str, typer.Option(help="database of the store, if it is not the SQLite file in its folder")] = "",
    rows: Annotated[str, typer.Option(help="trl: sft or grpo; verl: turn (as published) or episode (for its agent loop)")] = "",
    history: Annotated[
        bool, typer.Option("--history/--no-history", help="earlier turns stand in a row, as use_history of the engine")
    ] = False,
    split: Annotated[str, typer.Option(help="shares of train, validation and test, by patient: 0.8,0.1,0.1")] = "1",
    model: Annotated[
        Path | None, typer.Option(help="Qwen2.5-VL folder: its processor counts every row's text and image tokens")
    ] = None,
    budget: Annotated[int | None, typer.Option(min=1, help="leave rows of more tokens out; needs --model")] = None,
    rewards: Annotated[str, typer.Option(help="recipe whose gradings count; default: that of configs/rewards.yaml")] = "",
    min_reward: Annotated[
        float | None, typer.Option("--min-reward", help="only trajectories with this mean reward or more")
    ] = None,
    annotator: Annotated[str, typer.Option(help="only this annotator's gradings")] = "",
    label: Annotated[str, typer.Option(help="only this target")] = "",
    engine: Annotated[str, typer.Option(help="only what this engine did")] = "",
    source: Annotated[str, typer.Option(help="only run, simulation or correction")] = "",
    lesson: Annotated[list[str] | None, typer.Option(help="only this lesson; may be given several times")] = None,
    since: Annotated[str, typer.Option(help="only what was recorded at this ISO 8601 time (UTC) or later")] = "",
    until: Annotated[str, typer.Option(help="only what was recorded before this time")] = "",
    ungraded: Annotated[bool, typer.Option("--ungraded", help="take trajectories without a grading too")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an earlier export in that folder")] = False,
) -> None:
    """Write recorded trajectories as training data, with a data card.

    The same prompts, overlays and reply grammar as inference; only right replies are learned; a patient is in one part only.
    """
    from lib.errors import InputError
    from lib.trajectories.exports.export import ExportRequest
    from lib.trajectories.exports.export import export as export_trajectories
    from lib.trajectories.selection import moment
    from lib.trajectories.store import TrajectoryStore

    if not url and not (store / "trajectories.sqlite").is_file():
        raise InputError(f"{store} holds no trajectories: record some with `serve` or `simulate`", "store")
    request = ExportRequest(
        format=format,
        rows=rows,
        history=history,
        split=split,
        recipe=rewards,
        annotator=annotator,
        label=label,
        engine=engine,
        source=source,
        lessons=tuple(lesson or ()),
        since=moment(since, "since") if since else "",
        until=moment(until, "until") if until else "",
        min_reward=min_reward,
        ungraded=ungraded,
        budget=budget,
    )
    trajectories = TrajectoryStore(store, url)
    try:
        with progress_bar() as progress:
            task = progress.add_task(format, total=None)
            exported = export_trajectories(
                request,
                trajectories,
                output,
                model=model,
                overwrite=overwrite,
                on_done=lambda done, of: progress.update(task, completed=done, total=of),
            )
    finally:
        trajectories.close()
    table = Table("part", "rows", "trajectories", "patients", "slices")
    for part, counts in exported.card["parts"].items():
        table.add_row(part, *(str(counts[name]) for name in ("rows", "trajectories", "patients", "slices")))
    console.print(table)
    for what, reasons in exported.card["dropped"].items():
        for reason, count in reasons.items():
            console.print(f"left out: {count} {what}, {reason}", highlight=False)
    for warning in exported.card["warnings"]:
        console.print(f"[yellow]mind:[/yellow] {warning}", highlight=False)
    console.print(f"{exported.folder}: read README.md there before you train on it", highlight=False, soft_wrap=True)
