"""Runs as jobs: the journal says everything, whatever ends the work."""

import gc
import json
import os
import pathlib
import threading
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.agent.limits import Limits
from lib.agent.run import RunRequest, run
from lib.agent.targets import merge
from lib.agent.trace import to_trace
from lib.engines.build import build_engine
from lib.errors import EngineError, InputError, UnknownTarget
from lib.imaging import rle
from lib.imaging.cache import ImageRef, VolumeCache
from lib.imaging.masks import write_volume
from lib.imaging.phantom import make_phantom
from lib.infers.asked import Asked, Target
from lib.server.jobs.journal import NAME, Journal, Kind, backwards, read_events
from lib.server.jobs.queue import JobQueue, Priority
from lib.server.jobs.recorder import Recorder
from lib.server.jobs.refusal import Refusal
from lib.server.jobs.runs import Runs
from lib.server.jobs.state import Status, fold, last_status
from lib.server.jobs.statecache import StateCache
from lib.server.runstore import RunStore

PATIENCE_S = 60


@pytest.fixture(scope="module")
def engine():
    return build_engine()


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> ImageRef:
    path = tmp_path_factory.mktemp("image") / "a.nii.gz"
    write_volume(path, make_phantom(3, spacing=(6.0, 6.0, 20.0)).volume)
    return ImageRef(path)


@pytest.fixture(scope="module")
def volumes():
    return VolumeCache(2**30)


@pytest.fixture
def queue():
    made = JobQueue(1)
    yield made
    made.close()


@pytest.fixture
def runs(tmp_path, queue, engine, volumes) -> Runs:
    return Runs(RunStore(tmp_path / "runs"), queue, engine, volumes)


def asked(image: ImageRef, prompts: str = "liver", user: str = "me", slices: str = "all") -> Asked:
    names = prompts.split("; ")
    targets = tuple(Target(RunRequest(name, slices=slices), name, number) for number, name in enumerate(names, start=1))
    return Asked(image, "a", targets, user)


def events(runs: Runs, key: str) -> list[dict]:
    return read_events(runs.folder(key), at_most=2**30)[0]


def settled(found: list[dict]) -> list[tuple[int, int]]:
    return [(event["target"], event["slice"]) for event in found if event["kind"] == "slice_settled" and event["conclusive"]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, engine, volumes, image):
    """An uninterrupted run: its folder, and its label map."""
    queue = JobQueue(1)
    runs = Runs(RunStore(tmp_path_factory.mktemp("whole")), queue, engine, volumes)
    job = runs.start(asked(image, "liver; lungs"), Priority.BACKGROUND)
    finished = job.future.result(PATIENCE_S)
    yield runs.folder(job.key), finished
    queue.close()


def test_a_job_gives_what_the_run_gives(whole, engine, volumes, image):
    _, finished = whole
    volume = volumes.get(image)
    alone = [run(RunRequest(name), volume, engine) for name in ("liver", "lungs")]
    labels, _ = merge(alone, [1, 2])
    assert np.array_equal(finished.labels, labels)
    assert set(np.unique(labels)) == {0, 1, 2}


def test_the_journal_is_the_state(whole, engine, volumes, image):
    folder, finished = whole
    found = read_events(folder, at_most=2**30)[0]
    assert [event["kind"] for event in found[:3]] == ["queued", "started", "slice_started"]
    assert found[-1]["kind"] == "done"
    state = fold(found)
    assert (state.status, state.settled) == (Status.COMPLETE, state.total)
    assert last_status(backwards(folder)) is Status.COMPLETE
    for number, result in enumerate(finished.results, start=1):
        outcomes = state.outcomes(number, result.grid.size)
        assert [outcomes[outcome.index].mask for outcome in result.outcomes] == [outcome.mask for outcome in result.outcomes]
        assert list(state.known(number, result.grid.size)) == list(outcomes)


def test_the_changes_of_a_slice_add_up_to_its_last_mask(whole):
    folder, _ = whole
    masks: dict[tuple[int, int], np.ndarray | int] = {}
    last: dict[tuple[int, int], dict | None] = {}
    changes = 0
    for event in read_events(folder, at_most=2**30)[0]:
        if event["kind"] == "step" and event["change"] is not None:
            key = (event["target"], event["slice"])
            masks[key] = masks.get(key, 0) ^ rle.decode(event["change"])
            changes += 1
        if event["kind"] == "slice_settled":
            key = (event["target"], event["slice"])
            last[key] = next((s["mask"] for s in reversed(event["outcome"]["steps"]) if s["mask"] is not None), None)
    assert changes > 10
    for key, mask in last.items():
        assert (mask is None) == (key not in masks)
        assert mask is None or mask == rle.encode(masks[key])


def test_the_trace_is_the_one_of_the_run(whole, engine, volumes):
    folder, finished = whole
    runs = Runs(RunStore(folder.parent), None, engine, volumes)
    for target, result in enumerate(finished.results, start=1):
        expected = json.loads(json.dumps(to_trace(result)))
        trace = json.loads(json.dumps(runs.trace(folder.name, target)))
        assert {**trace, "created": ""} == {**expected, "created": ""}
    with pytest.raises(Refusal, match="target 3"):
        runs.trace(folder.name, 3)


@settings(max_examples=6, deadline=None)
@given(part=st.floats(0.02, 0.999))
def test_wherever_a_kill_cuts_the_journal_the_run_goes_on_to_the_same_mask(tmp_path_factory, whole, engine, volumes, part):
    folder, finished = whole
    store = RunStore(tmp_path_factory.mktemp("killed"))
    key = store.create(json.loads((folder / "request.json").read_text()))
    content = (folder / NAME).read_bytes()
    kept = content[: int(len(content) * part)]
    (store.folder(key) / NAME).write_bytes(kept)
    before = settled([json.loads(line) for line in kept.splitlines(keepends=True) if line.endswith(b"\n")])
    queue = JobQueue(1)
    try:
        runs = Runs(store, queue, engine, volumes)
        assert runs.recover() == [key]
        assert runs.recover() == []
        assert runs.status(key) is runs.state(key).status is Status.INTERRUPTED
        assert runs.state(key).settled == len(before)
        again = runs.resume(key, "me").future.result(PATIENCE_S)
    finally:
        queue.close()
    found = events(runs, key)
    assert [event["seq"] for event in found] == list(range(1, len(found) + 1))
    assert settled(found)[: len(before)] == before
    assert len(settled(found)) == len(set(settled(found))) == runs.state(key).total
    assert np.array_equal(again.labels, finished.labels)
    assert np.array_equal(runs.labels(key, "me")[1], finished.labels)
    assert runs.state(key).answer == fold(read_events(folder, at_most=2**30)[0]).answer


class Gate:
    """Where a run waits, so that a test can step in."""

    def __init__(self):
        self.reached, self.go = threading.Event(), threading.Event()


@pytest.fixture
def held(monkeypatch):
    """Recorders that stop at the fifth slice until they are let go."""
    gate = Gate()
    real, count = Recorder.settled, [0]

    def slow(self, outcome):
        real(self, outcome)
        count[0] += 1
        if count[0] == 5:
            gate.reached.set()
            gate.go.wait(PATIENCE_S)

    monkeypatch.setattr(Recorder, "settled", slow)
    return gate


def test_cancelled_while_it_ran_and_resumed(runs, image, held, whole):
    job = runs.start(asked(image, "liver; lungs"), Priority.BACKGROUND)
    assert held.reached.wait(PATIENCE_S)
    assert runs.state(job.key).status is Status.RUNNING
    with pytest.raises(Refusal, match="worked on"):
        runs.resume(job.key, "me")
    runs.cancel(job.key, "me")
    held.go.set()
    assert job.future.result(PATIENCE_S).results[0].status == "incomplete"
    state = runs.state(job.key)
    assert state.status is Status.CANCELLED
    assert 5 <= state.settled < state.total
    assert not any(slice_.playing for slice_ in state.slices.values())
    with pytest.raises(Refusal, match="cancelled"):
        runs.cancel(job.key, "me")
    again = runs.resume(job.key, "me").future.result(PATIENCE_S)
    assert np.array_equal(again.labels, whole[1].labels)
    assert len(settled(events(runs, job.key))) == len(set(settled(events(runs, job.key)))) == state.total
    with pytest.raises(Refusal, match="complete"):
        runs.resume(job.key, "me")


def test_a_stopping_server_marks_what_runs_and_what_waits(runs, queue, image, held):
    jobs = [runs.start(asked(image), Priority.BACKGROUND) for _ in range(2)]
    assert held.reached.wait(PATIENCE_S)
    closing = threading.Thread(target=queue.close)
    closing.start()
    while not queue.closed:
        time.sleep(0.01)
    held.go.set()
    closing.join()
    assert [runs.status(job.key) for job in jobs] == [Status.INTERRUPTED] * 2
    assert runs.recover() == []
    with pytest.raises(Refusal, match="stopping"):
        runs.start(asked(image), Priority.BACKGROUND)
    assert runs.of_user("me")[0][0] == jobs[1].key
    assert len(runs.of_user("me")) == 2


def test_a_waiting_run_is_cancelled_at_once(runs, image, held):
    first = runs.start(asked(image), Priority.BACKGROUND)
    second = runs.start(asked(image), Priority.BACKGROUND)
    assert held.reached.wait(PATIENCE_S)
    runs.cancel(second.key, "me")
    assert [event["kind"] for event in events(runs, second.key)] == ["queued", "cancelled"]
    held.go.set()
    first.future.result(PATIENCE_S)
    assert runs.resume(second.key, "me").future.result(PATIENCE_S).results[0].status == "complete"


def test_who_waits_gets_what_there_is_when_the_time_is_up(runs, image):
    finished = runs.run(asked(image, "liver; lungs; bones"), Limits(deadline=time.monotonic() + 0.15))
    assert finished.results[-1].status == "incomplete"
    assert runs.status(finished.key) is Status.INCOMPLETE


def test_a_budget_that_ends_in_the_queue_says_so(runs, image, held):
    first = runs.start(asked(image), Priority.BACKGROUND)
    assert held.reached.wait(PATIENCE_S)
    with pytest.raises(Refusal, match="before the run began") as refused:
        runs.run(asked(image), Limits(deadline=time.monotonic() + 0.2))
    assert refused.value.status == 503
    held.go.set()
    first.future.result(PATIENCE_S)


def test_failures_are_in_the_journal_and_reach_who_waits(runs, image, engine, monkeypatch, tmp_path):
    job = runs.start(asked(image, "liver; gizmo"), Priority.BACKGROUND)
    with pytest.raises(UnknownTarget):
        job.future.result(PATIENCE_S)
    assert (runs.state(job.key).status, "gizmo" in runs.state(job.key).error) == (Status.FAILED, True)
    assert not runs.state(job.key).slices
    gone = runs.start(asked(ImageRef(tmp_path / "gone.nii.gz")), Priority.BACKGROUND)
    with pytest.raises(FileNotFoundError):
        gone.future.result(PATIENCE_S)
    assert events(runs, gone.key)[-1]["status"] == 410
    with pytest.raises(InputError, match="slices"):
        runs.run(asked(image, slices="x"), Limits())
    monkeypatch.setattr(type(engine.policy), "check", lambda *_: (_ for _ in ()).throw(EngineError("no answer")))
    failed = runs.start(asked(image), Priority.BACKGROUND)
    with pytest.raises(EngineError):
        failed.future.result(PATIENCE_S)
    monkeypatch.undo()
    assert (events(runs, failed.key)[-1]["status"], runs.state(failed.key).error) == (503, "no answer")
    assert runs.resume(failed.key, "me").future.result(PATIENCE_S).results[0].status == "complete"


def test_an_image_that_changed_is_not_mixed_with_what_was_seen_before(runs, tmp_path, held):
    path = tmp_path / "b.nii.gz"
    write_volume(path, make_phantom(3, spacing=(6.0, 6.0, 20.0)).volume)
    job = runs.start(asked(ImageRef(path)), Priority.BACKGROUND)
    assert held.reached.wait(PATIENCE_S)
    job.cancel()
    held.go.set()
    job.future.result(PATIENCE_S)
    write_volume(path, make_phantom(4, spacing=(6.0, 6.0, 20.0)).volume)
    with pytest.raises(Refusal, match="changed"):
        runs.labels(job.key, "me")
    with pytest.raises(InputError, match="changed"):
        runs.resume(job.key, "me").future.result(PATIENCE_S)


def test_runs_of_others_do_not_exist(runs, image):
    key = runs.start(asked(image, slices="3"), Priority.BACKGROUND).key
    assert runs.of_user("you") == []
    for ask in (runs.asked, runs.cancel, runs.resume, runs.labels):
        with pytest.raises(Refusal) as refused:
            ask(key, "you")
        assert refused.value.status == 404
    for wrong in ("0123456789abcdef", "../../etc", ""):
        with pytest.raises(Refusal, match="no longer kept"):
            runs.asked(wrong, "me")
        with pytest.raises(Refusal, match="no longer kept"):
            runs.state(wrong)


def test_the_newest_are_kept_and_never_is_one_removed_that_is_worked_on(tmp_path):
    store = RunStore(tmp_path / "runs", keep=5)
    first = store.create({})
    with Journal(store.folder(first)):
        keys = [store.create({}) for _ in range(20)]
        assert store.newest_first() == [*keys[:-6:-1], first]
    store.create({})
    assert first not in store.newest_first()
    stale, fresh = store.folder(keys[0]).with_name(f".{'0' * 16}"), store.folder(keys[0]).with_name(f".{'1' * 16}")
    for draft in (stale, fresh):
        draft.mkdir()
    os.utime(stale, (1, 1))
    store.sweep()
    assert (stale.exists(), fresh.exists()) == (False, True)


def test_runs_from_before_there_were_journals_can_be_looked_at(runs, engine, volumes, image):
    folder = runs.folder("00112233445566ff")
    folder.mkdir(parents=True)
    trace = to_trace(run(RunRequest("liver", slices="5"), volumes.get(image), engine))
    (folder / "trace.json").write_text(json.dumps(trace))
    (folder / "image.json").write_text(json.dumps({"path": str(image.path), "series": None, "modality": None}))
    assert runs.trace(folder.name, 1)["prompt"] == "liver"
    assert runs.image(folder.name) == image
    assert runs.recover() == []
    assert runs.of_user("anonymous") == []


def test_idle_states_are_dropped_and_read_again(tmp_path):
    folders = []
    for name in "abc":
        folder = tmp_path / name
        folder.mkdir()
        with Journal(folder) as journal:
            journal.append(Kind.LOCK, target=1, slice=3, note="x" * 1000)
        folders.append(folder)
    cache = StateCache(max_bytes=2500)
    for folder in folders:
        assert cache.get(folder).slices[1, 3].locked
    assert len(cache) == 2
    with Journal(folders[0]) as journal:
        journal.append(Kind.UNLOCK, target=1, slice=3)
    assert not cache.get(folders[0]).slices[1, 3].locked
    aged = StateCache(idle_s=0.05)
    aged.get(folders[0])
    time.sleep(0.1)
    aged.get(folders[1])
    assert len(aged) == 1


def test_two_hundred_runs_leave_no_memory_behind(runs, image):
    def many(count: int) -> int:
        """Bytes in use after so many runs. `pathlib` interns names, and the interpreter's table of those grows in leaps."""
        for number in range(count):
            job = runs.start(asked(image, slices="8-9", user=f"user {number % 7}"), Priority.BACKGROUND)
            job.future.result(PATIENCE_S)
            runs.state(job.key)
            del job
        gc.collect()
        ours = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(False, pathlib.__file__)])
        return sum(trace.size for trace in ours.traces)

    runs._states = StateCache(max_bytes=10_000)
    tracemalloc.start()
    try:
        before = many(20)
        assert many(180) - before < 100_000
    finally:
        tracemalloc.stop()
