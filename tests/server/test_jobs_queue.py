"""The queue: who goes first, who has to wait, who is turned away."""

import threading
import time

import pytest

from lib.server.jobs.queue import Job, JobQueue, Priority
from lib.server.jobs.refusal import Refusal

PATIENCE_S = 10


class Gate:
    """Work that says when it has begun, and goes on until it is let go."""

    def __init__(self):
        self.begun, self.go = threading.Event(), threading.Event()

    def __call__(self) -> str:
        self.begun.set()
        assert self.go.wait(PATIENCE_S)
        return "done"


@pytest.fixture
def queue():
    made = JobQueue(1, per_user=3)
    yield made
    made.close()


@pytest.fixture
def busy(queue):
    """The only worker for runs is at work."""
    gate = Gate()
    job = queue.submit(Job("busy", "someone", Priority.BACKGROUND, "", gate))
    assert gate.begun.wait(PATIENCE_S)
    yield job
    gate.go.set()


def test_lower_priorities_go_first_and_equal_ones_in_order(queue, busy):
    order: list[str] = []
    jobs = [
        queue.submit(Job(key, key, priority, "", lambda key=key: order.append(key)))
        for key, priority in (
            ("b1", Priority.BACKGROUND),
            ("w1", Priority.WAITED),
            ("b2", Priority.BACKGROUND),
            ("w2", Priority.WAITED),
        )
    ]
    assert [job.key for job in queue.waiting()] == ["w1", "w2", "b1", "b2"]
    assert [job.key for job in queue.running()] == ["busy"]
    busy.work.go.set()
    for job in jobs:
        job.future.result(PATIENCE_S)
    assert order == ["w1", "w2", "b1", "b2"]
    assert busy.future.result() == "done"
    assert queue.running() == queue.waiting() == []


def test_a_click_never_waits_behind_runs(queue, busy):
    queue.submit(Job("run", "me", Priority.WAITED, "", Gate()))
    assert queue.submit(Job("click", "me", Priority.CLICK, "", lambda: 7)).future.result(PATIENCE_S) == 7
    assert [job.key for job in queue.waiting()] == ["run"]


def test_a_user_has_so_many_runs_and_others_have_theirs(queue, busy):
    mine = [queue.submit(Job(f"{n}", "me", Priority.BACKGROUND, "", Gate())) for n in range(3)]
    with pytest.raises(Refusal, match="me has 3 runs") as refused:
        queue.submit(Job("4", "me", Priority.WAITED, "", Gate()))
    assert refused.value.status == 429
    queue.submit(Job("other", "you", Priority.BACKGROUND, "", Gate()))
    queue.submit(Job("click", "me", Priority.CLICK, "", lambda: None)).future.result(PATIENCE_S)
    mine[0].cancel()
    queue.submit(Job("4", "me", Priority.BACKGROUND, "", Gate()))


def test_a_waiting_job_is_cancelled_at_once_and_never_begins(queue, busy):
    gate = Gate()
    job = queue.submit(Job("waits", "me", Priority.BACKGROUND, "", gate))
    assert queue.find("waits") is job
    told = threading.Event()
    job.future.add_done_callback(lambda future: told.set())
    job.cancel()
    assert told.is_set()
    assert queue.find("waits") is None
    assert queue.waiting() == []
    busy.work.go.set()
    queue.submit(Job("next", "me", Priority.BACKGROUND, "", lambda: None)).future.result(PATIENCE_S)
    assert not gate.begun.is_set()


def test_what_work_raises_reaches_who_waits_and_the_worker_lives_on(queue):
    def fail():
        raise KeyError("x")

    for _ in range(3):
        with pytest.raises(KeyError):
            queue.submit(Job("fails", "me", Priority.BACKGROUND, "", fail)).future.result(PATIENCE_S)
    assert queue.submit(Job("works", "me", Priority.BACKGROUND, "", lambda: 1)).future.result(PATIENCE_S) == 1


def test_closing_cancels_what_runs_and_what_waits_and_takes_no_more():
    queue = JobQueue(1)
    begun = threading.Event()

    def work() -> None:
        begun.set()
        assert running.limits.cancelled.wait(PATIENCE_S)

    running = Job("runs", "me", Priority.BACKGROUND, "", work)
    queue.submit(running)
    assert begun.wait(PATIENCE_S)
    waiting = queue.submit(Job("waits", "me", Priority.BACKGROUND, "", Gate()))
    began = time.monotonic()
    queue.close()
    assert time.monotonic() - began < 4
    assert running.future.done()
    assert waiting.future.cancelled()
    with pytest.raises(Refusal, match="stopping"):
        queue.submit(Job("late", "me", Priority.CLICK, "", Gate()))
