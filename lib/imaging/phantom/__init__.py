"""The CT phantom: `make_phantom` makes one, `write_series` and `write_truth` write it as DICOM and as reference labels."""

from lib.imaging.phantom.dicom import write_series, write_truth
from lib.imaging.phantom.model import Phantom, make_phantom
from lib.imaging.phantom.tissues import Phase

__all__ = ["Phantom", "Phase", "make_phantom", "write_series", "write_truth"]
