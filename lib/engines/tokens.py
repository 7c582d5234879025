"""How many tokens a conversation takes in a language model: counted with the model's own processor, without its weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoProcessor

from lib.errors import InputError
from lib.policies.conversation import Message

MAX_PIXELS = 512 * 512
"""Pictures are scaled down to so many pixels before they are cut into patches, as `lib.policies.qwen` does by default."""


@dataclass(frozen=True)
class Tokens:
    """Of one conversation."""

    text: int
    image: int

    @property
    def total(self) -> int:
        return self.text + self.image


class TokenCounter:
    """Counts with the processor in `folder`. Raises InputError with the field "model" when there is none."""

    def __init__(self, folder: Path, max_pixels: int = MAX_PIXELS):
        try:
            self._processor: Any = AutoProcessor.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(f"{folder} holds no processor to count tokens with: {reason}", "model") from error
        pictures = self._processor.image_processor
        self._limits = {
            "min_pixels": min(pictures.size["shortest_edge"], max_pixels),
            "max_pixels": min(pictures.size["longest_edge"], max_pixels),
        }
        self._texts: dict[str, int] = {}

    def count(self, messages: Sequence[Message]) -> Tokens:
        """Of a conversation as the chat template writes it: with the last reply, or as far as the model is asked for one."""
        content = [
            {
                "role": message.role,
                "content": [*([] if message.picture is None else [{"type": "image"}]), {"type": "text", "text": message.text}],
            }
            for message in messages
        ]
        asking = messages[-1].role != "assistant"
        text = self._processor.apply_chat_template(content, tokenize=False, add_generation_prompt=asking)
        if text not in self._texts:
            self._texts[text] = len(self._processor.tokenizer(text).input_ids)
        pictures = [message.picture for message in messages if message.picture is not None]
        image = sum(self._patches(picture.shape[0], picture.shape[1]) for picture in pictures)
        return Tokens(self._texts[text] - len(pictures), image)

    def _patches(self, height: int, width: int) -> int:
        pictures = self._processor.image_processor
        patches: int = pictures.get_number_of_image_patches(height, width, self._limits)
        return patches // pictures.merge_size**2
