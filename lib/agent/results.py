"""A finished run as files: mask, DICOM SEG, trace and trace page."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lib.agent.labels import write_label_seg
from lib.agent.run import RunResult
from lib.agent.targets import OVERLAP, merge
from lib.agent.trace import to_trace
from lib.agent.trace_page import render_page
from lib.errors import InputError
from lib.imaging import rle
from lib.imaging.files import replacing
from lib.imaging.masks import write_mask
from lib.imaging.overlays import blend, overlay_named
from lib.imaging.views import View

_OURS = ("mask.*", "trace*.json", "trace*.html", "turn_*_state.png", "final_segmentation.png")


@dataclass(frozen=True)
class Written:
    """The files that were written, and what could not be."""

    paths: tuple[Path, ...]
    warnings: tuple[str, ...]


def write_results(folder: Path, results: Sequence[RunResult]) -> Written:
    """Write the results of one or several prompts on one volume into `folder`, which is made if needed.

    `mask.nii.gz` (a picture: `mask.png`) holds voxel values 1..N in the order of the results; for a grid that is not
    rectangular `mask.nrrd` too, since some readers of NIfTI refuse shear; for DICOM `mask.seg.dcm`; then `trace.json` and
    `trace.html`, with the target's name in theirs when there are several. For one prompt on a picture also what the released
    script leaves: `turn_N_state.png` after every click and `final_segmentation.png`, the picture with the mask painted on it.
    Such files of an earlier run are removed first: none is left beside a mask that it does not belong to. Each file appears
    whole or not at all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for outdated in (path for pattern in _OURS for path in folder.glob(pattern)):
        outdated.unlink()
    volume = results[0].volume
    labels, overlap = merge(results, range(1, len(results) + 1))
    notes = [OVERLAP.format(overlap)] if overlap else []
    paths = [folder / ("mask.png" if volume.planar else "mask.nii.gz")]
    if volume.sheared:
        paths.append(folder / "mask.nrrd")
        notes.append(
            "the slices are sheared (tilted gantry): nibabel reads mask.nii.gz, SimpleITK and 3D Slicer read mask.nrrd"
        )
    for path in paths:
        write_mask(path, labels, volume)
    if volume.instances:
        path = folder / "mask.seg.dcm"
        try:
            write_label_seg(path, labels, volume, {r.request.prompt: n + 1 for n, r in enumerate(results)})
            paths.append(path)
        except InputError as error:
            notes.append(f"no mask.seg.dcm: {error.message}")
    for number, result in enumerate(results):
        stem = "trace" if len(results) == 1 else f"trace-{number + 1}-{_slug(result.request.prompt)}"
        trace = to_trace(result)
        paths += [_write(folder / f"{stem}.json", json.dumps(trace, indent=1))]
        paths += [_write(folder / f"{stem}.html", render_page(trace, volume))]
    if volume.planar and len(results) == 1:
        paths += _states(folder, results[0])
    return Written(tuple(paths), tuple(notes))


def _states(folder: Path, result: RunResult) -> list[Path]:
    """What the agent saw after each click, and at the end."""
    (outcome,) = result.outcomes
    overlay = overlay_named(result.request.overlay)
    image = View(result.grid, outcome.index, outcome.window).image()
    masks = {f"turn_{step.turn}_state.png": step.mask for step in outcome.steps if step.mask is not None}
    masks["final_segmentation.png"] = outcome.mask
    for name, mask in masks.items():
        with replacing(folder / name) as draft:
            Image.fromarray(blend(image, rle.decode(mask), overlay)).save(draft)
    return [folder / name for name in masks]


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40]


def _write(path: Path, text: str) -> Path:
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8")
    return path
