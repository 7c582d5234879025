"""An object on its way through the slices, by SAM2's memory of the slices that it has seen (arXiv:2408.00714, section 4).

Does what the sam2 package's video predictor does for one object with a given mask (its tests compare the two), through the
network's own steps: slices come one at a time, and only what the network still looks back at is kept.
"""

from typing import Any

import torch
import torch.nn.functional as F
from sam2.modeling.sam2_base import SAM2Base

Levels = list[torch.Tensor]
"""Feature maps `[1, channels, height, width]` of one slice, finest first, as `SAM2Base.forward_image` gives them."""


class Propagation:
    """One pass along `slices` slices. Single use, one thread; the network itself is only read.

    Call under `torch.inference_mode()`: first `give`, then `follow` for each following slice in order.
    """

    def __init__(self, model: SAM2Base, slices: int):
        self._model = model
        self._slices = slices
        self._index = 0
        self._given: dict[int, dict[str, Any]] = {}
        self._followed: dict[int, dict[str, Any]] = {}
        self._reach = max(model.num_maskmem * model.memory_temporal_stride_for_eval, model.max_obj_ptrs_in_encoder)

    @property
    def nbytes(self) -> int:
        """Bytes of the memory."""
        return sum(
            kept["maskmem_features"].nbytes + kept["obj_ptr"].nbytes
            for kept in (*self._given.values(), *self._followed.values())
        )

    def give(self, levels: Levels, mask: torch.Tensor) -> None:
        """The first slice and its mask, bool `[height, width]` of any size."""
        model = self._model
        size = (model.image_size, model.image_size)
        image = mask[None, None].float()
        if mask.shape != size:
            image = F.interpolate(image, size, mode="bilinear", align_corners=False, antialias=True).ge(0.5).float()
        *_, low, _, pointer, presence = self._step(levels, image)
        large = F.interpolate(low, size, mode="bilinear", align_corners=False)
        self._given[0] = self._remember(levels, large, presence, pointer, from_person=True)

    def follow(self, levels: Levels) -> tuple[torch.Tensor, float]:
        """The mask's logits `[1, 1, size / 4, size / 4]` on the next slice, negative everywhere when the object is not there,
        and the score 0..1: predicted IoU times the probability that the object is there."""
        self._index += 1
        _, _, ious, low, large, pointer, presence = self._step(levels, None)
        self._followed[self._index] = self._remember(levels, large, presence, pointer, from_person=False)
        self._followed.pop(self._index - self._reach, None)
        score = float(ious.float().max().clamp(0, 1) * presence.float().sigmoid())
        return low, score

    def _step(self, levels: Levels, mask: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        features, positions, sizes = self._flat(levels)
        _, outputs, _, _ = self._model._track_step(
            frame_idx=self._index,
            is_init_cond_frame=mask is not None,
            current_vision_feats=features,
            current_vision_pos_embeds=positions,
            feat_sizes=sizes,
            point_inputs=None,
            mask_inputs=mask,
            output_dict={"cond_frame_outputs": self._given, "non_cond_frame_outputs": self._followed},
            num_frames=self._slices,
            track_in_reverse=False,
            prev_sam_mask_logits=None,
        )
        return outputs

    def _remember(
        self, levels: Levels, mask: torch.Tensor, presence: torch.Tensor, pointer: torch.Tensor, from_person: bool
    ) -> dict[str, Any]:
        features, _, sizes = self._flat(levels)
        memory, positions = self._model._encode_new_memory(features, sizes, mask, presence, is_mask_from_pts=from_person)
        if self._given:
            positions = self._given[0]["maskmem_pos_enc"]
        return {"maskmem_features": memory.to(torch.bfloat16), "maskmem_pos_enc": positions, "obj_ptr": pointer}

    def _flat(self, levels: Levels) -> tuple[list[torch.Tensor], list[torch.Tensor], list[tuple[int, ...]]]:
        """The levels as `[height * width, 1, channels]`, the deepest one's position encoding, and all heights and widths."""
        deepest = levels[-1]
        position = self._model.image_encoder.neck.position_encoding(deepest).to(deepest.dtype)
        flat = [level.flatten(2).permute(2, 0, 1) for level in (*levels, position)]
        return flat[:-1], flat[-1:], [tuple(level.shape[-2:]) for level in levels]
