"""Verifying real checkpoint folders that are broken in every way."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from lib.engines.describe import describe
from lib.engines.verify import resolve_language_model, verify_adapter, verify_language_model
from lib.errors import InputError
from tests.engines.helpers import assert_one_line, edit
from tests.engines.hub import COMMIT

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="session")
def resaved(published, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("resaved")
    AutoModelForImageTextToText.from_pretrained(published).save_pretrained(folder, max_shard_size="300KB")
    AutoProcessor.from_pretrained(published).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(published, tmp_path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "model"))


@pytest.fixture
def shards(resaved, tmp_path) -> Path:
    return Path(shutil.copytree(resaved, tmp_path / "shards"))


def refusal(path, *words: str) -> str:
    with pytest.raises(InputError) as caught:
        verify_language_model(path)
    assert caught.value.field == "mllm_path"
    assert_one_line(caught.value.message, *words)
    return caught.value.message


@pytest.mark.parametrize("layout", ["published", "resaved"])
def test_both_layouts_are_whole(layout, request):
    path = request.getfixturevalue(layout)
    facts = verify_language_model(path)
    model = AutoModelForImageTextToText.from_pretrained(path)
    assert facts.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert (facts.dtype, facts.shards) == ("float32", len(list(path.glob("*.safetensors"))))
    assert (facts.patch, facts.merge, facts.min_pixels, facts.max_pixels) == (14, 2, 56 * 56, 112 * 112)
    assert facts.vocabulary == len(AutoProcessor.from_pretrained(path).tokenizer)
    assert {"<|im_end|>", "<|image_pad|>"} <= set(facts.special_tokens)
    assert facts.chat_template in ("chat_template.json", "chat_template.jinja")


def test_the_oldest_layout_is_whole(folder):
    """`visual.*`, `model.layers.*`, `lm_head.weight`, as the hub has them."""
    path = folder / "model.safetensors"
    tensors = {
        re.sub(r"^model\.visual\.", "visual.", re.sub(r"^model\.language_model\.", "model.", key)): tensor
        for key, tensor in load_file(path).items()
    }
    assert {key.split(".")[0] for key in tensors} == {"visual", "model", "lm_head"}
    save_file(tensors, path)
    assert verify_language_model(folder) is not None


def test_tied_embeddings_need_no_head(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors")
    refusal(folder, "1 missing", "lm_head.weight")
    edit(folder / "config.json", tie_word_embeddings=True)
    assert verify_language_model(folder) is not None


def test_half_precision_is_told(folder):
    path = folder / "model.safetensors"
    save_file({key: tensor.bfloat16() for key, tensor in load_file(path).items()}, path)
    assert verify_language_model(folder).dtype == "bfloat16"


def test_a_missing_shard(shards):
    next(shards.glob("*-00002-of-*.safetensors")).unlink()
    refusal(shards, "1 of", "00002", "again")


def test_a_shard_that_is_cut_short(shards):
    path = next(shards.glob("*-00002-of-*.safetensors"))
    path.write_bytes(path.read_bytes()[:-4])
    refusal(shards, "00002", "cut short", "again")


def test_a_shard_that_is_a_pointer(folder):
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    refusal(folder, "Git LFS pointer")


def test_a_shard_in_the_wrong_place(shards):
    first, second = sorted(shards.glob("*.safetensors"))[:2]
    shutil.copy(second, first)
    refusal(shards, first.name, "does not hold the tensors")


def test_an_index_that_points_outside(shards):
    edit(shards / "model.safetensors.index.json", weight_map={"a": "../model.safetensors"})
    refusal(shards, "outside its folder")


def test_another_architecture(folder):
    edit(folder / "config.json", architectures=["LlamaForCausalLM"])
    refusal(folder, "LlamaForCausalLM", "Qwen2_5_VLForConditionalGeneration")


def test_a_quantised_model(folder):
    edit(folder / "config.json", quantization_config={"quant_method": "awq"})
    refusal(folder, "quantised (awq)", "ibis-remote")


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("config.json", "config.json"),
        ("tokenizer.json", "tokenizer.json"),
        ("tokenizer_config.json", "tokenizer_config.json"),
        ("preprocessor_config.json", "preprocessor_config.json"),
        ("model.safetensors", "model.safetensors"),
    ],
)
def test_a_missing_file(folder, file, words):
    (folder / file).unlink()
    refusal(folder, f"{words}", "python main.py weights")


def test_no_chat_template(folder):
    (folder / "chat_template.json").unlink()
    assert verify_language_model(folder).chat_template == "tokenizer_config.json"
    edit(folder / "tokenizer_config.json", chat_template=None)
    refusal(folder, "chat template")


def test_missing_unexpected_and_misshapen_tensors(folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    norm = next(key for key in tensors if key.endswith("layers.1.input_layernorm.weight"))
    moved = tensors.pop(norm)
    tensors["v_head.summary.weight"] = moved
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:-8].contiguous()
    save_file(tensors, path)
    refusal(folder, "1 missing", "layers.1.input_layernorm", "1 unexpected (v_head", "1 of another shape (lm_head.weight)")


@pytest.mark.parametrize("content", ["{", "[]", "\xff\xfe", ""])
def test_a_config_that_is_no_object(folder, content):
    (folder / "config.json").write_bytes(content.encode("latin-1"))
    refusal(folder, "config.json", "JSON")


@pytest.mark.parametrize(
    "changes",
    [{"hidden_size": "large"}, {"hidden_size": 0}, {"num_attention_heads": 0}, {"vision_config": 3}, {"vocab_size": -1}],
)
def test_a_config_without_sense(folder, changes):
    edit(folder / "config.json", **changes)
    refusal(folder, "config.json")


def test_a_picture_processor_for_another_network(folder):
    edit(folder / "preprocessor_config.json", patch_size=16)
    refusal(folder, "patch size 16", "14")
    edit(folder / "preprocessor_config.json", patch_size=14, min_pixels=500_000)
    refusal(folder, "500000")


def test_a_tokeniser_of_another_model(folder):
    edit(folder / "config.json", image_token_id=5)
    refusal(folder, "<|image_pad|>", "tokenizer.json")


def test_no_folder(folder, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    refusal(tmp_path / "empty", "config.json", "python main.py weights")
    refusal(tmp_path / "gone", "no language model", "python main.py weights")
    refusal(folder / "config.json", "is a file")


def test_a_hub_id_in_the_local_cache(published, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / f"models--owner--agent/snapshots/{COMMIT}"
    shutil.copytree(published, snapshot)
    (tmp_path / "models--owner--agent/refs").mkdir()
    (tmp_path / "models--owner--agent/refs/main").write_text(COMMIT)
    assert verify_language_model("owner/agent").folder == snapshot
    for name, command in {
        "owner/other": "weights`",
        "manglu3935/IBIS": "weights fetch ibis`",
        "weights/ibis": "weights fetch ibis`",
        str(ROOT / "weights/qwen2.5-vl-7b"): "weights fetch qwen2.5-vl-7b`",
    }.items():
        with pytest.raises(InputError, match=re.escape(f"python main.py {command}")):
            resolve_language_model(name)


def test_adapters(published, tmp_path):
    for name, settings in {
        "text": {"target_modules": ["q_proj", "v_proj"]},
        "all": {"target_modules": "all-linear", "modules_to_save": ["lm_head"]},
        "dora": {"target_modules": ["o_proj", "qkv"], "use_dora": True},
        "embedding": {"target_modules": ["embed_tokens"]},
    }.items():
        model = AutoModelForImageTextToText.from_pretrained(published)
        get_peft_model(model, LoraConfig(r=4, **settings)).save_pretrained(tmp_path / name)
        facts = verify_adapter(tmp_path / name, published)
        assert (facts.rank, facts.base) == (4, str(published))
        assert describe(tmp_path / name)["fits"] == str(published)
    assert verify_adapter(tmp_path / "text", published).modules == 4
    refusal(tmp_path / "text", "adapter", "language model")

    path = tmp_path / "text/adapter_model.safetensors"
    good = load_file(path)
    key = next(key for key in good if key.endswith("lora_B.weight"))
    for changed in (
        {**good, key: good[key][:-8].contiguous()},
        {**good, "base_model.model.other.weight": torch.zeros(3)},
        {other: tensor for other, tensor in good.items() if other != key},
    ):
        save_file(changed, path)
        with pytest.raises(InputError, match="does not fit") as caught:
            verify_adapter(tmp_path / "text", published)
        assert caught.value.field == "adapter"
    edit(tmp_path / "text/adapter_config.json", peft_type="PREFIX_TUNING")
    with pytest.raises(InputError, match="PREFIX_TUNING"):
        verify_adapter(tmp_path / "text", published)
