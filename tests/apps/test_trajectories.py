"""`python main.py trajectories`, as a user types it."""

import io
import json
import re
import webbrowser
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from apps import cli
from lib.agent.protocol import Click
from lib.imaging.load import load_volume
from lib.imaging.masks import write_mask, write_volume
from lib.imaging.planes import ViewPoint
from lib.imaging.views import View
from lib.server.runstore import RUNS, RunStore
from lib.trajectories.recorder import build_trajectory
from lib.trajectories.selection import Selection
from lib.trajectories.store import TrajectoryStore
from tests.trajectories.balls import ball, played, work_on


def call(*arguments) -> int:
    try:
        cli.main(["trajectories", *map(str, arguments)])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.fixture
def folder(tmp_path) -> Path:
    """A store with a run on ball.nii.gz, which lies in the folder with its label."""
    volume, truth = ball()
    write_volume(tmp_path / "ball.nii.gz", volume)
    write_mask(tmp_path / "label.nii.gz", truth.astype(np.uint8), volume)
    work = work_on(load_volume(tmp_path / "ball.nii.gz"), truth)
    result = played(work)
    kept = TrajectoryStore(tmp_path / "store")
    views = (View(result.grid, outcome.index, outcome.window) for outcome in result.outcomes)
    made = [build_trajectory(view, outcome, work, kept) for view, outcome in zip(views, result.outcomes, strict=True)]
    kept.add(made, work.image_id)
    kept.close()
    return tmp_path


@pytest.fixture
def kept(folder):
    opened = TrajectoryStore(folder / "store")
    yield opened
    opened.close()


def at_work(folder) -> tuple[str, Path]:
    return "--store", folder / "store"


def clicked(kept) -> str:
    """Key of an episode with a mask."""
    return next(one.key for one in kept.select(Selection()) if one.outcome.found)


def grade(folder, *more) -> int:
    return call("grade", folder / "label.nii.gz", "--image", folder / "ball.nii.gz", *at_work(folder), *more)


def test_list_filters_and_writes_json(folder, capsys):
    assert call("list", *at_work(folder), "--json", "--limit", 3) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 3
    assert {line["label"] for line in lines} == {"ball"}
    assert call("list", *at_work(folder), "--image", "ball", "--graded", "--json") == 0
    assert capsys.readouterr().out == ""
    assert call("list", *at_work(folder), "--image", lines[0]["image"], "--user", "anna", "--json") == 0
    assert len(capsys.readouterr().out.splitlines()) == 8
    assert call("list", *at_work(folder), "--limit", 3) == 0
    assert "3 of 8" in capsys.readouterr().out


def test_show_writes_a_page_that_needs_neither_image_nor_network(folder, kept, capsys):
    assert grade(folder, "--name", "1=ball") == 0
    key = clicked(kept)
    assert call("show", key[:8], *at_work(folder), "--output", folder / "page.html") == 0
    html = (folder / "page.html").read_text()
    page = json.loads(re.search(r'type="application/json">(.*?)</script>', html, re.DOTALL)[1])
    (slice_,) = page["trace"]["slices"]
    assert page["pictures"][str(slice_["index"])].startswith("data:image/png;base64,")
    assert slice_["grades"][0]["dice"] > 0.9
    assert set(slice_["steps"][0]["grades"][0]["parts"]) >= {"format", "placement", "progress"}
    assert "src=" not in html
    assert call("show", key, *at_work(folder), "--run", "--output", folder / "run.html") == 0
    assert len(re.findall(r'"stop_reason":', (folder / "run.html").read_text())) == 8
    assert str(folder / "run.html") in capsys.readouterr().out


def test_show_opens_the_page_for_nobody_else_to_read(folder, kept, monkeypatch, capsys):
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda url: opened.append(url) or True)
    assert call("show", clicked(kept), *at_work(folder)) == 0
    path = Path(capsys.readouterr().out.strip())
    assert opened == [path.as_uri()]
    assert path.stat().st_mode & 0o077 == 0
    path.unlink()


def test_grade_says_what_was_graded_and_what_was_not_matched(folder, kept, capsys):
    assert grade(folder) == 2
    assert "--name 1=liver" in capsys.readouterr().err
    assert grade(folder, "--name", "1=Segment_1") == 1
    assert "--map" in capsys.readouterr().out
    assert grade(folder, "--name", "1=Segment_1", "--map", "Segment_1=ball", "--annotator", "carla") == 0
    assert "graded 8 episodes of ball" in capsys.readouterr().out
    assert kept.count(Selection(annotator="carla")) == 8
    assert grade(folder, "--name", "1=ball", "--id", "another") == 2
    assert grade(folder, "--name", "0=ball") == 2
    assert grade(folder, "--map", "ball") == 2


def test_stats_print_and_plot(folder, capsys):
    assert grade(folder, "--name", "1=ball") == 0
    assert call("stats", *at_work(folder), "--plot", folder / "plots" / "all.png") == 0
    printed = capsys.readouterr().out
    assert "8 trajectories of 1 runs on 1 images of 1 patients" in printed
    assert "corrected" in printed
    assert (folder / "plots" / "all.png").stat().st_size > 10_000


def test_replay_tells_identical_from_different(folder, kept, capsys):
    key = clicked(kept)
    assert call("replay", key, *at_work(folder)) == 0
    assert "identical" in capsys.readouterr().out
    trajectory = kept.get(key)
    first, *rest = trajectory.outcome.steps
    moved = replace(first, action=Click(ViewPoint(0.02, 0.02), True))
    other = replace(trajectory, episode="moved", outcome=replace(trajectory.outcome, steps=(moved, *rest)))
    kept.add([other])
    assert call("replay", key, other.key, *at_work(folder)) == 1
    assert "differ from turn 1 on" in capsys.readouterr().out


def test_forget_asks_first_and_then_leaves_nothing(folder, kept, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("no\n"))
    assert call("forget", "--image", "ball", *at_work(folder)) == 130
    assert kept.count(Selection()) == 8
    assert call("forget", "--image", "nobody", *at_work(folder), "--yes") == 2
    assert call("forget", "--image", "ball", "--patient", "x", *at_work(folder), "--yes") == 2
    assert call("forget", *at_work(folder), "--yes") == 2
    capsys.readouterr()
    assert call("forget", "--image", "ball", *at_work(folder), "--yes") == 0
    assert "removed 8 trajectories on 1 images" in capsys.readouterr().out
    assert kept.count(Selection()) == 0
    assert not kept.blobs.digests()


def test_forget_removes_the_servers_records_of_the_runs_too(folder, kept, capsys):
    runs = RunStore(folder / RUNS)
    mine, other = runs.create({"asked": {}}), runs.create({"asked": {}})
    (one,) = list(kept.select(Selection()))[:1]
    kept.add([replace(one, run=mine, episode=f"{mine}:1:0")])
    assert call("forget", "--image", "ball", *at_work(folder), "--yes") == 0
    assert "records of 1 runs" in " ".join(capsys.readouterr().out.split())
    assert runs.request(other) is not None
    assert not runs.folder(mine).exists()


def test_forget_a_patient_by_id_and_by_hash(folder, kept, capsys):
    (one,) = list(kept.select(Selection()))[:1]
    for number, patient in enumerate((kept.hashed("patient", "P1"), kept.hashed("patient", "HOSPITAL\0P1"))):
        origin = replace(one.origin, image=kept.hashed("image", f"image{number}"), patient=patient)
        kept.add([replace(one, episode=f"other{number}", origin=origin)])
    assert call("forget", "--patient", "P1", *at_work(folder), "--yes") == 0
    assert call("forget", "--patient", "P1", *at_work(folder), "--yes") == 2
    assert "--issuer" in capsys.readouterr().err
    assert call("forget", "--patient", "P1", "--issuer", "HOSPITAL", *at_work(folder), "--yes") == 0
    assert kept.count(Selection()) == 8
    assert call("forget", "--patient-hash", one.origin.patient, *at_work(folder), "--yes") == 0
    assert kept.count(Selection()) == 0


def test_gc_tells_what_is_missing(folder, kept, capsys):
    assert call("gc", *at_work(folder)) == 0
    kept.blobs.picture_path(kept.get(clicked(kept)).picture).unlink()
    assert call("gc", *at_work(folder)) == 1
    assert "missing" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("list", "--store", "nowhere"), "nowhere holds no trajectories"),
        (("list", "--url", "mysql://nobody"), "use sqlite:///FILE or postgresql://"),
        (("list", "--source", "dream"), "use run, simulation, correction"),
        (("show", "feedfeed"), "no trajectory begins with"),
        (("show", "fe"), "at least its first 4 digits"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_code_2(folder, arguments, says, capsys):
    more = () if "--store" in arguments or "--url" in arguments else at_work(folder)
    assert call(*arguments, *more) == 2
    error = capsys.readouterr().err
    assert says in error
    assert len(error.splitlines()) == 1
