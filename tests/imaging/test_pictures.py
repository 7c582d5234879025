"""Pictures of every mode."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lib.errors import ImageError
from lib.imaging.load import load_volume
from lib.imaging.planes import Plane, ViewGrid

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
GREY = RGB[..., 0]


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def test_grey_is_shown_as_it_is_stored(tmp_path: Path) -> None:
    volume = load_volume(save(tmp_path / "a.png", Image.fromarray(GREY)))
    assert volume.data.shape == (9, 6, 1)
    assert volume.planar
    assert volume.colour is None
    np.testing.assert_array_equal(ViewGrid(volume, Plane.AXIAL).cut(volume.data, 0), GREY)


def test_colour_and_luminance(tmp_path: Path) -> None:
    volume = load_volume(save(tmp_path / "a.bmp", Image.fromarray(RGB)))
    np.testing.assert_array_equal(volume.colour[:, :, 0].transpose(1, 0, 2), RGB)
    expected = np.asarray(Image.fromarray(RGB).convert("L")).astype(int)
    assert np.abs(volume.data[:, :, 0].T - expected).max() <= 1


def test_colour_that_is_grey_has_no_colours(tmp_path: Path) -> None:
    volume = load_volume(save(tmp_path / "a.png", Image.fromarray(np.repeat(GREY[..., None], 3, axis=2))))
    assert volume.colour is None
    np.testing.assert_array_equal(volume.data[:, :, 0].T, GREY)


def test_transparency_shows_black(tmp_path: Path) -> None:
    alpha = np.full((6, 9, 1), 255, dtype=np.uint8)
    alpha[0, 0] = 0
    volume = load_volume(save(tmp_path / "a.png", Image.fromarray(np.concatenate([RGB, alpha], axis=2))))
    assert volume.colour[0, 0, 0].tolist() == [0, 0, 0]
    np.testing.assert_array_equal(volume.colour[1:, :, 0].transpose(1, 0, 2), RGB[:, 1:])


def test_palette_and_single_bits(tmp_path: Path) -> None:
    palette = Image.fromarray(RGB).quantize(200)
    volume = load_volume(save(tmp_path / "p.png", palette))
    np.testing.assert_array_equal(volume.colour[:, :, 0].transpose(1, 0, 2), np.asarray(palette.convert("RGB")))
    volume = load_volume(save(tmp_path / "b.png", Image.fromarray(GREY > 99)))
    np.testing.assert_array_equal(volume.data[:, :, 0].T, np.where(GREY > 99, 255, 0))


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bits_are_spread(tmp_path: Path, name: str) -> None:
    values = GREY.astype(np.uint16) * 16 + 100
    volume = load_volume(save(tmp_path / name, Image.fromarray(values)))
    low, high = int(values.min()), int(values.max())
    np.testing.assert_allclose(volume.data[:, :, 0].T, (values - low) * (255 / (high - low)), rtol=1e-5, atol=1e-4)
    assert "spread over 0 to 255" in volume.warnings[0]


def test_exif_orientation(tmp_path: Path) -> None:
    image = Image.fromarray(GREY)
    exif = image.getexif()
    exif[0x0112] = 6
    volume = load_volume(save(tmp_path / "a.png", image, exif=exif))
    np.testing.assert_array_equal(volume.data[:, :, 0].T, np.rot90(GREY, -1))
    assert "EXIF" in volume.warnings[0]


def test_jpeg_under_another_name(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", Image.fromarray(RGB)).rename(tmp_path / "a.dcm")
    np.testing.assert_array_equal(
        load_volume(path).colour[:, :, 0].transpose(1, 0, 2), np.asarray(Image.open(path).convert("RGB"))
    )


def test_several_pictures_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.tif", Image.fromarray(GREY), save_all=True, append_images=[Image.fromarray(GREY)])
    with pytest.raises(ImageError, match="2 pictures"):
        load_volume(path)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.bmp"])
def test_truncated(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / name, Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)))
    whole = path.read_bytes()
    for size in (0, 4, 20, len(whole) // 2):
        path.write_bytes(whole[:size])
        with pytest.raises(ImageError):
            load_volume(path)


def test_decompression_bomb(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.new("1", (12000, 12000)))
    with pytest.raises(ImageError, match="12000 x 12000"):
        load_volume(path)


def test_text_and_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("not a picture at all")
    with pytest.raises(ImageError, match="no image that IBIS Label reads"):
        load_volume(tmp_path / "a.png")
    with pytest.raises(ImageError, match="no image at"):
        load_volume(tmp_path / "missing.png")
