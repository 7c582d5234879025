"""The journal: one writer, whole events, in order, whatever a kill leaves behind."""

import json
import resource
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.server.jobs.journal import NAME, Busy, Journal, Kind, backwards, read_events

ROOT = Path(__file__).resolve().parent.parent.parent


def all_events(folder: Path, at_most: int = 100) -> list[dict]:
    found, offset = [], 0
    while True:
        events, offset = read_events(folder, offset, at_most)
        if not events:
            return found
        found += events


def test_events_are_numbered_and_read_back_in_pieces_and_backwards(tmp_path):
    with Journal(tmp_path) as journal:
        for number in range(50):
            journal.append(Kind.LOCK, target=1, slice=number, note="\n" * number)
    events = all_events(tmp_path)
    assert [event["seq"] for event in events] == list(range(1, 51))
    assert [event["slice"] for event in events] == list(range(50))
    assert list(backwards(tmp_path)) == events[::-1]
    with Journal(tmp_path) as journal:
        assert journal.append(Kind.UNLOCK)["seq"] == 51


def test_backwards_reads_lines_longer_than_a_block(tmp_path):
    with Journal(tmp_path) as journal:
        for size in (10, 700_000, 10, 300_000, 0):
            journal.append(Kind.STEP, thought="x" * size)
    assert [len(event["thought"]) for event in backwards(tmp_path)] == [0, 300_000, 10, 700_000, 10]


@given(cut=st.integers(0, 400))
def test_what_a_kill_cut_short_is_no_event_and_is_removed(tmp_path_factory, cut):
    folder = tmp_path_factory.mktemp("run")
    with Journal(folder) as journal:
        for number in range(4):
            journal.append(Kind.LOCK, target=1, slice=number)
    whole = (folder / NAME).read_bytes()
    (folder / NAME).write_bytes(whole[:cut])
    left = whole[:cut].count(b"\n")
    assert len(all_events(folder)) == len(list(backwards(folder))) == left
    with Journal(folder) as journal:
        assert journal.append(Kind.UNLOCK)["seq"] == left + 1
    assert [event["seq"] for event in all_events(folder)] == list(range(1, left + 2))


def test_a_run_has_one_writer_in_all_processes(tmp_path):
    code = f"from pathlib import Path; from lib.server.jobs.journal import Journal; Journal(Path({str(tmp_path)!r}))"
    with Journal(tmp_path):
        with pytest.raises(Busy):
            Journal(tmp_path)
        other = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        assert "Busy" in other.stderr
    Journal(tmp_path).close()


def test_a_killed_writer_lets_go(tmp_path):
    code = (
        f"import os; from pathlib import Path; from lib.server.jobs.journal import Journal, Kind; "
        f"journal = Journal(Path({str(tmp_path)!r})); journal.append(Kind.STARTED); os.kill(os.getpid(), {int(signal.SIGKILL)})"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == -signal.SIGKILL
    with Journal(tmp_path) as journal:
        assert journal.seq == 1


def test_threads_append_whole_events(tmp_path):
    with Journal(tmp_path) as journal, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: journal.append(Kind.STEP, thought="x" * n), range(200)))
    events = all_events(tmp_path)
    assert [event["seq"] for event in events] == list(range(1, 201))
    assert sorted(len(event["thought"]) for event in events) == list(range(200))


def test_a_full_disk_leaves_the_journal_as_it_was(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Journal(tmp_path) as journal:
        journal.append(Kind.STARTED)
        whole = (tmp_path / NAME).read_bytes()
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 50, before[1]))
        try:
            with pytest.raises(OSError, match="large"):
                journal.append(Kind.STEP, thought="x" * 10_000)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert (tmp_path / NAME).read_bytes() == whole
        assert journal.append(Kind.STEP)["seq"] == 2
    assert json.loads((tmp_path / NAME).read_text().splitlines()[-1])["kind"] == "step"


def test_a_run_that_is_gone_is_not_made_again(tmp_path):
    for read in (Journal, read_events, lambda folder: next(backwards(folder))):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "gone")
    assert not (tmp_path / "gone").exists()
