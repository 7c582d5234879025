"""`bench`: speed and memory, measured side by side in one run."""

import tempfile
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from apps import models
from apps.console import console
from lib.errors import InputError

if TYPE_CHECKING:
    from lib.engines.benchmark.models import Models


_ROUNDS = 9
"""Runs with and without recording."""


class Part(StrEnum):
    """What to measure."""

    ALL = "all"
    RUNS = "runs"
    LOOP = "loop"
    RECORDING = "recording"


def bench(
    part: Annotated[
        Part,
        typer.Argument(
            help="runs: images and the server; loop: language model and SAM2, beside the released loop; recording: what the "
            "trajectories cost"
        ),
    ] = Part.ALL,
    image: Annotated[
        list[Path] | None, typer.Option(help="runs, recording: image to measure on; may be repeated; default: the phantom")
    ] = None,
    prompt: Annotated[str, typer.Option(help="runs, recording: what to segment")] = "liver",
    engine: models.Engine = "",
    clients: Annotated[int, typer.Option(min=1, max=32, help="runs: clients at once in the server's measurement")] = 4,
    random_weights: Annotated[
        bool,
        typer.Option(help="loop: Qwen2.5-VL-7B and SAM2 large in full size, random weights, no download; default: tiny ones"),
    ] = False,
    mllm_path: models.MllmPath = "",
    sam2_ckpt: models.Sam2Ckpt = "",
    sam2_cfg: models.Sam2Cfg = "",
    device: models.Device = "auto",
    batches: Annotated[str, typer.Option(help="loop: batch sizes, separated by commas")] = "1,8,32,64",
    turns: Annotated[int, typer.Option(min=1, max=20, help="loop: turns on each slice")] = 3,
    slices: Annotated[int, typer.Option(min=1, help="loop: slices that are played one by one")] = 4,
    reply_tokens: Annotated[int, typer.Option(min=48, max=500, help="loop: length of every reply")] = 150,
    static_cache: Annotated[bool, typer.Option(help="loop: the compiled decoding step of a GPU")] = False,
    output: Annotated[Path | None, typer.Option(help="also write the tables to this Markdown file")] = None,
) -> None:
    """Measure runs, the server's answers while runs go on, the loop of language model and segmenter, and recording."""
    tables = []
    if part in (Part.ALL, Part.RUNS):
        tables += _runs(image or [], prompt, engine, clients)
    if part in (Part.ALL, Part.RECORDING):
        tables.append(_recording(image or [], prompt, engine))
    if part in (Part.ALL, Part.LOOP):
        sizes = _sizes(batches)
        loaded = _loop_models(random_weights, mllm_path, sam2_ckpt, sam2_cfg, device, static_cache)
        tables += _loops(loaded, sizes, turns, slices, reply_tokens)
    if output is not None:
        _write(output, tables)
        console.print(str(output), highlight=False)


def _runs(image: list[Path], prompt: str, engine: str, clients: int) -> list[Table]:
    from lib.engines.measure import measure
    from lib.server.load import measure_server

    with tempfile.TemporaryDirectory() as scratch:
        images = image or [_phantom(Path(scratch))]
        runs = Table("image", "size", "load s", "run s", "find s", "policy s", "segmenter s", "turns", title=f"Runs: {prompt}")
        ratios = Table(
            "image", "slices", "absent", "ms per absent slice", "ms per other", "ratio", "peak memory / float32 volume"
        )
        for path in images:
            with console.status(f"Measuring {path}"):
                m = measure(path, prompt, engine)
            name = f"{path.parent.name}/{path.name}"
            size = "x".join(map(str, m.shape))
            stages = (m.load, m.run, m.first_decision, m.policy, m.segmenter)
            runs.add_row(name, size, *(f"{seconds:.2f}" for seconds in stages), str(m.turns))
            ratio = f"{m.present_slice / m.absent_slice:.0f}" if m.absent_slice else ""
            shares = (f"{1000 * m.absent_slice:.2f}", f"{1000 * m.present_slice:.1f}", ratio, f"{m.peak_memory:.2f}")
            ratios.add_row(name, str(m.slices), str(m.absent), *shares)
        with console.status("Measuring the server"):
            server = measure_server(images[0], prompt, engine, clients, Path(scratch))
    answers = Table("clients", "one after another s", "at once s", "ratio", "/info/ alone ms", "median ms", "longest ms")
    answers.title = "Server: the same requests one after another and at once, and GET /info/ meanwhile"
    answers.add_row(
        str(clients),
        f"{server.serial:.1f}",
        f"{server.parallel:.1f}",
        f"{server.serial / server.parallel:.2f}",
        f"{1000 * server.info_alone:.1f}",
        f"{1000 * server.info_median:.1f}",
        f"{1000 * server.info_longest:.1f}",
    )
    for table in (runs, ratios, answers):
        console.print(table)
    return [runs, ratios, answers]


def _recording(image: list[Path], prompt: str, engine: str) -> Table:
    from statistics import median

    from lib.engines.build import build_engine
    from lib.imaging.load import load_volume
    from lib.trajectories.overhead import measure_recording

    title = f"Recording: {prompt}, {_ROUNDS} runs without and with it, by turns (median; all on disk)"
    table = Table("image", "episodes", "steps", "without s", "with s", "overhead %", "after the run's end ms", title=title)
    with tempfile.TemporaryDirectory() as scratch:
        for path in image or [_phantom(Path(scratch))]:
            with console.status(f"Measuring {path}"):
                folder = Path(tempfile.mkdtemp(dir=scratch))
                rounds = list(measure_recording(load_volume(path), prompt, build_engine(engine), folder, _ROUNDS))
            plain, recorded = median(one.plain_s for one in rounds), median(one.recorded_s for one in rounds)
            overhead = 100 * (median(one.recorded_s / one.plain_s for one in rounds) - 1)
            waited = 1000 * median(one.waited_s for one in rounds)
            counts = (str(rounds[0].episodes), str(rounds[0].steps))
            shares = (f"{plain:.2f}", f"{recorded:.2f}", f"{overhead:.1f}", f"{waited:.0f}")
            table.add_row(f"{path.parent.name}/{path.name}", *counts, *shares)
    console.print(table)
    return table


def _sizes(text: str) -> list[int]:
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise InputError(f"{text!r} is not a list of batch sizes such as 1,8,32", "batches")
    return sizes


def _loop_models(
    random_weights: bool, mllm_path: str, sam2_ckpt: str, sam2_cfg: str, device: str, static_cache: bool
) -> "Models":
    if bool(mllm_path) != bool(sam2_ckpt):
        raise InputError("real weights need both --mllm-path and --sam2-ckpt", "mllm_path" if sam2_ckpt else "sam2_ckpt")
    from lib.engines.benchmark.models import random_models, real_models, tiny_models
    from lib.engines.devices import pick_devices

    with console.status("Loading the models"):
        picked = pick_devices(device)[0]
        if mllm_path:
            return real_models(mllm_path, Path(sam2_ckpt), sam2_cfg, picked, static_cache)
        return random_models(picked, static_cache) if random_weights else tiny_models(picked)


def _loops(loaded: "Models", sizes: list[int], turns: int, slices: int, reply_tokens: int) -> list[Table]:
    """One column for each loop, and what they mean for whole volumes."""
    from lib.engines.benchmark.loop import STAGES, measure_loops

    rows = []
    with console.status("Measuring the loops") as status:
        for row in measure_loops(loaded, sizes, turns, slices, reply_tokens, side=512):
            rows.append(row)
            status.update(f"Measured: {row.name}, {1000 * row.seconds / row.turns:.0f} ms per slice-turn")
    title = f"Loop: {loaded.name}, {loaded.language.device}, replies of {reply_tokens} tokens, views of 512 x 512"
    table = Table("per slice-turn", *(row.name for row in rows), title=title)
    each = [row.seconds / row.turns for row in rows]
    table.add_row("slice-turns measured", *(str(row.turns) for row in rows))
    table.add_row("ms", *(f"{1000 * seconds:.1f}" for seconds in each))
    table.add_row("times as fast as released", *(f"{each[0] / seconds:.2f}" for seconds in each))
    table.add_row("turns per second", *(f"{1 / seconds:.2f}" for seconds in each))
    table.add_row("tokens per second", *(f"{row.tokens / row.seconds:.0f}" for row in rows))
    for stage in STAGES:
        table.add_row(f"{stage} ms", *(f"{1000 * row.stages[stage]:.1f}" for row in rows))
    table.add_row("vision (part of prefill) ms", *(f"{1000 * row.vision:.1f}" for row in rows))
    table.add_row("in models %", *(f"{100 * row.models:.1f}" for row in rows))
    table.add_row("in forward passes %", *(f"{100 * row.forward:.1f}" for row in rows))
    table.add_row("peak memory MB", *(f"{row.peak_bytes / 2**20:.0f}" for row in rows))
    console.print(table)
    gpu = loaded.language.device.type == "cuda"
    points = [(size, size * row.seconds / row.turns) for size, row in zip(sizes, rows[1:], strict=True)]
    forecasts = _forecasts(points if gpu else None)
    console.print(forecasts)
    return [table, forecasts]


def _forecasts(points: "list[tuple[int, float]] | None") -> Table:
    """Whole volumes on one H200 and on eight, from measured turns, or from arithmetic where there is no GPU to measure."""
    from lib.engines.benchmark.forecast import SLICE_MM, TURNS, between, forecast, roofline

    source = "turns as measured here" if points else "turns derived from the H200's peak rates, not measured"
    title = f"Forecast: {source}; {TURNS} turns on a slice with the target, 1 without, 40 % with it, {SLICE_MM:g} mm apart"
    table = Table("slices", "plan", "looked at", "decisions", "s on one H200", "s on eight", title=title)
    cost = between(sorted(points)) if points else roofline
    for slices in (150, 600):
        for plan in ("all", "auto"):
            one, eight = (forecast(slices, plan, gpus, cost) for gpus in (1, 8))
            times = (f"{one.seconds:.0f}", f"{eight.seconds:.0f}")
            table.add_row(str(slices), plan, str(one.looks), str(one.calls), *times)
    return table


def _phantom(folder: Path) -> Path:
    from lib.imaging.phantom import make_phantom, write_series

    with console.status("Making a CT phantom"):
        write_series(make_phantom(0), folder / "phantom0")
    return folder / "phantom0"


def _write(path: Path, tables: list[Table]) -> None:
    """The tables as Markdown, with the machine and the versions that they were measured with."""
    from lib.engines.machine import describe_machine

    lines = ["# Benchmark", "", describe_machine(), ""]
    for table in tables:
        if table.title:
            lines += [f"## {table.title}", ""]
        cells = [list(column.cells) for column in table.columns]
        lines.append("| " + " | ".join(str(column.header) for column in table.columns) + " |")
        lines.append("|" + "---|" * len(table.columns))
        lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in zip(*cells, strict=True)]
        lines.append("")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines), encoding="utf-8")
