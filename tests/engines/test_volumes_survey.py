"""Where looks go: laws of the survey, without pictures or models."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.engines.volumes.strategy import strategy
from lib.engines.volumes.survey import Gap, gaps, next_looks

CONFIG = strategy()


def look_around(target, mm, stride, overlap=1.0, silent=()):
    """All looks at a volume whose slice n has the target where `target[n]`, and how many rounds they took."""
    slices = range(len(target))
    looked = set(slices[::stride])
    rounds = 0
    while True:
        seen = {index: target[index] for index in looked if index not in silent}
        looks = next_looks(seen, [i for i in slices if i not in looked], lambda low, high: overlap, mm, CONFIG)
        if not looks:
            return seen, rounds
        assert not looked & set(looks)
        assert looks == sorted(set(looks))
        looked |= set(looks)
        rounds += 1


pieces = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 80), st.integers(1, 60)), min_size=0, max_size=3)


@given(pieces, st.sampled_from([0.7, 1.5, 3.0, 5.0]), st.integers(1, 40))
def test_every_end_of_what_is_found_is_known_to_its_precision(spans, mm, stride):
    target = [False] * 3
    for _, before, length in spans:
        target += [False] * before + [True] * length
    seen, _ = look_around(target, mm, stride)
    found = [index for index in seen if seen[index]]
    for gap in gaps(seen, range(len(target))):
        ends = [end for end in (gap.low, gap.high) if end is not None]
        if len(ends) == 1:
            assert not seen[ends[0]], "what may run out of the volume is looked at up to its end"
        elif seen[gap.low] != seen[gap.high]:
            assert (gap.high - gap.low) * mm <= max(CONFIG.end_mm, 2 * mm)
        elif not found:
            assert (gap.high - gap.low) * mm <= max(CONFIG.finest_mm, 2 * mm)


@given(st.integers(1, 400), st.integers(0, 399), st.integers(1, 400), st.sampled_from([1.0, 3.0]))
def test_a_target_longer_than_the_finest_distance_is_never_missed(count, start, length, mm):
    target = [start <= index < start + max(length, int(CONFIG.finest_mm / mm) + 1) for index in range(count)]
    inside = sum(target)
    seen, _ = look_around(target, mm, stride=max(1, int(CONFIG.stride_mm / mm)))
    assert any(seen.values()) == any(target) or inside < CONFIG.finest_mm / mm


def test_few_looks_and_rounds_suffice_for_an_organ():
    target = [40 <= index < 90 for index in range(300)]
    seen, rounds = look_around(target, 3.0, 8)
    assert len(seen) < 50
    assert rounds <= 3


def test_small_pieces_make_the_search_fine():
    lesions = [index in (40, 41, 42, 43, 100, 101, 102, 103, 104) for index in range(160)]
    seen, _ = look_around(lesions, 3.0, 8)
    assert any(seen.get(index) for index in range(100, 105))
    assert any(seen.get(index) for index in range(40, 44))


def test_an_organ_does_not():
    target = [10 <= index < 70 for index in range(200)]
    seen, _ = look_around(target, 3.0, 8)
    assert all(b - a == 8 for a, b in zip(range(88, 192, 8), range(96, 200, 8), strict=True) if a in seen and b in seen)
    assert max(seen) == 192


def test_masks_that_are_not_alike_get_a_look_between_them():
    target = [True] * 17
    alike, _ = look_around(target, 3.0, 8, overlap=0.9)
    different, _ = look_around(target, 3.0, 8, overlap=0.1)
    assert sorted(alike) == [0, 8, 16]
    assert len(different) > 4


def test_slices_without_an_answer_are_not_asked_again():
    target = [20 <= index < 60 for index in range(100)]
    seen, _ = look_around(target, 3.0, 8, silent={16, 18, 20, 60})
    assert not {16, 18, 20, 60} & set(seen)
    assert any(seen.values())


def test_gaps_leave_nothing_out_and_name_their_ends():
    assert list(gaps({3: True, 5: False}, [0, 1, 2, 4, 6])) == [Gap(None, 3, (0, 1, 2)), Gap(3, 5, (4,)), Gap(5, None, (6,))]
    assert list(gaps({}, [1, 2])) == [Gap(None, None, (1, 2))]


@pytest.mark.parametrize("seed", range(3))
def test_all_slices_are_looked_at_before_a_coarse_volume_is_called_empty(seed):
    count = int(np.random.default_rng(seed).integers(5, 60))
    seen, _ = look_around([False] * count, 6.0, 4)
    assert sorted(seen) == list(range(count))
