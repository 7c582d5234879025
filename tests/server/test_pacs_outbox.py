"""Labels on their way: none lost, none twice."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest

from lib.errors import InputError
from lib.imaging.load import load_volume
from lib.imaging.masks import write_mask
from lib.imaging.phantom import make_phantom, write_series
from lib.server.pacs.outbox import Backoff, Delivery, Outbox
from lib.server.pacs.segs import write_label
from lib.server.pacs.web import DicomWeb, PacsUnreachable
from lib.server.process import ROOT
from tests.server.fakepacs import FakePacs

IMAGE = "1.2.3"


class Clock:
    """Goes when it is told to."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def volume(tmp_path_factory):
    folder = tmp_path_factory.mktemp("series")
    write_series(make_phantom(1, spacing=(8.0, 8.0, 40.0)), folder)
    return load_volume(folder)


@pytest.fixture
def label(volume, tmp_path) -> Path:
    mask = np.zeros(volume.data.shape, dtype=np.uint8)
    mask[3:9, 4:8, 1:3] = 1
    write_mask(tmp_path / "label.nrrd", mask, volume)
    return tmp_path / "label.nrrd"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pacs():
    with FakePacs() as running:
        yield running


@pytest.fixture
def outbox(pacs, volume, tmp_path, clock):
    return opened(pacs, volume, tmp_path, clock)


def opened(pacs, volume, tmp_path, clock) -> Outbox:
    def make(item, label: Path, seg: Path) -> None:
        write_label(seg, label, item.info, volume, item.annotator)

    return Outbox(DicomWeb(pacs.url, timeout_s=1), tmp_path / "outbox", make, Backoff(5, 300, clock))


def put(outbox: Outbox, label: Path, now: bool = True, **info) -> str:
    key = outbox.new_key()
    outbox.add(key, IMAGE, label, {"label_info": [{"name": "liver", "idx": 1}], **info}, "ann", now)
    return key


def test_a_label_is_delivered_and_only_its_record_stays(outbox, pacs, label, tmp_path):
    key = put(outbox, label)
    assert outbox.get(key).state is Delivery.QUEUED
    outbox.deliver_due()
    (seg,) = pacs.segs()
    assert outbox.get(key).instance == seg.SOPInstanceUID
    assert str(seg.ContentCreatorName) == "ann^"
    assert outbox.shown(key)["state"] == "delivered"
    assert [path.name for path in (tmp_path / "outbox").iterdir()] == [f"{key}.json"]
    assert outbox.ours().keys() == {seg.SOPInstanceUID}
    outbox.deliver_due()
    assert pacs.count("POST", "studies") == 1


def test_ten_minutes_without_the_pacs(outbox, pacs, label, clock, volume, tmp_path):
    pacs.stop()
    keys = [put(outbox, label) for _ in range(3)]
    began = clock.now
    while clock.now < began + 600:
        outbox.deliver_due()
        clock.now += 1
    attempts = outbox.get(keys[0]).attempts
    assert 5 <= attempts <= 9
    assert {outbox.get(key).state for key in keys} == {Delivery.QUEUED}
    assert "cannot be reached" in outbox.get(keys[0]).error
    pacs.start()
    outbox.deliver_due()
    assert not pacs.segs(), "still backing off"
    outbox.hurry()
    outbox.deliver_due()
    assert {outbox.get(key).state for key in keys} == {Delivery.DELIVERED}
    assert len(pacs.segs()) == 3


def test_an_answer_that_never_came_makes_no_second_copy(outbox, pacs, label, clock):
    pacs.forgets_answers = True
    key = put(outbox, label)
    outbox.deliver_due()
    assert outbox.get(key).state is Delivery.QUEUED
    pacs.forgets_answers = False
    clock.now += 10
    outbox.deliver_due()
    assert outbox.get(key).state is Delivery.DELIVERED
    assert pacs.count("POST", "studies") == 1
    assert len(pacs.segs()) == 1


def test_a_silent_pacs_gets_the_same_instance_again(outbox, pacs, label, clock):
    key = put(outbox, label)
    before = outbox.get(key).instance
    pacs.silent_s = 3
    outbox.deliver_due()
    pacs.silent_s = 0
    clock.now += 10
    outbox.deliver_due()
    assert outbox.get(key).state is Delivery.DELIVERED
    assert outbox.get(key).instance == before == pacs.segs()[0].SOPInstanceUID


def test_a_refusal_is_kept_with_its_reason_and_holds_up_nobody(outbox, pacs, label):
    first, second = put(outbox, label), put(outbox, label)
    refused = outbox.get(first).instance
    pacs.fault = lambda method, path: (409, '{"Message": "study is archived"}') if not outbox.get(first).attempts else None
    outbox.deliver_due()
    assert outbox.get(first).state is Delivery.REFUSED
    assert "study is archived" in outbox.get(first).error
    assert outbox.get(second).state is Delivery.DELIVERED
    outbox.retry(first)
    outbox.deliver_due()
    assert outbox.get(first).state is Delivery.DELIVERED
    assert {seg.SOPInstanceUID for seg in pacs.segs()} >= {refused}
    with pytest.raises(InputError, match="delivered"):
        outbox.retry(first)


def test_one_label_that_breaks_the_pacs_holds_up_nobody(outbox, pacs, label, clock):
    poison, other = put(outbox, label), put(outbox, label)
    pacs.fault = lambda method, path: 500 if outbox.get(poison).attempts == 0 else None
    outbox.deliver_due()
    assert outbox.get(poison).state is Delivery.QUEUED
    assert outbox.get(other).state is Delivery.DELIVERED
    clock.now += 10
    outbox.deliver_due()
    assert outbox.get(poison).state is Delivery.DELIVERED


def test_an_empty_label_stays_here(outbox, pacs, volume, tmp_path):
    write_mask(tmp_path / "empty.nrrd", np.zeros(volume.data.shape, dtype=np.uint8), volume)
    key = put(outbox, tmp_path / "empty.nrrd")
    assert outbox.get(key).state is Delivery.LOCAL
    assert "nothing is labelled" in outbox.get(key).error
    outbox.deliver_due()
    assert not pacs.asked


def test_what_is_no_label_is_refused_at_once(outbox, tmp_path):
    (tmp_path / "junk.nrrd").write_bytes(b"junk")
    key = put(outbox, tmp_path / "junk.nrrd")
    assert outbox.get(key).state is Delivery.REFUSED
    assert "cannot be used" in outbox.get(key).error


def test_a_label_waits_for_an_image_that_is_not_here(pacs, label, tmp_path, volume, clock):
    here = threading.Event()

    def make(item, path: Path, seg: Path) -> None:
        if not here.is_set():
            raise PacsUnreachable("the image is not here")
        write_label(seg, path, item.info, volume, item.annotator)

    outbox = Outbox(DicomWeb(pacs.url, timeout_s=1), tmp_path / "outbox", make, Backoff(5, 300, clock))
    key = put(outbox, label, now=False)
    outbox.deliver_due()
    assert (outbox.get(key).state, outbox.get(key).error) == (Delivery.QUEUED, "the image is not here")
    here.set()
    clock.now += 10
    outbox.deliver_due()
    assert outbox.get(key).state is Delivery.DELIVERED


def test_a_restart_goes_on_with_the_same_instance(outbox, pacs, label, volume, tmp_path, clock):
    pacs.stop()
    key = put(outbox, label)
    outbox.deliver_due()
    again = opened(pacs, volume, tmp_path, clock)
    assert again.get(key).instance == outbox.get(key).instance
    pacs.start()
    again.deliver_due()
    assert again.get(key).state is Delivery.DELIVERED
    assert [seg.SOPInstanceUID for seg in pacs.segs()] == [outbox.get(key).instance]


def test_labels_are_delivered_while_others_come(outbox, pacs, label):
    outbox.start()
    keys = [put(outbox, label) for _ in range(5)]
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and any(outbox.get(key).state is not Delivery.DELIVERED for key in keys):
        time.sleep(0.05)
    outbox.stop()
    assert {outbox.get(key).state for key in keys} == {Delivery.DELIVERED}
    assert len(pacs.segs()) == 5


def test_a_silent_pacs_does_not_hold_up_new_labels(outbox, pacs, label):
    pacs.silent_s = 5
    put(outbox, label)
    outbox.start()
    time.sleep(0.2)
    began = time.perf_counter()
    put(outbox, label)
    assert time.perf_counter() - began < 0.8
    outbox.stop()


def test_killed_at_any_moment_nothing_taken_is_lost(pacs, volume, label, tmp_path, clock):
    code = (
        "import sys; from pathlib import Path; from lib.imaging.load import load_volume\n"
        "from lib.server.pacs.outbox import Backoff, Outbox; from lib.server.pacs.segs import write_label\n"
        "from lib.server.pacs.web import DicomWeb\n"
        "volume = load_volume(Path(sys.argv[1])); make = lambda i, l, s: write_label(s, l, i.info, volume, i.annotator)\n"
        "box = Outbox(DicomWeb(sys.argv[2], timeout_s=1), Path(sys.argv[3]), make, Backoff(0.1, 1)); box.start()\n"
        "while True:\n"
        "    key = box.new_key(); box.add(key, '1.2.3', Path(sys.argv[4]), {}, '', True); print(key, flush=True)\n"
    )
    arguments = [str(volume.source), pacs.url, str(tmp_path / "outbox"), str(label)]
    child = subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    taken = [child.stdout.readline().strip() for _ in range(4)]
    os.kill(child.pid, signal.SIGKILL)
    taken += [line.strip() for line in child.stdout if len(line) == 17]
    child.wait()
    outbox = opened(pacs, volume, tmp_path, clock)
    assert {item.key for item in outbox.items} >= set(taken)
    outbox.deliver_due()
    assert {item.state for item in outbox.items} == {Delivery.DELIVERED}
    for item in outbox.items:
        pydicom.dcmread(BytesIO(pacs.held[item.instance]))
    assert len(pacs.segs()) == len(outbox.items)
    for path in (tmp_path / "outbox").glob("*.json"):
        json.loads(path.read_text())


def test_two_processes_with_one_folder_send_a_label_once(outbox, pacs, label, volume, tmp_path, clock):
    key = put(outbox, label)
    other = opened(pacs, volume, tmp_path, clock)
    outbox.deliver_due()
    other.deliver_due()
    assert other.get(key).state is Delivery.DELIVERED
    assert pacs.count("POST", "studies") == 1


FULL = (
    409,
    '{"00081198": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": ["INSTANCE"]},'
    ' "00081197": {"vr": "US", "Value": [42752]}}]}}',
)


def test_a_series_that_the_pacs_does_not_know_yet_is_sent(outbox, pacs, label, clock):
    pacs.stop()
    key = put(outbox, label)
    outbox.deliver_due()
    pacs.start()
    pacs.fault = lambda method, path: (404, '{"message": "no such series"}') if path.endswith("/instances") else None
    clock.now += 10
    outbox.deliver_due()
    assert outbox.get(key).state is Delivery.DELIVERED
    assert len(pacs.segs()) == 1


@pytest.mark.parametrize("answer", [FULL, (404, "default backend")])
def test_a_full_disk_or_a_gateway_is_no_refusal_for_good(outbox, pacs, label, clock, answer):
    key = put(outbox, label)
    status, body = answer[0], answer[1].replace("INSTANCE", outbox.get(key).instance)
    pacs.fault = lambda method, path: (status, body)
    outbox.deliver_due()
    assert outbox.get(key).state is Delivery.QUEUED
    assert outbox.get(key).error
    pacs.fault = lambda method, path: None
    clock.now += 10
    outbox.deliver_due()
    assert outbox.get(key).state is Delivery.DELIVERED
