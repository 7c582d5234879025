"""`trajectories`: what was recorded: lists, pages, statistics, grading, replay, forgetting."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from apps import models
from apps.console import console
from lib.errors import InputError

if TYPE_CHECKING:
    from lib.trajectories.quality import WeekQuality
    from lib.trajectories.selection import Selection
    from lib.trajectories.statistics import Statistics
    from lib.trajectories.store import Summary, TrajectoryStore

trajectories = typer.Typer(no_args_is_help=True, help="Recorded trajectories: list, show, stats, grade, replay, forget, gc.")

Store = Annotated[Path, typer.Option(help="folder of the store; of a server it is STUDIES/.ibis/trajectories")]
Url = Annotated[str, typer.Option(help="its database, where that is not in the folder: postgresql://...")]
Run = Annotated[str, typer.Option(help="only this run")]
Image = Annotated[str, typer.Option(help="only this image: what the server calls it, or its hash")]
Label = Annotated[str, typer.Option(help="only this target")]
User = Annotated[str, typer.Option(help="only this user's runs")]
Engine = Annotated[str, typer.Option(help="only what this engine did")]
From = Annotated[str, typer.Option(help="only run, simulation or correction")]
Since = Annotated[str, typer.Option(help="only what was recorded at this ISO 8601 time (UTC) or later")]
Until = Annotated[str, typer.Option(help="only what was recorded before this time")]
Annotator = Annotated[str, typer.Option(help="only what this annotator's labels graded")]
MinReward = Annotated[float | None, typer.Option(help="only with a grading of this total or more")]
MaxReward = Annotated[float | None, typer.Option(help="only with a grading of this total or less")]
OnlyGraded = Annotated[bool | None, typer.Option("--graded/--ungraded", help="only with, or only without a grading")]
AllVersions = Annotated[bool, typer.Option("--all-versions", help="episodes that went on later, too, as they were before")]

_DEFAULT = Path("out/trajectories")
_HASH = 32


@trajectories.command("list")
def list_(
    store: Store = _DEFAULT,
    url: Url = "",
    run: Run = "",
    image: Image = "",
    label: Label = "",
    user: User = "",
    engine: Engine = "",
    source: From = "",
    since: Since = "",
    until: Until = "",
    annotator: Annotator = "",
    min_reward: MinReward = None,
    max_reward: MaxReward = None,
    graded: OnlyGraded = None,
    all_versions: AllVersions = False,
    limit: Annotated[int, typer.Option(min=1, help="at most so many, the newest first")] = 50,
    json: Annotated[bool, typer.Option("--json", help="one JSON object a line")] = False,
) -> None:
    """Recorded trajectories, newest first."""
    from dataclasses import asdict
    from json import dumps

    with _opened(store, url) as kept:
        filters = (run, label, user, engine, source, since, until, annotator, min_reward, max_reward, graded, all_versions)
        wanted = _selection(kept, image, *filters)
        total, found = kept.count(wanted), kept.summaries(wanted, limit)
    if json:
        for one in found:
            typer.echo(dumps(asdict(one), separators=(",", ":")))
        return
    console.print(_table(found))
    if total > len(found):
        console.print(f"{len(found)} of {total}: --limit shows more", highlight=False)


@trajectories.command()
def show(
    key: Annotated[str, typer.Argument(help="its key, or the first digits of it")],
    store: Store = _DEFAULT,
    url: Url = "",
    run: Annotated[bool, typer.Option("--run", help="all slices of its run and target")] = False,
    output: Annotated[Path | None, typer.Option(help="write the page here, and do not open it")] = None,
) -> None:
    """Open the trace page of a trajectory: what was seen, said and drawn, and what each step was worth."""
    import os
    import tempfile
    import webbrowser

    from lib.imaging.files import replacing
    from lib.trajectories.trace import trace_page

    with _opened(store, url) as kept:
        page = trace_page(kept, kept.get(key), whole_run=run)
    if output is not None:
        with replacing(output) as draft:
            draft.write_text(page, encoding="utf-8")
    else:
        handle, name = tempfile.mkstemp(prefix="ibis-", suffix=".html")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(page)
        output = Path(name)
        if not webbrowser.open(output.as_uri()):
            console.print("There is no browser here; open the page yourself:")
    console.print(str(output), highlight=False, soft_wrap=True)


@trajectories.command()
def stats(
    store: Store = _DEFAULT,
    url: Url = "",
    run: Run = "",
    image: Image = "",
    label: Label = "",
    user: User = "",
    engine: Engine = "",
    source: From = "",
    since: Since = "",
    until: Until = "",
    annotator: Annotator = "",
    min_reward: MinReward = None,
    max_reward: MaxReward = None,
    graded: OnlyGraded = None,
    all_versions: AllVersions = False,
    plot: Annotated[Path, typer.Option(help="PNG file for the plots")] = Path("out/trajectories.png"),
) -> None:
    """Counts, rewards and Dice, the IoU turn by turn; the agent's quality by week and engine over the whole store."""
    from lib.trajectories.gain import gain_config
    from lib.trajectories.plots import write_plot
    from lib.trajectories.quality import volumes, weekly
    from lib.trajectories.statistics import statistics

    with _opened(store, url) as kept:
        filters = (run, label, user, engine, source, since, until, annotator, min_reward, max_reward, graded, all_versions)
        found = statistics(kept, _selection(kept, image, *filters))
        weeks = weekly(volumes(kept, gain_config().idle_minutes * 60))
    _print_statistics(found, weeks)
    write_plot(plot, found, weeks)
    console.print(str(plot), highlight=False, soft_wrap=True)


@trajectories.command()
def grade(
    labels: Annotated[Path, typer.Argument(help="final label: NIfTI, NRRD or DICOM SEG", exists=True, dir_okay=False)],
    image: Annotated[Path, typer.Option(help="the image that it labels", exists=True)],
    image_id: Annotated[str, typer.Option("--id", help="what the server calls the image; default: its file's name")] = "",
    name: Annotated[
        list[str] | None, typer.Option(help='what a value is, such as "1=liver", where the file does not say; repeatable')
    ] = None,
    map: Annotated[
        list[str] | None, typer.Option(help='which target a name means, such as "Segment_1=liver"; repeatable')
    ] = None,
    annotator: Annotated[str, typer.Option(help="who made the label")] = "command",
    rewards: Annotated[str, typer.Option(help="a recipe of configs/rewards.yaml; default: its default")] = "",
    corrections: Annotated[
        bool, typer.Option("--corrections", help="also go on from where wrong episodes ended, as an expert would")
    ] = False,
    engine: models.Engine = "",
    series: Annotated[str, typer.Option(help="UID (or its beginning) of the series, where a folder has several")] = "",
    store: Store = _DEFAULT,
    url: Url = "",
) -> None:
    """Grade the recorded episodes of an image against a final label."""
    from lib.engines.build import build_engine
    from lib.imaging.labelmaps import load_labels
    from lib.imaging.labelnames import names_in
    from lib.imaging.load import load_volume
    from lib.trajectories.grading import FinalLabel, grade_label
    from lib.trajectories.rewards.recipes import recipe_named
    from lib.trajectories.selection import Selection

    recipe = recipe_named(rewards)
    names = names_in(labels) | {_value(text, number): said for text, number, said in _pairs(name or [], "name")}
    if not names:
        raise InputError(f"{labels.name} does not say what its values are: add such as --name 1=liver", "name")
    aliases = {before: said for _, before, said in _pairs(map or [], "map")}
    identifier = image_id or _stem(image)
    with _opened(store, url) as kept:
        if not kept.count(Selection(image=kept.hashed("image", identifier))):
            raise InputError(f"nothing was recorded on an image called {identifier!r}: give the server's name for it", "id")
        volume = load_volume(image, series=series or None)
        label_map = load_labels(labels, volume)
        final = FinalLabel(identifier, volume, label_map, names, annotator, "command", aliases)
        with console.status("Grading"):
            done = grade_label(final, kept, recipe, build_engine(engine) if corrections else None)
    console.print(f"graded {done.graded} episodes of {', '.join(done.targets) or 'no target'}", highlight=False)
    if corrections:
        console.print(f"recorded {done.corrections} corrections", highlight=False)
    for reason, count in done.dropped.items():
        console.print(f"no reward for {count}: {reason}", highlight=False)
    if done.changed:
        console.print(f"left out {done.changed}: they were recorded on another content of the image", highlight=False)
    for target in done.unmatched_targets:
        unused = ", ".join(map_name for map_name in done.unused_names) or "none"
        console.print(f"nothing in the label means {target!r}; names without a target: {unused}; use --map", highlight=False)
    if not done.graded:
        raise typer.Exit(1)


@trajectories.command()
def replay(
    keys: Annotated[list[str], typer.Argument(help="keys, or their first digits", metavar="KEY...")],
    engine: models.Engine = "",
    sam2_ckpt: models.Sam2Ckpt = "",
    sam2_cfg: models.Sam2Cfg = "",
    device: models.Device = "",
    store: Store = _DEFAULT,
    url: Url = "",
) -> None:
    """Put the recorded clicks through a segmenter again; exit code 1 when a mask is not identical."""
    from lib.engines.build import EngineOptions, build_engine
    from lib.trajectories.replay import replay as again

    with _opened(store, url) as kept:
        found = [kept.get(key) for key in keys]
        segmenter = build_engine(EngineOptions(engine, sam2_ckpt=sam2_ckpt, sam2_cfg=sam2_cfg, device=device)).segmenter
        table = Table("key", "recorded with", "clicks", "masks", "least IoU")
        same = True
        for one in found:
            clicks = again(one, kept.blobs, segmenter)
            differing = [click.turn for click in clicks if not click.identical]
            same = same and not differing
            verdict = "identical" if not differing else f"differ from turn {differing[0]} on"
            least = f"{min(click.iou for click in clicks):.4f}" if clicks else ""
            table.add_row(one.key[:12], one.maker.segmenter, str(len(clicks)), verdict if clicks else "no click", least)
    console.print(table)
    if not same:
        raise typer.Exit(1)


@trajectories.command()
def forget(
    patient: Annotated[str, typer.Option(help="DICOM PatientID")] = "",
    issuer: Annotated[str, typer.Option(help="its IssuerOfPatientID, where the images have one")] = "",
    patient_hash: Annotated[str, typer.Option(help="the patient's hash")] = "",
    image: Annotated[str, typer.Option(help="an image: what the server calls it, or its hash")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
    store: Store = _DEFAULT,
    url: Url = "",
    runs: Annotated[Path | None, typer.Option(help="the server's records of runs; default: beside the store")] = None,
) -> None:
    """Remove everything of a patient, or of an image: rows, pictures, masks, and the records of the runs beside the store."""
    from lib.server.runstore import RUNS, RunStore
    from lib.trajectories.statistics import belongings

    if sum(map(bool, (patient, patient_hash, image))) != 1:
        raise InputError("say who is to be forgotten: one of --patient, --patient-hash and --image")
    with _opened(store, url) as kept:
        person = f"{issuer}\0{patient}" if issuer else patient
        whose = {"patient": patient_hash or kept.hashed("patient", person)} if not image else {}
        whose |= {"image": _image(image, kept)} if image else {}
        images, number = belongings(kept, **whose)
        if not images:
            field = "image" if image else "patient" if patient else "patient_hash"
            hint = "" if image or patient_hash or issuer else "; where the images have an IssuerOfPatientID, add --issuer"
            raise InputError(f"the store has nothing of it{hint}", field)
        if not yes:
            typer.confirm(f"Remove {number} trajectories on {images} images for good?", abort=True)
        gone = kept.forget(**whose)
    records = RunStore(runs or store.resolve().parent / RUNS)
    journals = [key for key in gone.runs if records.request(key) is not None]
    for key in journals:
        records.remove(key)
    console.print(
        f"removed {gone.trajectories} trajectories on {gone.images} images, {gone.gradings} gradings, {gone.blobs} pictures "
        f"and masks, and the server's records of {len(journals)} runs; exports that were made before still have them",
        highlight=False,
    )


@trajectories.command()
def gc(store: Store = _DEFAULT, url: Url = "") -> None:
    """Remove pictures and masks that belong to no trajectory, such as a killed server left; tell which are missing."""
    with _opened(store, url) as kept:
        removed, missing = kept.collect(), kept.missing()
    console.print(f"removed {removed} files that belonged to nothing", highlight=False)
    if missing:
        console.print(f"[red]{len(missing)} pictures or masks are missing[/red], such as {min(missing)}", highlight=False)
        raise typer.Exit(1)


def _image(image: str, kept: "TrajectoryStore") -> str:
    """The hash of an image that was named, or given by its hash; empty for none."""
    is_hash = len(image) == _HASH and all(digit in "0123456789abcdef" for digit in image)
    return image if is_hash or not image else kept.hashed("image", image)


@contextmanager
def _opened(folder: Path, url: str) -> "Iterator[TrajectoryStore]":
    from lib.trajectories.store import TrajectoryStore

    if not url and not (folder / "trajectories.sqlite").is_file():
        raise InputError(f"{folder} holds no trajectories: record some with `serve` or `simulate`", "store")
    kept = TrajectoryStore(folder, url)
    try:
        yield kept
    finally:
        kept.close()


def _selection(
    kept: "TrajectoryStore",
    image: str,
    run: str,
    label: str,
    user: str,
    engine: str,
    source: str,
    since: str,
    until: str,
    annotator: str,
    min_reward: float | None,
    max_reward: float | None,
    graded: bool | None,
    all_versions: bool,
) -> "Selection":
    from lib.trajectories.selection import Selection, moment
    from lib.trajectories.trajectory import Source

    if source and source not in list(Source):
        raise InputError(f"{source!r} is none: use {', '.join(Source)}", "source")
    return Selection(
        run=run,
        image=_image(image, kept),
        label=label,
        user=user,
        engine=engine,
        source=Source(source) if source else None,
        since=moment(since, "since") if since else "",
        until=moment(until, "until") if until else "",
        annotator=annotator,
        min_reward=min_reward,
        max_reward=max_reward,
        graded=graded,
        newest=not all_versions,
    )


def _table(found: "Sequence[Summary]") -> Table:
    table = Table("key", "time", "source", "target", "plane", "slice", "turns", "stop", "gradings", "reward", "Dice", "engine")
    for one in found:
        values = ("" if value is None else f"{value:.3f}" for value in (one.reward, one.dice))
        where = (one.plane, str(one.slice), str(one.turns), one.stop, str(one.gradings))
        what = one.lesson or one.source.value
        table.add_row(one.key[:8], one.created[:16].replace("T", " "), what, one.label, *where, *values, one.engine)
    return table


def _print_statistics(found: "Statistics", weeks: "Sequence[WeekQuality]") -> None:
    steps = ", ".join(f"{count} by the {actor}" for actor, count in found.steps.items())
    console.print(
        f"{found.trajectories} trajectories of {found.runs} runs on {found.images} images of {found.patients} patients; "
        f"{sum(found.steps.values())} steps{': ' if steps else ''}{steps}; {found.labels} final labels",
        highlight=False,
    )
    counts = Table("by", "trajectories")
    for name, numbers in found.by.items():
        listed = ", ".join(f"{value or 'none'} {count}" for value, count in numbers.items())
        counts.add_row("stop reason" if name == "stop" else name, listed)
    console.print(counts)
    if found.rewards:
        worth = Table("reward", "gradings", "mean", "dropped", "mean of each part")
        for recipe, rewards in found.rewards.items():
            mean = f"{rewards.totals.mean():.3f}" if len(rewards.totals) else ""
            parts = ", ".join(f"{name} {value:.2f}" for name, value in rewards.parts.items())
            worth.add_row(recipe, str(rewards.gradings), mean, str(sum(rewards.dropped.values())), parts)
        console.print(worth)
    if len(found.dice):
        curve = "  ".join(f"{point.turn}: {point.iou:.3f}" for point in found.curve)
        console.print(f"Dice {found.dice.mean():.3f} (mean); IoU after each turn  {curve}", highlight=False)
    if weeks:
        table = Table("week", "engine", "weights", "reward", "volumes", "Dice", "mean", "turns", "corrections", "annotator's s")
        for one in weeks:
            costs = (f"{one.turns:.1f}", f"{one.clicks:.1f}", f"{one.seconds:.0f}")
            dice = "" if one.dice is None else f"{one.dice:.3f}"
            who = (one.week, one.engine, one.weights[:8], one.recipe, str(one.volumes))
            table.add_row(*who, dice, f"{one.reward:.3f}", *costs)
        console.print(table)


def _pairs(texts: Sequence[str], field: str) -> list[tuple[str, str, str]]:
    """(text, left, right) of "left=right". Raises InputError for a text that is none."""
    pairs = []
    for text in texts:
        left, equals, right = (part.strip() for part in text.partition("="))
        if not (left and equals and right):
            raise InputError(f"{text!r}: use two names such as Segment_1=liver, or 1=liver for a value", field)
        pairs.append((text, left, right))
    return pairs


def _value(text: str, number: str) -> int:
    if not number.isdigit() or not 1 <= int(number) <= 65535:
        raise InputError(f"{text!r}: a label value is a whole number from 1 to 65535", "name")
    return int(number)


def _stem(path: Path) -> str:
    for suffix in (".nii.gz", ".seg.nrrd", path.suffix):
        if suffix and path.name.endswith(suffix):
            return path.name.removesuffix(suffix)
    return path.name
