"""Series fetched from a PACS: whole or not at all, going on where it stopped, following a series that grows."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from lib.imaging.load import load_volume
from lib.imaging.phantom import make_phantom, write_series
from lib.server.pacs import downloads as module
from lib.server.pacs.catalogue import ImageSeries
from lib.server.pacs.downloads import Downloads
from lib.server.pacs.web import DicomWeb, PacsError
from tests.server.fakepacs import FakePacs
from tests.server.test_pacs_web import ids


@pytest.fixture(scope="module")
def phantom():
    return make_phantom(1, spacing=(8.0, 8.0, 40.0))


@pytest.fixture
def pacs(phantom, tmp_path):
    write_series(phantom, tmp_path / "series")
    with FakePacs(sorted((tmp_path / "series").iterdir())) as running:
        yield running


@pytest.fixture
def image(pacs) -> ImageSeries:
    study, series = ids(pacs)
    return ImageSeries(series, study, "CT", {})


def downloads(pacs: FakePacs, folder: Path, expiry_s: float = 0) -> Downloads:
    return Downloads(DicomWeb(pacs.url, timeout_s=1), folder, expiry_s, 2)


def test_a_series_is_byte_for_byte_what_the_pacs_holds(pacs, image, tmp_path, phantom):
    folder = downloads(pacs, tmp_path / "dicom").get(image)
    assert {path.stem: path.read_bytes() for path in folder.iterdir()} == pacs.held
    assert np.array_equal(load_volume(folder, series=image.uid).data, phantom.volume.data)


def test_half_a_download_is_none_and_the_rest_is_fetched_later(pacs, image, tmp_path):
    here = downloads(pacs, tmp_path / "dicom")
    whole = set(list(pacs.held)[:3])
    pacs.fault = lambda method, path: 0 if "/instances/" in path and path.rpartition("/")[2] not in whole else None
    with pytest.raises(PacsError):
        here.get(image)
    assert here.here(image.uid) is None
    assert here.progress == {}
    pacs.fault = lambda method, path: None
    before = pacs.count("GET", "/instances/")
    kept = {path.stem for path in (tmp_path / "dicom" / image.uid / "incoming").iterdir()}
    assert kept <= whole
    again = downloads(pacs, tmp_path / "dicom")
    (tmp_path / "dicom" / image.uid / "incoming" / ".half.dcm").write_bytes(b"killed")
    folder = again.get(image)
    assert len(list(folder.iterdir())) == len(pacs.held)
    assert pacs.count("GET", "/instances/") - before == len(pacs.held) - len(kept)
    assert again.here(image.uid) == folder


def test_a_damaged_or_wrong_image_does_not_get_in(pacs, image, tmp_path):
    first, second = list(pacs.held)[:2]
    kept = pacs.held[first]
    pacs.held[first] = pacs.held[second]
    with pytest.raises(PacsError, match="another image"):
        downloads(pacs, tmp_path / "dicom").get(image)
    pacs.held[first] = kept
    assert downloads(pacs, tmp_path / "dicom").get(image).is_dir()


def test_a_series_that_grows_is_followed_and_a_run_keeps_its_images(pacs, image, tmp_path):
    last = list(pacs.held)[-1]
    content = pacs.held[last]
    pacs.remove(last)
    here = downloads(pacs, tmp_path / "dicom")
    old = here.get(image)
    count = len(list(old.iterdir()))
    pacs.add(content)
    before = pacs.count("GET", "/instances/")
    new = here.get(image)
    assert new != old
    assert len(list(new.iterdir())) == count + 1
    assert len(list(old.iterdir())) == count
    assert pacs.count("GET", "/instances/") - before == 1


def test_the_list_is_believed_for_a_while(pacs, image, tmp_path):
    here = downloads(pacs, tmp_path / "dicom", expiry_s=60)
    folder = here.get(image)
    asked = len(pacs.asked)
    assert here.get(image) == folder
    assert len(pacs.asked) == asked


def test_what_was_fetched_stays_when_the_pacs_is_away(pacs, image, tmp_path):
    folder = downloads(pacs, tmp_path / "dicom").get(image)
    pacs.stop()
    assert downloads(pacs, tmp_path / "dicom").get(image) == folder
    with pytest.raises(PacsError):
        downloads(pacs, tmp_path / "other").get(image)


def test_several_requests_at_once_fetch_it_once(pacs, image, tmp_path):
    here = [downloads(pacs, tmp_path / "dicom", expiry_s=60) for _ in range(2)]
    with ThreadPoolExecutor(6) as pool:
        folders = set(pool.map(lambda number: here[number % 2].get(image), range(6)))
    assert len(folders) == 1
    assert pacs.count("GET", "/instances/") == len(pacs.held)


def test_a_silent_pacs_keeps_a_few_waiting_and_not_long(pacs, image, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_WAITING", 4)
    pacs.silent_s = 30
    here = downloads(pacs, tmp_path / "dicom")
    answers: list[tuple[float, str]] = []

    def ask() -> None:
        began = time.monotonic()
        with pytest.raises(PacsError) as error:
            here.get(image)
        answers.append((time.monotonic() - began, str(error.value)))

    threads = [threading.Thread(target=ask) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 10
    assert max(waited for waited, _ in answers) < 2.5, "one attempt of a second; who waited for it fails with it"
    assert pacs.count("GET", "instances") == 1


def test_no_more_than_so_many_wait(pacs, image, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_WAITING", 1)
    pacs.silent_s = 30
    here = downloads(pacs, tmp_path / "dicom")
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(here.get, image)
        time.sleep(0.3)
        began = time.monotonic()
        with pytest.raises(PacsError, match="ask again later"):
            here.get(image)
        assert time.monotonic() - began < 0.3
        assert isinstance(first.exception(), PacsError)
    pacs.silent_s = 0
    assert here.get(image).is_dir()


def test_another_process_that_fetches_for_ever_is_not_waited_for(pacs, image, tmp_path):
    here = downloads(pacs, tmp_path / "dicom")
    (tmp_path / "dicom").mkdir()
    with FileLock(tmp_path / "dicom" / f"{image.uid}.lock"), pytest.raises(PacsError, match="nothing comes"):
        here.get(image)


def test_a_slow_fetch_is_waited_for_while_images_come(pacs, image, tmp_path):
    pacs.silent_s = 0.3
    here = downloads(pacs, tmp_path / "dicom", expiry_s=60)
    with ThreadPoolExecutor(2) as pool:
        began = time.monotonic()
        first = pool.submit(here.get, image)
        time.sleep(0.1)
        second = pool.submit(here.get, image)
        assert first.result() == second.result()
    assert time.monotonic() - began > 1.5, "longer than one answer may take"


def test_superseded_folders_go_when_no_run_can_need_them(pacs, image, tmp_path):
    here = downloads(pacs, tmp_path / "dicom")
    folders = [here.get(image)]
    os.utime(folders[0], (1, 1))
    for uid in list(pacs.held)[-2:]:
        pacs.remove(uid)
        folders.append(here.get(image))
    assert all(folder.is_dir() for folder in folders), "a run may have begun just before"
    os.utime(folders[0], (1, 1))
    (folders[1].parent / ".half").mkdir()
    assert here.get(image) == folders[2]
    assert [folder.is_dir() for folder in folders] == [False, True, True]
    assert {path.name for path in folders[1].parent.iterdir()} == {"current", folders[1].name, folders[2].name}
