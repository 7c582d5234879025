"""Leases: no two annotators work on one image."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.activelearning.leases import Lease, Leases

LEASE_S, SKIP_S = 60.0, 600.0


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def leases(clock):
    return Leases(LEASE_S, SKIP_S, clock)


def test_two_annotators_get_two_images_and_after_the_lease_the_same(leases, clock):
    assert leases.take("ab", "anna") == "a"
    assert leases.take("ab", "ben") == "b"
    assert leases.held() == {"a", "b"}
    clock.now += LEASE_S
    assert leases.held() == set()
    assert leases.take("ab", "carla") == "a"


def test_who_asks_again_has_skipped_and_gets_the_next(leases, clock):
    assert [leases.take("abc", "anna") for _ in range(3)] == ["a", "b", "c"]
    clock.now += LEASE_S
    assert leases.take("abd", "anna") == "d"
    assert leases.take("ab", "anna") == "a"  # nothing else is left: what they had the longest time ago
    assert leases.take("ab", "ben") == "b"
    clock.now += SKIP_S
    assert leases.take("ab", "anna") == "a"


def test_when_all_are_given_out_ones_own_come_before_those_of_others(leases, clock):
    leases.take("a", "anna")
    clock.now += 1
    leases.take("b", "ben")
    clock.now += 1
    assert leases.take("ab", "ben") == "b"
    assert leases.take("ab", "carla") == "a"
    assert leases.take("", "anna") is None


def test_who_runs_the_agent_on_an_image_has_it(leases, clock):
    leases.note("a", Lease("anna", clock.now - 10))
    assert leases.take("ab", "ben") == "b"
    leases.note("a", Lease("carla", clock.now - 20))  # older: anna still has it
    clock.now += LEASE_S - 10
    assert leases.take("a", "ben") == "a"


@given(users=st.lists(st.sampled_from("xyz"), min_size=1, max_size=12))
def test_while_images_are_left_nobody_gets_one_twice(users):
    leases = Leases(LEASE_S, SKIP_S, Clock())
    given_out = [leases.take("abcdefghijkl", user) for user in users]
    assert len(set(given_out)) == len(users)


def test_annotators_who_ask_at_the_same_moment_get_different_images():
    leases = Leases(LEASE_S, SKIP_S)
    images = [f"image{n}" for n in range(50)]
    together = threading.Barrier(10)

    def ask(user: int) -> list[str | None]:
        together.wait()
        return [leases.take(images, str(user)) for _ in range(5)]

    with ThreadPoolExecutor(10) as pool:
        got = [image for part in pool.map(ask, range(10)) for image in part]
    assert sorted(got) == sorted(images)
