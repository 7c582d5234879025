"""The datastore of a PACS, and the poller: what is listed, what is kept, what comes back."""

import dataclasses
import threading
import time
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from monailabel.interfaces.exception import ImageNotFoundException

from apps.serve import serve
from lib.errors import EngineError, InputError
from lib.imaging.cache import ImageRef, VolumeCache
from lib.imaging.load import load_volume
from lib.imaging.masks import write_mask
from lib.imaging.phantom import make_phantom, write_series
from lib.imaging.seg import Segment, write_seg
from lib.server.pacs import datastore
from lib.server.pacs.build import build_store
from lib.server.pacs.datastore import PacsDatastore
from lib.server.pacs.outbox import Delivery
from lib.server.pacs.poller import Poller
from lib.server.pacs.settings import PacsSettings, pacs_settings
from lib.server.pacs.web import DicomWeb, PacsError
from tests.server.fakepacs import FakePacs

SETTINGS = pacs_settings({}).model_copy(update={"timeout_s": 1.0, "expiry_s": 0.0, "retry_s": 0.05})


@pytest.fixture(scope="module")
def series(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("series")
    write_series(make_phantom(1, spacing=(8.0, 8.0, 40.0)), folder)
    return folder


@pytest.fixture(scope="module")
def volume(series):
    return load_volume(series)


@pytest.fixture
def pacs(series):
    with FakePacs(sorted(series.iterdir())) as running:
        yield running


@pytest.fixture
def image(volume) -> str:
    return str(pydicom.dcmread(volume.instances[0].path, stop_before_pixels=True).SeriesInstanceUID)


@pytest.fixture
def label(volume, tmp_path) -> Path:
    mask = np.zeros(volume.data.shape, dtype=np.uint8)
    mask[3:9, 4:8, 1:3] = 2
    mask[12:15, 4:8, 1] = 1
    write_mask(tmp_path / "label.nrrd", mask, volume)
    return tmp_path / "label.nrrd"


INFO = {"label_info": [{"name": "spleen", "idx": 1}, {"name": "liver", "idx": 2}], "client_id": "ann"}


def opened(pacs: FakePacs, folder: Path, settings: PacsSettings = SETTINGS, **filters: str) -> PacsDatastore:
    return PacsDatastore(DicomWeb(pacs.url, timeout_s=1), folder, settings, filters, VolumeCache(10**8))


@pytest.fixture
def store(pacs, tmp_path) -> PacsDatastore:
    store = opened(pacs, tmp_path / "cache")
    store.look()
    return store


def foreign(pacs: FakePacs, volume, path: Path, region: tuple, name: str = "spleen", operator: str = "Reader^Second") -> str:
    """A segmentation that another program stored; its SOP Instance UID."""
    mask = np.zeros(volume.data.shape, dtype=np.uint8)
    mask[region] = 1
    write_seg(path, mask, volume, [Segment(1, name, 1, ("78961009", "SCT", "Spleen"))], "theirs")
    dataset = pydicom.dcmread(path)
    dataset.OperatorsName = operator
    dataset.save_as(path)
    return pacs.add(path.read_bytes())


def test_images_are_listed_and_remembered_without_the_pacs(store, pacs, image, tmp_path):
    assert store.list_images() == [image]
    pacs.stop()
    again = opened(pacs, tmp_path / "cache")
    began = time.perf_counter()
    assert again.list_images() == [image]
    assert again.status()["total"] == 1
    assert time.perf_counter() - began < 0.1
    with pytest.raises(PacsError):
        again.look()
    assert again.list_images() == [image]
    assert again.status()["pacs"]["reachable"] is False
    assert set(store.get_image_info(image)) >= {"StudyInstanceUID", "SeriesInstanceUID", "Modality", "StudyDate", "PatientID"}


def test_only_the_modalities_and_filters_asked_for(pacs, tmp_path, image):
    store = opened(pacs, tmp_path / "mr", pacs_settings({"modalities": "mr, pt"}))
    store.look()
    assert store.list_images() == []
    store = opened(pacs, tmp_path / "filter", StudyDate="20200101")
    store.look()
    assert any("StudyDate=20200101" in query for _, _, query in pacs.asked)
    assert store.list_images() == [image]


def test_the_search_filter_of_monai_label(pacs, tmp_path, monkeypatch):
    from monailabel.config import settings

    monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_SEARCH_FILTER", {"Modality": "MR,PT", "PatientID": "P1"})
    store = build_store(pacs.url, SETTINGS, tmp_path, VolumeCache(1))
    store.look()
    asked = [query for _, path, query in pacs.asked if path == "series"]
    assert sum("Modality=CT" in query for query in asked) == 0
    assert sum("Modality=MR" in query and "PatientID=P1" in query for query in asked) > 0


def test_the_image_is_the_dicom_itself_and_viewers_get_its_array(store, image, volume):
    series = store.series(image)
    assert np.array_equal(load_volume(series.folder, series=series.uid).data, volume.data)
    converted = load_volume(Path(store.get_image_uri(image)))
    assert np.array_equal(converted.data, volume.data)
    assert np.allclose(converted.affine, volume.affine, atol=1e-3)
    assert store.series("1.2.3") is None
    assert store.get_image_uri("1.2.3") == ""


def test_a_label_is_here_before_it_is_there(store, pacs, image, label, volume):
    store.series(image)
    pacs.stop()
    assert store.save_label(image, str(label), "final", INFO) == image
    assert store.delivery(image)["state"] == "queued"
    kept = load_volume(Path(store.get_label_uri(image, "final"))).data
    assert np.array_equal(kept, load_volume(label).data)
    assert store.get_labeled_images() == [image]
    pacs.start()
    store.outbox.hurry()
    store.outbox.deliver_due()
    assert store.delivery(image)["state"] == "delivered"
    (seg,) = pacs.segs()
    names = {str(s.SegmentLabel): s.SegmentedPropertyTypeCodeSequence[0].CodeValue for s in seg.SegmentSequence}
    assert names == {"spleen": "78961009", "liver": "10200004"}
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == image


def test_a_label_of_an_image_that_was_never_fetched(store, pacs, image, label):
    pacs.stop()
    store.save_label(image, str(label), "final", INFO)
    store.outbox.deliver_due()
    assert store.delivery(image)["state"] == "queued"
    pacs.start()
    store.outbox.hurry()
    store.outbox.deliver_due()
    assert store.delivery(image)["state"] == "delivered"


def test_other_tags_and_other_images(store, pacs, image, label):
    store.save_label(image, str(label), "original", INFO)
    assert store.outbox.items == []
    assert store.get_labeled_images() == []
    assert Path(store.get_label_uri(image, "original")).is_file()
    with pytest.raises(ImageNotFoundException):
        store.save_label("1.2.3", str(label), "final", INFO)
    with pytest.raises(InputError):
        store.add_image("x", str(label), {})
    with pytest.raises(InputError):
        store.remove_image(image)


def test_killed_between_keeping_and_queueing(store, pacs, image, label, tmp_path, monkeypatch):
    store.series(image)
    monkeypatch.setattr(store, "_queue", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        store.save_label(image, str(label), "final", INFO)
    assert store.outbox.items == []
    again = opened(pacs, tmp_path / "cache")
    again.start()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and again.delivery(image)["state"] != "delivered":
        time.sleep(0.05)
    again.outbox.stop()
    assert again.delivery(image)["state"] == "delivered"
    assert [str(seg.ContentCreatorName) for seg in pacs.segs()] == ["ann^"]
    assert len(opened(pacs, tmp_path / "cache").outbox.items) == 1


def test_labels_of_others_are_labels_of_the_image(store, pacs, image, volume, tmp_path):
    assert store.get_unlabeled_images() == [image]
    foreign(pacs, volume, tmp_path / "a.dcm", np.s_[2:5, 3:6, 1:3])
    store.look()
    assert store.get_labeled_images() == [image]
    assert store.json()["objects"][image]["labels"].keys() == {"final"}
    assert store.get_labels_by_image_id(image) == {"final": image}
    read = load_volume(Path(store.get_label_uri(image, "final"))).data
    assert read.sum() == 18
    assert read[2:5, 3:6, 1:3].all()
    assert store.get_label_info(image, "final")["label_info"] == [{"name": "spleen", "idx": 1}]
    (pair,) = store.datalist()
    assert Path(pair["image"]).is_file()
    assert Path(pair["label"]).is_file()


def test_the_newest_label_counts(store, pacs, image, label, volume, tmp_path):
    first = tmp_path / "a.dcm"
    foreign(pacs, volume, first, np.s_[2:5, 3:6, 1:3])
    old = pydicom.dcmread(first)
    old.ContentDate = "20010101"
    pacs.add(_saved(old, first))
    store.look()
    store.series(image)
    store.save_label(image, str(label), "final", INFO)
    assert np.array_equal(load_volume(Path(store.get_label_uri(image, "final"))).data, load_volume(label).data)
    newest = tmp_path / "b.dcm"
    foreign(pacs, volume, newest, np.s_[7:9, 7:9, 2])
    later = pydicom.dcmread(newest)
    later.ContentDate = "20980101"
    pacs.add(_saved(later, newest))
    store.look()
    assert load_volume(Path(store.get_label_uri(image, "final"))).data.sum() == 4


def _saved(dataset: pydicom.Dataset, path: Path) -> bytes:
    dataset.save_as(path)
    return path.read_bytes()


def test_a_segmentation_without_a_reference_belongs_to_the_only_series(store, pacs, image, volume, tmp_path):
    path = tmp_path / "a.dcm"
    foreign(pacs, volume, path, np.s_[2:5, 3:6, 1:3])
    bare = pydicom.dcmread(path)
    del bare.ReferencedSeriesSequence
    pacs.add(_saved(bare, path))
    store.look()
    assert store.get_labeled_images() == [image]


def test_a_segmentation_that_does_not_fit_is_no_label(store, pacs, image, volume, tmp_path):
    path = tmp_path / "a.dcm"
    foreign(pacs, volume, path, np.s_[2:5, 3:6, 1:3])
    wrong = pydicom.dcmread(path)
    wrong.FrameOfReferenceUID = "1.2.3"
    pacs.add(_saved(wrong, path))
    store.look()
    assert store.get_label_uri(image, "final") == ""
    assert store.get_labeled_images() == []
    assert "frame of reference" in next(iter(store.catalogue.segs.values())).unusable


def test_what_others_store_arrives_once_also_after_a_restart(store, pacs, image, label, volume, tmp_path):
    arrived: list = []
    poller = Poller(store, 1, arrived.append)
    uid = foreign(pacs, volume, tmp_path / "a.dcm", np.s_[2:5, 3:6, 1:3])
    poller.look()
    assert arrived == [], "nobody has looked at the image yet"
    store.series(image)
    store.save_label(image, str(label), "final", INFO)
    store.outbox.deliver_due()
    assert len(pacs.segs()) == 2
    poller.look()
    poller.look()
    (found,) = arrived
    assert (found.image_id, found.seg_uid, found.annotator) == (image, uid, "Reader Second")
    assert (found.label.dtype, int(found.label.sum())) == (np.uint8, 18)
    assert found.names == {1: "spleen"}
    assert found.codes == {1: ("78961009", "SCT", "Spleen")}
    assert abs(found.time - time.time()) < 120
    again = opened(pacs, tmp_path / "cache")
    Poller(again, 1, arrived.append).look()
    assert len(arrived) == 1


def test_a_hook_that_fails_gets_it_again(store, pacs, image, volume, tmp_path):
    store.series(image)
    foreign(pacs, volume, tmp_path / "a.dcm", np.s_[2:5, 3:6, 1:3])

    def busy(found) -> None:
        raise EngineError("busy")

    poller = Poller(store, 1, busy)
    poller.look()
    assert list(poller.waiting.values()) == ["busy"]
    arrived: list = []
    Poller(store, 1, arrived.append).look()
    assert len(arrived) == 1


def test_the_poller_hurries_the_outbox_when_the_pacs_is_back(store, pacs, image, label):
    store.series(image)
    poller = Poller(store, 0.05)
    store.outbox.start()
    poller.start()
    pacs.stop()
    store.save_label(image, str(label), "final", INFO)
    time.sleep(0.3)
    assert store.delivery(image)["state"] == "queued"
    pacs.start()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and store.delivery(image)["state"] != "delivered":
        time.sleep(0.05)
    poller.stop()
    store.outbox.stop()
    assert store.outbox.items[0].state is Delivery.DELIVERED


def test_a_cached_series_follows_the_pacs(store, pacs, image):
    before = store.get_image_uri(image)
    pacs.remove(list(pacs.held)[-1])
    after = store.get_image_uri(image)
    assert before != after
    assert not Path(before).exists()
    volumes = VolumeCache(10**8)
    series = store.series(image)
    assert volumes.get(ImageRef(series.folder, series.uid)).data.shape[2] == len(pacs.held)


@pytest.mark.parametrize("text", ["poll_s: 0", "nonsense: 1", "[1]", "modalities: []", "{"])
def test_settings_that_cannot_be(tmp_path, text):
    (tmp_path / "pacs.yaml").write_text(text)
    with pytest.raises(InputError):
        pacs_settings({"pacs": str(tmp_path / "pacs.yaml")})
    with pytest.raises(InputError):
        pacs_settings({"pacs": str(tmp_path / "nowhere.yaml")})


def aged(pacs: FakePacs, volume, path: Path, region: tuple, day: str, operator: str = "Reader") -> str:
    """A segmentation of others, made on that day; its SOP Instance UID."""
    foreign(pacs, volume, path, region, operator=operator)
    dataset = pydicom.dcmread(path)
    dataset.ContentDate = day
    return pacs.add(_saved(dataset, path))


@pytest.mark.parametrize("answer", [(200, "not json"), 500])
def test_a_series_that_the_pacs_cannot_describe_hides_nothing_else(store, pacs, image, volume, tmp_path, answer):
    known = aged(pacs, volume, tmp_path / "a.dcm", np.s_[2:5, 3:6, 1:3], "20200101")
    store.look()
    broken = {pydicom.dcmread(tmp_path / "a.dcm").SeriesInstanceUID}
    for number in range(3):
        aged(pacs, volume, tmp_path / f"b{number}.dcm", np.s_[2:5, 3:6, 1:3], "20200102")
        broken.add(pydicom.dcmread(tmp_path / f"b{number}.dcm").SeriesInstanceUID)
    last = aged(pacs, volume, tmp_path / "c.dcm", np.s_[2:5, 3:6, 1:3], "20200103")
    pacs.fault = lambda method, path: answer if path.endswith("metadata") and path.split("/")[3] in broken else None
    for path in (tmp_path / "cache", tmp_path / "empty"):
        again = opened(pacs, path)
        again.look()
        again.look()
        assert again.list_images() == [image]
        assert last in again.catalogue.segs
        assert len(again.catalogue.undescribed) >= 3
        assert again.web.state.reachable is True
    assert known in opened(pacs, tmp_path / "cache").catalogue.segs
    pacs.fault = lambda method, path: None
    again.look()
    assert len(again.catalogue.segs) == 5
    assert again.catalogue.undescribed == {}


def test_images_are_there_though_the_pacs_falls_silent_over_segmentations(pacs, image, volume, tmp_path):
    for number in range(5):
        foreign(pacs, volume, tmp_path / f"{number}.dcm", np.s_[2:5, 3:6, 1:3])
    store = opened(pacs, tmp_path / "cache")
    store.web.timeout = 0.2

    def silent(method: str, path: str) -> None:
        time.sleep(1.5 if path.endswith("metadata") else 0)

    pacs.fault = silent
    store.look()
    assert store.list_images() == [image]
    assert image in store.json()["objects"]
    assert pacs.count("GET", "metadata") == 3, "then it is the PACS, not the series"
    assert store.catalogue.looked == 0


def test_a_segmentation_that_cannot_be_had_starves_no_other(store, pacs, image, volume, tmp_path):
    store.series(image)
    bad = aged(pacs, volume, tmp_path / "a.dcm", np.s_[2:5, 3:6, 1:3], "20200101", "One")
    unwanted = aged(pacs, volume, tmp_path / "b.dcm", np.s_[2:5, 3:6, 1:3], "20200102", "Two")
    aged(pacs, volume, tmp_path / "c.dcm", np.s_[2:5, 3:6, 1:3], "20200103", "Three")
    pacs.fault = lambda method, path: 500 if bad in path else None
    arrived: list = []

    def take(found) -> None:
        if found.seg_uid == unwanted:
            raise InputError("not this one")
        arrived.append(found.annotator)

    poller = Poller(store, 1, take)
    poller.look()
    assert arrived == ["Three"]
    assert poller.waiting.keys() == {bad, unwanted}
    assert poller.waiting[unwanted] == "not this one"
    pacs.fault = lambda method, path: None
    poller.look()
    assert arrived == ["Three", "One"]
    assert poller.waiting.keys() == {unwanted}


def test_an_older_segmentation_does_not_overtake_a_label_that_is_stored_meanwhile(
    store, pacs, image, label, volume, tmp_path, monkeypatch
):
    store.series(image)
    foreign(pacs, volume, tmp_path / "a.dcm", np.s_[2:5, 3:6, 1:3])
    writing, go = threading.Event(), threading.Event()

    def slow(*arguments) -> None:
        writing.set()
        go.wait(20)
        write_mask(*arguments)

    monkeypatch.setattr(datastore, "write_mask", slow)
    poller = threading.Thread(target=Poller(store, 1).look)
    poller.start()
    assert writing.wait(20)
    time.sleep(1.1)
    store.save_label(image, str(label), "final", INFO)
    go.set()
    poller.join()
    store.outbox.deliver_due()
    store.look()
    assert np.array_equal(load_volume(Path(store.get_label_uri(image, "final"))).data, load_volume(label).data)


def test_the_label_of_yesterday_does_not_replace_that_of_today_because_it_was_sent_late(store, pacs, image, label, volume):
    store.series(image)
    store.save_label(image, str(label), "final", INFO)
    store.outbox.deliver_due()
    store.look()
    (sent,) = store.outbox.items
    store.outbox._keep(dataclasses.replace(sent, created=sent.created - 86_400))
    with store._table_lock:
        entry = store._datastore.objects[image].labels["final"]
        entry.info = {**entry.info, "outbox": "another", "ts": entry.info["ts"] - 60}
    pacs.asked.clear()
    store.get_label_uri(image, "final")
    assert pacs.count("GET", "/instances/") == 0


def test_what_is_no_label_of_the_image_leaves_the_good_one(store, image, label, volume, tmp_path):
    store.series(image)
    store.save_label(image, str(label), "final", INFO)
    other = tmp_path / "other.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.ones((5, 5, 5), np.uint8), np.eye(4)), other)
    (tmp_path / "junk.nrrd").write_bytes(b"junk")
    for bad, info in ((other, INFO), (tmp_path / "junk.nrrd", INFO), (label, {"label_info": [{"name": "x", "idx": 999}]})):
        with pytest.raises(InputError):
            store.save_label(image, str(bad), "final", info)
    assert len(store.outbox.items) == 1
    assert np.array_equal(load_volume(Path(store.get_label_uri(image, "final"))).data, load_volume(label).data)
    mask = (volume.data > 0).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(mask, volume.affine), other)
    store.save_label(image, str(other), "final", INFO)
    kept = Path(store.get_label_uri(image, "final"))
    assert [path.name for path in kept.parent.iterdir()] == [kept.name]
    assert kept.name.endswith(".nii.gz")


def test_nobody_else_may_read_what_is_kept(pacs, tmp_path, image):
    (tmp_path / "private").mkdir()
    store = build_store(pacs.url, SETTINGS, tmp_path / "private", VolumeCache(1))
    assert (tmp_path / "private").stat().st_mode & 0o777 == 0o700
    assert store._root.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("url", ["http://bob:hunter2@127.0.0.1:9/dicom-web", "http://bob:hun#ter2@127.0.0.1:9/dicom-web"])
def test_a_password_has_no_place_in_an_address(tmp_path, url, capsys):
    for start in (lambda: build_store(url, SETTINGS, tmp_path, VolumeCache(1)), lambda: serve(url)):
        with pytest.raises(InputError, match=r"MONAI_LABEL_DICOMWEB_USERNAME.*_PASSWORD") as refusal:
            start()
        assert "ter2" not in refusal.value.message + capsys.readouterr().out


def test_a_label_of_ours_that_an_older_one_replaced_comes_back(store, pacs, image, label, volume, tmp_path):
    store.series(image)
    older = aged(pacs, volume, tmp_path / "a.dcm", np.s_[2:5, 3:6, 1:3], "20200101")
    store.save_label(image, str(label), "final", INFO)
    store.outbox.deliver_due()
    store.look()
    write_mask(tmp_path / "older.nrrd", np.zeros(volume.data.shape, np.uint8), volume)
    store._keep_label(image, tmp_path / "older.nrrd", "final", {"seg": older})
    assert np.array_equal(load_volume(Path(store.get_label_uri(image, "final"))).data, load_volume(label).data)
