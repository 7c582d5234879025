"""`demo`: the whole system once, as a client sees it."""

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.table import Table

from apps.console import console
from lib.errors import InputError

_PROMPTS = "liver; left kidney"


def demo(
    output: Annotated[Path, typer.Option(help="folder for the phantom, masks and traces")] = Path("out/demo"),
    image: Annotated[Path | None, typer.Option(help="your own image instead of the phantom")] = None,
    prompt: Annotated[str, typer.Option(help="what to segment; several separated by ;")] = _PROMPTS,
    seed: Annotated[int, typer.Option(min=0, help="another seed is another patient")] = 0,
) -> None:
    """Make a CT phantom, start the real server, ask it over HTTP as a client would, and compare with the truth."""
    import httpx
    from monailabel.client import MONAILabelClient

    from lib.agent.targets import split_prompts
    from lib.server.process import ServerProcess

    prompts = split_prompts(prompt)
    studies = output / "studies"
    if image is not None and not image.exists():
        raise InputError(f"{image} does not exist", "image")
    if image is not None and image.resolve().is_relative_to(studies.resolve()):
        raise InputError(f"{image} lies in {studies}, which the demo empties: choose another --output", "image")
    shutil.rmtree(studies, ignore_errors=True)
    studies.mkdir(parents=True)
    truth: Mapping[str, np.ndarray] = {}
    if image is None:
        truth = _phantom(studies, output, seed)
    else:
        _copy(image, studies)

    table = Table("prompt", "answer", "Dice against truth", "seconds")
    console.print("Starting the server (10 to 20 s)")
    with ServerProcess(studies, output / "server.log") as server:
        console.print(f"The server answers at {server.url}", highlight=False)
        client = MONAILabelClient(server.url, tmpdir=str(output), client_id="demo")
        (name,) = client.datastore()["objects"]
        for number, text in enumerate(prompts, start=1):
            began = time.perf_counter()
            received, params = client.infer("ibis_agent", name, {"prompt": text, "result_extension": ".nii.gz"})
            seconds = time.perf_counter() - began
            mask = Path(received).rename(output / f"mask-{number}.nii.gz")
            trace = output / f"trace-{number}.html"
            trace.write_bytes(httpx.get(server.url + params["runs"][0]["trace"], timeout=120).raise_for_status().content)
            table.add_row(text, params["answer"], _dice(mask, truth, text), f"{seconds:.1f}")
            console.print(f"mask  {mask}\ntrace {trace}", highlight=False, soft_wrap=True)
    console.print(table)


def _phantom(studies: Path, output: Path, seed: int) -> Mapping[str, np.ndarray]:
    """Make the phantom, write it as a DICOM series and return its truth: bool `[i, j, k]` by structure name."""
    from lib.imaging.phantom import make_phantom, write_series, write_truth

    with console.status("Making a CT phantom, thorax to pelvis"):
        phantom = make_phantom(seed)
        write_series(phantom, studies / f"phantom{seed}")
        write_truth(phantom, output / "truth.nii.gz")
    size = "x".join(str(n) for n in phantom.volume.data.shape)
    console.print(f"CT phantom {seed}: {size} voxels as a DICOM series in {studies}", highlight=False, soft_wrap=True)
    return phantom.labels


def _copy(image: Path, studies: Path) -> None:
    """The user's image as a study of its own; DICOM keeps a folder of its own."""
    if image.is_dir():
        shutil.copytree(image, studies / (image.name or "image"))
    else:
        target = studies if image.suffix.lower() not in (".dcm", "") else studies / image.stem
        target.mkdir(exist_ok=True)
        shutil.copy(image, target)


def _dice(mask: Path, truth: Mapping[str, np.ndarray], prompt: str) -> str:
    """Dice against the truth, where it knows the structure that the prompt names."""
    from lib.agent.anatomy import anatomy
    from lib.engines.evaluation import dice
    from lib.imaging.load import load_volume

    structure = anatomy().find(prompt)
    if structure is None or structure.name not in truth:
        return "no truth"
    return f"{dice(load_volume(mask).data > 0, truth[structure.name]):.3f}"
