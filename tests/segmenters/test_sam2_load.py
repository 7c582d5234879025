"""SAM2 checkpoints and configurations: what loads, and what is said of what does not."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from lib.engines.tiny.sam2 import make_medsam2, make_tiny_sam2
from lib.errors import InputError
from lib.segmenters.sam2_load import NAMES, LoadedSam2, load_sam2, random_sam2

torch.set_num_threads(1)
CPU = torch.device("cpu")
SMALL = [name for name in NAMES if not name.endswith("_l")]


def load(checkpoint: Path, config: str = "", image_size: int | None = None) -> LoadedSam2:
    return load_sam2(checkpoint, config, device=CPU, image_size=image_size)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return make_tiny_sam2(tmp_path / "tiny")


@pytest.fixture(scope="module")
def medsam2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_medsam2(tmp_path_factory.mktemp("medsam2"))


def test_a_medsam2_checkpoint_loads_by_its_name_and_tensors(medsam2: Path, tmp_path: Path) -> None:
    tensors = torch.load(medsam2, weights_only=True)["model"]
    assert len(tensors) == 471
    loaded = load(medsam2)
    assert (loaded.name, loaded.image_size, loaded.parameters) == ("medsam2", 512, 38_962_498)
    attention = loaded.model.memory_attention.layers[0]
    assert attention.self_attn.freqs_cis.shape[0] == attention.cross_attn_image.freqs_cis.shape[0] == 32 * 32
    renamed = tmp_path / "weights.pt"
    renamed.symlink_to(medsam2)
    other = load(renamed)
    assert (other.name, other.image_size) == ("sam2.1_hiera_t", 1024)
    assert load(renamed, "medsam2").image_size == 512
    assert load(renamed, image_size=256).image_size == 256
    assert load(medsam2, image_size=1024).image_size == 1024
    assert all(torch.equal(tensor, other.model.state_dict()[name]) for name, tensor in tensors.items())


@pytest.mark.parametrize("name", SMALL)
def test_the_released_sizes_are_told_by_their_tensors(name: str, tmp_path: Path) -> None:
    torch.save({"model": random_sam2(name, device=CPU).model.state_dict()}, tmp_path / "checkpoint.pt")
    loaded = load(tmp_path)
    assert (loaded.name, loaded.image_size) == (name, 1024)
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


@pytest.mark.parametrize(("name", "millions"), [("sam2_hiera_l", 224.4), ("sam2.1_hiera_l", 224.4)])
def test_the_large_ones_build(name: str, millions: float) -> None:
    assert random_sam2(name, device=CPU).parameters / 1e6 == pytest.approx(millions, abs=0.1)


def test_the_tiny_one_is_small_and_the_same_each_time(tiny: Path, tmp_path: Path) -> None:
    loaded = load(tiny)
    assert (loaded.name, loaded.image_size, loaded.checkpoint) == ("sam2_tiny", 256, "sam2_tiny.pt")
    assert loaded.parameters < 1.5e6
    assert len(loaded.fingerprint) == 12
    again = load(make_tiny_sam2(tmp_path / "again")).model.state_dict()
    other = load(make_tiny_sam2(tmp_path / "other", seed=1)).model.state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in loaded.model.state_dict().items())
    assert not all(torch.equal(tensor, other[name]) for name, tensor in again.items())


def test_bare_tensors_safetensors_and_half_precision_load_too(tiny: Path, tmp_path: Path) -> None:
    tensors = torch.load(tiny, weights_only=True)["model"]
    config = str(tiny.with_suffix(".yaml"))
    torch.save(tensors, tmp_path / "bare.pt")
    save_file(tensors, tmp_path / "same.safetensors")
    torch.save({"model": {name: tensor.half() for name, tensor in tensors.items()}}, tmp_path / "half.pt")
    for name in ("bare.pt", "same.safetensors"):
        state = load(tmp_path / name, config).model.state_dict()
        assert all(torch.equal(tensor, state[key]) for key, tensor in tensors.items())
    half = load(tmp_path / "half.pt", config).model.state_dict()
    assert {tensor.dtype for tensor in half.values()} == {torch.float32}


def without(tensors: dict, name: str) -> dict:
    return {key: tensor for key, tensor in tensors.items() if key != name}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: without(t, "no_mem_embed"), r"tensors 1 missing \(no_mem_embed\)"),
        (lambda t: {**t, "extra.weight": torch.zeros(1)}, r"tensors 1 unexpected \(extra.weight\)"),
        (lambda t: {**t, "no_mem_embed": torch.zeros(1, 1, 7)}, r"tensors 1 of another shape \(no_mem_embed\)"),
        (lambda t: {f"module.{key}": tensor for key, tensor in t.items()}, r"missing .*\.\.\.\); .* unexpected \(module\."),
    ],
)
def test_a_checkpoint_that_does_not_fit_exactly_is_refused(tiny: Path, change: Callable[[dict], dict], said: str) -> None:
    torch.save({"model": change(torch.load(tiny, weights_only=True)["model"])}, tiny)
    with pytest.raises(InputError, match=said) as caught:
        load(tiny)
    assert caught.value.field == "sam2_cfg"
    assert "\n" not in caught.value.message


def truncated(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-4000])
    return path


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda tiny: tiny.with_name("gone.pt"), r"no SAM2 checkpoint .* at /.*gone.pt: `python main.py weights` gets one"),
        (lambda tiny: (tiny.parent / "empty").absolute(), "no SAM2 checkpoint"),
        (truncated, "cut short"),
        (lambda tiny: written(tiny, b""), "cannot be read"),
        (lambda tiny: written(tiny, b"not a checkpoint at all"), "cannot be read"),
        (lambda tiny: written(tiny.with_suffix(".safetensors"), b"\xff" * 64), "cannot be read"),
        (lambda tiny: saved(tiny, {"model": {"epoch": 3}}), "other things than named tensors"),
        (lambda tiny: saved(tiny, [torch.zeros(1)]), "other things than named tensors"),
        (lambda tiny: saved(tiny, Path("arbitrary object")), "cannot be read"),
        (lambda tiny: saved(tiny.with_name("foreign.pt"), {"vision_encoder": torch.zeros(1)}), "not one of sam2_hiera_t"),
    ],
)
def test_what_is_no_checkpoint_is_named(tiny: Path, make: Callable[[Path], Path], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        load(make(tiny))
    assert caught.value.field == "sam2_ckpt"
    assert "\n" not in caught.value.message


def test_a_folder_with_several_checkpoints_asks_which(tiny: Path) -> None:
    assert load(tiny.parent).name == "sam2_tiny"
    tiny.with_name("second.pt").write_bytes(tiny.read_bytes())
    with pytest.raises(InputError, match=r"sam2_tiny.pt, second.pt\): name one") as caught:
        load(tiny.parent)
    assert caught.value.field == "sam2_ckpt"


def test_another_architecture_asks_for_its_yaml(tiny: Path) -> None:
    config = tiny.with_suffix(".yaml").rename(tiny.with_name("other.yaml"))
    assert load(tiny, str(config)).name == "other"
    for given, said in (("", "for another architecture name its YAML"), ("sam2.1_hiera_t", "does not fit sam2.1_hiera_t")):
        with pytest.raises(InputError, match=said) as caught:
            load(tiny, given)
        assert caught.value.field == "sam2_cfg"


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("model._target_", "os.system", "'os.system', which is no part"),
        ("model.image_encoder._target_", "sam2.build_sam.os.system", "is no part of a SAM2 network"),
        ("model.extra", [{"_target_": "subprocess.run"}], "'subprocess.run'"),
        ("model._target_", "sam2.modeling.backbones.hieradet.Hiera", "cannot be built"),
        ("model.image_encoder.trunk.stages", "many", "cannot be built"),
        ("model.image_size", 250, "cannot look at 250 px"),
        ("model.image_size", None, "cannot look at None px"),
        ("model.image_size", "${nowhere}", "is not a SAM2 configuration"),
        ("model", "sam2", "no `model`"),
    ],
)
def test_a_configuration_builds_sam2_and_nothing_else(tiny: Path, key: str, value: object, said: str) -> None:
    config = OmegaConf.load(tiny.with_suffix(".yaml"))
    OmegaConf.update(config, key, value, merge=False, force_add=True)
    OmegaConf.save(config, tiny.with_suffix(".yaml"))
    with pytest.raises(InputError, match=said) as caught:
        load(tiny)
    assert caught.value.field == "sam2_cfg"
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "\x00"])
def test_what_is_no_configuration_is_named(tiny: Path, text: str) -> None:
    tiny.with_suffix(".yaml").write_text(text)
    with pytest.raises(InputError, match="is not a SAM2 configuration") as caught:
        load(tiny)
    assert caught.value.field == "sam2_cfg"


@pytest.mark.parametrize(
    ("config", "size", "said"), [("sam9", None, "neither a YAML file nor"), ("medsam2", 500, "multiple of 32")]
)
def test_unknown_names_and_impossible_sizes_are_refused(config: str, size: int | None, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        random_sam2(config, device=CPU, image_size=size)
    assert caught.value.field == "sam2_cfg"
