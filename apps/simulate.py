"""`simulate`: trajectories of a simulated annotator on a labelled folder, and the learning curve that they begin with."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from apps import models
from apps.console import console, progress_bar
from lib.policies.strategies import Strategy

if TYPE_CHECKING:
    from lib.policies.openai import OpenAIConfig
    from lib.trajectories.simulation.curve import Curve
    from lib.trajectories.simulation.session import Played

TEACHER_KEY = "IBIS_TEACHER_KEY"
_SHOWN = (1, 2, 3, 5, 8)
"""Numbers of clicks that have a column for each structure."""


def simulate(
    folder: Annotated[Path, typer.Argument(help="folder with a manifest.json of images and references, or one case in it")],
    store: Annotated[Path, typer.Option(help="the trajectory store")] = Path("out/trajectories"),
    url: Annotated[str, typer.Option(help="its database, where that is not in the folder: postgresql://...")] = "",
    output: Annotated[Path, typer.Option(help="folder for curve.csv and curve.png")] = Path("out/simulation"),
    engine: models.Engine = "",
    sam2_ckpt: models.Sam2Ckpt = "",
    sam2_cfg: models.Sam2Cfg = "",
    device: models.Device = "",
    structure: Annotated[list[str] | None, typer.Option(help="only these structures; may be given several times")] = None,
    strategy: Annotated[
        Strategy | None, typer.Option(help="where the annotator clicks; default: configs/simulation.yaml")
    ] = None,
    lessons: Annotated[str, typer.Option(help='shares such as "plain=3,recover=1"; default: configs/simulation.yaml')] = "",
    slices: Annotated[
        int | None, typer.Option(min=1, help="slices of each structure; default: configs/simulation.yaml")
    ] = None,
    max_steps: Annotated[int | None, typer.Option(min=2, max=100, help="most steps of an episode, Terminate included")] = None,
    seed: Annotated[int, typer.Option(help="same seed, same episodes; a second run adds nothing twice")] = 0,
    workers: Annotated[int, typer.Option(min=0, help="processes; 0: one for each processor, or one with a model")] = 0,
    teacher: Annotated[str, typer.Option(help="base URL of an OpenAI-compatible server whose model writes the reasoning")] = "",
    teacher_model: Annotated[str, typer.Option(help="the name that the server gives it")] = "",
) -> None:
    """Make trajectories: a simulated annotator clicks towards reference masks, with reasons, mistakes and recoveries."""
    import os
    import time

    from lib.engines.build import EngineOptions
    from lib.trajectories.simulation.config import read_shares, simulation_config
    from lib.trajectories.simulation.curve import learning_curves, write_csv, write_plot
    from lib.trajectories.simulation.session import Lessons
    from lib.trajectories.simulation.targets import find_jobs
    from lib.trajectories.simulation.workers import Setting
    from lib.trajectories.simulation.workers import simulate as work_on
    from lib.trajectories.store import TrajectoryStore

    config = simulation_config()
    chosen = Lessons(
        shares=read_shares(lessons) if lessons else config.lessons,
        slices=slices or config.slices,
        max_steps=max_steps or config.max_steps,
        strategy=strategy or config.strategy,
        seed=seed,
    )
    options = EngineOptions(engine, sam2_ckpt=sam2_ckpt, sam2_cfg=sam2_cfg, device=device)
    jobs = find_jobs(folder, structure or [])
    if not workers:
        workers = len(os.sched_getaffinity(0)) if options == EngineOptions() else 1
    setting = Setting(chosen, options, store, url, _teacher(teacher, teacher_model))
    kept = TrajectoryStore(store, url)
    played: list[Played] = []
    began = time.perf_counter()
    stopped = False
    with progress_bar() as progress:
        bar = progress.add_task("structures", total=len(jobs))

        def done(one: "Played") -> None:
            played.append(one)
            progress.advance(bar)

        try:
            work_on(jobs, setting, min(workers, len(jobs)), done)
        except KeyboardInterrupt:
            stopped = True
    seconds = time.perf_counter() - began
    curves = learning_curves(kept, {one.run for one in played if one.run})
    kept.close()
    if curves:
        output.mkdir(parents=True, exist_ok=True)
        write_csv(output / "curve.csv", curves)
        write_plot(output / "curve.png", curves)
        console.print(_clicks(curves[0]))
        console.print(_structures(curves[1:]))
    _summary(played, seconds)
    if curves:
        console.print(f"{output / 'curve.csv'}\n{output / 'curve.png'}", highlight=False, soft_wrap=True)
    if stopped:
        raise KeyboardInterrupt


def _teacher(url: str, model: str) -> "OpenAIConfig | None":
    import os

    from pydantic import ValidationError

    from lib.errors import InputError
    from lib.policies.openai import OpenAIConfig

    if not url:
        return None
    if not model:
        raise InputError("name the teacher's model as its server does", "teacher_model")
    key = TEACHER_KEY if os.environ.get(TEACHER_KEY) else ""
    try:
        return OpenAIConfig.model_validate({"endpoints": (url,), "model": model, "api_key_env": key, "max_tokens": 256})
    except ValidationError as error:
        raise InputError(error.errors()[0]["msg"], "teacher") from error


def _clicks(curve: "Curve") -> Table:
    table = Table("clicks", "mean IoU", "spread", "mean Dice", "spread", title=f"Plain lessons, {curve.episodes} episodes")
    columns = (curve.iou_mean, curve.iou_sd, curve.dice_mean, curve.dice_sd)
    for clicks, values in enumerate(zip(*columns, strict=True)):
        table.add_row(str(clicks), *(f"{value:.3f}" for value in values))
    return table


def _structures(curves: "Sequence[Curve]") -> Table:
    table = Table("structure", "episodes", *(f"IoU at {n}" for n in _SHOWN), "IoU at end", "spread", "Dice at end")
    for curve in curves:
        last = len(curve.iou_mean) - 1
        ends = (curve.iou_mean[-1], curve.iou_sd[-1], curve.dice_mean[-1])
        shown = [curve.iou_mean[min(n, last)] for n in _SHOWN]
        table.add_row(curve.structure, str(curve.episodes), *(f"{value:.3f}" for value in (*shown, *ends)))
    return table


def _summary(played: "Sequence[Played]", seconds: float) -> None:
    from lib.trajectories.simulation.curve import totals

    lessons, steps = totals([one.lessons for one in played]), sum(one.steps for one in played)
    counts = ", ".join(f"{name} {count}" for name, count in lessons.items()) or "none"
    known = sum(one.known for one in played)
    console.print(
        f"{sum(lessons.values())} new episodes ({counts}), {steps} steps in {seconds:.1f} s, {steps / seconds:.1f} steps/s"
        + (f"; {known} episodes were there already" if known else ""),
        highlight=False,
    )
    for name, count in totals([one.reasoners for one in played]).items():
        console.print(f"reasoning by {name}: {count} steps", highlight=False)
    for reason, count in totals([one.left_out for one in played]).items():
        console.print(f"[yellow]left out:[/yellow] {count} x {reason}", highlight=False)
