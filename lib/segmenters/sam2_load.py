"""SAM2, SAM2.1 and MedSAM2 networks from their published checkpoints.

A network is a configuration (a YAML file of the sam2 package's format) and a checkpoint that fits it exactly. MedSAM2
(arXiv:2504.03600) has the tensors of SAM2.1 tiny and looks at 512 px instead of 1024 px.
"""

import pickle
from dataclasses import dataclass
from pathlib import Path

import sam2
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError
from safetensors.torch import load_file
from sam2.modeling.sam2_base import SAM2Base
from yaml import YAMLError

from lib.errors import InputError
from lib.imaging.files import fingerprint

NAMES = tuple(f"{family}_hiera_{size}" for family in ("sam2", "sam2.1") for size in ("t", "s", "b+", "l"))
"""The released configurations that the sam2 package brings; `MEDSAM2` is one more."""
MEDSAM2 = "medsam2"
_MEDSAM2_IMAGE_SIZE = 512
_PACKAGE = Path(sam2.__path__[0])
_SIZES = {(96, 12): "t", (96, 16): "s", (112, 24): "b+", (144, 48): "l"}
"""(Width of the trunk's patch embedding, number of its blocks) -> size."""
_TARGETS = frozenset(
    f"sam2.modeling.{name}"
    for name in (
        "sam2_base.SAM2Base",
        "backbones.image_encoder.ImageEncoder",
        "backbones.image_encoder.FpnNeck",
        "backbones.hieradet.Hiera",
        "position_encoding.PositionEmbeddingSine",
        "memory_attention.MemoryAttention",
        "memory_attention.MemoryAttentionLayer",
        "sam.transformer.RoPEAttention",
        "memory_encoder.MemoryEncoder",
        "memory_encoder.MaskDownSampler",
        "memory_encoder.Fuser",
        "memory_encoder.CXBlock",
    )
)
"""All that a configuration may instantiate. A prefix would not do: `sam2.build_sam.os.system` has one too."""
_STRIDE = 16
_GRID = 32
"""The image size is a multiple of the deepest feature map's stride."""
_SHOWN = 3

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, eq=False)
class LoadedSam2:
    """A network ready to run, in evaluation mode on its device. Its weights are shared and never change."""

    model: SAM2Base
    name: str
    """The configuration's name, such as "sam2.1_hiera_t" or "medsam2"."""
    image_size: int
    """Edge of the square picture that the network looks at, in pixels."""
    parameters: int
    checkpoint: str
    """The checkpoint's file name; "random" without one."""
    fingerprint: str
    """Changes with the checkpoint's path, size or time; empty without one."""

    @property
    def device(self) -> torch.device:
        return self.model.no_mem_embed.device


def load_sam2(checkpoint: Path, config: str = "", *, device: torch.device, image_size: int | None = None) -> LoadedSam2:
    """Load `checkpoint`: a `.pt` file (`{"model": tensors}` or bare tensors), a `.safetensors` file with the sam2 package's
    names, or a folder with one of them.

    `config` is one of `NAMES`, "medsam2", or a YAML file. Without it, a YAML file of the same name beside the checkpoint
    counts; without that, the checkpoint's own tensors tell, and SAM2.1 tiny tensors are MedSAM2's when the file's name says so.
    `image_size` in pixels overrides the configuration's.

    Raises InputError with the field "sam2_ckpt" or "sam2_cfg". Every tensor of the checkpoint must have its place, and the
    other way round.
    """
    path = _find(checkpoint)
    tensors = _read(path)
    beside = path.with_suffix(".yaml")
    inferred = not config and not beside.is_file()
    if inferred:
        config = _infer(path, tensors)
    elif not config:
        config = str(beside)
    name, node = _configuration(config, image_size)
    model = _build(name, node)
    _fill(model, tensors, path, name, "sam2_ckpt" if inferred else "sam2_cfg")
    return _loaded(model, name, device, path.name, fingerprint([path]))


def random_sam2(config: str, *, device: torch.device, image_size: int | None = None) -> LoadedSam2:
    """The network of `config` (see `load_sam2`) with random weights, for benchmarks and tests: right in size and speed only.

    Raises InputError with the field "sam2_cfg".
    """
    name, node = _configuration(config, image_size)
    return _loaded(_build(name, node), name, device, "random", "")


def _loaded(model: SAM2Base, name: str, device: torch.device, checkpoint: str, print_: str) -> LoadedSam2:
    model = model.eval().requires_grad_(False).to(device)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return LoadedSam2(model, name, model.image_size, parameters, checkpoint, print_)


def _find(checkpoint: Path) -> Path:
    if checkpoint.is_dir():
        for suffix in (".pt", ".safetensors"):
            found = sorted(checkpoint.glob(f"*{suffix}"))
            if len(found) == 1:
                return found[0]
            if found:
                names = ", ".join(path.name for path in found)
                raise InputError(f"folder {checkpoint} has several checkpoints ({names}): name one of them", "sam2_ckpt")
    if not checkpoint.is_file():
        raise InputError(
            f"no SAM2 checkpoint (.pt or .safetensors) at {checkpoint.absolute()}: `python main.py weights` gets one",
            "sam2_ckpt",
        )
    return checkpoint


def _read(path: Path) -> Tensors:
    try:
        safe = path.suffix == ".safetensors"
        content: object = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, OSError, SafetensorError) as error:
        raise InputError(
            f"{path} cannot be read as a checkpoint; it is damaged, cut short, or something else", "sam2_ckpt"
        ) from error
    if isinstance(content, dict):
        content = content.get("model", content)
    if not isinstance(content, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in content.values()):
        raise InputError(f"{path} is not a SAM2 checkpoint: it holds other things than named tensors", "sam2_ckpt")
    return content


def _infer(path: Path, tensors: Tensors) -> str:
    trunk = "image_encoder.trunk."
    embedding = tensors.get(f"{trunk}patch_embed.proj.weight")
    blocks = {name.removeprefix(f"{trunk}blocks.").split(".")[0] for name in tensors if name.startswith(f"{trunk}blocks.")}
    size = _SIZES.get((embedding.shape[0] if embedding is not None else 0, len(blocks)))
    if size is None:
        raise InputError(
            f"{path} is not one of {', '.join(NAMES)} or {MEDSAM2}, in the sam2 package's format; "
            "for another architecture name its YAML file",
            "sam2_ckpt" if embedding is None else "sam2_cfg",
        )
    family = "sam2.1" if "no_obj_embed_spatial" in tensors else "sam2"
    if MEDSAM2 in path.name.lower() and (family, size) == ("sam2.1", "t"):
        return MEDSAM2
    return f"{family}_hiera_{size}"


def _configuration(config: str, image_size: int | None) -> tuple[str, DictConfig]:
    """The name and the checked `model` node."""
    if config == MEDSAM2:
        name, path, image_size = config, _released("sam2.1_hiera_t"), _MEDSAM2_IMAGE_SIZE if image_size is None else image_size
    elif config in NAMES:
        name, path = config, _released(config)
    else:
        path = Path(config)
        name = path.stem
        if not path.is_file():
            raise InputError(
                f"SAM2 configuration {config!r} is neither a YAML file nor one of {', '.join(NAMES)}, {MEDSAM2}", "sam2_cfg"
            )
    try:
        document = OmegaConf.load(path)
        node = document.get("model") if isinstance(document, DictConfig) else None
        plain = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else None
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a SAM2 configuration: {str(error).splitlines()[0]}", "sam2_cfg") from error
    if not isinstance(plain, dict) or plain.get("_target_") is None:
        raise InputError(f"{path} is not a SAM2 configuration: it has no `model` with a `_target_`", "sam2_cfg")
    _check_targets(plain, path)
    node = OmegaConf.create(plain)
    size = node.get("image_size") if image_size is None else image_size
    if not isinstance(size, int) or size < _GRID or size % _GRID:
        raise InputError(f"SAM2 ({name}) cannot look at {size} px: the image size is a multiple of {_GRID}", "sam2_cfg")
    node.image_size = size
    for attention in ("self_attention", "cross_attention"):
        place = f"memory_attention.layer.{attention}.feat_sizes"
        OmegaConf.update(node, place, [size // _STRIDE] * 2, force_add=True)
    # As the package's own builder sets for use, as against training.
    OmegaConf.update(node, "sam_mask_decoder_extra_args.dynamic_multimask_via_stability", True, force_add=True)
    OmegaConf.update(node, "sam_mask_decoder_extra_args.dynamic_multimask_stability_delta", 0.05, force_add=True)
    OmegaConf.update(node, "sam_mask_decoder_extra_args.dynamic_multimask_stability_thresh", 0.98, force_add=True)
    node.binarize_mask_from_pts_for_mem_enc = True
    return name, node


def _released(name: str) -> Path:
    return _PACKAGE / "configs" / name.split("_")[0] / f"{name}.yaml"


def _check_targets(node: object, path: Path) -> None:
    """Raise InputError unless the configuration builds SAM2 parts and nothing else."""
    if isinstance(node, dict):
        target = node.get("_target_")
        if target is not None and target not in _TARGETS:
            raise InputError(f"{path} asks for {target!r}, which is no part of a SAM2 network", "sam2_cfg")
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        _check_targets(child, path)


def _build(name: str, node: DictConfig) -> SAM2Base:
    try:
        model = instantiate(node)
    except InstantiationException as error:
        raise InputError(f"SAM2 configuration {name} cannot be built: {str(error).splitlines()[0]}", "sam2_cfg") from error
    if not isinstance(model, SAM2Base):
        raise InputError(f"SAM2 configuration {name} is not that of a whole network", "sam2_cfg")
    return model


def _fill(model: SAM2Base, tensors: Tensors, path: Path, name: str, field: str) -> None:
    places = model.state_dict()
    faults = {
        "missing": [key for key in places if key not in tensors],
        "unexpected": [key for key in tensors if key not in places],
        "of another shape": [key for key in places if key in tensors and tensors[key].shape != places[key].shape],
    }
    told = [
        f"{len(keys)} {fault} ({', '.join(keys[:_SHOWN])}{', ...' if len(keys) > _SHOWN else ''})"
        for fault, keys in faults.items()
        if keys
    ]
    if told:
        raise InputError(f"{path} does not fit {name}: tensors {'; '.join(told)}", field)
    model.load_state_dict(tensors)
