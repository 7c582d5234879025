"""Image files and DICOM series side by side."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest
from monailabel.interfaces.exception import ImageNotFoundException

from lib.errors import InputError
from lib.imaging.cache import ImageRef, VolumeCache
from lib.imaging.load import load_volume
from lib.imaging.masks import write_mask, write_volume
from lib.imaging.phantom import make_phantom, write_series
from lib.imaging.seg import Segment, write_seg
from lib.server.store import StudiesDatastore

EXTENSIONS = ["*.nii.gz", "*.nii", "*.nrrd"]


@pytest.fixture(scope="module")
def phantom():
    return make_phantom(1, spacing=(8.0, 8.0, 20.0))


@pytest.fixture
def store(tmp_path, phantom) -> StudiesDatastore:
    write_series(phantom, tmp_path / "patient 1" / "ct.thorax")
    write_volume(tmp_path / "plain.nii.gz", phantom.volume)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk" / "file").write_bytes(b"\0" * 400)
    return StudiesDatastore(str(tmp_path), EXTENSIONS, auto_reload=False, read_only=False)


def test_files_and_series_are_images(store):
    assert sorted(store.list_images()) == ["patient_1_ct_thorax", "plain"]
    assert store.series("plain") is None
    assert store.get_image_uri("nobody") == ""


def test_a_series_is_converted_on_first_use_with_its_geometry(store, phantom):
    path = Path(store.get_image_uri("patient_1_ct_thorax"))
    volume = load_volume(path)
    assert np.array_equal(volume.data, phantom.volume.data)
    assert np.allclose(volume.affine, phantom.volume.affine, atol=1e-3)
    written = path.stat().st_mtime_ns
    assert Path(store.get_image_uri("patient_1_ct_thorax")).stat().st_mtime_ns == written
    assert store.get_image_info("patient_1_ct_thorax")["path"] == str(path)


def test_labels_of_a_series_survive_a_restart(store, phantom, tmp_path):
    label = tmp_path / "label.nrrd"
    write_mask(label, (phantom.volume.data > 200).astype(np.uint8), phantom.volume)
    store.save_label("patient_1_ct_thorax", str(label), "final", {"params": {"who": "me"}})
    label.unlink()
    again = StudiesDatastore(str(tmp_path), EXTENSIONS, auto_reload=False, read_only=False)
    assert again.get_labeled_images() == ["patient_1_ct_thorax"]
    assert again.get_label_info("patient_1_ct_thorax", "final")["params"] == {"who": "me"}
    assert again.get_unlabeled_images() == ["plain"]


def test_a_series_that_goes_away_is_no_image_any_more(store, tmp_path):
    for path in (tmp_path / "patient 1" / "ct.thorax").iterdir():
        path.unlink()
    store.rescan()
    assert store.list_images() == ["plain"]


def test_series_of_one_name_are_told_apart(tmp_path, phantom):
    write_series(phantom, tmp_path / "a" / "b")
    write_series(make_phantom(2, spacing=(8.0, 8.0, 20.0)), tmp_path / "a_b")
    store = StudiesDatastore(str(tmp_path), EXTENSIONS, auto_reload=False, read_only=False)
    names = store.list_images()
    assert len(set(names)) == 2
    assert all(store.series(name) for name in names)


def test_an_id_keeps_its_series_when_another_joins_the_folder(tmp_path, phantom):
    folder = tmp_path / "A"
    write_series(make_phantom(2, spacing=(8.0, 8.0, 20.0)), folder)
    first = StudiesDatastore(str(tmp_path), EXTENSIONS, auto_reload=False, read_only=False).series("A")
    write_series(phantom, tmp_path / "B")
    for path in (tmp_path / "B").iterdir():
        path.rename(folder / f"other-{path.name}")
    (tmp_path / "B").rmdir()
    again = StudiesDatastore(str(tmp_path), EXTENSIONS, auto_reload=False, read_only=False)
    assert len(again.list_images()) == 2
    assert again.series("A").uid == first.uid


def test_a_file_and_a_folder_of_one_name_are_two_images(tmp_path, phantom):
    write_series(phantom, tmp_path / "B")
    other = make_phantom(2, spacing=(8.0, 8.0, 20.0)).volume
    write_volume(tmp_path / "B.nii.gz", other)
    store = StudiesDatastore(str(tmp_path), EXTENSIONS, auto_reload=False, read_only=False)
    assert len(store.list_images()) == 2
    assert np.array_equal(load_volume(Path(store.get_image_uri("B"))).data, other.data)


def test_a_slice_that_comes_later_is_in_the_next_conversion(store, tmp_path):
    folder = tmp_path / "patient 1" / "ct.thorax"
    last = sorted(folder.iterdir())[-1]
    content = last.read_bytes()
    last.unlink()
    before = load_volume(Path(store.get_image_uri("patient_1_ct_thorax"))).data.shape
    last.write_bytes(content)
    after = load_volume(Path(store.get_image_uri("patient_1_ct_thorax"))).data.shape
    assert after[2] == before[2] + 1
    assert len(list((tmp_path / ".ibis" / "volumes").iterdir())) == 1


def test_what_cannot_be_stored_or_removed_is_refused(store, tmp_path):
    (tmp_path / "x.exe").write_bytes(b"x")
    with pytest.raises(InputError, match="exe"):
        store.add_image("x", str(tmp_path / "x.exe"), {})
    (tmp_path / "y.nrrd").write_bytes(b"x")
    with pytest.raises(InputError, match="taken"):
        store.add_image("patient_1_ct_thorax", str(tmp_path / "y.nrrd"), {})
    with pytest.raises(InputError, match="DICOM series"):
        store.remove_image("patient_1_ct_thorax")


def test_the_train_list_names_files_that_exist(store, phantom, tmp_path):
    label = tmp_path / "label.nrrd"
    write_mask(label, (phantom.volume.data > 200).astype(np.uint8), phantom.volume)
    store.save_label("patient_1_ct_thorax", str(label), "final", {})
    (pair,) = store.datalist()
    assert Path(pair["image"]).is_file()
    assert Path(pair["label"]).is_file()


def test_requests_at_once_never_see_half_a_table(store):
    wrong, stop = [], threading.Event()

    def ask():
        while not stop.is_set():
            if sorted(store.list_images()) != ["patient_1_ct_thorax", "plain"] or not store.get_image_info("plain"):
                wrong.append(1)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(30):
        store.refresh()
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_volume_cache_reads_a_changed_file_again_and_keeps_to_its_bytes(tmp_path, phantom):
    path = tmp_path / "a.nii.gz"
    write_volume(path, phantom.volume)
    cache = VolumeCache(10**9)
    first = cache.get(ImageRef(path))
    assert cache.get(ImageRef(path)) is first
    os.utime(path, (1, 1))
    assert cache.get(ImageRef(path)) is not first
    small = VolumeCache(1)
    other = tmp_path / "b.nii.gz"
    write_volume(other, phantom.volume)
    kept = small.get(ImageRef(other))
    small.get(ImageRef(path))
    assert small.get(ImageRef(other)) is not kept


def test_a_failed_read_is_not_kept(tmp_path, phantom):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(b"")
    cache = VolumeCache(10**9)
    with pytest.raises(ValueError, match="empty"):
        cache.get(ImageRef(path))
    write_volume(path, phantom.volume)
    assert cache.get(ImageRef(path)).data.shape == phantom.volume.data.shape


@pytest.mark.parametrize("image", ["plain", "patient_1_ct_thorax"])
def test_what_is_no_label_of_the_image_leaves_the_good_one(store, phantom, tmp_path, image):
    mask = (phantom.volume.data > 200).astype(np.uint8)
    good, other, junk = tmp_path / "good.nrrd", tmp_path / "other.nrrd", tmp_path / "junk.nrrd"
    write_mask(good, mask, phantom.volume)
    smaller = make_phantom(1, spacing=(16.0, 16.0, 20.0)).volume
    write_mask(other, np.zeros(smaller.data.shape, np.uint8), smaller)
    junk.write_bytes(b"junk")
    store.save_label(image, str(good), "final", {})
    for bad in (other, junk):
        with pytest.raises(InputError, match="the label cannot be used") as refusal:
            store.save_label(image, str(bad), "final", {})
        assert refusal.value.field == "label"
        store.save_label(image, str(bad), "original", {})
    with pytest.raises(ImageNotFoundException):
        store.save_label("nobody", str(good), "final", {})
    assert np.array_equal(load_volume(Path(store.get_label_uri(image, "final"))).data, mask)
    again = tmp_path / "again.nii.gz"
    write_mask(again, 1 - mask, phantom.volume)
    store.save_label(image, str(again), "final", {})
    kept = Path(store.get_label_uri(image, "final"))
    assert np.array_equal(load_volume(kept).data, 1 - mask)
    assert [path.name for path in kept.parent.iterdir()] == [f"{image}.nii.gz"]


def test_a_dicom_seg_is_a_label(store, tmp_path):
    series = store.series("patient_1_ct_thorax")
    volume = load_volume(series.folder, series=series.uid)
    write_seg(tmp_path / "seg.dcm", (volume.data > 200).astype(np.uint8), volume, [Segment(1, "bone", 1)], "x")
    store.save_label("patient_1_ct_thorax", str(tmp_path / "seg.dcm"), "final", {})
    assert store.get_label_uri("patient_1_ct_thorax", "final").endswith(".dcm")
