"""A real PACS: text in, DICOM SEG out and back, and what happens when it goes away."""

import io
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import highdicom
import httpx
import nrrd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from monailabel.client import MONAILabelClient
from scipy.spatial import cKDTree

from lib.imaging.load import load_volume
from lib.imaging.masks import write_mask
from lib.imaging.volume import Volume
from lib.server.process import free_port
from tests.e2e.conftest import form
from tests.e2e.orthanc import Site, site

pytestmark = pytest.mark.e2e

CT, MR = "dicom_ct_j2k_ts/series_fixed_uids", "dicom_mr_rtstruct_sts001/series"
TILTED, ENHANCED = "dicom_ct_tilt_phantom/series", "dicom_mr_enhanced_xa30/enhanced.dcm"
LARGE = "dicom_ct_liver_crlm1004/series"


def files_of(path: Path) -> list[Path]:
    return sorted(path.iterdir()) if path.is_dir() else [path]


class Hospital:
    """The site, and the series that its PACS holds."""

    def __init__(self, running: Site, data: Path, before: dict[str, Any]):
        self.site = running
        self.before = before
        """What the server said while the PACS was not there yet."""
        self.volumes: dict[str, Volume] = {}
        self.ids: dict[str, str] = {}
        for name in (CT, MR, TILTED, ENHANCED, LARGE):
            header = pydicom.dcmread(files_of(data / name)[0], stop_before_pixels=True)
            self.ids[name] = str(header.SeriesInstanceUID)
        self._data = data

    def volume(self, name: str) -> Volume:
        if name not in self.volumes:
            self.volumes[name] = load_volume(self._data / name)
        return self.volumes[name]

    def info(self) -> dict[str, Any]:
        """`/info/`, which must answer at once whatever the PACS does."""
        began = time.perf_counter()
        found = self.site.ask("GET", "/info/").json()
        assert time.perf_counter() - began < 1
        return found

    def state(self) -> dict[str, Any]:
        return self.site.ask("GET", "/ibis/pacs").json()

    def submit(self, name: str, label: Path, names: dict[str, int]) -> dict[str, Any]:
        """By the stock route; returns where the label is."""
        info = [{"name": key, "idx": value} for key, value in names.items()]
        answer = self.site.ask(
            "PUT",
            f"/datastore/label?image={self.ids[name]}",
            data=form(label_info=info, client_id="Ann Reader"),
            files={"label": (label.name, label.read_bytes())},
        )
        assert answer.status_code == 200, answer.text
        return answer.json()["pacs"]

    def delivered(self, key: str) -> dict[str, Any]:
        return until(lambda: next((i for i in self.outbox() if i["id"] == key and i["state"] == "delivered"), None))

    def outbox(self) -> list[dict[str, Any]]:
        return self.state()["outbox"]["items"]

    def seg(self, item: dict[str, Any], folder: Path) -> Path:
        """The DICOM SEG of an item as the PACS gives it out."""
        (series,) = self.site.dicom("GET", "series", params={"SeriesInstanceUID": item["series"]}).json()
        study = series["0020000D"]["Value"][0]
        path = folder / "from_pacs.dcm"
        address = f"studies/{study}/series/{item['series']}/instances/{item['instance']}"
        answer = self.site.dicom("GET", address, headers={"Accept": 'multipart/related; type="application/dicom"'})
        content = answer.content
        path.write_bytes(content[content.index(b"\r\n\r\n") + 4 : content.rindex(b"\r\n--")])
        return path

    def segmentations(self) -> set[str]:
        answer = self.site.dicom("GET", "instances", params={"Modality": "SEG"})
        return {item["00080018"]["Value"][0] for item in answer.json()}


def until(found: Any, seconds: float = 40, pause_s: float = 0.1) -> Any:
    """What `found()` gives as soon as it gives something."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        result = found()
        if result:
            return result
        time.sleep(pause_s)
    raise AssertionError(f"nothing came in {seconds} s")


@pytest.fixture(scope="module")
def hospital(data, tmp_path_factory) -> Iterator[Hospital]:
    files = [path for name in (CT, MR, TILTED, ENHANCED, LARGE) for path in files_of(data / name)]
    with site(tmp_path_factory.mktemp("hospital"), files, start_pacs=False) as running:
        began = time.perf_counter()
        before = running.ask("GET", "/info/").json()
        before["seconds"] = time.perf_counter() - began
        before["state"] = running.ask("GET", "/ibis/pacs").json()
        running.pacs.start()
        found = Hospital(running, data, before)
        until(lambda: running.ask("GET", "/info/").json()["datastore"]["total"] == 5)
        yield found


@pytest.fixture
def drawn(hospital, tmp_path):
    """Makes a label file with boxes of the values 1..n in a series' grid, and its array."""

    def make(name: str, count: int = 1, suffix: str = ".nrrd") -> tuple[Path, np.ndarray]:
        volume = hospital.volume(name)
        mask = np.zeros(volume.data.shape, dtype=np.uint8)
        for value in range(1, count + 1):
            mask[10 * value : 10 * value + 8, 20:40, 3 : 3 + 3 * value] = value
        path = tmp_path / f"label{suffix}"
        write_mask(path, mask, volume)
        return path, mask

    return make


def world_points(seg: pydicom.Dataset, number: int) -> np.ndarray:
    """LPS mm of a segment's pixels, from the frames' own positions (PS3.3 C.7.6.2.1.1)."""
    pixels = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)
    shared = seg.SharedFunctionalGroupsSequence[0]
    spacing = [float(v) for v in shared.PixelMeasuresSequence[0].PixelSpacing]
    directions = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    points = []
    for group, plane in zip(seg.PerFrameFunctionalGroupsSequence, pixels, strict=True):
        if group.SegmentIdentificationSequence[0].ReferencedSegmentNumber == number:
            rows, columns = np.nonzero(plane)
            origin = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
            points.append(origin + columns[:, None] * directions[0] * spacing[1] + rows[:, None] * directions[1] * spacing[0])
    return np.concatenate(points)


def physical_points(mask: sitk.Image, value: int) -> np.ndarray:
    """LPS mm of the voxels with a value, by SimpleITK's geometry."""
    index = np.argwhere(sitk.GetArrayViewFromImage(mask) == value)[:, ::-1]
    return np.array(mask.GetOrigin()) + (index * mask.GetSpacing()) @ np.reshape(mask.GetDirection(), (3, 3)).T


def assert_valid(path: Path) -> None:
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed: apt install dicom3tools")
    report = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True)
    errors = [line for line in (report.stdout + report.stderr).splitlines() if line.startswith("Error")]
    assert errors == [], path


def test_the_server_starts_without_the_pacs_and_finds_it_later(hospital):
    assert hospital.before["seconds"] < 1
    assert hospital.before["datastore"]["total"] == 0
    assert hospital.before["state"]["reachable"] is False
    assert "cannot be reached" in hospital.before["datastore"]["pacs"]["error"]
    assert hospital.info()["datastore"]["pacs"] == {"reachable": True, "error": ""}
    assert hospital.state()["images"] == 5


def test_a_pacs_that_dies_in_the_middle_of_a_download(hospital):
    image = hospital.ids[LARGE]
    incoming = hospital.site.cache / "dicom" / image / "incoming"
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(hospital.site.ask, "HEAD", f"/datastore/image?image={image}")
        until(lambda: incoming.is_dir() and len(list(incoming.glob("[!.]*"))) >= 3, pause_s=0.01)
        hospital.site.pacs.freeze()
        hospital.info()
        status = asking.result().status_code
    fetched = len(list(incoming.glob("[!.]*")))
    assert 3 <= fetched < 41
    assert status == 503
    hospital.site.pacs.kill()
    hospital.info()
    answer = hospital.site.ask("POST", f"/infer/ibis_agent?image={image}", data=form(prompt="liver"))
    assert (answer.status_code, "PACS" in answer.json()["detail"]) == (503, True)
    hospital.site.pacs.start()
    answer = until(lambda: (a := hospital.site.ask("GET", f"/datastore/image?image={image}")).status_code == 200 and a)
    header, stream = _opened(answer)
    np.testing.assert_array_equal(nrrd.read_data(header, stream), hospital.volume(LARGE).data)


@pytest.mark.parametrize(
    ("name", "prompt", "slices", "codes"),
    [
        (CT, "liver; spleen", "every 4", {"liver": "10200004", "spleen": "78961009"}),
        (MR, "body", "10, 20", {"body": None}),
    ],
)
def test_text_over_dicomweb_and_the_label_back(hospital, tmp_path, name, prompt, slices, codes):
    image = hospital.ids[name]
    client = MONAILabelClient(hospital.site.server.url, tmpdir=str(tmp_path), client_id="Ann Reader")
    params = {"prompt": prompt, "slices": slices, "result_extension": ".nrrd", "result_dtype": "uint8"}
    path, answer = hospital.site.namespace.call(client.infer, "ibis_agent", image, params)
    mask = sitk.ReadImage(path)
    array = sitk.GetArrayFromImage(mask)
    names = answer["label_names"]
    assert set(names) == set(codes)

    item = hospital.delivered(hospital.submit(name, Path(path), names)["id"])
    found = hospital.seg(item, tmp_path)
    assert_valid(found)
    seg = highdicom.seg.segread(str(found))
    plain = pydicom.dcmread(found)
    volume = hospital.volume(name)
    sources = [instance.sop_instance_uid for instance in volume.instances]
    pixels = seg.get_pixels_by_source_instance(sources, assert_missing_frames_are_empty=True)
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == image
    assert {str(one.SegmentLabel).lower() for one in seg.SegmentSequence} == set(codes)
    for one in seg.SegmentSequence:
        value = names[str(one.SegmentLabel).lower()]
        np.testing.assert_array_equal(pixels[..., one.SegmentNumber - 1], array == value)
        there = world_points(plain, one.SegmentNumber)
        points = physical_points(mask, value)
        assert len(there) == len(points)
        assert cKDTree(there).query(points)[0].max() < 0.01
        code = codes[str(one.SegmentLabel).lower()]
        if code:
            assert one.SegmentedPropertyTypeCodeSequence[0].CodeValue == code

    back = hospital.site.ask("GET", f"/datastore/label?label={image}&tag=final")
    np.testing.assert_array_equal(nrrd.read_data(*_opened(back)), array.transpose(2, 1, 0))


def _opened(answer: httpx.Response) -> tuple[dict, io.BytesIO]:
    stream = io.BytesIO(answer.content)
    return nrrd.read_header(stream), stream


@pytest.mark.parametrize("name", [TILTED, ENHANCED])
def test_labels_of_tilted_and_multiframe_series(hospital, drawn, tmp_path, name):
    label, _ = drawn(name, count=2)
    item = hospital.delivered(hospital.submit(name, label, {"left kidney": 1, "something new": 2})["id"])
    path = hospital.seg(item, tmp_path)
    assert_valid(path)
    kidney, other = pydicom.dcmread(path, stop_before_pixels=True).SegmentSequence
    assert kidney.SegmentedPropertyTypeCodeSequence[0].CodeValue == "64033007"
    side = kidney.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence[0]
    assert side.CodeValue == "7771000"
    assert other.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Tissue"
    assert str(pydicom.dcmread(path).ContentCreatorName) == "Ann Reader^"


def test_a_segmentation_straight_from_inference(hospital, tmp_path):
    answer = hospital.site.ask(
        "POST",
        f"/infer/ibis_agent?image={hospital.ids[CT]}&output=dicom_seg",
        data=form(prompt="spleen", slices="12"),
    )
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/dicom")
    path = tmp_path / "out.dcm"
    path.write_bytes(answer.content)
    assert_valid(path)
    (segment,) = pydicom.dcmread(path).SegmentSequence
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeValue == "78961009"


def test_an_empty_label_stays_here_and_says_so(hospital, tmp_path):
    volume = hospital.volume(MR)
    write_mask(tmp_path / "empty.nrrd", np.zeros(volume.data.shape, dtype=np.uint8), volume)
    before = hospital.segmentations()
    item = hospital.submit(MR, tmp_path / "empty.nrrd", {"liver": 1})
    assert item["state"] == "local"
    assert "empty" in item["error"]
    assert hospital.segmentations() == before


def test_a_segmentation_that_others_stored_is_a_label(hospital, data):
    reference = load_volume(data / "dicom_ct_j2k_ts/labels_series_grid.nii.gz")
    content = (data / "dicom_ct_j2k_ts/labels.seg.dcm").read_bytes()
    dataset = pydicom.dcmread(io.BytesIO(content))
    dataset.ContentDate, dataset.ContentTime = "20980101", "120000"
    ran = hospital.site.ask("POST", "/ibis/runs", json={"image": hospital.ids[CT], "prompt": "spleen", "slices": "every 8"})
    run = f"/ibis/runs/{ran.json()['id']}"
    until(lambda: hospital.site.ask("GET", run).json()["status"] == "complete")
    stream = io.BytesIO()
    dataset.save_as(stream)
    body = b"--b\r\nContent-Type: application/dicom\r\n\r\n" + stream.getvalue() + b"\r\n--b--\r\n"
    kind = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=b'}
    answer = hospital.site.ask("POST", "/proxy/dicom/wado/studies", content=body, headers=kind)
    assert answer.status_code == 200, answer.text
    uid = str(dataset.SOPInstanceUID)
    until(lambda: hospital.state()["segmentations"] == len(hospital.segmentations()))
    assert not hospital.state()["unusable"]
    assert uid in hospital.segmentations()
    image = hospital.ids[CT]
    answer = hospital.site.ask("GET", f"/datastore/label?label={image}&tag=final")
    read = nrrd.read_data(*_opened(answer))
    here = hospital.volume(CT).orientation.canonical(read)
    there = reference.orientation.canonical(reference.data)
    for value, original in enumerate((1, 5, 6, 52, 63), start=1):
        np.testing.assert_array_equal(here == value, there == original)
    info = hospital.site.ask("GET", f"/datastore/label/info?label={image}&tag=final").json()
    assert [entry["name"] for entry in info["label_info"]] == ["spleen", "liver", "stomach", "aorta", "inferior_vena_cava"]
    until(lambda: hospital.site.ask("GET", f"{run}/gradings").json()["gradings"])
    (graded,) = hospital.site.ask("GET", f"{run}/gradings").json()["gradings"]
    assert graded["source"] == "pacs"
    assert graded["dice"] > 0.5


def test_ohif_finds_studies_by_its_filters(hospital):
    ask = hospital.site.ask
    everything = ask("GET", "/proxy/dicom/qido/studies?limit=101&offset=0&includefield=00081030,00080060").json()
    assert len(everything) == 5
    assert len(ask("GET", "/proxy/dicom/qido/studies?limit=2").json()) == 2
    assert len(ask("GET", "/proxy/dicom/qido/studies?PatientName=TS*&limit=101").json()) == 1
    assert len(ask("GET", "/proxy/dicom/qido/studies?PatientName=Nobody*").json()) == 0
    assert len(ask("GET", "/proxy/dicom/qido/studies?ModalitiesInStudy=MR").json()) == 2
    assert ask("GET", "/proxy/dicom/qido/studies/..%2F..%2Fsystem").status_code == 422
    assert ask("GET", "/proxy/dicom/servers").status_code == 404


def test_the_server_can_be_let_out_of_the_namespace(hospital):
    port = free_port()
    hospital.site.namespace.forward(port, int(hospital.site.server.url.rpartition(":")[2]))
    assert httpx.get(f"http://127.0.0.1:{port}/info/").json()["name"] == "IBIS Label"
    with pytest.raises(httpx.ConnectError):
        httpx.get(hospital.site.server.url, timeout=2)


def test_next_sample_is_what_ohif_shows(hospital):
    sample = hospital.site.ask("POST", "/activelearning/random", json={"client_id": "x"}).json()
    assert sample["SeriesInstanceUID"] == sample["id"]
    assert {"StudyInstanceUID", "Modality", "StudyDate", "PatientID"} <= sample.keys()


def test_a_pacs_that_hangs_in_the_middle_of_a_store(hospital, drawn):
    before = hospital.segmentations()
    label, _ = drawn(CT)
    hospital.site.pacs.freeze()
    began = time.perf_counter()
    item = hospital.submit(CT, label, {"liver": 1})
    assert time.perf_counter() - began < 3
    assert item["state"] == "queued"
    for _ in range(8):
        hospital.info()
        time.sleep(0.5)
    waiting = next(one for one in hospital.outbox() if one["id"] == item["id"])
    assert (waiting["state"], waiting["attempts"] > 0) == ("queued", True)
    answer = hospital.site.ask("GET", "/proxy/dicom/qido/studies?limit=1")
    assert answer.status_code == 504
    hospital.site.pacs.thaw()
    done = hospital.delivered(item["id"])
    assert hospital.segmentations() - before == {done["instance"]}


def test_a_pacs_that_is_away_for_a_while(hospital, drawn):
    before = hospital.segmentations()
    hospital.site.pacs.kill()
    items = []
    for name in (CT, MR, TILTED):
        label, mask = drawn(name)
        items.append(hospital.submit(name, label, {"liver": 1}))
        read = hospital.site.ask("GET", f"/datastore/label?label={hospital.ids[name]}&tag=final")
        if name is not CT:  # its newest label is the one dated 2098
            np.testing.assert_array_equal(nrrd.read_data(*_opened(read)), mask)
    assert {item["state"] for item in items} == {"queued"}
    until(lambda: hospital.state()["reachable"] is False)
    until(lambda: min(item["attempts"] for item in hospital.outbox()[:3]) >= 1)
    answer = hospital.site.ask("POST", f"/infer/ibis_agent?image={hospital.ids[CT]}", data=form(prompt="spleen", slices="10"))
    assert answer.status_code == 200, "what was fetched can be worked on"
    assert hospital.site.ask("GET", "/proxy/dicom/qido/studies").status_code == 502
    hospital.info()
    hospital.site.pacs.start()
    instances = {hospital.delivered(item["id"])["instance"] for item in items}
    assert hospital.segmentations() - before == instances
    assert len(instances) == 3


def test_the_log_names_no_patient_and_no_series(hospital, data):
    log = hospital.site.log.read_text(encoding="utf-8", errors="replace")
    header = pydicom.dcmread(files_of(data / CT)[0], stop_before_pixels=True)
    assert "Traceback" not in log
    for secret in (str(header.PatientName), str(header.PatientID), "PatientName", *hospital.ids.values()):
        assert secret not in log, secret
