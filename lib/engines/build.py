"""Builds engines from `configs/engines.yaml`, or from an engine file of one's own."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lib.agent.conduct import Conduct, conduct_named
from lib.agent.engine import Engine
from lib.agent.policy import Policy
from lib.agent.segmenter import Segmenter
from lib.config import CONFIGS, load_config
from lib.errors import InputError

logger = logging.getLogger(__name__)


class PartConfig(BaseModel):
    """A part's kind; what else stands there are the settings of that kind, checked when it is built."""

    model_config = ConfigDict(extra="allow")
    kind: str


class EngineConfig(BaseModel):
    """One engine."""

    model_config = ConfigDict(extra="forbid")
    policy: PartConfig
    segmenter: PartConfig
    batch: int = Field(ge=1)
    """How many slices of a run go through the parts together."""
    runs: int = Field(2, ge=1)
    """How many runs at a time a server works on, unless told otherwise."""
    max_batch: int = Field(64, ge=1)
    """How many slices of all runs together go through a model at once."""
    max_wait_ms: float = Field(5, ge=0)
    """How long a batch that is not full waits for more."""
    device: str = "auto"
    protocol: str = "corrected"


class EnginesConfig(BaseModel):
    """`configs/engines.yaml`."""

    model_config = ConfigDict(extra="forbid")
    default: str
    engines: dict[str, EngineConfig]


@dataclass(frozen=True)
class EngineOptions:
    """Which engine, and what of its configuration is to be different. An empty text leaves the configuration as it is."""

    engine: str = ""
    """A name of `configs/engines.yaml`, or the path of a YAML file with one engine. By default "ibis" when weights are named,
    "ibis-remote" when endpoints are, else the default engine."""
    mllm_path: str = ""
    """Folder or hub id of the language model; behind a server: the model's name there."""
    adapter: str = ""
    """Folder of a LoRA adapter."""
    sam2_ckpt: str = ""
    """SAM2 or MedSAM2 checkpoint."""
    sam2_cfg: str = ""
    """Its configuration, a name or a YAML file; default: told from the checkpoint."""
    endpoints: str = ""
    """Base URLs of OpenAI-compatible servers, separated by commas."""
    device: str = ""
    protocol: str = ""
    """Either "corrected" or "released"."""
    use_history: str = ""
    """1 or 0: whether earlier turns stay in the conversation."""


OPTIONS = tuple(option.name for option in fields(EngineOptions))


def build_engine(options: EngineOptions | str = "") -> Engine:
    """The engine of those options, or of that name; built once per process.

    Raises InputError when it is unknown or cannot start: what is missing, where it looked, and the command that gets it.
    """
    return _build(EngineOptions(options) if isinstance(options, str) else options)


def build_engine_for(policy: Policy, options: EngineOptions) -> Engine:
    """The engine of those options with `policy` in the place of its own, which is not built and needs no weights.

    Raises InputError as `build_engine` does.
    """
    name, config, home = _configured(options)
    if options.device and config.segmenter.kind == "graphcut":
        raise InputError(f"the segmenter of engine {name} runs on the processor only: choose another with --engine", "device")
    site = _site(options, config, home)
    segmenter = _made(SEGMENTERS, "segmenter", config.segmenter, _changed(config.segmenter, options, _OF_SEGMENTER), site)
    return Engine(policy.name, policy, segmenter, config.batch, config.runs, conduct=_conduct(options, config))


@cache
def _build(options: EngineOptions) -> Engine:
    name, config, home = _configured(options)
    if options.device and config.policy.kind == "rules" and config.segmenter.kind == "graphcut":
        raise InputError(f"engine {name} runs on the processor only: choose another with --engine", "device")
    site = _site(options, config, home)
    policy = _made(POLICIES, "policy", config.policy, _changed(config.policy, options, _OF_POLICY), site)
    segmenter = _made(SEGMENTERS, "segmenter", config.segmenter, _changed(config.segmenter, options, _OF_SEGMENTER), site)
    shares = config.policy.kind != "rules"
    return Engine(name, policy, segmenter, config.batch, config.runs, shares, _conduct(options, config))


def _conduct(options: EngineOptions, config: EngineConfig) -> Conduct:
    return conduct_named(options.protocol or config.protocol)


def _site(options: EngineOptions, config: EngineConfig, home: Path) -> "Site":
    conduct = _conduct(options, config)
    return Site(config, home, options.device or config.device, conduct.pixel_cap, conduct.clamp)


@dataclass(frozen=True)
class Site:
    """Where and for what a part is built."""

    config: EngineConfig
    home: Path
    """Relative paths of the configuration start here."""
    device: str
    pixel_cap: bool
    clamp: bool

    def path(self, text: str) -> str:
        """A path of the configuration as one that can be opened; a mere name, or what is not there, stays as it is."""
        here = self.home / text
        return str(here) if "/" in text and here.exists() else text


_OF_POLICY = {"mllm_path": "model", "adapter": "adapter", "endpoints": "endpoints", "use_history": "history"}
_OF_SEGMENTER = {"sam2_ckpt": "checkpoint", "sam2_cfg": "config"}
_MODELS = ("mllm_path", "adapter", "sam2_ckpt", "sam2_cfg")


def _configured(options: EngineOptions) -> tuple[str, EngineConfig, Path]:
    """The engine's name, its configuration, and where its relative paths start."""
    if options.engine.endswith((".yaml", ".yml")):
        path = Path(options.engine)
        try:
            return path.stem, EngineConfig.model_validate(yaml.safe_load(path.read_text(encoding="utf-8"))), path.parent
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"engine file {path} cannot be read: {error}", "engine") from error
        except (yaml.YAMLError, ValidationError) as error:
            raise InputError(f"engine file {path} is not valid: {_line(error)}", "engine") from error
    config = load_config("engines", EnginesConfig)
    named = any(getattr(options, option) for option in _MODELS)
    name = options.engine or ("ibis-remote" if options.endpoints else "ibis" if named else config.default)
    if name not in config.engines:
        raise InputError(
            f"engine {name!r} is unknown: configs/engines.yaml has {', '.join(config.engines)}; or name a YAML file", "engine"
        )
    return name, config.engines[name], CONFIGS.parent


def _changed(part: PartConfig, options: EngineOptions, names: dict[str, str]) -> dict[str, Any]:
    """The part's settings with what the options change."""
    settings = dict(part.model_extra or {})
    for option, setting in names.items():
        value = getattr(options, option)
        if value and part.kind in ("rules", "graphcut"):
            raise InputError(f"{part.kind} has no {setting}: choose another engine", option)
        if value:
            settings[setting] = value.split(",") if setting == "endpoints" else value
    return settings


Part = TypeVar("Part", bound=Policy | Segmenter)
Builder = Callable[[dict[str, Any], Site], Part]


def _made(builders: dict[str, Builder[Part]], role: str, part: PartConfig, settings: dict[str, Any], site: Site) -> Part:
    if part.kind not in builders:
        raise InputError(f"{role} {part.kind!r} is unknown: use one of {', '.join(builders)}", "engine")
    try:
        return builders[part.kind](settings, site)
    except ValidationError as error:
        raise InputError(f"{role} {part.kind}: {_line(error)}", "engine") from error


def _line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
    return " ".join(str(error).split())


def _rules(settings: dict[str, Any], site: Site) -> Policy:
    from lib.policies.rules import RulesPolicy

    _Nothing.model_validate(settings)
    return RulesPolicy()


def _graphcut(settings: dict[str, Any], site: Site) -> Segmenter:
    from lib.segmenters.graphcut import GraphCut

    _Nothing.model_validate(settings)
    return GraphCut()


class _Nothing(BaseModel):
    """A part without settings."""

    model_config = ConfigDict(extra="forbid")


def _qwen(settings: dict[str, Any], site: Site) -> Policy:
    from lib.engines.devices import pick_devices
    from lib.engines.shared import SharedPolicy
    from lib.engines.verify import verify_adapter, verify_language_model
    from lib.policies.qwen import QwenConfig, QwenPolicy

    settings["model"] = str(verify_language_model(Path(site.path(settings.get("model", "")))).folder)
    if settings.get("adapter"):
        settings["adapter"] = site.path(settings["adapter"])
        verify_adapter(Path(settings["adapter"]), Path(settings["model"]))
    if not site.pixel_cap:
        settings["max_pixels"] = None
    config = QwenConfig.model_validate(settings)
    if site.device == "balanced":
        copies = [QwenPolicy(config, "balanced")]
    else:
        copies = [QwenPolicy(config, device) for device in pick_devices(site.device)]
    return SharedPolicy(copies, site.config.max_batch, site.config.max_wait_ms / 1000)


def _sam2(settings: dict[str, Any], site: Site) -> Segmenter:
    from lib.engines.devices import pick_devices
    from lib.engines.shared import SharedSegmenter
    from lib.segmenters.sam2 import Sam2
    from lib.segmenters.sam2_load import load_sam2

    config = Sam2Config.model_validate(settings)
    checkpoint, cache_bytes = Path(site.path(config.checkpoint)), config.cache_mb * 1024**2
    copies = [
        Sam2(
            load_sam2(checkpoint, site.path(config.config), device=device, image_size=config.image_size),
            precision=config.precision,
            cache_bytes=cache_bytes,
            embed_batch=config.embed_batch,
            clamp=site.clamp,
        )
        for device in pick_devices("auto" if site.device == "balanced" else site.device)
    ]
    return SharedSegmenter(copies, site.config.max_batch, site.config.max_wait_ms / 1000)


class Sam2Config(BaseModel):
    """Settings of the segmenter `sam2`."""

    model_config = ConfigDict(extra="forbid")
    checkpoint: str
    """`.pt` or `.safetensors` file of SAM2, SAM2.1 or MedSAM2."""
    config: str = ""
    """A name such as sam2.1_hiera_t, or a YAML file in SAM2's format; default: told from the checkpoint."""
    image_size: int | None = Field(None, ge=64, multiple_of=32)
    """Side of the square that a picture is scaled to; default: the configuration's."""
    precision: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Of matrix products on a GPU; the released code uses float16."""
    cache_mb: int = Field(2048, ge=1)
    """Embeddings kept on each device, in megabytes: a slice takes 4 at 512 pixels, 16 at 1024."""
    embed_batch: int = Field(8, ge=1)
    """How many pictures are embedded at once."""


def _openai(settings: dict[str, Any], site: Site) -> Policy:
    from lib.policies.openai import OpenAIConfig, OpenAIPolicy

    policy = OpenAIPolicy(OpenAIConfig.model_validate(settings), cap_pixels=site.pixel_cap)
    for endpoint, reason in policy.check_ready().items():
        logger.warning("%s is left aside until it answers: %s", endpoint, reason)
    return policy


POLICIES: dict[str, Builder[Policy]] = {"rules": _rules, "qwen": _qwen, "openai": _openai}
SEGMENTERS: dict[str, Builder[Segmenter]] = {"graphcut": _graphcut, "sam2": _sam2}
