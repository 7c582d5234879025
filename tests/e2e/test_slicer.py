"""3D Slicer's module MONAI Label, request for request, on a folder and on a PACS: from the prompt to the submitted label."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nrrd
import numpy as np
import pytest
import SimpleITK as sitk
from monailabel.client import MONAILabelClient
from monailabel.client.client import MONAILabelClientException

from lib.engines.evaluation import dice
from lib.imaging.masks import write_volume
from lib.imaging.phantom import Phantom, make_phantom, write_series
from lib.server.process import ServerProcess
from tests.e2e.conftest import voxel_in
from tests.e2e.orthanc import site
from tests.e2e.slicer import Slicer

pytestmark = pytest.mark.e2e


class Place:
    """Where the module works: `do` runs something where the server can be reached."""

    def __init__(self, phantom: Phantom, url: str, do: Callable[..., Any], shared_disk: bool):
        self.phantom = phantom
        self.url = url
        self.do = do
        self.shared_disk = shared_disk


@pytest.fixture(scope="module")
def phantom():
    return make_phantom(3, spacing=(4.0, 4.0, 9.0))


@pytest.fixture(scope="module", params=["folder", "pacs"])
def place(request, phantom, tmp_path_factory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "folder":
        (folder / "studies").mkdir()
        write_volume(folder / "studies" / "ct.nii.gz", phantom.volume)
        with ServerProcess(folder / "studies", folder / "server.log") as server:
            yield Place(phantom, server.url, lambda function, *given: function(*given), True)
    else:
        write_series(phantom, folder / "ct")
        with site(folder / "site", sorted((folder / "ct").iterdir())) as running:
            yield Place(phantom, running.server.url, running.namespace.call, False)


@pytest.fixture
def user(place, tmp_path, request):
    person = Slicer(MONAILabelClient, place.url, tmp_path, user=request.node.name.split("[")[0])
    place.do(person.connect)
    place.do(person.next_sample, place.shared_disk)
    return person


def voxels_of(path: str) -> np.ndarray:
    if path.endswith(".nrrd"):
        return nrrd.read(path)[0]
    return sitk.GetArrayFromImage(sitk.ReadImage(path)).transpose(2, 1, 0)


def test_the_module_shows_what_the_server_has(user, place):
    assert [name for name, model in user.info["models"].items() if model["type"] == "segmentation"] == ["ibis_agent"]
    assert {name for name, model in user.info["models"].items() if model["type"] == "deepgrow"} == {
        "ibis_click_2d",
        "ibis_click_3d",
    }
    assert user.options("models", "ibis_agent")[0] == "prompt"
    assert next(iter(user.info["strategies"]))
    displayed = sitk.GetArrayFromImage(user.volume).transpose(2, 1, 0)
    assert np.array_equal(displayed, place.phantom.volume.data)
    assert list(user.segments) == user.info["labels"]


def test_auto_segmentation_with_a_typed_prompt(user, place):
    user.set_option("ibis_agent", "prompt", "the liver; spleen")
    user.set_option("ibis_agent", "window", "percentile")
    user.set_option("ibis_agent", "window", "auto")
    place.do(user.auto_segmentation)
    assert dice(user.segments["the liver"], place.phantom.labels["liver"]) > 0.75
    assert dice(user.segments["spleen"], place.phantom.labels["spleen"]) > 0.6
    assert user.params["status"] == "complete"


def test_auto_segmentation_without_a_prompt_says_so(user, place):
    with pytest.raises(MONAILabelClientException, match="prompt"):
        place.do(user.auto_segmentation)


def test_smart_edit_on_one_slice(user, place):
    truth = place.phantom.labels["liver"]
    point = voxel_in(truth)
    other = voxel_in(truth, point[2] + 2)
    place.do(user.smart_edit, "ibis_click_2d", "liver", [point, other], [])
    assert user.segments["liver"][:, :, other[2]].any()
    assert not user.segments["liver"][:, :, point[2]].any(), "only the last point's slice is sent"
    first = user.segments["liver"].copy()
    place.do(user.smart_edit, "ibis_click_2d", "liver", [other, point], [])
    assert user.segments["liver"][tuple(point)]
    assert np.array_equal(user.segments["liver"][:, :, other[2]], first[:, :, other[2]])
    inside = np.argwhere(user.segments["liver"][:, :, point[2]])
    away = [*map(int, inside[np.abs(inside - point[:2]).sum(axis=1).argmax()]), point[2]]
    place.do(user.smart_edit, "ibis_click_2d", "liver", [point], [away])
    assert user.segments["liver"][tuple(point)]
    assert not user.segments["liver"][tuple(away)]


def test_smart_edit_in_three_dimensions_and_another_segment(user, place):
    liver, spleen = place.phantom.labels["liver"], place.phantom.labels["spleen"]
    place.do(user.smart_edit, "ibis_click_3d", "liver", [voxel_in(liver)], [])
    assert dice(user.segments["liver"], liver) > 0.5
    before = user.segments["liver"].copy()
    place.do(user.smart_edit, "ibis_click_3d", "my spleen", [voxel_in(spleen)], [])
    assert user.segments["my spleen"][tuple(voxel_in(spleen))]
    assert np.array_equal(user.segments["liver"], before)


def test_a_segments_name_is_the_prompt_when_there_is_no_point(user, place):
    user.add_segment("the spleen")
    place.do(user.smart_edit, "ibis_click_3d", "the spleen", [], [])
    assert dice(user.segments["the spleen"], place.phantom.labels["spleen"]) > 0.6


def test_a_box_is_answered_by_a_sentence(user, place):
    with pytest.raises(MONAILabelClientException, match="foreground point"):
        place.do(user.smart_edit, "ibis_click_2d", "liver", [], [], [10, 20, 10, 20, 5, 5])
    point = voxel_in(place.phantom.labels["liver"])
    place.do(user.smart_edit, "ibis_click_2d", "liver", [point], [], [0, 99, 0, 99, 0, 40])
    assert user.segments["liver"][tuple(point)]


def test_a_prediction_of_the_night_is_shown_with_the_next_sample(user, place, tmp_path):
    user.set_option("ibis_agent", "prompt", "liver")
    place.do(user.auto_segmentation)
    mask = user.segments["liver"]
    path = tmp_path / "night.nii.gz"
    image = sitk.GetImageFromArray(mask.astype(np.uint8).transpose(2, 1, 0))
    image.CopyInformation(user.volume)
    sitk.WriteImage(image, str(path))
    client = MONAILabelClient(place.url, str(tmp_path))
    place.do(client.save_label, user.sample["id"], str(path), "original", {"params": {"label_names": {"liver": 1}}})
    place.do(user.next_sample, place.shared_disk)
    assert np.array_equal(user.segments["liver"], mask)


def test_a_volume_of_the_users_own(user, place, tmp_path):
    mine = tmp_path / "mine.nii.gz"
    write_volume(mine, place.phantom.volume)
    if not place.shared_disk:
        with pytest.raises(MONAILabelClientException, match="PACS"):
            place.do(user.upload, Path(mine), "mine")
        return
    user.upload(Path(mine), "mine")
    user.set_option("ibis_agent", "prompt", "liver")
    user.auto_segmentation()
    assert dice(user.segments["liver"], place.phantom.labels["liver"]) > 0.75


def test_what_was_submitted_is_the_label_and_counts(user, place, tmp_path):
    user.set_option("ibis_agent", "prompt", "liver; spleen")
    place.do(user.auto_segmentation)
    before = user.info["datastore"]
    saved = place.do(user.submit)
    assert saved["image"] == saved["label"] == user.sample["id"]
    assert user.info["datastore"]["completed"] == max(before["completed"], 1)
    if not place.shared_disk:
        assert saved["pacs"]["state"] in ("queued", "delivered")
    client = MONAILabelClient(place.url, str(tmp_path))
    label = voxels_of(place.do(client.download_label, user.sample["id"], "final"))
    names = list(user.segments)
    assert np.array_equal(label == names.index("liver") + 1, user.segments["liver"])
    assert np.array_equal(label == names.index("spleen") + 1, user.segments["spleen"])
    stored = place.do(client.datastore)["objects"][user.sample["id"]]["labels"]["final"]["info"]
    assert stored["label_info"] == [{"name": name, "idx": number} for number, name in enumerate(names, start=1)]
