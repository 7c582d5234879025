"""Tiny SAM2.1 checkpoints, and MedSAM2's with random weights, as real files that load through the real code."""

from pathlib import Path
from typing import Any

import sam2
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from sam2.modeling.sam2_base import SAM2Base

from lib.engines.tiny.sam2_lesson import SIDE, teach

_WIDTH = 64
"""Channels of the neck and of everything behind it."""
_MEMORY = _WIDTH // 4
"""Channels of the memory, as much less as in the released networks."""
_TRUNK = 16
_RELEASED = Path(sam2.__path__[0]) / "configs" / "sam2.1" / "sam2.1_hiera_t.yaml"
_PRESENT = 6.0
"""Bias of the logit that the object is on the slice: without training it would be a coin toss for all slices alike."""


def make_tiny_sam2(folder: Path, image_size: int = 256, seed: int = 0, train_steps: int = 0) -> Path:
    """Write `sam2_tiny.pt` and its `sam2_tiny.yaml` into `folder` and return the checkpoint, which loads without more words.

    `image_size` in pixels is a multiple of 32; it is not in the tensors. After some 150 `train_steps` (12 s on one core) a
    click on a bright disc gives that disc; without, masks are noise. The same arguments give the same tensors.
    """
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(_tiny(image_size), folder / "sam2_tiny.yaml")
    model = _random(_tiny(SIDE), seed)
    with torch.no_grad():
        model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(_PRESENT)
    if train_steps:
        teach(model, train_steps, seed)
    return _write(model, folder / "sam2_tiny.pt")


def make_medsam2(folder: Path, seed: int = 0) -> Path:
    """Write a checkpoint of MedSAM2's format and size (156 MB) with random weights into `folder` and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    return _write(_random(_configuration({}), seed), folder / "MedSAM2_random.pt")


def _tiny(image_size: int) -> DictConfig:
    attention = {"feat_sizes": [image_size // 16] * 2, "embedding_dim": _WIDTH}
    smaller = {
        "image_size": image_size,
        "image_encoder": {
            # The block with global attention is not the first of its stage: that one has no window to pool over.
            "trunk": {"embed_dim": _TRUNK, "stages": [1, 1, 2, 1], "global_att_blocks": [3]},
            "neck": {
                "d_model": _WIDTH,
                "backbone_channel_list": [8 * _TRUNK, 4 * _TRUNK, 2 * _TRUNK, _TRUNK],
                "position_encoding": {"num_pos_feats": _WIDTH},
            },
        },
        "memory_attention": {
            "d_model": _WIDTH,
            "num_layers": 1,
            "layer": {
                "d_model": _WIDTH,
                "dim_feedforward": 64,
                "self_attention": attention,
                "cross_attention": {**attention, "kv_in_dim": _MEMORY},
            },
        },
        "memory_encoder": {
            "in_dim": _WIDTH,
            "out_dim": _MEMORY,
            "mask_downsampler": {"embed_dim": _WIDTH},
            "fuser": {"num_layers": 1, "layer": {"dim": _WIDTH}},
            "position_encoding": {"num_pos_feats": _MEMORY},
        },
    }
    return _configuration(smaller)


def _configuration(changes: dict[str, Any]) -> DictConfig:
    """SAM2.1 tiny as released, with other values in its `model`."""
    config = OmegaConf.load(_RELEASED)
    config.model = OmegaConf.merge(config.model, changes)
    return DictConfig(config)


def _random(config: DictConfig, seed: int) -> SAM2Base:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: SAM2Base = instantiate(config.model)
    return model


def _write(model: SAM2Base, path: Path) -> Path:
    torch.save({"model": model.state_dict()}, path)
    return path
