"""The tiny SAM2 that has had its lesson."""

from pathlib import Path

import numpy as np
import torch

from lib.agent.protocol import Click
from lib.engines.tiny.sam2 import make_tiny_sam2
from lib.imaging.planes import Plane, ViewGrid, ViewPoint
from lib.imaging.views import View
from lib.imaging.volume import Modality, Volume
from lib.imaging.windows import Window
from lib.segmenters.sam2 import Sam2
from lib.segmenters.sam2_load import load_sam2

torch.set_num_threads(1)
CPU = torch.device("cpu")


def test_a_click_on_a_bright_disc_gives_the_disc_and_the_next_slices_have_it_too(tmp_path: Path) -> None:
    segmenter = Sam2(load_sam2(make_tiny_sam2(tmp_path, train_steps=40), device=CPU))
    i, j, k = np.ogrid[:200, :180, :4]
    discs = np.hypot(i - 70 - 5 * k, j - 100) < 30
    noise = np.random.default_rng(3).normal(0, 8, discs.shape)
    volume = Volume(40 + 110 * discs + noise, np.eye(4), Modality.OTHER, Path("discs"))
    grid = ViewGrid(volume, Plane.AXIAL)
    views = [View(grid, index, Window(0, 255, "given")) for index in range(4)]
    truth = [grid.cut(discs, index) for index in range(4)]
    row, column = (int(place) for place in np.argwhere(truth[0]).mean(0))
    click = Click(ViewPoint.of_pixel(column, row, *views[0].size), True)
    drawn = segmenter.click(segmenter.start(views[:1]), [click])[0].mask
    masks = [drawn, *(mask for mask, _ in segmenter.propagate(views, drawn))]
    assert [(mask & disc).sum() / (mask | disc).sum() > 0.9 for mask, disc in zip(masks, truth, strict=True)] == [True] * 4


def test_the_same_lesson_gives_the_same_tensors(tmp_path: Path) -> None:
    once, again, other = (
        torch.load(make_tiny_sam2(tmp_path / name, seed=seed, train_steps=2), weights_only=True)["model"]
        for name, seed in (("once", 0), ("again", 0), ("other", 1))
    )
    assert all(torch.equal(tensor, again[name]) for name, tensor in once.items())
    assert not torch.equal(once["sam_mask_decoder.iou_token.weight"], other["sam_mask_decoder.iou_token.weight"])
