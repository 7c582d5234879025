"""`serve`: the MONAI Label server with this app."""

from pathlib import Path
from typing import Annotated

import typer

from apps import models
from apps.console import console
from lib.errors import InputError

APP = Path(__file__).resolve().parent.parent
_CONF = (
    "workers",
    "runs_per_user",
    "weights",
    "cache_mb",
    "auth",
    "origins",
    "hosts",
    "pacs",
    "modalities",
    "trajectories",
    "identifiers",
    "rewards",
)
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(
    studies: Annotated[str, typer.Option(help="folder with images (NIfTI, NRRD, DICOM series), or a DICOMweb URL")],
    host: Annotated[
        str, typer.Option(help="address to listen on; others than this machine's own need IBIS_TOKEN")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="port to listen on")] = 8000,
    engine: models.Engine = "",
    conf: Annotated[
        list[str] | None,
        typer.Option(
            "--conf",
            "-c",
            metavar="KEY VALUE",
            help="workers, cache_mb, auth, origins, hosts, modalities, trajectories; mllm_path and what else `segment` calls "
            "the weights",
        ),
    ] = None,
) -> None:
    """Start the MONAI Label server for 3D Slicer and OHIF."""
    import os

    from lib.engines.build import OPTIONS, EngineOptions, build_engine
    from lib.server.pacs.settings import check_address

    remote = studies.startswith(("http://", "https://"))
    if remote:
        check_address(studies)
    settings = _settings(conf or [], (*OPTIONS, *_CONF))
    if engine:
        settings["engine"] = engine
    with console.status("Starting the engine"):
        built = build_engine(EngineOptions(**{option: settings[option] for option in OPTIONS if option in settings}))
    if not remote and not (studies.strip() and Path(studies).is_dir()):
        raise InputError(f"{studies} is not a folder; give a folder with images, or a DICOMweb URL", "studies")
    if host not in _LOOPBACK and not os.environ.get("IBIS_TOKEN") and settings.get("auth") != "none":
        raise InputError(
            f"{host} can be reached by others: set IBIS_TOKEN to a secret that clients must send, or add --conf auth none",
            "host",
        )
    check_free(host, port, "port")

    url = f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{port}"
    console.print(f"[bold]IBIS Label[/bold]  {url}", highlight=False)
    console.print(f"  engine    {built.name}: {built.policy.name} + {built.segmenter.name}", highlight=False)
    console.print(f"  studies   {studies}", highlight=False)
    console.print(
        f"  3D Slicer MONAI Label module: server {url}, Connect, Options > infer > ibis_agent > prompt, Run", highlight=False
    )
    if remote:
        console.print(f"  OHIF      {url}/ohif/: open a study in the mode MONAI Label", highlight=False)
    else:
        console.print("  OHIF      needs a DICOMweb store: give its URL as --studies", highlight=False)
    console.print(f"  API       {url}/docs   ready when {url}/info/ answers (10 to 20 s); Ctrl-C stops", highlight=False)
    _start(studies, host, port, settings)


def _settings(conf: list[str], known: tuple[str, ...]) -> dict[str, str]:
    settings = {}
    for entry in conf:
        key, equals, value = entry.partition("=")
        if not equals or key not in known:
            raise InputError(f"{entry!r}: use KEY VALUE, with one of the keys {', '.join(known)}", "conf")
        settings[key] = value
    return settings


def check_free(host: str, port: int, option: str) -> None:
    """Raises InputError, naming the option, when something else listens there."""
    import socket

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InputError(
                f"{host}:{port} cannot be listened on ({error.strerror}); choose another --{option.replace('_', '-')}", option
            ) from error


def _start(studies: str, host: str, port: int, settings: dict[str, str]) -> None:
    import os

    # The app's `lib` is loaded already; a second copy would have classes of its own.
    os.environ["MONAI_LABEL_RELOAD_APP_LIB"] = "false"

    from monailabel.main import Main

    server = Main()
    arguments = ["start_server", "--app", str(APP), "--studies", studies, "--host", host, "--port", str(port)]
    for key, value in settings.items():
        arguments += ["--conf", key, value]
    server.action_start_server(server.args_parser().parse_args(arguments))
