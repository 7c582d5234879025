"""`bench`: speed and memory, measured side by side in one run."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from apps import models
from apps.console import console


def bench(
    image: Annotated[list[Path] | None, typer.Option(help="image to measure on; may be repeated; default: the phantom")] = None,
    prompt: Annotated[str, typer.Option(help="what to segment")] = "liver",
    engine: models.Engine = "",
    clients: Annotated[int, typer.Option(min=1, max=32, help="clients at once in the server's measurement")] = 4,
    output: Annotated[Path | None, typer.Option(help="also write the tables to this Markdown file")] = None,
) -> None:
    """Measure runs (time by stage, memory) and the server's answers while runs go on."""
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
    if output is not None:
        _write(output, [runs, ratios, answers])


def _phantom(folder: Path) -> Path:
    from lib.imaging.phantom import make_phantom, write_series

    with console.status("Making a CT phantom"):
        write_series(make_phantom(0), folder / "phantom0")
    return folder / "phantom0"


def _write(path: Path, tables: list[Table]) -> None:
    """The tables as Markdown, with the machine and the versions that they were measured with."""
    import os
    import platform
    from importlib.metadata import version

    versions = ", ".join(f"{name} {version(name)}" for name in ("monailabel", "torch", "numpy", "scipy"))
    lines = [
        "# Benchmark",
        "",
        f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}",
        "",
    ]
    for table in tables:
        if table.title:
            lines += [f"## {table.title}", ""]
        cells = [list(column.cells) for column in table.columns]
        lines.append("| " + " | ".join(str(column.header) for column in table.columns) + " |")
        lines.append("|" + "---|" * len(table.columns))
        lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in zip(*cells, strict=True)]
        lines.append("")
    path.write_text("\n".join(lines), encoding="utf-8")
