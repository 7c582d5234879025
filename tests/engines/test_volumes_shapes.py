"""Shapes between slices."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lib.engines.volumes.shapes import box, fused, interpolated, iou, moved, signed_distance

rows, columns = np.mgrid[:60, :70]


def disc(row, column, radius):
    return np.hypot(rows - row, columns - column) < radius


discs = st.builds(disc, st.integers(10, 50), st.integers(10, 60), st.integers(3, 25))


@given(discs)
def test_the_sign_of_the_distance_is_the_mask(mask):
    assert np.array_equal(signed_distance(mask) > 0, mask)


@given(discs, discs)
def test_both_ends_of_an_interpolation_are_the_masks_themselves(low, high):
    a, b = signed_distance(low), signed_distance(high)
    assert np.array_equal(interpolated(a, b, 0.0) > 0, low)
    assert np.array_equal(interpolated(a, b, 1.0) > 0, high)


@given(discs, st.integers(3, 25), st.floats(0.05, 0.95))
def test_what_both_ends_share_is_everywhere_between_them_and_nothing_beyond_their_union(low, radius, share):
    high = disc(30, 35, radius)
    between = interpolated(signed_distance(low), signed_distance(high), share) > 0
    assert not (low & high & ~between).any()
    assert not (between & ~(low | high)).any()


def test_a_disc_grows_by_the_way():
    between = interpolated(signed_distance(disc(30, 35, 10)), signed_distance(disc(30, 35, 20)), 0.5) > 0
    assert iou(between, disc(30, 35, 15)) > 0.95


def test_towards_nothing_a_shape_shrinks_and_vanishes():
    there, nothing = signed_distance(disc(30, 35, 20)), signed_distance(np.zeros((60, 70), bool))
    areas = [np.count_nonzero(interpolated(there, nothing, share) > 0) for share in (0.0, 0.2, 0.4, 0.5, 0.9)]
    assert areas == sorted(areas, reverse=True)
    assert areas[0] > 2 * areas[2] > 0
    assert areas[3] == areas[4] == 0
    assert iou(interpolated(nothing, there, 2 / 3) > 0, disc(30, 35, 10)) > 0.9


def test_an_edge_moves_half_way_and_not_beyond_its_reach():
    mask = disc(30, 35, 12)
    near = moved(signed_distance(mask), disc(30, 35, 16), 3) > 0
    far = moved(signed_distance(mask), disc(30, 35, 25), 3) > 0
    assert iou(near, disc(30, 35, 14)) > 0.95
    assert iou(far, disc(30, 35, 15)) > 0.95


def test_a_mean_of_shapes_follows_the_weights():
    small, large = signed_distance(disc(30, 35, 10)), signed_distance(disc(30, 35, 20))
    assert iou(fused([small, large], [3, 1]) > 0, disc(30, 35, 12.5)) > 0.9


def test_a_box_ends_at_the_picture():
    rows_, columns_ = box([disc(2, 35, 5), disc(50, 35, 5)], margin=4)
    assert (rows_.start, columns_.start) == (0, 27)
    assert np.zeros((60, 70))[rows_, columns_].shape == (59, 17)
