"""`segment`: one image and a prompt in, mask and trace out."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from apps import models
from apps.console import RunProgress, console, progress_bar
from lib.agent.run import DEFAULT_TURNS, RunRequest
from lib.imaging.planes import Plane
from lib.imaging.volume import Modality


def segment(
    image: Annotated[Path, typer.Option(help="NIfTI, NRRD, PNG or JPEG file; DICOM file or folder")],
    prompt: Annotated[str, typer.Option(help='what to segment, such as "left kidney"; several: "liver; spleen"')],
    output: Annotated[
        Path, typer.Option("--output", "--output-dir", "--output_dir", help="folder for mask, trace.json and trace.html")
    ] = Path("out"),
    engine: models.Engine = "",
    mllm_path: models.MllmPath = "",
    adapter: models.Adapter = "",
    sam2_ckpt: models.Sam2Ckpt = "",
    sam2_cfg: models.Sam2Cfg = "",
    endpoints: models.Endpoints = "",
    device: models.Device = "",
    protocol: models.Protocol = "",
    use_history: models.UseHistory = "",
    slices: Annotated[
        str, typer.Option(help='"all", "auto" (key slices), "every 4", or numbers and ranges such as "12, 20-35"')
    ] = "all",
    plane: Annotated[Plane, typer.Option(help="the plane to cut along")] = Plane.AXIAL,
    window: Annotated[str, typer.Option(help='"auto", a preset, "percentile" or "LOW,HIGH"')] = "auto",
    overlay: Annotated[
        str, typer.Option(help='how the mask is painted for the agent: "inference" or "training"')
    ] = "inference",
    max_turns: Annotated[
        int, typer.Option("--max-turns", "--max_turns", min=1, max=100, help="most turns on a slice")
    ] = DEFAULT_TURNS,
    budget_s: Annotated[float, typer.Option(min=0.001, help="seconds after which the run stops with what it has")] = 86_400,
    series: Annotated[str, typer.Option(help="UID (or its beginning) of the series, where a folder has several")] = "",
    modality: Annotated[Modality | None, typer.Option(help="where the file does not say it right")] = None,
) -> None:
    """Segment one image by text, slice by slice."""
    import math
    import time

    from lib.agent.limits import Limits
    from lib.agent.results import write_results
    from lib.agent.targets import split_prompts
    from lib.engines.build import EngineOptions, build_engine
    from lib.engines.together import run_targets
    from lib.engines.volumes.strategy import covered_slices
    from lib.errors import InputError
    from lib.imaging.load import load_volume
    from lib.imaging.planes import ViewGrid

    prompts = split_prompts(prompt)
    if not math.isfinite(budget_s):
        raise InputError(f"{budget_s} is not a number of seconds", "budget_s")
    options = EngineOptions(engine, mllm_path, adapter, sam2_ckpt, sam2_cfg, endpoints, device, protocol, use_history)
    with console.status("Starting the engine"):
        built = build_engine(options)
    with console.status("Reading the image"):
        volume = load_volume(image, series=series or None, modality=modality)
    limits = Limits(deadline=time.monotonic() + budget_s)
    total = len(covered_slices(slices, ViewGrid(volume, plane)))
    requests = [RunRequest(text, plane, slices, max_turns, window, overlay) for text in prompts]
    with progress_bar() as progress:
        results = run_targets(requests, volume, built, limits, [[RunProgress(progress, text, total)] for text in prompts])
    written = write_results(output, results)

    table = Table("target", "answer", "slices", "turns", "seconds")
    for result in results:
        shown = sum(outcome.found for outcome in result.outcomes)
        turns = sum(len(outcome.steps) for outcome in result.outcomes)
        table.add_row(
            result.request.prompt, result.answer, f"{shown} of {len(result.outcomes)}", str(turns), f"{result.seconds:.1f}"
        )
    console.print(table)
    for warning in [*volume.warnings, *written.warnings]:
        console.print(f"[yellow]note:[/yellow] {warning}", highlight=False)
    for path in written.paths:
        console.print(str(path), highlight=False, soft_wrap=True)
    if any(result.status == "incomplete" for result in results):
        raise typer.Exit(3)
