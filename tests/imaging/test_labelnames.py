"""The names that label files give to their values."""

import nrrd
import numpy as np
import pytest

from lib.errors import ImageError
from lib.imaging.labelnames import names_in
from lib.imaging.load import load_volume
from lib.imaging.masks import write_mask
from lib.imaging.phantom import make_phantom, write_series
from lib.imaging.seg import Segment, write_seg


def test_a_dicom_seg_and_a_slicer_file_name_their_segments_and_a_nifti_does_not(tmp_path):
    phantom = make_phantom(1, spacing=(8.0, 8.0, 20.0))
    write_series(phantom, tmp_path / "ct")
    volume = load_volume(tmp_path / "ct")
    labels = np.zeros(volume.data.shape, np.uint8)
    labels[2:4, 2:4, 1] = 1
    labels[5:7, 2:4, 1] = 2
    write_seg(tmp_path / "label.dcm", labels, volume, [Segment(1, "liver", 1), Segment(2, "left kidney", 2)], "test")
    assert names_in(tmp_path / "label.dcm") == {1: "liver", 2: "left kidney"}
    write_mask(tmp_path / "label.nii.gz", labels, volume)
    assert names_in(tmp_path / "label.nii.gz") == {}
    header = {"Segment0_Name": "Liver", "Segment0_LabelValue": "3", "Segment1_Name": "no value"}
    nrrd.write(str(tmp_path / "label.seg.nrrd"), labels, header)
    assert names_in(tmp_path / "label.seg.nrrd") == {3: "Liver"}


def test_a_damaged_file_is_an_image_error(tmp_path):
    path = tmp_path / "label.nrrd"
    path.write_bytes(b"NRRD0004\ndimension: many\n\n")
    with pytest.raises(ImageError, match="damaged"):
        names_in(path)
