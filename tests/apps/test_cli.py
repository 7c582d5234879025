"""The command line, as a user types it."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from apps import cli
from lib.engines.evaluation import dice
from lib.imaging.load import load_volume
from lib.imaging.masks import write_mask, write_volume
from lib.imaging.phantom import make_phantom, write_series
from lib.imaging.seg import read_seg

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def phantom():
    return make_phantom(3, spacing=(4.0, 4.0, 8.0))


@pytest.fixture(scope="module")
def image(phantom, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("image") / "ct.nii.gz"
    write_volume(path, phantom.volume)
    return path


def call(*arguments) -> int:
    try:
        cli.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_segment_writes_mask_and_traces(image, phantom, tmp_path, capsys):
    assert call("segment", "--image", image, "--prompt", "liver; spleen", "--output", tmp_path) == 0
    mask = nibabel.load(tmp_path / "mask.nii.gz")
    labels = np.asarray(mask.dataobj)
    assert labels.dtype == np.uint8
    assert np.allclose(mask.affine, phantom.volume.affine)
    assert dice(labels == 1, phantom.labels["liver"]) > 0.75
    assert dice(labels == 2, phantom.labels["spleen"]) > 0.6
    trace = json.loads((tmp_path / "trace-1-liver.json").read_text())
    assert trace["schema"] == 1
    assert (tmp_path / "trace-2-spleen.html").read_text().lower().startswith("<!doctype html>")
    printed = capsys.readouterr().out
    assert "liver" in printed
    assert str(tmp_path / "mask.nii.gz") in printed


def test_segment_a_dicom_series_writes_a_coded_seg(phantom, tmp_path):
    import pydicom

    write_series(phantom, tmp_path / "series")
    arguments = ("--prompt", "left kidney", "--output", tmp_path / "out")
    assert call("segment", "--image", tmp_path / "series", *arguments) == 0
    volume = load_volume(tmp_path / "series")
    mask = np.asarray(nibabel.load(tmp_path / "out" / "mask.nii.gz").dataobj).astype(bool)
    segment = read_seg(tmp_path / "out" / "mask.seg.dcm", volume)[1]
    assert mask.any()
    assert np.array_equal(segment, mask)
    (item,) = pydicom.dcmread(tmp_path / "out" / "mask.seg.dcm").SegmentSequence
    code = item.SegmentedPropertyTypeCodeSequence[0]
    assert (code.CodeValue, code.CodingSchemeDesignator) == ("64033007", "SCT")
    assert code.SegmentedPropertyTypeModifierCodeSequence[0].CodeValue == "7771000"


def test_segment_a_picture_writes_png(phantom, tmp_path):
    k = int(phantom.labels["liver"].sum(axis=(0, 1)).argmax())
    hu = phantom.volume.data[:, :, k].astype(float).T
    Image.fromarray(np.clip((hu + 160) / 400 * 255, 0, 255).astype(np.uint8)).resize((280, 280)).save(tmp_path / "ct.png")
    assert call("segment", "--image", tmp_path / "ct.png", "--prompt", "body", "--output", tmp_path / "out") == 0
    mask = np.asarray(Image.open(tmp_path / "out" / "mask.png"))
    assert mask.shape == (280, 280)
    assert set(np.unique(mask)) == {0, 255}


def test_an_empty_mask_has_no_seg_and_says_so(phantom, tmp_path, capsys):
    write_series(phantom, tmp_path / "series")
    arguments = ("--prompt", "left kidney", "--slices", "0", "--output", tmp_path / "out")
    assert call("segment", "--image", tmp_path / "series", *arguments) == 0
    assert not np.asarray(nibabel.load(tmp_path / "out" / "mask.nii.gz").dataobj).any()
    assert not (tmp_path / "out" / "mask.seg.dcm").exists()
    assert "no mask.seg.dcm" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["segment", "--image", "IMAGE", "--prompt", "gizmo"], "gizmo"),
        (["segment", "--image", "IMAGE", "--prompt", " ; "], "--prompt"),
        (["segment", "--image", "nowhere.nii", "--prompt", "liver"], "nowhere.nii"),
        (["segment", "--image", "IMAGE", "--prompt", "liver", "--slices", "999"], "--slices"),
        (["segment", "--image", "IMAGE", "--prompt", "liver", "--window", "dark"], "--window"),
        (["segment", "--image", "IMAGE", "--prompt", "liver", "--engine", "warp"], "embedded"),
        (["segment", "--image", "IMAGE", "--prompt", "liver", "--max-turns", "0"], "max-turns"),
        (["segment", "--image", "IMAGE", "--prompt", "liver", "--plane", "tilted"], "plane"),
        (["segment", "--image", "IMAGE"], "--prompt"),
        (["evaluate", "nowhere"], "manifest.json"),
        (["serve", "--studies", "nowhere"], "nowhere"),
        (["serve", "--studies", ".", "--host", "0.0.0.0"], "IBIS_TOKEN"),
        (["serve", "--studies", ".", "--conf", "colour", "red"], "colour"),
        (["demo", "--prompt", ""], "--prompt"),
        (["nonsense"], "nonsense"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, words, image, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call(*[str(image) if word == "IMAGE" else word for word in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert words in error
    assert not list(tmp_path.iterdir())


def test_a_used_up_budget_is_exit_code_3_and_keeps_what_there_is(image, tmp_path):
    arguments = ("--prompt", "liver", "--budget-s", "0.001", "--output", tmp_path)
    assert call("segment", "--image", image, *arguments) == 3
    assert json.loads((tmp_path / "trace.json").read_text())["status"] == "incomplete"


def test_a_full_disk_is_one_line(image, tmp_path):
    arguments = ["segment", "--image", str(image), "--prompt", "liver", "--slices", "0", "--output", "/dev/full/out"]
    done = subprocess.run([sys.executable, ROOT / "main.py", *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1


def test_help_reads_well_without_loading_much():
    done = subprocess.run([sys.executable, ROOT / "main.py", "--help"], capture_output=True, text=True, check=True)
    for command in ("serve", "segment", "demo", "evaluate", "bench"):
        assert command in done.stdout


def test_conf_takes_a_key_and_a_value():
    assert cli._paired(["serve", "--conf", "workers", "3", "-c", "auth=none"]) == [
        "serve",
        "--conf",
        "workers=3",
        "-c",
        "auth=none",
    ]


def test_evaluate_prints_dice_and_false_voxels(phantom, tmp_path, capsys):
    write_volume(tmp_path / "ct.nii.gz", phantom.volume)
    truth = phantom.labels["liver"].astype(np.uint8)
    write_mask(tmp_path / "labels.nii.gz", truth, phantom.volume)
    item = {"path": "ct.nii.gz", "reference": "labels.nii.gz", "modality": "CT", "labels": {"1": "liver"}}
    (tmp_path / "manifest.json").write_text(json.dumps({"items": [item]}))
    assert call("evaluate", tmp_path, "--structure", "liver") == 0
    printed = capsys.readouterr().out
    assert "liver" in printed
    assert "0.9" in printed or "0.8" in printed

    shifted = phantom.volume.affine.copy()
    shifted[0, 3] += 5
    write_mask(tmp_path / "labels.nii.gz", truth, replace(phantom.volume, affine=shifted))
    assert call("evaluate", tmp_path, "--structure", "liver") == 0
    assert "no reference" in capsys.readouterr().out
