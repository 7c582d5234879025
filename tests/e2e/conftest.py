"""One real server for the end-to-end tests, on a small phantom as a DICOM series and as NIfTI."""

import json
from pathlib import Path

import numpy as np
import pytest
from monailabel.client import MONAILabelClient

from lib.imaging.masks import write_volume
from lib.imaging.phantom import make_phantom, write_series
from lib.server.process import ServerProcess


@pytest.fixture(scope="session")
def phantom():
    return make_phantom(3, spacing=(3.0, 3.0, 6.0))


@pytest.fixture(scope="session")
def studies(tmp_path_factory, phantom) -> Path:
    folder = tmp_path_factory.mktemp("studies")
    write_series(phantom, folder / "patient one" / "ct")
    write_volume(folder / "nifti.nii.gz", phantom.volume)
    for number in range(4):
        write_volume(folder / f"copy{number}.nii.gz", make_phantom(10 + number, spacing=(4.0, 4.0, 8.0)).volume)
    return folder


@pytest.fixture(scope="session")
def server(studies, tmp_path_factory):
    with ServerProcess(studies, tmp_path_factory.mktemp("log") / "server.log") as running:
        yield running


@pytest.fixture
def client(server, tmp_path) -> MONAILabelClient:
    return MONAILabelClient(server.url, tmpdir=str(tmp_path), client_id="user-xyz")


def form(**params) -> dict[str, str]:
    return {"params": json.dumps(params)}


def voxel_in(mask: np.ndarray, k: int | None = None) -> list[int]:
    """A voxel `[i, j, k]` well inside a bool mask, on slice `k` or on the slice where it is largest."""
    from scipy import ndimage

    k = int(mask.sum(axis=(0, 1)).argmax()) if k is None else k
    depth = ndimage.distance_transform_edt(np.pad(mask[:, :, k], 1))[1:-1, 1:-1]
    i, j = np.unravel_index(depth.argmax(), depth.shape)
    return [int(i), int(j), k]
