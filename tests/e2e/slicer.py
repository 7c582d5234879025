"""What 3D Slicer's module MONAI Label does on the user's behalf: its requests in its order, and what becomes of the answers.

Read from the module's source (MONAI Label 0.8.5, plugins/slicer/MONAILabel/MONAILabel.py); segments are kept as Slicer keeps
them, by name and in the order in which they were added.
"""

import hashlib
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import numpy as np
import SimpleITK as sitk

Point = list[int]


class Slicer:
    """A user at the module. `client` is a class with the interface of MONAI Label's client; `folder` takes files."""

    def __init__(self, client: Any, url: str, folder: Path, user: str = "user-xyz"):
        self._make = lambda: client(url, str(folder), user)
        self._url = url
        self._folder = folder
        self._reset_label_state = False
        self._label = ""
        self.info: dict[str, Any] = {}
        self.sample: dict[str, Any] = {}
        self.volume: sitk.Image | None = None
        self.segments: dict[str, np.ndarray] = {}
        """Bool `[i, j, k]` of the displayed volume by name."""
        self.params: dict[str, Any] = {}
        """What came with the last mask."""

    def _client(self) -> Any:
        client = self._make()
        assert not client.auth_enabled(), "the module would ask for user and password"
        return client

    def connect(self) -> None:
        """The green arrow."""
        self.info = self._client().info()
        assert not self.info.get("config")
        self._refresh()

    def _refresh(self) -> None:
        self._client().train_status(True)

    def options(self, section: str, name: str) -> list[str]:
        """The rows of the table under Options; every one must be something that the table can show."""
        config = self.info[section][name]["config"]
        assert all(isinstance(value, str | bool | int | float | list) for value in config.values())
        return list(config)

    def set_option(self, name: str, key: str, text: str) -> None:
        """Type into the table, section infer; or choose, where it offers a list. The module makes of it what it was before."""
        config = self.info["models"][name]["config"]
        before = config[key]
        if isinstance(before, list):
            before.remove(text)
            before.insert(0, text)
        elif isinstance(before, bool):
            config[key] = bool(text)
        elif isinstance(before, int | float):
            config[key] = type(before)(text) if text else type(before)(0)
        else:
            config[key] = text

    def _config(self, section: str, name: str) -> dict[str, Any]:
        config = self.info.get(section, {}).get(name, {}).get("config", {})
        # A zero is shown as an empty cell, and read back as zero.
        return {key: value[0] if isinstance(value, list) else value for key, value in config.items()}

    def next_sample(self, shared_disk: bool = True) -> None:
        """Active Learning > Next Sample; `shared_disk` when this machine sees the server's files."""
        strategy = next(iter(self.info["strategies"]))
        self.sample = self._client().next_sample(strategy, self._config("strategies", strategy))
        image, path = self.sample["id"], Path(self.sample.get("path") or "")
        if not (shared_disk and path.is_file()):
            name = self.sample.get("name", image)
            path = self._folder / name
            urllib.request.urlretrieve(f"{self._url}/datastore/image?image={quote_plus(image)}", path)
            kind, _, digest = str(self.sample.get("checksum") or "").partition(":")
            assert not digest or hashlib.new(kind.lower(), path.read_bytes()).hexdigest() == digest
        self.load(path)
        labels = self._client().datastore()["objects"][image]["labels"]
        if "original" in labels:
            names = labels["original"]["info"].get("params", {}).get("label_names", {}) or self._client().info()["labels"]
            self._take(Path(self._client().download_label(image, "original")), list(names))
        self._begin()

    def upload(self, path: Path, name: str) -> None:
        """A volume of the user's own, sent to the server's store."""
        self.load(path)
        self._client().upload_image(str(path), name)
        self.sample = {"id": name, "session": False}
        self._begin()

    def load(self, path: Path) -> None:
        self.volume = sitk.ReadImage(str(path))
        self.segments = {}

    def _begin(self) -> None:
        for name in self.info["labels"]:
            self.add_segment(name)
        self._refresh()

    def add_segment(self, name: str) -> None:
        assert self.volume is not None
        self.segments.setdefault(name, np.zeros(self.volume.GetSize(), bool))

    def auto_segmentation(self, model: str = "ibis_agent") -> None:
        """Auto Segmentation > Run."""
        result = self._infer(model, self._config("models", model))
        labels = self.params.get("label_names") or self.info["models"][model]["labels"]
        if isinstance(labels, dict):
            labels = [name for name, _ in sorted(labels.items(), key=lambda item: item[1])]
        self._take(result, labels)
        result.unlink()
        self._refresh()

    def smart_edit(
        self, model: str, segment: str, foreground: list[Point], background: list[Point], roi: list[int] | None = None
    ) -> None:
        """SmartEdit / DeepGrow > Update, with the segment's points; in two dimensions those of the last one's slice."""
        if self._label and self._label != segment:
            self._reset_label_state = True
        self._label = segment
        flat = self.info["models"][model]["dimension"] == 2
        points = foreground or background
        at = points[-1][2] if points else None
        if flat and at:
            foreground, background = ([point for point in side if point[2] == at] for side in (foreground, background))
        params = {"label": segment, "foreground": foreground, "background": background, **self._config("models", model)}
        if roi:
            params["roi"] = roi
        if flat:
            params["slice"] = at
        if self._reset_label_state:
            params["reset_state"] = True
            self._reset_label_state = False
        self._take(self._infer(model, params), [segment], at if flat else None)
        self._refresh()

    def _infer(self, model: str, params: dict[str, Any]) -> Path:
        sent = {**params, "result_extension": ".nrrd", "result_dtype": "uint8"}
        path, self.params = self._client().infer(model, self.sample["id"], sent, None, None, None)
        return Path(path)

    def _take(self, path: Path, labels: list[str], k: int | None = None) -> None:
        """Import a mask: its i-th value belongs to the i-th name, wherever the file's geometry puts it."""
        assert self.volume is not None
        image = sitk.ReadImage(str(path))
        on_grid = sitk.GetArrayFromImage(sitk.Resample(image, self.volume, sitk.Transform(), sitk.sitkNearestNeighbor, 0))
        mask = on_grid.transpose(2, 1, 0)
        values = [value for value in np.unique(mask) if value]
        if k is None:
            for number, name in enumerate(labels, start=1):
                self.segments[name] = mask == number
        else:
            for name, value in zip(labels, values, strict=False):
                self.add_segment(name)
                self.segments[name][:, :, k] = False
                self.segments[name] |= mask == value

    def submit(self) -> dict[str, Any]:
        """Submit Label: all segments, the empty ones too, as one labelmap."""
        assert self.volume is not None
        labels = np.zeros(self.volume.GetSize(), np.uint8)
        info = []
        for number, (name, mask) in enumerate(self.segments.items(), start=1):
            info.append({"name": name, "idx": number})
            labels[mask] = number
        image = sitk.GetImageFromArray(labels.transpose(2, 1, 0))
        image.CopyInformation(self.volume)
        path = self._folder / "submitted.nii.gz"
        sitk.WriteImage(image, str(path))
        answer: dict[str, Any] = self._client().save_label(self.sample["id"], str(path), params={"label_info": info})
        self.connect()
        return answer
