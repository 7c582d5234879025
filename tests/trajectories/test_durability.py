"""Nothing is lost, doubled or half there: writers that are killed, and two at once."""

import json
import subprocess
import sys

from lib.segmenters.graphcut import GraphCut
from lib.server.process import ROOT
from lib.trajectories.replay import replay
from lib.trajectories.selection import Selection
from lib.trajectories.store import TrajectoryStore


def started(*arguments) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.trajectories.writers", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def said(process: subprocess.Popen):
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0
    return json.loads(output)


def test_writers_that_are_killed_lose_no_committed_episode_and_leave_no_row_without_its_blobs(tmp_path, database):
    committed = said(started("kill", tmp_path / "store", database, 50, 7))
    assert len(committed) == len(set(committed)) > 50
    store = TrajectoryStore(tmp_path / "store", database)
    kept = {summary.key for summary in store.summaries(Selection(newest=False))}
    assert set(committed) <= kept
    assert len(kept) <= len(committed) + 50
    assert store.missing() == set()
    for key in committed[:: len(committed) // 20]:
        assert all(one.identical for one in replay(store.get(key), store.blobs, GraphCut()))
    store.collect(grace_s=0)
    assert store.missing() == set()
    blobs = {path.stem for path in (tmp_path / "store" / "blobs").rglob("*") if path.is_file()}
    assert blobs == store.blobs.digests() == store.named()
    store.close()


def test_two_servers_record_ten_thousand_steps_with_none_lost_or_doubled(tmp_path, database):
    writers = [started("write", tmp_path / "store", database, name, 5_000) for name in ("a", "b")]
    reports = [said(writer) for writer in writers]
    store = TrajectoryStore(tmp_path / "store", database)
    kept = store.summaries(Selection(newest=False))
    assert sum(report["steps"] for report in reports) == sum(summary.turns for summary in kept) >= 10_000
    assert sum(report["episodes"] for report in reports) == len({(one.run, one.slice) for one in kept}) == len(kept)
    assert {one.version for one in kept} == {1}
    assert [report["failed"] for report in reports] == [0, 0]
    assert store.missing() == set()
    store.close()
