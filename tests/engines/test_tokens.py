"""Tokens are counted as the processor makes them."""

import numpy as np
import pytest
from transformers import AutoProcessor

from lib.engines.tiny.qwen import make_tiny_qwen
from lib.engines.tokens import TokenCounter
from lib.errors import InputError
from lib.policies.conversation import Message


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_tiny_qwen(tmp_path_factory.mktemp("tokens"))


def picture(width: int, height: int) -> np.ndarray:
    return np.zeros((height, width, 3), np.uint8)


CONVERSATIONS = [
    [Message("system", "You are."), Message("user", "liver", picture(96, 96))],
    [Message("user", "liver", picture(512, 300)), Message("assistant", "<think>\nhere\n</think>")],
    [
        Message("user", "liver", picture(40, 200)),
        Message("assistant", "yes"),
        Message("user", "é and 12.5", picture(97, 83)),
        Message("assistant", "no"),
    ],
]


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_the_count_is_the_processors(model, messages):
    processor = AutoProcessor.from_pretrained(model)
    content = [
        {"role": m.role, "content": [{"type": "image"}] * (m.picture is not None) + [{"type": "text", "text": m.text}]}
        for m in messages
    ]
    text = processor.apply_chat_template(content, tokenize=False, add_generation_prompt=messages[-1].role == "user")
    pictures = [m.picture for m in messages if m.picture is not None]
    inputs = processor(text=[text], images=pictures, return_tensors="pt")
    image = int((inputs["input_ids"] == processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")).sum())
    counted = TokenCounter(model).count(messages)
    assert counted.total == inputs["input_ids"].shape[1]
    assert counted.image == image


def test_pictures_are_capped_as_the_policy_caps_them(model):
    messages, most = CONVERSATIONS[0], 64 * 64
    processor = AutoProcessor.from_pretrained(model)
    processor.image_processor.size = {"shortest_edge": 56 * 56, "longest_edge": most}
    grid = processor.image_processor(images=[messages[1].picture], return_tensors="pt")["image_grid_thw"]
    assert TokenCounter(model, max_pixels=most).count(messages).image == int(grid.prod()) // 4
    assert TokenCounter(model).count(messages).image > int(grid.prod()) // 4


def test_a_folder_without_a_processor_is_refused(tmp_path):
    with pytest.raises(InputError, match="no processor") as refused:
        TokenCounter(tmp_path)
    assert refused.value.field == "model"
