"""Simulated trajectories of a small labelled folder: planned, played, recorded, graded, and drawn as a learning curve."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from apps import cli
from lib.agent.episode import Actor
from lib.agent.limits import Limits
from lib.engines.build import EngineOptions
from lib.errors import InputError
from lib.imaging import rle
from lib.imaging.masks import write_volume
from lib.imaging.phantom import make_phantom
from lib.policies.strategies import Strategy
from lib.trajectories.grade import Grade
from lib.trajectories.selection import Selection
from lib.trajectories.simulation.config import Lesson, read_shares, simulation_config
from lib.trajectories.simulation.curve import ALL, learning_curves
from lib.trajectories.simulation.plan import LabelledVolume, make_plan
from lib.trajectories.simulation.session import Lessons, Session
from lib.trajectories.simulation.targets import find_jobs, spoken, targets
from lib.trajectories.simulation.workers import Setting
from lib.trajectories.store import TrajectoryStore
from lib.trajectories.trajectory import Source

ROOT = Path(__file__).resolve().parent.parent.parent
NAMES = {1: "liver", 2: "kidney_left", 3: "spleen"}
EVENLY = {lesson: 0.2 for lesson in Lesson}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A phantom with three labels, and two more structures that its reference says are absent."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "case").mkdir()
    phantom = make_phantom(3, spacing=(4.0, 4.0, 10.0))
    write_volume(folder / "case" / "ct.nii.gz", phantom.volume)
    labels = np.zeros(phantom.volume.data.shape, np.uint8)
    for value, name in NAMES.items():
        labels[phantom.labels[name]] = value
    write_volume(folder / "case" / "labels.nii.gz", replace(phantom.volume, data=labels))
    named = {str(value): name for value, name in NAMES.items()} | {str(100 + n): f"other_{n}" for n in range(8)}
    item = {"path": "case/ct.nii.gz", "reference": "case/labels.nii.gz", "modality": "CT", "labels": named}
    (folder / "manifest.json").write_text(json.dumps({"items": [item]}))
    return folder


@pytest.fixture
def store(tmp_path):
    store = TrajectoryStore(tmp_path / "store")
    yield store
    store.close()


def session(store: TrajectoryStore, shares=EVENLY, slices=6, seed=0, limits=None) -> Session:
    lessons = Lessons(shares, slices, 10, Strategy.CENTER, seed)
    return Setting(lessons, EngineOptions(), store.folder).session(limits or Limits())


def jobs_of(folder: Path, *names: str):
    return find_jobs(folder, names or ("liver", "left kidney", "aorta"))


def test_a_structures_name_in_words():
    assert spoken("kidney_left") == "left kidney"
    assert spoken("lung_upper_lobe_left") == "left lung upper lobe"
    assert spoken("brain tumour (expert ROI)") == "brain tumour"


def test_targets_are_the_labels_and_what_a_complete_reference_says_is_absent(folder):
    (case,) = {id(job.case): job.case for job in find_jobs(folder)}.values()
    found = list(targets(case))
    assert [target.name for target in found[:3]] == list(NAMES.values())
    absent = [target.name for target in found if not target.values]
    assert "aorta" in absent
    assert "body" not in absent
    assert "left_kidney" not in absent


def test_one_case_of_a_folder_can_be_named(folder):
    assert len(find_jobs(folder / "case", ["liver"])) == 1
    with pytest.raises(InputError, match="left kidney"):
        find_jobs(folder, ["unicorn"])
    with pytest.raises(InputError, match="manifest"):
        find_jobs(folder / "case" / "nothing" / "here")


def test_a_plan_depends_on_its_seed_alone_and_keeps_to_the_reference(folder):
    case = jobs_of(folder, "liver")[0].case
    scene = LabelledVolume(case)
    every = list(targets(case))
    liver, others, config = every[0], [t for t in every if t.values], simulation_config()

    def plan(seed: int):
        return make_plan(scene, liver, others, config, EVENLY, 30, seed)

    assert plan(1) == plan(1) != plan(2)
    planned = plan(1)
    assert {one.lesson for one in planned} == set(Lesson)
    assert len({(one.lesson, one.index) for one in planned}) == len(planned)
    for one in planned:
        there = scene.reference(liver, one.index).any()
        if one.lesson is Lesson.ABSENT:
            assert not there
        elif one.lesson is Lesson.MISMATCH:
            assert one.other is not None
            assert scene.reference(one.other, one.index).any()
        else:
            assert there


def test_what_is_recorded_is_graded_and_complete(folder, store):
    work = session(store)
    played = [work.work(job) for job in jobs_of(folder)]
    trajectories = list(store.select(Selection(source=Source.SIMULATION)))
    assert len(trajectories) == sum(sum(one.lessons.values()) for one in played) > 8
    assert sum(len(one.outcome.steps) for one in trajectories) == sum(one.steps for one in played)
    assert not store.missing()
    gradings = store.gradings(Selection())
    for one in trajectories:
        (grading,) = gradings[one.key]
        assert (grading.label.annotator, grading.label.source) == ("reference", "folder")
        assert isinstance(grading.grade, Grade)
        assert one.outcome.steps[-1].action.__class__.__name__ == "Terminate"
        if one.lesson in (Lesson.MISMATCH, Lesson.APPROVE):
            assert one.outcome.given is not None
        if one.lesson == Lesson.APPROVE:
            assert len(one.outcome.steps) == 1
            assert grading.grade.iou >= 0.9
        if one.lesson == Lesson.ABSENT:
            assert grading.grade.iou == 1
            assert not one.outcome.found
    aorta = [one for one in trajectories if one.label == "aorta"]
    assert aorta
    assert {one.lesson for one in aorta} == {Lesson.ABSENT}


def test_wrong_clicks_are_never_an_experts(folder, store):
    work = session(store, {Lesson.RECOVER: 1.0})
    work.work(jobs_of(folder, "liver")[0])
    steps = [step for one in store.select(Selection()) for step in one.outcome.steps]
    assert {step.actor for step in steps if step.details["intent"] == "wrong"} == {Actor.AGENT}
    learnt = [step for step in steps if step.details["intent"] not in ("wrong", "spent")]
    assert {step.actor for step in learnt} == {Actor.EXPERT}


def test_a_second_run_adds_nothing_and_another_seed_does(folder, store):
    jobs = jobs_of(folder, "left kidney")
    first = [session(store).work(job) for job in jobs]
    count = store.count(Selection())
    again = [session(store).work(job) for job in jobs]
    assert store.count(Selection()) == count
    assert sum(one.steps for one in again) == 0
    assert [one.known for one in again] == [sum(one.lessons.values()) for one in first]
    for job in jobs:
        session(store, seed=1).work(job)
    assert store.count(Selection()) > count


def test_equal_seeds_give_equal_clicks_and_masks_in_any_store(folder, tmp_path):
    def played(name: str):
        store = TrajectoryStore(tmp_path / name)
        session(store).work(jobs_of(folder, "liver")[0])
        found = sorted(
            (one.lesson, one.origin.index, [step.reply for step in one.outcome.steps], one.outcome.mask["counts"])
            for one in store.select(Selection())
        )
        store.close()
        return found

    assert played("a") == played("b")


def test_what_a_killed_session_left_ungraded_is_graded_by_the_next(folder, store, monkeypatch):
    job = jobs_of(folder, "spleen")[0]
    work = session(store)
    monkeypatch.setattr(work, "_grade", lambda *_: None)
    work.work(job)
    assert not store.gradings(Selection())
    session(store).work(job)
    assert len(store.gradings(Selection())) == store.count(Selection())


def test_a_session_that_is_cancelled_records_only_what_had_ended(folder, store):
    limits = Limits()
    work = session(store, limits=limits)
    limits.cancelled.set()
    played = work.work(jobs_of(folder, "liver")[0])
    assert played.steps == store.count(Selection()) == 0
    assert "cancelled" in played.left_out


def test_the_curve_is_of_the_plain_lessons_and_carries_the_last_mask_on(folder, store):
    work = session(store, {Lesson.PLAIN: 0.7, Lesson.ABSENT: 0.3})
    runs = {work.work(job).run for job in jobs_of(folder, "liver", "spleen")}
    plain = [one for one in store.select(Selection()) if one.lesson == Lesson.PLAIN]
    curves = learning_curves(store, runs)
    assert curves[0].structure == ALL
    assert curves[0].episodes == len(plain) == sum(curve.episodes for curve in curves[1:])
    gradings = store.gradings(Selection())
    finals = [gradings[one.key][0].grade.steps[-1].iou_after for one in plain]
    assert curves[0].iou_mean[0] == 0
    assert curves[0].iou_mean[-1] == pytest.approx(np.mean(finals))
    assert curves[0].iou_sd[-1] == pytest.approx(np.std(finals))
    most = max(sum(step.mask is not None for step in one.outcome.steps) for one in plain)
    assert len(curves[0].iou_mean) == most + 1
    one = plain[0]
    reference = rle.decode(store.blobs.mask(gradings[one.key][0].reference))
    first = rle.decode(one.outcome.steps[0].mask)
    expected = np.count_nonzero(first & reference) / np.count_nonzero(first | reference)
    assert gradings[one.key][0].grade.steps[0].iou_after == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "shares"),
    [("plain", {Lesson.PLAIN: 1.0}), ("plain=3, recover=1", {Lesson.PLAIN: 0.75, Lesson.RECOVER: 0.25})],
)
def test_shares_as_a_person_writes_them(text, shares):
    assert read_shares(text) == shares


@pytest.mark.parametrize("text", ["dance", "plain=x", "plain=0", "plain=-1", "plain=nan", ""])
def test_shares_that_are_none_are_refused(text):
    with pytest.raises(InputError) as caught:
        read_shares(text)
    assert caught.value.field == "lessons"


def call(*arguments) -> int:
    try:
        cli.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_the_command_records_in_several_processes_and_draws_the_curve(folder, tmp_path, capsys):
    where = ("--store", tmp_path / "store", "--output", tmp_path / "out")
    options = (*where, "--workers", 2, "--slices", 3, "--lessons", "plain=2,recover=1,absent=1")
    assert call("simulate", folder, *options) == 0
    printed = capsys.readouterr().out
    assert "new episodes" in printed
    assert "steps/s" in printed
    assert "reasoning by templates" in printed
    with open(tmp_path / "out" / "curve.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["structure"] for row in rows} > {"all", "liver"}
    assert all(0 <= float(row["iou_mean"]) <= 1 for row in rows)
    assert (tmp_path / "out" / "curve.png").read_bytes()[:4] == b"\x89PNG"
    store = TrajectoryStore(tmp_path / "store")
    count = store.count(Selection())
    assert count > 5
    assert call("simulate", folder, *options) == 0
    assert "there already" in capsys.readouterr().out
    assert store.count(Selection()) == count
    store.close()


def test_the_command_says_what_is_wrong(folder, tmp_path, capsys):
    where = ("--store", tmp_path / "store", "--output", tmp_path / "out")
    assert call("simulate", tmp_path / "nowhere", *where) == 2
    assert "manifest.json" in capsys.readouterr().err
    assert call("simulate", folder, *where, "--structure", "unicorn") == 2
    assert "unicorn" in capsys.readouterr().err
    assert call("simulate", folder, *where, "--teacher", "http://127.0.0.1:9/v1") == 2
    assert "--teacher-model" in capsys.readouterr().err
    assert call("simulate", folder, *where, "--teacher", "http://127.0.0.1:9/v1", "--teacher-model", "x") == 2
    error = capsys.readouterr().err
    assert "endpoint" in error
    assert error.count("\n") == 1


def test_an_interrupt_keeps_what_is_recorded_and_leaves_no_process(folder, tmp_path):
    arguments = [sys.executable, "main.py", "simulate", str(folder), "--store", str(tmp_path / "store"), "--workers", "2"]
    arguments += ["--output", str(tmp_path / "out"), "--slices", "30", "--lessons", "plain"]
    with subprocess.Popen(
        arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as running:
        store = TrajectoryStore(tmp_path / "store")
        until = time.monotonic() + 120
        while store.count(Selection()) == 0 and time.monotonic() < until:
            time.sleep(0.1)
        os.killpg(running.pid, signal.SIGINT)
        _, error = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "Traceback" not in error
    assert store.count(Selection()) > 0
    assert not store.missing()
    until = time.monotonic() + 10
    while _alive(running.pid) and time.monotonic() < until:
        time.sleep(0.1)
    assert not _alive(running.pid)
    store.close()


def _alive(group: int) -> list[str]:
    """The processes of a group; one that has ended and was not waited for does not count."""
    found = subprocess.run(["ps", "-eo", "pgid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    lines = [line.split(None, 2) for line in found.splitlines()]
    return [words[-1] for words in lines if int(words[0]) == group and not words[1].startswith("Z")]
