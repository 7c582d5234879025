"""The store: what goes in comes out the same, in one piece, once."""

import os
import stat
from dataclasses import replace

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from lib.agent.limits import Limits
from lib.agent.protocol import Click
from lib.agent.record import to_record
from lib.agent.run import run
from lib.agent.takeover import Slice, annotate, undo
from lib.errors import InputError
from lib.imaging import rle
from lib.imaging.overlays import OVERLAYS
from lib.imaging.planes import ViewPoint
from lib.imaging.views import View
from lib.segmenters.graphcut import GraphCut
from lib.trajectories import recorder
from lib.trajectories.database import open_database
from lib.trajectories.grade import Dropped, Grade, StepGrade
from lib.trajectories.recorder import Recording, RunRecorder, build_trajectory
from lib.trajectories.replay import replay, view_of
from lib.trajectories.selection import Selection, moment
from lib.trajectories.store import TrajectoryStore
from lib.trajectories.tables import Base
from lib.trajectories.trajectory import observations
from tests.trajectories.balls import ball, played, recorded, reference, work_on


def test_a_trajectory_comes_back_as_it_was_recorded(store):
    trajectories = recorded(store)
    assert len(trajectories) == 8
    for trajectory in trajectories:
        back = store.get(trajectory.key)
        assert back.key == trajectory.key
        assert to_record(back.outcome) == to_record(trajectory.outcome)
        assert back.outcome.mask == trajectory.outcome.mask
        assert vars(back) | {"outcome": None} == vars(trajectory) | {"outcome": None}
        assert observations(back) == observations(trajectory)


def test_it_replays_to_the_same_masks_without_the_volume(store):
    for trajectory in recorded(store):
        done = replay(store.get(trajectory.key), store.blobs, GraphCut())
        assert [one.turn for one in done] == [s.turn for s in trajectory.outcome.steps if s.mask is not None]
        assert all(one.identical for one in done)


def test_a_replay_that_differs_says_so(store):
    trajectory = next(t for t in recorded(store) if t.outcome.found)
    step = trajectory.outcome.steps[0]
    moved = replace(step, action=Click(ViewPoint(0.02, 0.02), True))
    other = replace(trajectory, outcome=replace(trajectory.outcome, steps=(moved, *trajectory.outcome.steps[1:])))
    assert not replay(other, store.blobs, GraphCut())[0].identical


def test_the_stored_picture_is_what_was_seen(store):
    volume, truth = ball()
    work = work_on(volume, truth)
    result = played(work)
    for trajectory in recorded(store):
        view = view_of(trajectory, store.blobs)
        window = trajectory.outcome.window
        assert (view.image() == View(result.grid, trajectory.origin.index, window).image()).all()


def test_recording_twice_is_recording_once_and_a_change_is_a_new_version(store):
    first = recorded(store)
    assert store.add(first) == 0
    volume, truth = ball()
    work = work_on(volume, truth)
    result = played(work)
    outcome = next(o for o in result.outcomes if o.found)
    view = View(result.grid, outcome.index, outcome.window)
    slice_ = Slice(view, "ball", OVERLAYS["inference"])
    clicked = annotate(slice_, outcome, [Click(ViewPoint(0.1, 0.1), True)], work.engine, Limits())
    undone = undo(slice_, clicked, clicked.steps[-1].turn, work.engine, Limits())
    for changed in (clicked, undone):
        assert store.add([build_trajectory(view, changed, work, store)]) == 1
    versions = [s for s in store.summaries(Selection(newest=False)) if s.slice == outcome.index]
    assert sorted(s.version for s in versions) == [1, 2, 3]
    (newest,) = [s for s in store.summaries(Selection()) if s.slice == outcome.index]
    assert newest.version == 3
    assert store.get(newest.key).outcome.steps[-1].undone


def test_selections_narrow(store):
    mine = recorded(store, "a", user="anna")
    theirs = recorded(store, "b", seed=1, user="ben", image="other")
    assert store.count(Selection()) == 16
    assert {t.run for t in store.select(Selection(user="ben"))} == {"b"}
    assert store.count(Selection(image=mine[0].origin.image)) == 8
    assert store.count(Selection(run="b", label="ball", engine="expert")) == 8
    assert store.count(Selection(label="liver")) == 0
    label = store.add_label(mine[0].origin.image, "ball", "carla", "api")
    grade = Grade("corrected", 0.8, 0.9, {"answer": 1.0}, 0.7, (StepGrade(1, 0.0, 0.8, {"progress": 0.8}, 0.8),))
    mask = rle.encode(reference(mine[3]))
    assert store.add_grading(mine[3].key, label, mask, "corrected", grade)
    assert not store.add_grading(mine[3].key, label, mask, "corrected", grade)
    assert store.add_grading(mine[4].key, label, mask, "corrected", Dropped("the engine failed"))
    assert [t.key for t in store.select(Selection(min_reward=0.5))] == [mine[3].key]
    assert store.count(Selection(min_reward=0.75)) == store.count(Selection(max_reward=0.5)) == 0
    assert store.count(Selection(annotator="carla")) == 2
    assert store.count(Selection(annotator="anna")) == 0
    assert store.count(Selection(graded=False)) == 14
    (kept,) = store.gradings(Selection(keys=(mine[3].key,)))[mine[3].key]
    assert (kept.grade, kept.label, store.blobs.mask(kept.reference)) == (grade, label, mask)
    line = next(s for s in store.summaries(Selection()) if s.key == mine[3].key)
    assert (line.gradings, line.reward, line.dice, line.turns) == (1, 0.7, 0.9, len(mine[3].outcome.steps))
    with pytest.raises(InputError, match="no trajectory"):
        store.get("0" * 32)
    with pytest.raises(InputError, match="at least its first 4"):
        store.get(theirs[0].key[:3])


def test_forgetting_an_image_leaves_nothing_of_it_and_all_of_the_others(store):
    mine = recorded(store, "a")
    theirs = recorded(store, "b", seed=1, image="other")
    label = store.add_label(mine[0].origin.image, "ball", "carla", "api")
    store.add_grading(mine[3].key, label, rle.encode(~reference(mine[3])), "corrected", Dropped("no"))
    store.reject("a", 1, "carla", "wrong organ")
    store.reject("b", 1, "carla", "wrong organ too")
    gone = store.forget(image=mine[0].origin.image)
    assert (gone.images, gone.trajectories, gone.gradings) == (1, 8, 1)
    assert gone.blobs > 8
    assert {t.run for t in store.select(Selection(newest=False))} == {"b"}
    assert [one.run for one in store.rejections()] == ["b"]
    assert store.missing() == set()
    assert store.collect(grace_s=0) == 0
    assert all(one.identical for t in theirs for one in replay(store.get(t.key), store.blobs, GraphCut()))


def test_collecting_removes_what_no_row_names_and_only_that(store):
    recorded(store)
    before = store.blobs.digests()
    stray = store.blobs.put_mask(rle.empty(3, 3))
    assert store.collect() == 0
    assert store.collect(grace_s=0) == 1
    assert store.blobs.digests() == before
    assert stray not in store.blobs


def test_a_damaged_or_missing_blob_is_told(store):
    trajectory = recorded(store)[3]
    path = store.blobs.picture_path(trajectory.picture)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match="damaged"):
        store.blobs.picture(trajectory.picture)
    path.unlink()
    assert store.missing() == {trajectory.picture}
    with pytest.raises(InputError, match="gone"):
        store.blobs.picture(trajectory.picture)
    other = replace(trajectory, episode="again")
    with pytest.raises(InputError, match="was removed before"):
        store.add([other])
    assert store.count(Selection(keys=(other.key,))) == 0


def test_no_identifier_is_stored_unless_asked_for(tmp_path):
    for keep in (False, True):
        store = TrajectoryStore(tmp_path / str(keep), identifiers=keep)
        recorded(store, image="SMITH^JOHN")
        store.close()
        content = b"".join(path.read_bytes() for path in (tmp_path / str(keep)).rglob("*") if path.is_file())
        assert (b"SMITH" in content) == keep
    salt = tmp_path / "False" / "salt"
    assert stat.S_IMODE(os.stat(salt).st_mode) == 0o600
    assert salt.read_bytes() != (tmp_path / "True" / "salt").read_bytes()


def test_the_migrations_make_the_tables(tmp_path, database):
    engine = open_database(database or f"sqlite:///{tmp_path}/new.sqlite", "me")
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_what_cannot_be_opened_says_why(tmp_path):
    store = TrajectoryStore(tmp_path / "store")
    store.close()
    later = create_engine(f"sqlite:///{tmp_path}/store/trajectories.sqlite")
    with later.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = 'from the future'"))
    with pytest.raises(InputError, match="update IBIS Label"):
        TrajectoryStore(tmp_path / "store")
    for url, reason in (
        ("nonsense", "no database URL"),
        ("postgresql://u:secret@h:abc/db", "no database URL"),
        ("mysql://x/y", "use sqlite"),
        ("postgresql://nobody@127.0.0.1:1/none", "cannot be opened"),
    ):
        with pytest.raises(InputError, match=reason) as refused:
            TrajectoryStore(tmp_path / "store", url)
        assert "secret" not in refused.value.message
    (tmp_path / "no.sqlite").write_text("no database")
    with pytest.raises(InputError, match="cannot be opened"):
        TrajectoryStore(tmp_path / "store", f"sqlite:///{tmp_path}/no.sqlite")


def test_a_run_is_recorded_as_it_goes(store):
    volume, truth = ball()
    work = work_on(volume, truth)
    recording = Recording(store)
    result = run(work.request, volume, work.engine, observers=[RunRecorder(recording, work)])
    recording.flush()
    assert store.count(Selection(run="run")) == len(result.outcomes)
    RunRecorder(recording, work).catch_up({o.index: o for o in result.outcomes})
    recording.close()
    assert store.count(Selection(newest=False)) == len(result.outcomes)
    assert recording.failed == 0


class Flaky(TrajectoryStore):
    """A store whose database is away so many times."""

    def __init__(self, folder, away):
        super().__init__(folder)
        self.away = away

    def add(self, trajectories, name=None):
        if self.away:
            self.away -= 1
            raise OperationalError("INSERT", {}, Exception("the server closed the connection"))
        return super().add(trajectories, name)


def recording_of(store, outcomes, work, monkeypatch):
    monkeypatch.setattr(recorder.time, "sleep", lambda seconds: None)
    recording = Recording(store)
    recording.record(work, outcomes)
    recording.close()
    return recording


def test_a_database_that_is_away_for_a_moment_loses_nothing(tmp_path, monkeypatch):
    store = Flaky(tmp_path / "flaky", away=3)
    work = work_on(*ball())
    outcomes = played(work).outcomes
    assert recording_of(store, outcomes, work, monkeypatch).failed == 0
    assert store.count(Selection()) == len(outcomes)
    store.away = 10**6
    other = replace(work, run="other")
    assert recording_of(store, outcomes, other, monkeypatch).failed == len(outcomes)
    store.close()


def test_one_bad_episode_does_not_take_others_along(store, monkeypatch):
    work = work_on(*ball())
    good = [outcome for outcome in played(work).outcomes if outcome.found]
    bad = replace(good[0], steps=(replace(good[0].steps[0], reply="\ud83d"), *good[0].steps[1:]))
    assert recording_of(store, [bad, *good[1:]], work, monkeypatch).failed == 1
    assert store.count(Selection()) == len(good) - 1


def test_a_reply_is_text_that_can_be_stored():
    work = work_on(*ball())

    class Odd(type(work.engine.policy)):
        def _decide(self, observation):
            return replace(super()._decide(observation), reply="\ud83d\0")

    odd = replace(work.engine, policy=Odd(work.engine.policy.truth))
    result = run(work.request, work.volume, odd)
    assert {step.reply for outcome in result.outcomes for step in outcome.steps} == {"?\ufffd"}


def test_a_database_belongs_to_one_folder(tmp_path, database):
    url = database or f"sqlite:///{tmp_path}/shared.sqlite"
    TrajectoryStore(tmp_path / "one", url).close()
    TrajectoryStore(tmp_path / "one", url).close()
    with pytest.raises(InputError, match="belongs to another folder"):
        TrajectoryStore(tmp_path / "two", url)


def test_what_was_forgotten_is_not_in_the_files_while_the_store_is_open(tmp_path):
    store = TrajectoryStore(tmp_path / "store")
    recorded(store, prompt="tumour of JANE DOE")
    store.forget(image=store.hashed("image", "ball"))
    content = b"".join(path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file())
    assert b"JANE DOE" not in content
    store.close()


@pytest.mark.parametrize(
    ("text", "when"),
    [
        ("2026-11-22", "2026-11-22T00:00:00.000+00:00"),
        ("2026-11-22T15:04+02:00", "2026-11-22T13:04:00.000+00:00"),
        ("20261122T1504", "2026-11-22T15:04:00.000+00:00"),
    ],
)
def test_times_are_read_as_iso_8601(text, when):
    assert moment(text, "since") == when


def test_other_times_are_refused():
    with pytest.raises(InputError, match="no time such as"):
        moment("yesterday", "since")
