"""The byte-bounded cache, one value and many at a time."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.imaging.bytecache import ByteCache


@given(st.lists(st.lists(st.integers(0, 9), max_size=6), max_size=12), st.integers(0, 60))
def test_many_at_once_are_right_and_stay_within_the_bound(asked: list[list[int]], bound: int) -> None:
    cache: ByteCache[int, str] = ByteCache(bound, len)
    made: list[int] = []

    def make(keys: Sequence[int]) -> list[str]:
        made.extend(keys)
        return ["x" * key for key in keys]

    for keys in asked:
        before = len(made)
        assert cache.get_many(keys, make) == ["x" * key for key in keys]
        assert len(set(made[before:])) == len(made[before:])
        assert set(made[before:]) <= set(keys)
        assert cache.nbytes <= max(bound, 9)
    if bound >= sum(range(10)):
        assert len(set(made)) == len(made)


def test_threads_that_want_each_others_keys_make_each_once() -> None:
    cache: ByteCache[int, int] = ByteCache(10**6, lambda _: 1)
    made, at_once = [], threading.Barrier(2)

    def make(keys: Sequence[int]) -> list[int]:
        at_once.wait(5)
        made.extend(keys)
        return [key * 10 for key in keys]

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(cache.get_many, [1, 2, 3], make)
        while not cache._futures:
            pass
        second = threads.submit(cache.get_many, [3, 4, 1], make)
        assert first.result(5) == [10, 20, 30]
        assert second.result(5) == [30, 40, 10]
    assert sorted(made) == [1, 2, 3, 4]


@pytest.mark.parametrize("fault", [lambda keys: [1 / 0], lambda keys: [1]])
def test_a_failure_keeps_nothing(fault) -> None:
    cache: ByteCache[int, int] = ByteCache(10**6, lambda _: 1)
    with pytest.raises((ZeroDivisionError, ValueError)):
        cache.get_many([1, 2], fault)
    assert cache.nbytes == 0
    assert cache.get_many([1, 2], list) == [1, 2]
    assert cache.get(2, lambda: 5) == 2
