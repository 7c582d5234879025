"""The `qwen` policy on tiny checkpoints in the published format, through the normal loading code."""

import dataclasses
import json
import re
import threading
import time

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, Qwen2_5_VLForConditionalGeneration

from lib.agent.limits import Limits
from lib.agent.policy import Observation, Past
from lib.agent.prompts import SYSTEM
from lib.agent.protocol import GRAMMAR, Click, Reply, Terminate, complete, cut, parse, render
from lib.engines.tiny.lesson import scenes
from lib.engines.tiny.qwen import make_tiny_qwen
from lib.errors import EngineError, InputError, OutOfMemory
from lib.imaging import rle
from lib.imaging.load import load_volume
from lib.imaging.planes import Plane, ViewGrid, ViewPoint
from lib.imaging.views import View
from lib.imaging.windows import choose_window
from lib.policies.conversation import conversation
from lib.policies.generation import ReplyEnd, Sampling
from lib.policies.qwen import QwenConfig, QwenPolicy, prepare

CPU = torch.device("cpu")


def observe(picture, folder, prompt="liver", mask=None, **rest):
    path = folder / f"{abs(hash(picture.tobytes()))}.png"
    Image.fromarray(picture).save(path)
    volume = load_volume(path)
    view = View(ViewGrid(volume, Plane.AXIAL), 0, choose_window(volume))
    return Observation(prompt, view, mask, (), **rest)


@pytest.fixture(scope="module")
def observations(tmp_path_factory):
    """Eight slices, some with a mask, with prompts of different lengths."""
    folder, supply, rng = tmp_path_factory.mktemp("views"), scenes(7), np.random.default_rng(0)
    found = []
    for number in range(8):
        scene = next(supply)
        mask = rng.random((112, 112)) < 0.3 if scene.refining else None
        found.append(observe(scene.picture, folder, scene.query + "?" * number, mask))
    return found


@pytest.fixture(scope="module")
def taught(tiny_qwen):
    return QwenPolicy(QwenConfig(model=str(tiny_qwen)), CPU)


@pytest.fixture(scope="module")
def untaught(tmp_path_factory):
    return make_tiny_qwen(tmp_path_factory.mktemp("raw") / "qwen", seed=3)


def test_the_taught_checkpoint_truly_writes_the_protocol(taught, observations):
    decisions = taught.decide(observations)
    assert all(isinstance(parse(decision.reply), Reply) for decision in decisions)
    assert all(decision.reply == cut(decision.reply) and complete(decision.reply) for decision in decisions)
    kinds = {type(parse(decision.reply).action) for decision in decisions}
    assert kinds == {Click, Terminate}


def test_decisions_are_what_generate_gives_by_itself(tiny_qwen, taught, observations):
    model, processor = AutoModelForImageTextToText.from_pretrained(tiny_qwen), AutoProcessor.from_pretrained(tiny_qwen)
    assert isinstance(model, Qwen2_5_VLForConditionalGeneration)
    for observation, decision in zip(observations[:3], taught.decide(observations[:3]), strict=True):
        system, user = conversation(observation)
        messages = [
            {"role": "system", "content": [{"type": "text", "text": system.text}]},
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": user.text}]},
        ]
        text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        inputs = processor(text=[text], images=[Image.fromarray(observation.picture())], return_tensors="pt")
        length = inputs["input_ids"].shape[1]
        with torch.inference_mode():
            ids = model.generate(**inputs, max_new_tokens=512, do_sample=False)[0, length:]
            logits = model(**{**inputs, **_extended(inputs, ids)}).logits[0, length - 1 : -1]
        assert processor.decode(ids, skip_special_tokens=True) == decision.reply
        assert decision.details["prompt_tokens"] == length
        pieces = processor.tokenizer.batch_decode([[token] for token in ids.tolist()])
        values = logits.log_softmax(-1).gather(1, ids[:, None])[:, 0].tolist()
        before, _, after = decision.reply.partition("<action>")
        begin, end = len(before) + len("<action>"), len(before) + len("<action>") + after.index("</action>")
        ends = np.cumsum([len(piece) for piece in pieces])
        inside = [v for v, e, p in zip(values, ends, pieces, strict=True) if e > begin and e - len(p) < end]
        assert decision.details["action_logprob"] == pytest.approx(np.mean(inside), abs=1e-3)


def _extended(inputs, ids):
    return {
        "input_ids": torch.cat([inputs["input_ids"], ids[None]], 1),
        "attention_mask": torch.ones(1, inputs["input_ids"].shape[1] + len(ids), dtype=torch.long),
        "mm_token_type_ids": torch.cat([inputs["mm_token_type_ids"], torch.zeros(1, len(ids), dtype=torch.long)], 1),
    }


def test_a_batch_decides_as_each_one_alone(taught, observations):
    together = [decision.reply for decision in taught.decide(observations)]
    assert together == [taught.decide([one])[0].reply for one in observations]
    assert together == [decision.reply for decision in taught.decide(observations[::-1])][::-1]


def test_two_threads_at_once_get_what_they_get_alone(taught, observations):
    alone = [decision.reply for decision in taught.decide(observations)]
    found = {}

    def ask(name, part):
        found[name] = [decision.reply for decision in taught.decide(part)]

    threads = [threading.Thread(target=ask, args=(n, observations[n::2])) for n in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {0: alone[0::2], 1: alone[1::2]}


def test_a_reply_ends_at_its_closing_tag_and_not_after_512_tokens(taught):
    tokenizer = taught._loaded.processor.tokenizer
    point = render(Reply("here", Click(ViewPoint(0.25, 0.5), True)))
    stop = render(Reply("right", Terminate("done")))
    for reply in (point, stop):
        ids = tokenizer(reply + "\nand so on").input_ids
        end = ReplyEnd(tokenizer, taught._loaded.closing, 0, Limits())
        ended = [bool(end(torch.tensor([ids[: n + 1]]), None)[0]) for n in range(len(ids))]
        assert tokenizer.decode(ids[: ended.index(True) + 1]).rstrip("\n") == reply
        assert all(ended[ended.index(True) :])


def test_asking_again_is_sampled_repeatably_and_only_for_who_complained(untaught, observations):
    policy = QwenPolicy(QwenConfig(model=str(untaught), max_new_tokens=24), CPU)
    greedy = [decision.reply for decision in policy.decide(observations[:4])]
    again = [dataclasses.replace(one, complaint="bad") if n % 2 else one for n, one in enumerate(observations[:4])]
    mixed = [decision.reply for decision in policy.decide(again)]
    assert [a == b for a, b in zip(greedy, mixed, strict=True)] == [True, False, True, False]
    assert mixed[1] == policy.decide([again[1]])[0].reply


def test_sampling_follows_the_softmax():
    scores = torch.log(torch.tensor([[0.6, 0.3, 0.1]]))
    draw = Sampling([5], temperature=1.0)
    drawn = [int(draw(torch.zeros(1, 1), scores).argmax()) for _ in range(3000)]
    assert np.bincount(drawn) / 3000 == pytest.approx([0.6, 0.3, 0.1], abs=0.03)


def test_constrained_decoding_guarantees_the_grammar(untaught, observations):
    free = QwenPolicy(QwenConfig(model=str(untaught), max_new_tokens=64), CPU).decide(observations[:2])
    assert not any(isinstance(parse(decision.reply), Reply) for decision in free)
    bound = QwenPolicy(QwenConfig(model=str(untaught), grammar=True, max_new_tokens=700), CPU)
    for decision in bound.decide(observations[:3]):
        assert isinstance(parse(decision.reply), Reply)


@pytest.mark.parametrize("action", [Click(ViewPoint(1.0, 0.0), False), Terminate("absent")])
def test_the_grammar_takes_what_is_rendered(action):
    assert re.fullmatch(GRAMMAR, render(Reply("It is there.", action)))


def test_history_keeps_earlier_turns_with_the_pictures_they_had(taught, observations, tiny_qwen):
    first = next(one for one in observations if one.mask is None)
    mask = np.zeros((112, 112), bool)
    mask[10:50, 20:60] = True
    reply = render(Reply("here", Click(ViewPoint(0.3, 0.3), True)))
    then = dataclasses.replace(first, mask=mask, past=(Past(None, reply),))
    short, long = conversation(then), conversation(then, history=True)
    assert [message.role for message in short] == ["system", "user"]
    assert [message.role for message in long] == ["system", "user", "assistant", "user"]
    assert long[0].text == SYSTEM
    assert long[2].text == reply
    assert (long[1].picture == first.picture()).all()
    assert (long[3].picture == then.picture()).all()
    assert (long[1].picture != long[3].picture).any()
    deeper = dataclasses.replace(then, past=(*then.past, Past(rle.encode(mask), reply)))
    assert (conversation(deeper, history=True)[3].picture == then.picture()).all()
    with_history = QwenPolicy(QwenConfig(model=str(tiny_qwen), history=True), CPU)
    grown = with_history.decide([then])[0].details["prompt_tokens"] - taught.decide([then])[0].details["prompt_tokens"]
    assert grown > 40


def test_pictures_are_capped_as_in_training(tiny_qwen, observations):
    small = QwenPolicy(QwenConfig(model=str(tiny_qwen), max_pixels=56 * 56), CPU).decide(observations[:1])
    full = QwenPolicy(QwenConfig(model=str(tiny_qwen)), CPU).decide(observations[:1])
    assert full[0].details["prompt_tokens"] - small[0].details["prompt_tokens"] == 16 - 4


def test_a_cancelled_call_comes_back_at_once(untaught, observations):
    policy = QwenPolicy(QwenConfig(model=str(untaught), max_new_tokens=4000), CPU)
    limits = Limits()
    threading.Timer(0.3, limits.cancelled.set).start()
    began = time.monotonic()
    results = policy.decide(observations[:2], limits)
    assert time.monotonic() - began < 1.5
    assert all(isinstance(result, EngineError) for result in results)


@pytest.fixture(scope="module")
def adapter(tiny_qwen, tmp_path_factory):
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_pretrained(tiny_qwen)
    tuned = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "v_proj", "o_proj"], init_lora_weights=False))
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            weight.data *= 20
    folder = tmp_path_factory.mktemp("lora")
    tuned.save_pretrained(folder)
    return folder


def test_adapters_are_loaded_and_exchanged_on_a_running_policy(tiny_qwen, adapter, observations, tmp_path):
    policy = QwenPolicy(QwenConfig(model=str(tiny_qwen), max_new_tokens=64), CPU)
    plain = [decision.reply for decision in policy.decide(observations)]
    tuned = QwenPolicy(QwenConfig(model=str(tiny_qwen), adapter=str(adapter), max_new_tokens=64), CPU)
    expected = [decision.reply for decision in tuned.decide(observations)]
    assert expected != plain
    for _ in range(2):
        policy.swap(adapter=str(adapter))
        assert policy.about["adapter"] == str(adapter)
        assert [decision.reply for decision in policy.decide(observations)] == expected
        policy.swap(adapter="")
        assert "adapter" not in policy.about
        assert [decision.reply for decision in policy.decide(observations)] == plain
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"]}))
    with pytest.raises(InputError, match="is no adapter of"):
        policy.swap(adapter=str(tmp_path))
    assert [decision.reply for decision in policy.decide(observations)] == plain


def test_weights_are_exchanged_while_requests_run(tiny_qwen, untaught, observations):
    policy = QwenPolicy(QwenConfig(model=str(tiny_qwen), max_new_tokens=48), CPU)
    old = policy.decide(observations[:1])[0].reply
    new = QwenPolicy(QwenConfig(model=str(untaught), max_new_tokens=48), CPU).decide(observations[:1])[0].reply
    seen, done = [], threading.Event()

    def ask():
        while not done.is_set():
            seen.append(policy.decide(observations[:1])[0].reply)

    asker = threading.Thread(target=ask)
    asker.start()
    policy.swap(model=str(untaught))
    time.sleep(0.3)
    done.set()
    asker.join()
    assert set(seen) == {old, new}
    assert seen == sorted(seen, key=[old, new].index)
    with pytest.raises(InputError, match="cannot be loaded"):
        policy.swap(model="/nowhere/at/all")
    assert policy.decide(observations[:1])[0].reply == new


def test_out_of_memory_is_told_as_such(taught, observations):
    class Full:
        def __getattr__(self, name):
            return getattr(taught._loaded.model, name)

        def generate(self, **inputs):
            raise torch.OutOfMemoryError("CUDA out of memory")

    loaded = dataclasses.replace(taught._loaded, model=Full())
    with pytest.raises(OutOfMemory, match="8 pictures"):
        QwenPolicy(QwenConfig(model="x"), CPU, loaded).decide(observations)


def test_a_cache_of_fixed_size_changes_nothing(tiny_qwen, taught, observations):
    static = QwenPolicy(QwenConfig(model=str(tiny_qwen), static_cache=True), CPU)
    assert [d.reply for d in static.decide(observations)] == [d.reply for d in taught.decide(observations)]


def test_the_layout_of_newer_libraries_loads_too(tiny_qwen, taught, observations, tmp_path):
    AutoModelForImageTextToText.from_pretrained(tiny_qwen).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "chat_template.json"):
        (tmp_path / name).write_bytes((tiny_qwen / name).read_bytes())
    again = QwenPolicy(QwenConfig(model=str(tmp_path)), CPU)
    assert [d.reply for d in again.decide(observations)] == [d.reply for d in taught.decide(observations)]


def test_a_checkpoint_without_some_tensors_is_refused(tiny_qwen, tmp_path):
    from safetensors.torch import load_file, save_file

    for path in tiny_qwen.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="lacks 1 tensors"):
        QwenPolicy(QwenConfig(model=str(tmp_path)), CPU)


def test_the_report_says_what_was_chosen(taught, tiny_qwen):
    assert taught.about["dtype"] == "float32"
    assert taught.about["attention"] == "sdpa"
    assert taught.about["weights"] == str(tiny_qwen)
    assert prepare(taught._loaded.model, taught._loaded.processor, QwenConfig(model="x"), {}).about["device"] == "cpu"
