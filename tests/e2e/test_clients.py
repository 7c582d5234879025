"""What unmodified clients do, against the started server: the wheel's own client, Slicer's requests, OHIF's requests."""

import io
import json
import re
from email import message_from_bytes
from email.policy import HTTP
from pathlib import Path

import httpx
import nrrd
import numpy as np
import pytest
import SimpleITK as sitk

from lib.engines.evaluation import dice
from lib.imaging.load import load_volume
from lib.imaging.seg import read_seg
from tests.e2e.conftest import form, voxel_in

pytestmark = pytest.mark.e2e

SERIES = "patient_one_ct"
SLICER = {"result_extension": ".nrrd", "result_dtype": "uint8"}
OHIF = {"result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": False, "restore_label_idx": False}


def parts(response: httpx.Response) -> tuple[dict, bytes]:
    """The two parts of a multipart answer: params and image."""
    head = f"Content-Type: {response.headers['content-type']}\r\n\r\n".encode()
    message = message_from_bytes(head + response.content, policy=HTTP)
    found = {
        part.get_param("name", header="content-disposition"): part.get_payload(decode=True) for part in message.iter_parts()
    }
    return json.loads(found["params"]), found["image"]


def nrrd_array(content: bytes) -> tuple[np.ndarray, dict]:
    with io.BytesIO(content) as stream:
        header = nrrd.read_header(stream)
        return nrrd.read_data(header, stream), header


def test_info_is_what_both_viewers_expect(client):
    info = client.info()
    assert info["name"] == "IBIS Label"
    assert "config" not in info
    assert isinstance(info["labels"], list)
    models = info["models"]
    assert {name: model["type"] for name, model in models.items()} == {
        "ibis_agent": "segmentation",
        "ibis_click_2d": "deepgrow",
        "ibis_click_3d": "deepgrow",
    }
    assert [models[name]["dimension"] for name in sorted(models)] == [3, 2, 3]
    labels = models["ibis_agent"]["labels"]
    assert sorted(labels.values()) == list(range(1, len(labels) + 1))
    assert labels["target"] == 1
    assert info["labels"] == [name for name, _ in sorted(labels.items(), key=lambda item: item[1])]
    config = models["ibis_agent"]["config"]
    assert config["prompt"] == ""
    assert isinstance(config["window"], list)
    assert all(isinstance(value, int | float | bool | str | list) for value in config.values())


def test_the_whole_flow_with_the_wheels_own_client(client, server, studies, phantom, tmp_path):
    sample = client.next_sample("random", {})
    assert sample["id"] in client.datastore()["objects"]

    path, params = client.infer("ibis_agent", SERIES, {"prompt": "the liver", **SLICER})
    mask = sitk.GetArrayFromImage(sitk.ReadImage(path)).transpose(2, 1, 0)
    assert mask.shape == phantom.volume.data.shape
    assert dice(mask > 0, phantom.labels["liver"]) > 0.75
    assert params["label_names"] == {"the liver": 1}
    assert params["status"] == "complete"

    point = voxel_in(phantom.labels["liver"])
    path2d, _ = client.infer("ibis_click_2d", SERIES, {"foreground": [point], "background": [], "label": "liver", **SLICER})
    flat = nrrd.read(path2d)[0]
    assert flat[tuple(point)] == 1
    assert set(np.flatnonzero(flat.any(axis=(0, 1)))) == {point[2]}

    path3d, _ = client.infer("ibis_click_3d", SERIES, {"foreground": [point], "background": [], "label": "liver", **SLICER})
    deep = nrrd.read(path3d)[0]
    assert deep.any(axis=(0, 1)).sum() > 3
    assert dice(deep > 0, phantom.labels["liver"]) > 0.5

    saved = client.save_label(SERIES, path, params={"label_info": [{"name": "liver", "idx": 1}]})
    assert saved == {"image": SERIES, "label": SERIES}
    stored = client.datastore()["objects"][SERIES]["labels"]["final"]["info"]
    assert stored["label_info"] == [{"name": "liver", "idx": 1}]
    again = nrrd.read(client.download_label(SERIES, "final"))[0]
    assert np.array_equal(again, mask)
    assert client.info()["datastore"]["completed"] == 1


def test_a_session_upload_is_segmented_without_being_stored(client, studies):
    session = client.create_session(str(studies / "nifti.nii.gz"))["session_id"]
    before = set(client.datastore()["objects"])
    path, params = client.infer("ibis_agent", "", {"prompt": "spleen", **SLICER}, session_id=session)
    assert Path(path).stat().st_size > 0
    assert params["runs"][0]["prompt"] == "spleen"
    assert set(client.datastore()["objects"]) == before


def test_slicers_request(server, phantom):
    body = form(**SLICER, prompt="left kidney", slices="all", max_turns=20, budget_s=600.0, client_id="user-xyz")
    answer = httpx.post(f"{server.url}/infer/ibis_agent?image={SERIES}", data=body, timeout=120)
    params, image = parts(answer)
    array, header = nrrd_array(image)
    assert params["label_names"] == {"left kidney": 1}
    assert array.dtype == np.uint8
    assert header["space"] == "left-posterior-superior"
    affine = np.diag([-1.0, -1, 1, 1]) @ phantom.volume.affine
    assert np.allclose(header["space directions"].T, affine[:3, :3], atol=1e-4)
    assert np.allclose(header["space origin"], affine[:3, 3], atol=1e-3)
    assert dice(array > 0, phantom.labels["kidney_left"]) > 0.6


def test_ohifs_request_gets_bare_raw_nrrd_in_the_files_own_order(server, phantom):
    body = form(**OHIF, prompt="the liver", foreground=[[9999, 9999, 9999]])
    answer = httpx.post(f"{server.url}/infer/ibis_agent?image=nifti&output=image", data=body, timeout=120)
    array, header = nrrd_array(answer.content)
    assert header["encoding"] == "raw"
    assert array.shape == phantom.volume.data.shape
    data = answer.content[-array.size :]
    assert np.frombuffer(data, np.uint8).tobytes() == array.ravel(order="F").tobytes()
    assert dice(array > 0, phantom.labels["liver"]) > 0.75


def test_ohifs_class_prompt_answers_in_this_models_labels(server, client):
    labels = client.info()["models"]["ibis_agent"]["labels"]
    body = form(**OHIF, label_prompt=[labels["spleen"]])
    answer = httpx.post(f"{server.url}/infer/ibis_agent?image=nifti&output=image", data=body, timeout=120)
    assert set(np.unique(nrrd_array(answer.content)[0])) <= {0, labels["spleen"]}


def test_ohifs_points(server, phantom):
    point = voxel_in(phantom.labels["spleen"])
    away = voxel_in(phantom.labels["liver"], point[2]) if phantom.labels["liver"][:, :, point[2]].any() else [1, 1, point[2]]
    body = form(**OHIF, foreground=[point], background=[away])
    answer = httpx.post(f"{server.url}/infer/ibis_click_2d?image=nifti&output=image", data=body, timeout=120)
    array = nrrd_array(answer.content)[0]
    assert array[tuple(point)] == 1
    assert array[tuple(away)] == 0


def test_slicers_segment_name_is_a_prompt(server, phantom):
    body = form(**SLICER, label="spleen", foreground=[], background=[])
    params, image = parts(httpx.post(f"{server.url}/infer/ibis_click_3d?image={SERIES}", data=body, timeout=120))
    assert params["label_names"] == {"spleen": 1}
    assert nrrd_array(image)[0].any()


def test_several_targets_have_positional_labels(server):
    body = form(**SLICER, prompt="liver; spleen")
    params, image = parts(httpx.post(f"{server.url}/infer/ibis_agent?image=nifti", data=body, timeout=120))
    assert params["label_names"] == {"liver": 1, "spleen": 2}
    assert set(np.unique(nrrd_array(image)[0])) == {0, 1, 2}


def test_absent_is_a_mask_file_of_zeros(server):
    body = form(**SLICER, prompt="left kidney", slices="100-104")
    answer = httpx.post(f"{server.url}/infer/ibis_agent?image=nifti", data=body, timeout=120)
    params, image = parts(answer)
    assert "absent" in params["answer"]
    assert not nrrd_array(image)[0].any()
    assert {entry["stop_reason"] for entry in params["runs"][0]["slices"]} == {"absent"}


def test_a_dicom_seg_of_a_stored_series(server, phantom, tmp_path):
    answer = httpx.post(
        f"{server.url}/infer/ibis_agent?image={SERIES}&output=dicom_seg", data=form(prompt="liver"), timeout=120
    )
    assert answer.headers["content-type"] == "application/dicom"
    (tmp_path / "x.dcm").write_bytes(answer.content)
    segment = read_seg(tmp_path / "x.dcm", phantom.volume)[1]
    assert dice(segment, phantom.labels["liver"]) > 0.75


def test_the_trace_of_a_run_can_be_opened(server):
    body = form(prompt="liver", slices="30-34")
    params = httpx.post(f"{server.url}/infer/ibis_agent?image={SERIES}&output=json", data=body, timeout=120).json()
    (summary,) = params["runs"]
    page = httpx.get(server.url + summary["trace"], timeout=60)
    assert page.status_code == 200
    assert re.search(r"<!doctype html>", page.text, re.IGNORECASE)
    trace = httpx.get(f"{server.url}/ibis/runs/{summary['id']}/trace").json()
    assert [entry["index"] for entry in trace["slices"]] == [30, 31, 32, 33, 34]
    assert httpx.get(f"{server.url}/ibis/runs/0123456789abcdef/trace").status_code == 404


def test_a_series_is_downloaded_as_one_file_with_its_geometry(server, phantom, tmp_path):
    answer = httpx.get(f"{server.url}/datastore/image?image={SERIES}", timeout=60)
    (tmp_path / "x.nrrd").write_bytes(answer.content)
    volume = load_volume(tmp_path / "x.nrrd")
    assert np.array_equal(volume.data, phantom.volume.data)
    assert np.allclose(volume.affine, phantom.volume.affine, atol=1e-3)
