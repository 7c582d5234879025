"""Whether weights are whole and of the right architecture, told from their headers: no tensor is read, whatever their size.

The tensors that a checkpoint must have are those of the network that transformers builds from its config.json, on the meta
device; their names go through transformers' own renaming, so published and newly saved layouts are judged alike.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.errors import StrictDataclassError as ConfigError
from safetensors import SafetensorError, safe_open
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key

from lib.engines.weights import ROOT, catalogue
from lib.errors import InputError

ARCHITECTURE = "Qwen2_5_VLForConditionalGeneration"
_FIELD = "mllm_path"
_FETCH = "`python main.py weights` tells how to get it"
_AGAIN = "fetch or copy it again"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_TYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
_TOKENS = {
    "image_token_id": "<|image_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}
"""Key of config.json -> the token that the chat template writes."""
_TURN_END = "<|im_end|>"
_LORA = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<kind>embedding_A|embedding_B|A|B)(?:\.weight)?")
_MAGNITUDE = ".lora_magnitude_vector"
_SHOWN = 3

Shape = tuple[int, ...]


@dataclass(frozen=True)
class LanguageModelFacts:
    """A verified Qwen2.5-VL folder."""

    folder: Path
    architecture: str
    parameters: int
    dtype: str
    """Of the tensors in the files, such as "bfloat16"; several are joined by commas."""
    shards: int
    size_bytes: int
    """Of the tensor files."""
    patch: int
    """Edge of the picture processor's patches, in pixels."""
    merge: int
    """One token stands for merge x merge patches."""
    min_pixels: int
    max_pixels: int
    """A picture is scaled to an area between these two, in pixels, unless an engine sets its own."""
    vocabulary: int
    """Tokens that the tokeniser has."""
    embeddings: int
    """Rows of the embedding table: the vocabulary, rounded up."""
    special_tokens: tuple[str, ...]
    chat_template: str
    """The file that has it."""


@dataclass(frozen=True)
class AdapterFacts:
    """A verified LoRA adapter for one language model."""

    folder: Path
    base: str
    """The model it was trained on, as its own configuration calls it; may be empty."""
    rank: int
    parameters: int
    modules: int
    """Linear layers that it changes."""


@dataclass(frozen=True)
class _Tensor:
    shape: Shape
    dtype: str


def resolve_language_model(name: str | Path) -> Path:
    """The folder of a language model: `name` itself, or the local hub cache's folder of the hub id "owner/name".

    Raises InputError with the field "mllm_path".
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise InputError(f"{folder} is a file; a language model is a folder with config.json in it", _FIELD)
    if _HUB_ID.fullmatch(str(name)):
        try:
            cached = try_to_load_from_cache(str(name), "config.json")
        except HFValidationError:
            cached = None
        if isinstance(cached, str):
            return Path(cached).parent
    raise InputError(f"no language model at {folder.absolute()}, nor as a hub id in the local cache: {_command(name)}", _FIELD)


def _command(name: str | Path) -> str:
    """What gets a model that is not here."""
    for entry, weights in catalogue().items():
        if str(name) in (weights.repo, str(weights.target)) or Path(name).absolute() == ROOT / weights.target:
            return f"`python main.py weights fetch {entry}` gets it"
    return _FETCH


def verify_language_model(name: str | Path) -> LanguageModelFacts:
    """Check a Qwen2.5-VL folder, or a hub id in the local cache: architecture, tensors, tokeniser, picture processor, template.

    Takes well under a second for the 7B model. Raises InputError with the field "mllm_path".
    """
    folder = resolve_language_model(name)
    raw = _config(folder)
    network = _network(folder, raw)
    tensors, files = _tensors(folder, "model")
    _fit(folder, network, tensors)
    config = network.config
    patch, merge, min_pixels, max_pixels = _pictures(folder, config)
    tokens, specials = _tokens(folder, config)
    return LanguageModelFacts(
        folder=folder,
        architecture=ARCHITECTURE,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        dtype=", ".join(sorted({_TYPES.get(tensor.dtype, tensor.dtype) for tensor in tensors.values()})),
        shards=len(files),
        size_bytes=sum(path.stat().st_size for path in files),
        patch=patch,
        merge=merge,
        min_pixels=min_pixels,
        max_pixels=max_pixels,
        vocabulary=tokens,
        embeddings=config.get_text_config().vocab_size,
        special_tokens=specials,
        chat_template=_chat_template(folder),
    )


def verify_adapter(folder: Path, model: str | Path) -> AdapterFacts:
    """Check that a LoRA adapter as peft writes it (adapter_config.json, adapter_model.safetensors) fits the language model.

    Raises InputError with the field "adapter", or "mllm_path" where it is the model that cannot be used.
    """
    config = _json(folder / "adapter_config.json", "adapter")
    kind, rank = config.get("peft_type"), config.get("r")
    if kind != "LORA" or not isinstance(rank, int):
        raise InputError(f"{folder} is a peft adapter of type {kind}; a LORA adapter with a rank `r` is expected", "adapter")
    base = resolve_language_model(model)
    network = _network(base, _config(base))
    places = _places(network)
    tensors, _ = _tensors(folder, "adapter_model", "adapter")
    pairs: dict[str, dict[str, Shape]] = {}
    weights: list[tuple[str, Shape]] = []
    for key, tensor in tensors.items():
        found = _LORA.fullmatch(key)
        if found:
            pairs.setdefault(found["module"], {})[found["kind"]] = tensor.shape
        elif not key.endswith(_MAGNITUDE):
            weights.append((key.removeprefix("base_model.model.").replace(".base_layer.", "."), tensor.shape))
    weights += [(f"{module}.weight", _changed(parts)) for module, parts in pairs.items()]
    names = _renamed(network, [key for key, _ in weights])
    misfits = [key for key, shape in weights if places.get(names[key]) != shape]
    if misfits or not pairs:
        fault = f"{len(misfits)} of its weights ({_some(misfits)}) have no place there" if misfits else "it has no LoRA weights"
        raise InputError(f"adapter {folder} does not fit the language model {base}: {fault}", "adapter")
    parameters = sum(prod(tensor.shape) for tensor in tensors.values())
    return AdapterFacts(folder, adapter_base(folder), rank, parameters, len(pairs))


def adapter_base(folder: Path) -> str:
    """The language model that an adapter says it was trained on: a folder or a hub id; empty where it does not say.

    Raises InputError with the field "adapter".
    """
    return str(_json(folder / "adapter_config.json", "adapter").get("base_model_name_or_path") or "")


def _changed(parts: Mapping[str, Shape]) -> Shape:
    """Shape of the weight that a pair of LoRA matrices, `[rank, in]` and `[out, rank]`, changes; () for what is no pair."""
    for kind in ("", "embedding_"):
        down, up = parts.get(f"{kind}A", ()), parts.get(f"{kind}B", ())
        if len(down) == len(up) == 2 and down[0] == up[1]:
            return (down[1], up[0]) if kind else (up[0], down[1])
    return ()


def _json(path: Path, field: str = _FIELD) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"folder {path.parent} has no {path.name}: {_FETCH}", field) from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not JSON; {_AGAIN}", field) from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object; {_AGAIN}", field)
    return content


def _config(folder: Path) -> dict[str, Any]:
    """config.json of a plain Qwen2.5-VL checkpoint."""
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise InputError(f"{folder} is an adapter; name the folder of the language model that it adapts", _FIELD)
    config = _json(folder / "config.json")
    found = config.get("architectures")
    if found != [ARCHITECTURE]:
        named = ", ".join(map(str, found)) if isinstance(found, list) and found else config.get("model_type", "unknown")
        raise InputError(f"{folder} is a model of architecture {named}; {ARCHITECTURE} (Qwen2.5-VL) is expected", _FIELD)
    quantised = config.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method", "unknown") if isinstance(quantised, dict) else "unknown"
        raise InputError(
            f"{folder} is quantised ({method}); in process a bfloat16 folder is needed, quantised ones go behind ibis-remote",
            _FIELD,
        )
    return config


def _network(folder: Path, config: dict[str, Any]) -> Qwen2_5_VLForConditionalGeneration:
    """The architecture without its numbers."""
    try:
        with torch.device("meta"):
            return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_dict(config))
    except (ConfigError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, ZeroDivisionError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{folder / 'config.json'} describes no Qwen2.5-VL network ({reason}); {_AGAIN}", _FIELD) from error


def _places(network: Qwen2_5_VLForConditionalGeneration) -> dict[str, Shape]:
    return {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}


def _tensors(folder: Path, stem: str, field: str = _FIELD) -> tuple[dict[str, _Tensor], list[Path]]:
    """Name -> shape and type from the headers of `stem`.safetensors or of the shards that its index lists, and those files."""
    index = folder / f"{stem}.safetensors.index.json"
    if not index.is_file():
        path = folder / f"{stem}.safetensors"
        if not path.is_file():
            raise InputError(f"folder {folder} has neither {path.name} nor {index.name}: {_FETCH}", field)
        return _header(path, field), [path]
    places = _json(index, field).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise InputError(f"{index} has no weight_map; {_AGAIN}", field)
    names = sorted(set(places.values()))
    if any(Path(name).name != name for name in names):
        raise InputError(f"{index} names files outside its folder", field)
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise InputError(f"{len(missing)} of {len(names)} shards are missing in {folder}: {_some(missing)}; {_AGAIN}", field)
    tensors: dict[str, _Tensor] = {}
    for name in names:
        header = _header(folder / name, field)
        if header.keys() != {key for key, place in places.items() if place == name}:
            raise InputError(f"{folder / name} does not hold the tensors that {index.name} says; {_AGAIN}", field)
        tensors |= header
    return tensors, [folder / name for name in names]


def _header(path: Path, field: str) -> dict[str, _Tensor]:
    """Opening checks that the header's offsets add up to the file's length (safetensors' format description)."""
    try:
        with safe_open(path, "numpy") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
            return {key: _Tensor(tuple(part.get_shape()), part.get_dtype()) for key, part in slices.items()}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is cut short, damaged, or only a Git LFS pointer; {_AGAIN}", field) from error


def _renamed(network: Qwen2_5_VLForConditionalGeneration, keys: Iterable[str]) -> dict[str, str]:
    """Name in the file -> name in the network, as transformers maps them when it loads."""
    renamings = [step for step in get_model_conversion_mapping(network) if isinstance(step, WeightRenaming)]
    state, prefix = network.state_dict(), network.base_model_prefix
    return {key: rename_source_key(key, renamings, [], prefix, state)[0] for key in keys}


def _fit(folder: Path, network: Qwen2_5_VLForConditionalGeneration, tensors: Mapping[str, _Tensor]) -> None:
    places = _places(network)
    given = {name: tensors[key].shape for key, name in _renamed(network, tensors).items()}
    tied = network.all_tied_weights_keys
    faults = {
        "missing": [key for key in places if key not in given and tied.get(key) not in given],
        "unexpected": [key for key in given if key not in places],
        "of another shape": [key for key in places if key in given and given[key] != places[key]],
    }
    told = [f"{len(keys)} {fault} ({_some(keys)})" for fault, keys in faults.items() if keys]
    if told:
        raise InputError(f"{folder} does not fit its own config.json: tensors {'; '.join(told)}; {_AGAIN}", _FIELD)


def _pictures(folder: Path, config: Qwen2_5_VLConfig) -> tuple[int, int, int, int]:
    """Patch, merge, least and most pixels of preprocessor_config.json, or of the newer processor_config.json."""
    path = folder / "preprocessor_config.json"
    if path.is_file():
        settings = _json(path)
    else:
        path = folder / "processor_config.json"
        if not path.is_file():
            raise InputError(f"folder {folder} has no preprocessor_config.json: {_FETCH}", _FIELD)
        settings = _inner(_json(path), "image_processor")
    size = _inner(settings, "size")
    patch, merge = settings.get("patch_size"), settings.get("merge_size")
    least = settings.get("min_pixels") or size.get("shortest_edge")
    most = settings.get("max_pixels") or size.get("longest_edge")
    if not (isinstance(patch, int) and isinstance(merge, int) and isinstance(least, int) and isinstance(most, int)):
        raise InputError(f"{path} does not tell patch_size, merge_size, min_pixels and max_pixels; {_AGAIN}", _FIELD)
    vision: Any = config.vision_config
    if (patch, merge) != (vision.patch_size, vision.spatial_merge_size):
        raise InputError(
            f"{path} has patch size {patch} and merge size {merge}, but the network {vision.patch_size} and "
            f"{vision.spatial_merge_size}; {_AGAIN}",
            _FIELD,
        )
    if not (patch * merge) ** 2 <= least <= most:
        raise InputError(
            f"{path}: no picture has from {least} to {most} pixels in tokens of {patch * merge} px; {_AGAIN}", _FIELD
        )
    return patch, merge, least, most


def _inner(content: dict[str, Any], key: str) -> dict[str, Any]:
    value = content.get(key)
    return value if isinstance(value, dict) else {}


def _tokens(folder: Path, config: Qwen2_5_VLConfig) -> tuple[int, tuple[str, ...]]:
    """Number of tokens and the special ones; those that the template writes must be the ones that the network knows."""
    path = folder / "tokenizer.json"
    content = _json(path)
    _json(folder / "tokenizer_config.json")
    added, vocabulary = content.get("added_tokens"), _inner(_inner(content, "model"), "vocab")
    if not vocabulary or not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
        raise InputError(f"{path} is not a byte-pair tokeniser with special tokens; {_AGAIN}", _FIELD)
    ids = vocabulary | {token.get("content"): token.get("id") for token in added}
    wanted = {token: getattr(config, key) for key, token in _TOKENS.items() if hasattr(config, key)}
    wrong = [token for token, number in wanted.items() if ids.get(token) != number]
    if wrong or _TURN_END not in ids:
        raise InputError(f"{path} and config.json disagree about {_some(wrong or [_TURN_END])}; {_AGAIN}", _FIELD)
    rows = config.get_text_config().vocab_size
    if max(ids.values()) >= rows:
        raise InputError(f"{path} has tokens up to {max(ids.values())}, the network only {rows} embeddings; {_AGAIN}", _FIELD)
    return len(ids), tuple(str(token["content"]) for token in added if token.get("special"))


def _chat_template(folder: Path) -> str:
    if (folder / "chat_template.jinja").is_file():
        return "chat_template.jinja"
    for name in ("chat_template.json", "tokenizer_config.json"):
        if (folder / name).is_file() and _json(folder / name).get("chat_template"):
            return name
    raise InputError(f"folder {folder} has no chat template (chat_template.json or .jinja): {_FETCH}", _FIELD)


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
