"""The lane on its own, with models that are plain functions."""

import threading
import time
import weakref

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.agent.limits import Limits, StopReason
from lib.engines.lane import Lane
from lib.errors import EngineError, OutOfMemory


class Model:
    """Squares numbers; notes its batches; fails on what it is told to."""

    def __init__(self, seconds=0.0, fits=10**6, broken=()):
        self.batches, self.seconds, self.fits, self.broken = [], seconds, fits, set(broken)
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, batch, limits):
        self.batches.append(list(batch))
        self.gate.wait(5)
        until = time.monotonic() + self.seconds
        while time.monotonic() < until and limits.reached() is None:
            time.sleep(0.005)
        if len(batch) > self.fits:
            raise OutOfMemory("too much")
        if self.broken & set(batch):
            raise EngineError(f"cannot do {sorted(self.broken & set(batch))}")
        return [number**2 for number in batch]


def in_threads(*calls):
    results = [None] * len(calls)

    def do(index, call):
        results[index] = call()

    threads = [threading.Thread(target=do, args=pair) for pair in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return results


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(0, 99), max_size=9), min_size=1, max_size=5), st.integers(1, 7))
def test_every_caller_gets_its_own_results_in_order(calls, max_batch):
    model = Model()
    lane = Lane("test", [model, model], max_batch, max_wait=0.001)
    found = in_threads(*(lambda items=items: lane.submit(items) for items in calls))
    assert found == [[number**2 for number in items] for items in calls]
    assert all(len(batch) <= max_batch for batch in model.batches)
    lane.close()


def test_what_several_callers_bring_shares_a_batch():
    model = Model()
    lane = Lane("test", [model], 8, max_wait=0.3)
    assert in_threads(*(lambda n=n: lane.submit([n, n]) for n in range(4))) == [[n * n] * 2 for n in range(4)]
    assert len(model.batches) == 1


def test_a_single_item_is_in_the_next_batch_however_long_the_others_wait():
    model = Model()
    model.gate.clear()
    lane = Lane("test", [model], 4, max_wait=0)
    run = threading.Thread(target=lambda: lane.submit(list(range(300))))
    run.start()
    while not model.batches:
        time.sleep(0.001)
    click = threading.Thread(target=lambda: lane.submit([1000]))
    click.start()
    time.sleep(0.05)
    model.gate.set()
    click.join(5)
    run.join(5)
    assert 1000 in model.batches[1]


def test_out_of_memory_halves_the_batch_and_goes_on():
    model = Model(fits=3)
    lane = Lane("test", [model], 8, max_wait=0.05)
    assert lane.submit(range(8)) == [n * n for n in range(8)]
    assert lane.max_batch <= 3
    model.batches.clear()
    lane.submit(range(8))
    assert max(map(len, model.batches)) <= 3


def test_a_batch_that_did_not_fit_is_let_go_before_it_is_tried_again():
    class Tensor:
        pass

    held = []

    def work(batch, limits):
        assert all(one() is None for one in held)
        kept = Tensor()
        held.append(weakref.ref(kept))
        if len(batch) > 1:
            try:
                raise MemoryError("the device's")
            except MemoryError as error:
                raise OutOfMemory("too much") from error
        return batch

    lane = Lane("test", [work], 4, max_wait=0.05)
    assert lane.submit([1, 2, 3, 4]) == [1, 2, 3, 4]
    assert len(held) == 7


def test_what_does_not_fit_alone_is_an_error_of_its_own():
    lane = Lane("test", [Model(fits=0)], 4, max_wait=0)
    (result,) = lane.submit([1])
    assert isinstance(result, OutOfMemory)


def test_a_failed_batch_fails_only_what_fails_alone():
    lane = Lane("test", [Model(broken=[3])], 8, max_wait=0.05)
    results = lane.submit(range(5))
    assert [r for r in results if not isinstance(r, EngineError)] == [0, 1, 4, 16]
    assert "cannot do [3]" in str(results[3])


def test_a_defect_is_raised_in_the_caller_and_the_lane_lives_on():
    def work(batch, limits):
        if 13 in batch:
            raise ZeroDivisionError("a defect")
        return batch

    lane = Lane("test", [work], 4, max_wait=0)
    with pytest.raises(ZeroDivisionError):
        lane.submit([13])
    assert lane.submit([1]) == [1]


def test_a_caller_leaves_at_its_deadline_and_others_keep_their_results():
    model = Model(seconds=0.6)
    lane = Lane("test", [model], 4, max_wait=0.1)
    hurried = Limits(deadline=time.monotonic() + 0.2)
    began = time.monotonic()
    ends = {}

    def ask(name, limits):
        result = lane.submit([3], limits)
        ends[name] = time.monotonic() - began
        return result

    (first,), second = in_threads(lambda: ask("hurried", hurried), lambda: ask("patient", Limits()))
    assert isinstance(first, EngineError)
    assert second == [9]
    assert ends["hurried"] < 0.45 < ends["patient"]


def test_a_batch_that_nobody_wants_any_more_ends_early():
    model = Model(seconds=10)
    lane = Lane("test", [model], 4, max_wait=0)
    limits = Limits()
    threading.Timer(0.2, limits.cancelled.set).start()
    began = time.monotonic()
    lane.submit([1, 2], limits)  # whether the model or who waits for it ends first is a matter of milliseconds
    assert limits.reached() is StopReason.CANCELLED
    assert lane.submit([]) == []
    model.seconds = 0
    assert lane.submit([5]) == [25]
    assert time.monotonic() - began < 2


def test_a_closed_lane_says_so():
    lane = Lane("test", [Model()], 4)
    lane.close()
    with pytest.raises(EngineError, match="closed"):
        lane.submit([1])
