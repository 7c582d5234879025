import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lib.policies.clicks import largest_error, next_click

_masks = arrays(bool, (17, 23))


def _disc(shape: tuple[int, int], row: int, column: int, radius: float) -> np.ndarray:
    rows, columns = np.indices(shape)
    return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2


@settings(max_examples=200, deadline=None)
@given(_masks, _masks)
def test_a_click_lies_in_an_error_of_its_polarity(mask: np.ndarray, reference: np.ndarray):
    click = next_click(mask, reference)
    if (mask == reference).all():
        assert click is None
        return
    assert click is not None
    column, row = click.point.pixel(23, 17)
    assert reference[row, column] == click.positive
    assert mask[row, column] != click.positive


@settings(max_examples=50, deadline=None)
@given(_masks, st.integers(1, 60))
def test_following_the_clicks_never_repeats_one(reference: np.ndarray, clicks: int):
    placed: list = []
    for _ in range(clicks):
        click = next_click(None, reference, [c.point for c in placed])
        if click is None:
            break
        assert click not in placed
        placed.append(click)


def test_the_centre_of_the_largest_miss_comes_first():
    reference = _disc((60, 80), 20, 25, 12) | _disc((60, 80), 45, 65, 8)
    error = largest_error(None, reference)
    assert error is not None
    assert error.click.positive
    assert error.click.point.pixel(80, 60) == (25, 20)
    assert 12 <= error.radius <= 13.5


def test_a_larger_false_region_wins_over_a_smaller_miss():
    reference = _disc((60, 80), 20, 25, 12)
    mask = _disc((60, 80), 45, 60, 14)
    click = next_click(mask, reference)
    assert click is not None
    assert not click.positive
    assert click.point.pixel(80, 60) == (60, 45)


def test_the_border_of_the_picture_is_an_edge():
    click = next_click(None, np.ones((21, 31), bool))
    assert click is not None
    assert click.point.pixel(31, 21) == (15, 10)


def test_misses_win_ties():
    mask, reference = np.zeros((20, 40), bool), np.zeros((20, 40), bool)
    mask[5:12, 5:12] = True
    reference[5:12, 25:32] = True
    click = next_click(mask, reference)
    assert click is not None
    assert click.positive
