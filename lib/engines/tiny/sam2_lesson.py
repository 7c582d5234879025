"""Teaches the tiny SAM2 to draw what a click on a bright disc means: pictures of one bright ellipse on dark, noisy ground.

It learns the object, not the click: good enough for demos in which the mask must be a plausible answer to a positive click.
"""

import numpy as np
import torch
import torch.nn.functional as F
from sam2.modeling.sam2_base import SAM2Base

SIDE = 128
"""Width and height of the pictures, in pixels."""
_BATCH = 6
_CLICKS = 3
_RATE = 1.5e-3
_POSITIVE, _NEGATIVE, _NO_POINT = 1, 0, -1
"""Labels of points, as SAM's prompt encoder defines them."""


def teach(model: SAM2Base, steps: int, seed: int) -> None:
    """Train `model`, whose image size is `SIDE`, in place. About 0.08 s a step on one core.

    The mask of the last click has no say: it stays out of the training, and its weights are set to nothing.
    """
    prompts = model.sam_prompt_encoder
    for silent in (*prompts.mask_downscaling[-1].parameters(), prompts.no_mask_embed.weight):
        torch.nn.init.zeros_(silent).requires_grad_(False)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(learning, _RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _RATE, total_steps=steps, pct_start=0.15)
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        loss = _loss(model, *_lesson(rng))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimiser.step()
        schedule.step()


def _lesson(rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pictures float32 `[batch, 3, SIDE, SIDE]` as the network wants them, masks float32 `[batch, 1, SIDE, SIDE]`, points
    `[batch, clicks, 2]` x before y, and their labels `[batch, clicks]`."""
    rows, columns = np.mgrid[:SIDE, :SIDE] / SIDE
    pictures, masks, points, labels = [], [], [], []
    for _ in range(_BATCH):
        (row, column), (high, wide) = rng.uniform(0.15, 0.85, 2), rng.uniform(0.06, 0.25, 2)
        mask = ((rows - row) / high) ** 2 + ((columns - column) / wide) ** 2 <= 1
        ground = rng.uniform(-2, -0.5)
        grey = ground + rng.uniform(1, 2.5) * mask + rng.normal(0, rng.uniform(0.05, 0.3), mask.shape)
        pictures.append(np.broadcast_to(grey.clip(-2.2, 2.5), (3, SIDE, SIDE)))
        masks.append(mask[None])
        signs = [_POSITIVE, *rng.choice([_POSITIVE, _NEGATIVE, _NO_POINT], _CLICKS - 1)]
        labels.append(signs)
        points.append([rng.choice(np.argwhere(mask == (sign == _POSITIVE)))[::-1] for sign in signs])
    batch = [torch.tensor(np.array(part), dtype=torch.float32) for part in (pictures, masks, points)]
    return batch[0], batch[1], batch[2], torch.tensor(np.array(labels), dtype=torch.int32)


def _loss(
    model: SAM2Base, pictures: torch.Tensor, masks: torch.Tensor, points: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Cross entropy and Dice of all candidates, and how far their predicted IoU is from the true one."""
    *fine, image = model.forward_image(pictures)["backbone_fpn"]
    sparse, dense = model.sam_prompt_encoder(points=(points, labels), boxes=None, masks=None)
    logits, predicted, _, _ = model.sam_mask_decoder(
        image_embeddings=image + model.no_mem_embed[0, :, :, None, None],
        image_pe=model.sam_prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=True,
        repeat_image=False,
        high_res_features=fine,
    )
    truth = F.adaptive_avg_pool2d(masks, logits.shape[-2:]).ge(0.5).float().expand_as(logits)
    soft, hard, pixels = logits.sigmoid(), (logits > 0).float(), (2, 3)
    entropy = F.binary_cross_entropy_with_logits(logits, truth)
    dice = 1 - (2 * (soft * truth).sum(pixels) + 1) / (soft.sum(pixels) + truth.sum(pixels) + 1)
    iou = (hard * truth).sum(pixels) / torch.maximum(hard, truth).sum(pixels).clamp(min=1)
    return 2 * entropy + dice.mean() + F.mse_loss(predicted, iou)
