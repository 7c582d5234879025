"""The datastore of a PACS, and the poller: what is listed, what is kept, what comes back."""

import time
from pathlib import Path

import numpy as np
import pydicom
import pytest
from monailabel.interfaces.exception import ImageNotFoundException

from lib.errors import EngineError, InputError
from lib.imaging.cache import ImageRef, VolumeCache
from lib.imaging.load import load_volume
from lib.imaging.masks import write_mask
from lib.imaging.phantom import make_phantom, write_series
from lib.imaging.seg import Segment, write_seg
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

    with pytest.raises(EngineError):
        Poller(store, 1, busy).look()
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
