import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lib.imaging.planes import ViewPoint
from lib.policies.strategies import Strategy, depths, part_at, pick

_masks = arrays(bool, (17, 23))


def _disc(row: int, column: int, radius: float, shape=(60, 80)) -> np.ndarray:
    rows, columns = np.indices(shape)
    return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2


@settings(max_examples=60, deadline=None)
@given(_masks, _masks, st.sampled_from(Strategy), st.integers(0, 2**32))
def test_a_click_lies_in_an_error_of_its_polarity_and_repeats_for_its_seed(mask, reference, strategy, seed):
    click = pick(strategy, mask, reference, (), np.random.default_rng(seed))
    if (mask == reference).all():
        assert click is None
        return
    assert click is not None
    column, row = click.point.pixel(23, 17)
    assert reference[row, column] == click.positive
    assert mask[row, column] != click.positive
    assert click == pick(strategy, mask, reference, (), np.random.default_rng(seed))


@settings(max_examples=40, deadline=None)
@given(_masks, st.sampled_from(Strategy))
def test_no_strategy_clicks_beside_an_earlier_click(reference, strategy):
    empty, placed = np.zeros_like(reference), []
    for turn in range(12):
        click = pick(strategy, empty, reference, [c.point for c in placed], np.random.default_rng(turn))
        if click is None:
            break
        here = np.array(click.point.pixel(23, 17))
        assert all(abs(here - np.array(c.point.pixel(23, 17))).max() > 1 for c in placed)
        placed.append(click)


@pytest.mark.parametrize("strategy", [Strategy.RANDOM, Strategy.INNER])
def test_the_largest_error_alone_is_drawn_from(strategy):
    reference, mask = _disc(20, 25, 14), _disc(48, 65, 6)
    for seed in range(30):
        click = pick(strategy, mask, reference, (), np.random.default_rng(seed))
        assert click is not None
        assert click.positive


def test_inner_clicks_keep_away_from_the_edge_and_random_ones_do_not():
    reference = _disc(30, 40, 20)
    deep = depths(reference)

    def shallowest(strategy: Strategy) -> float:
        clicks = [pick(strategy, np.zeros_like(reference), reference, (), np.random.default_rng(s)) for s in range(60)]
        return min(deep[c.point.pixel(80, 60)[::-1]] for c in clicks if c is not None)

    assert shallowest(Strategy.INNER) >= deep.max() / 2
    assert shallowest(Strategy.RANDOM) < deep.max() / 4


def test_weighted_draws_errors_by_their_area_missed_or_wrong():
    reference, mask = _disc(20, 20, 12), _disc(40, 62, 12)
    clicks = [pick(Strategy.WEIGHTED, mask, reference, (), np.random.default_rng(s)) for s in range(200)]
    positive = sum(c.positive for c in clicks if c is not None)
    assert 70 <= positive <= 130
    small = _disc(40, 62, 4)
    clicks = [pick(Strategy.WEIGHTED, small, reference, (), np.random.default_rng(s)) for s in range(200)]
    assert sum(c.positive for c in clicks if c is not None) > 160


def test_a_missed_part_that_touches_a_wrong_one_is_drawn_apart():
    reference, mask = np.zeros((20, 40), bool), np.zeros((20, 40), bool)
    reference[:, 19:20] = mask[:, 20:40] = True
    clicks = [pick(Strategy.WEIGHTED, mask, reference, (), np.random.default_rng(s)) for s in range(40)]
    wide = [c for c in clicks if c is not None and not c.positive]
    assert wide
    assert all(24 <= c.point.pixel(40, 20)[0] <= 35 for c in wide), "half as deep as the wide part's own middle"


def test_the_part_at_a_point():
    two = _disc(20, 20, 6) | _disc(45, 60, 5)
    assert np.array_equal(part_at(two, ViewPoint.of_pixel(60, 45, 80, 60)), _disc(45, 60, 5))
    assert not part_at(two, ViewPoint.of_pixel(1, 1, 80, 60)).any()
