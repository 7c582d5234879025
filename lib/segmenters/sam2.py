"""SAM2 and MedSAM2 as the segmenter: clicks on a slice, and masks taken from slice to slice.

Clicks are used as the released agent uses them: all clicks of the episode each time, three candidate masks, the one with the
highest predicted IoU is taken, and from the second click on the taken candidate's low-resolution logits go back in.

Shared between threads: the weights, which are only read, and the cache of image embeddings, which has its own lock. Whoever
wants an embedding that another thread is making waits for it; nothing else blocks. States are immutable.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import blake2b
from types import MappingProxyType
from typing import Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F

from lib.agent.limits import UNLIMITED, Bound
from lib.agent.protocol import Click
from lib.agent.segmenter import Prediction, State
from lib.errors import EngineError, OutOfMemory
from lib.imaging.bytecache import ByteCache
from lib.imaging.views import View
from lib.segmenters.sam2_load import LoadedSam2
from lib.segmenters.sam2_memory import Levels, Propagation

Precision = Literal["float32", "bfloat16", "float16"]
Item = TypeVar("Item")
_HALF = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
_MEAN = (0.485, 0.456, 0.406)
_DEVIATION = (0.229, 0.224, 0.225)
_CERTAIN = 32.0
"""Logits that go back in are clamped to this, as the package does."""


@dataclass(frozen=True, eq=False)
class Canvas:
    """One view and the clicks on it so far.

    The logits are kept in main memory: they are copied beside the mask anyway, and the device's memory then belongs to the
    weights and the embedding cache alone, however many episodes are open. float32, so that going back to a state is exact.
    """

    view: View
    key: str
    """Of the view's embedding: a digest of the picture itself."""
    clicks: tuple[Click, ...] = ()
    logits: torch.Tensor | None = None
    """float32 `[1, size / 4, size / 4]`; None before the first click."""


class Sam2:
    """Implements `lib.agent.segmenter.Segmenter` and `Propagator`."""

    def __init__(
        self,
        loaded: LoadedSam2,
        *,
        precision: Precision = "float32",
        cache_bytes: int = 2 * 2**30,
        embed_batch: int = 8,
        clamp: bool = True,
    ):
        """`precision` is that of matrix products on a GPU; elsewhere it is float32. `cache_bytes` of the device's memory hold
        embeddings, `embed_batch` pictures are embedded at once on a GPU. On a CPU each picture goes alone: batches gain nothing
        there, and no bit of a mask depends on who else asks. `clamp=False` lets a click at 1.0 fall beyond the last pixel, as
        the released code does.
        """
        self.name = loaded.name
        self._model = loaded.model
        self._size = loaded.image_size
        self._device = loaded.device
        self._half = _HALF[precision] if self._device.type == "cuda" else None
        self._embed_batch = embed_batch if self._device.type == "cuda" else 1
        self._clamp = clamp
        self._mean = torch.tensor(_MEAN, device=self._device)[:, None, None]
        self._deviation = torch.tensor(_DEVIATION, device=self._device)[:, None, None]
        self._embeddings: ByteCache[str, Levels] = ByteCache(cache_bytes, lambda levels: sum(level.nbytes for level in levels))
        self.about: Mapping[str, str] = MappingProxyType(
            {
                "weights": loaded.checkpoint,
                "fingerprint": loaded.fingerprint,
                "image_size": str(self._size),
                "device": str(self._device),
                "precision": precision if self._half else "float32",
            }
        )

    def start(self, views: Sequence[View], limits: Bound = UNLIMITED) -> list[State | EngineError]:
        states: list[State | EngineError] = []
        for batch in _batches(views, self._embed_batch):
            if limits.reached() is not None:
                states += [EngineError("interrupted")] * len(batch)
                continue
            rendered = [view.image() for view in batch]
            keys = [_digest(picture) for picture in rendered]
            self._levels(keys, dict(zip(keys, rendered, strict=True)).__getitem__)
            states += [Canvas(view, key) for view, key in zip(batch, keys, strict=True)]
        return states

    def click(
        self, states: Sequence[State], clicks: Sequence[Click], limits: Bound = UNLIMITED
    ) -> list[Prediction | EngineError]:
        canvases = [replace(state, clicks=(*state.clicks, click)) for state, click in zip(states, clicks, strict=True)]
        alike: dict[int, list[int]] = defaultdict(list)
        for position, canvas in enumerate(canvases):
            alike[len(canvas.clicks)].append(position)
        predictions: list[Prediction | EngineError] = [EngineError("interrupted")] * len(canvases)
        gpu = self._device.type == "cuda"
        groups = (part for positions in alike.values() for part in _batches(positions, len(positions) if gpu else 1))
        for positions in groups:
            if limits.reached() is not None:
                break
            made = self._decode([canvases[position] for position in positions])
            for position, prediction in zip(positions, made, strict=True):
                predictions[position] = prediction
        return predictions

    def propagate(
        self, views: Sequence[View], mask: np.ndarray, limits: Bound = UNLIMITED
    ) -> Iterator[tuple[np.ndarray, float]]:
        """See `lib.agent.segmenter.Propagator`. The score is the predicted IoU times the probability that the object is on the
        slice. Embeddings come from, and go to, the cache that clicks use."""
        propagation = Propagation(self._model, len(views))
        for position, view in enumerate(views):
            if limits.reached() is not None:
                return
            picture = view.image()
            key = _digest(picture)
            levels = self._levels([key], {key: picture}.__getitem__)[0]
            with self._computing():
                if position == 0:
                    propagation.give(levels, torch.tensor(mask, device=self._device))
                    continue
                logits, score = propagation.follow(levels)
                followed = _drawn(logits, view)
            yield followed, score

    def _decode(self, canvases: Sequence[Canvas]) -> list[Prediction]:
        """The masks of views with equally many clicks, the last of which has no mask yet."""
        views = {canvas.key: canvas.view for canvas in canvases}
        embeddings = self._levels([canvas.key for canvas in canvases], lambda key: views[key].image())
        with self._computing():
            points = torch.stack([self._points(canvas) for canvas in canvases]).to(self._device)
            labels = torch.tensor([[int(click.positive) for click in canvas.clicks] for canvas in canvases], dtype=torch.int32)
            before = [canvas.logits for canvas in canvases if canvas.logits is not None]
            sparse, dense = self._model.sam_prompt_encoder(
                points=(points, labels.to(self._device)),
                boxes=None,
                masks=torch.stack(before).to(self._device) if before else None,
            )
            *fine, image = (torch.cat(level) for level in zip(*embeddings, strict=True))
            if self._model.directly_add_no_mem_embed:
                image = image + self._model.no_mem_embed[0, :, :, None, None]
            logits, ious, _, _ = self._model.sam_mask_decoder(
                image_embeddings=image,
                image_pe=self._model.sam_prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=True,
                repeat_image=False,
                high_res_features=fine,
            )
            scores = ious.float().cpu().numpy()
            best = scores.argmax(axis=1)
            predictions = []
            for row, canvas in enumerate(canvases):
                chosen = logits[row, best[row]].float()[None]
                state = replace(canvas, logits=chosen.clamp(-_CERTAIN, _CERTAIN).cpu())
                score = float(np.clip(scores[row, best[row]], 0, 1))
                predictions.append(Prediction(_drawn(chosen[None], canvas.view), score, state))
        return predictions

    def _points(self, canvas: Canvas) -> torch.Tensor:
        """The clicks in the network's pixels, float32 `[clicks, 2]`, x before y."""
        width, height = canvas.view.size
        points = [click.point for click in canvas.clicks]
        if self._clamp:
            pixels = [point.pixel(width, height) for point in points]
        else:
            pixels = [(int(point.x * width), int(point.y * height)) for point in points]
        return torch.tensor(pixels, dtype=torch.float32) / torch.tensor([width, height]) * self._size

    def _levels(self, keys: Sequence[str], picture: Callable[[str], np.ndarray]) -> list[Levels]:
        """The feature maps of the pictures of these keys; those that the cache no longer has are made again."""
        return self._embeddings.get_many(keys, lambda missing: self._embed([picture(key) for key in missing]))

    def _embed(self, pictures: Sequence[np.ndarray]) -> list[Levels]:
        """The feature maps of pictures uint8 `[height, width, 3]`, without the encoding of what has no memory."""
        made: list[Levels] = []
        for batch in _batches(pictures, self._embed_batch):
            with self._computing():
                images = torch.stack([self._prepare(picture) for picture in batch])
                levels = self._model.forward_image(images)["backbone_fpn"][-self._model.num_feature_levels :]
                # Copies: a part of the batch would keep the whole batch in memory.
                made += [[level[row : row + 1].clone() for level in levels] for row in range(len(batch))]
        return made

    def _prepare(self, picture: np.ndarray) -> torch.Tensor:
        """The picture as the network wants it, float32 `[3, size, size]`: resized without regard to its proportions."""
        image = torch.tensor(picture, device=self._device).permute(2, 0, 1).contiguous().float() / 255
        size = (self._size, self._size)
        image = F.interpolate(image[None], size, mode="bilinear", align_corners=False, antialias=True)[0]
        return (image - self._mean) / self._deviation

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Everything on the device happens in here; nothing may be yielded out of it, for its modes belong to the thread."""
        autocast = torch.autocast(self._device.type, self._half or torch.bfloat16, enabled=self._half is not None)
        try:
            with torch.inference_mode(), autocast:
                yield
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(f"{self.name}: out of memory on {self._device}") from error
        except RuntimeError as error:
            if self._device.type == "cpu":
                raise
            raise EngineError(f"{self.name} failed on {self._device}: {error}") from error


def _drawn(logits: torch.Tensor, view: View) -> np.ndarray:
    """The mask bool `[height, width]` of `view` from logits `[1, 1, rows, columns]`."""
    width, height = view.size
    large = F.interpolate(logits.float(), (height, width), mode="bilinear", align_corners=False)
    return (large > 0)[0, 0].cpu().numpy()


def _digest(picture: np.ndarray) -> str:
    digest = blake2b(str(picture.shape).encode(), digest_size=16)
    digest.update(picture.tobytes())
    return digest.hexdigest()


def _batches(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    return (items[begin : begin + size] for begin in range(0, len(items), size))
