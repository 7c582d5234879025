"""View <-> voxel: exact inverses for every way that a file can store its axes."""

from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.errors import InputError
from lib.imaging.planes import Plane, ViewGrid, ViewPoint, VoxelIndex
from lib.imaging.volume import Modality, Volume

ORIENTATIONS = [(axes, signs) for axes in permutations(range(3)) for signs in product((1, -1), repeat=3)]


def stored(canonical: np.ndarray, spacing, axes, signs) -> Volume:
    """A canonical array `[r, a, s]` as a file would store it: array axis n runs along anatomical axis axes[n]."""
    data = canonical.transpose(axes)
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for n in range(3):
        affine[axes[n], n] = signs[n] * spacing[axes[n]]
        if signs[n] < 0:
            data = np.flip(data, n)
            affine[axes[n], 3] = spacing[axes[n]] * (data.shape[n] - 1)
    return Volume(np.ascontiguousarray(data), affine, Modality.CT, Path("x.nii"))


volumes = st.builds(
    lambda shape, spacing, orientation, seed: stored(
        np.random.default_rng(seed).integers(-1000, 1000, shape).astype(np.int16), spacing, *orientation
    ),
    st.tuples(*[st.integers(1, 7)] * 3),
    st.tuples(*[st.sampled_from([0.7, 1.0, 3.0, 6.5])] * 3),
    st.sampled_from(ORIENTATIONS),
    st.integers(0, 9),
)
planes = st.sampled_from(list(Plane))


@given(volumes, planes, st.data())
@settings(deadline=None, max_examples=200)
def test_voxel_to_view_and_back(volume, plane, data):
    grid = ViewGrid(volume, plane)
    voxel = VoxelIndex(*(data.draw(st.integers(0, n - 1)) for n in volume.data.shape))
    index, point = grid.to_view(voxel)
    assert grid.to_voxel(index, point) == voxel
    rounded = ViewPoint(round(point.x, 4), round(point.y, 4))
    assert grid.to_voxel(index, rounded) == voxel


@given(volumes, planes, st.data())
@settings(deadline=None, max_examples=200)
def test_the_picture_shows_the_voxel_at_the_point(volume, plane, data):
    grid = ViewGrid(volume, plane)
    voxel = VoxelIndex(*(data.draw(st.integers(0, n - 1)) for n in volume.data.shape))
    index, point = grid.to_view(voxel)
    shown = grid.enlarge(grid.cut(volume.data, index), order=0)
    width, height = grid.size
    assert shown.shape == (height, width)
    column, row = point.pixel(width, height)
    assert shown[row, column] == volume.data[voxel.i, voxel.j, voxel.k]


@given(volumes, planes)
@settings(deadline=None, max_examples=200)
def test_masks_return_to_the_source_grid_exactly(volume, plane):
    grid = ViewGrid(volume, plane)
    mask = (volume.data > 0).astype(np.uint8)
    returned = np.zeros_like(mask)
    for index in range(grid.slice_count):
        grid.paste(grid.enlarge(grid.cut(mask, index), order=0), index, returned)
    assert np.array_equal(returned, mask)


@given(st.tuples(*[st.integers(2, 6)] * 3), st.sampled_from(ORIENTATIONS), planes, st.integers(0, 9))
@settings(deadline=None, max_examples=150)
def test_every_storage_order_shows_the_same_picture(shape, orientation, plane, seed):
    canonical = np.random.default_rng(seed).integers(0, 1000, shape).astype(np.int16)
    spacing = (1.0, 1.5, 4.0)
    reference = ViewGrid(stored(canonical, spacing, (0, 1, 2), (1, 1, 1)), plane)
    grid = ViewGrid(stored(canonical, spacing, *orientation), plane)
    assert grid.slice_count == reference.slice_count
    for index in range(grid.slice_count):
        ours = grid.enlarge(grid.cut(grid.volume.data, index), order=1)
        assert np.array_equal(ours, reference.enlarge(reference.cut(reference.volume.data, index), order=1))


def test_display_convention_of_the_released_weights():
    canonical = np.zeros((4, 6, 8), np.int16)
    canonical[-1, -1, -1] = 7  # the rightmost, most anterior, most superior voxel
    volume = stored(canonical, (1.0, 1.0, 1.0), (0, 1, 2), (-1, -1, 1))
    corners = {plane: ViewGrid(volume, plane) for plane in Plane}
    axial = corners[Plane.AXIAL]
    assert axial.cut(volume.data, 7)[0, -1] == 7  # anterior on top, the patient's right on the image's right
    coronal = corners[Plane.CORONAL]
    assert coronal.cut(volume.data, 5)[0, -1] == 7  # superior on top
    sagittal = corners[Plane.SAGITTAL]
    assert sagittal.cut(volume.data, 3)[0, -1] == 7  # superior on top, anterior on the image's right


def test_pixels_are_square():
    volume = stored(np.zeros((256, 256, 25), np.int16), (0.78, 0.78, 6.5), (0, 1, 2), (1, 1, 1))
    assert ViewGrid(volume, Plane.AXIAL).size == (256, 256)
    assert ViewGrid(volume, Plane.SAGITTAL).size == (256, 208)


@pytest.mark.parametrize("width", [1, 7, 256, 512, 1024, 4096])
def test_four_decimals_hold_the_pixel(width):
    for column in range(width):
        point = ViewPoint.of_pixel(column, 0, width, 1)
        assert ViewPoint(float(f"{point.x:.4f}"), 0).pixel(width, 1)[0] == column


def test_the_right_edge_is_inside():
    assert ViewPoint(1.0, 1.0).pixel(512, 256) == (511, 255)


def test_slices_that_were_never_received_are_not_offered():
    canonical = np.zeros((3, 3, 5), np.int16)
    flipped = stored(canonical, (1, 1, 1), (0, 1, 2), (1, 1, -1))
    volume = Volume(flipped.data, flipped.affine, Modality.CT, Path("x"), missing=frozenset({0}))
    assert ViewGrid(volume, Plane.AXIAL).acquired == (0, 1, 2, 3)
    assert ViewGrid(volume, Plane.CORONAL).acquired == (0, 1, 2)


@pytest.mark.parametrize("orientation", ORIENTATIONS[::5])
def test_the_plane_across_an_axis(orientation):
    volume = stored(np.zeros((3, 4, 5), np.int16), (1, 1, 1), *orientation)
    for axis in range(3):
        assert ViewGrid(volume, Plane.across(volume, axis)).slice_count == volume.data.shape[axis]


def test_outside_is_refused_with_the_size():
    grid = ViewGrid(stored(np.zeros((3, 4, 5), np.int16), (1, 1, 1), (0, 1, 2), (1, 1, 1)), Plane.AXIAL)
    with pytest.raises(InputError, match=r"\[3, 4, 5\]"):
        grid.to_view(VoxelIndex(3, 0, 0))
    with pytest.raises(InputError, match="axial slices are 0 to 4"):
        grid.check(5)
