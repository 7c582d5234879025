"""`pacs`: a PACS of your own to try the viewers with."""

import os
from pathlib import Path
from typing import Annotated

import typer

from apps import models
from apps.console import console
from apps.serve import check_free, serve
from lib.errors import InputError

_HOST = "127.0.0.1"


def pacs(
    output: Annotated[Path, typer.Option(help="folder for the phantom, the PACS's database and the server's cache")] = Path(
        "out/pacs"
    ),
    port: Annotated[int, typer.Option(min=1, max=65535, help="port of the label server")] = 8000,
    pacs_port: Annotated[int, typer.Option(min=1, max=65535, help="port of the PACS")] = 8042,
    engine: models.Engine = "",
    seed: Annotated[int, typer.Option(min=0, help="another seed is another patient")] = 0,
) -> None:
    """Start Orthanc with a CT phantom, and the server on it; open the links in a browser. Ctrl-C ends both."""
    from lib.imaging.phantom import make_phantom, write_series
    from lib.server.pacs.orthanc import OrthancServer, ThisMachine, missing

    reason = missing()
    if reason:
        raise InputError(f"{reason}; elsewhere than on Debian and Ubuntu: docker compose up")
    check_free(_HOST, port, "port")
    check_free(_HOST, pacs_port, "pacs_port")
    with console.status("Making a CT phantom, thorax to pelvis"):
        series = output / f"phantom{seed}"
        phantom = make_phantom(seed)
        write_series(phantom, series)
    os.environ.setdefault("MONAI_LABEL_DICOMWEB_CACHE_PATH", str((output / "cache").resolve()))
    with OrthancServer(ThisMachine(), (output / "orthanc").resolve(), pacs_port) as store:
        with console.status("Sending it to Orthanc"):
            store.add(sorted(series.iterdir()))
        study = _study(series)
        console.print(f"[bold]Orthanc[/bold]     {store.url}", highlight=False)
        console.print(f"  the study   http://{_HOST}:{port}/ohif/monai-label?StudyInstanceUIDs={study}", highlight=False)
        console.print(f"  all studies http://{_HOST}:{port}/ohif/", highlight=False)
        console.print(f"  review page http://{_HOST}:{port}/ibis/", highlight=False)
        serve(store.url, _HOST, port, engine, [])


def _study(series: Path) -> str:
    """Study Instance UID of a series."""
    import pydicom

    header = pydicom.dcmread(next(series.iterdir()), specific_tags=["StudyInstanceUID"], stop_before_pixels=True)
    return str(header.StudyInstanceUID)
