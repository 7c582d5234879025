"""The `qwen` policy: a Qwen2.5-VL checkpoint in this process decides.

Threads: `decide` and `swap` may be called from any thread. One lock per policy guards the weights: a call of `decide` holds it
for as long as the model works, `swap` only while it exchanges what is loaded. Whoever wants many requests to share a batch puts
a `lib.engines.lane.Lane` in front. No state is kept between calls but the weights.
"""

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
import xgrammar
from pydantic import BaseModel, ConfigDict, Field
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteriaList,
)
from transformers.utils import logging

from lib.agent.limits import UNLIMITED, Bound
from lib.agent.policy import Decision, Observation
from lib.agent.protocol import GRAMMAR, cut
from lib.errors import EngineError, InputError, OutOfMemory
from lib.imaging.files import fingerprint
from lib.policies.conversation import Message, conversation
from lib.policies.generation import Constraint, ReplyEnd, Sampling, Watch, closing_tokens, synchronise
from lib.policies.language import LanguagePolicy, action_log_probability, seed


class QwenConfig(BaseModel):
    """The policy's settings in `configs/engines.yaml`."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())
    model: str
    """Checkpoint folder, or the id of a hub repository that has been fetched."""
    adapter: str = ""
    """Folder of a LoRA adapter of it."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """The default is bfloat16 on a GPU, float32 on a CPU."""
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    """The default is flash attention 2 where its package is installed and there is a GPU, else torch's own."""
    max_new_tokens: int = Field(default=512, ge=8)
    max_pixels: int | None = Field(default=512 * 512, ge=28 * 28)
    """Pictures are scaled down to so many pixels, as in the published training; null: as the checkpoint says."""
    history: bool = False
    """Whether earlier turns stay in the conversation."""
    image_mark: bool = True
    """Whether the literal `<image>` stays in the text, as the released weights expect."""
    grammar: bool = False
    """Whether decoding is constrained to replies of the grammar."""
    temperature: float = Field(default=0.7, gt=0)
    """For asking again after a reply that could not be used; everything else is greedy."""
    static_cache: bool = False
    """A key-value cache of fixed size, with which transformers compiles the decoding step on a GPU."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """What a policy decides with. Exchanged whole, never changed."""

    model: Any
    """A transformers model that generates text from text and pictures."""
    processor: Any
    """Its processor: tokeniser, chat template and picture processor."""
    closing: torch.Tensor
    """bool `[vocabulary]`: the tokens that can end a reply."""
    grammar: xgrammar.CompiledGrammar | None
    device: torch.device
    about: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


class QwenPolicy(LanguagePolicy):
    """Implements `lib.agent.policy.Policy`. One model on one device, or spread over several with device "balanced"."""

    name = "qwen"

    def __init__(self, config: QwenConfig, device: torch.device | Literal["balanced"], loaded: Loaded | None = None):
        """Loads the weights, unless `loaded` ones are given. Raises InputError when they cannot be used."""
        super().__init__()
        self._config = config
        self._device = device
        self._lock = threading.Lock()
        self._loaded = loaded or load_qwen(config, device)

    @property
    def about(self) -> Mapping[str, str]:
        return self._loaded.about

    def swap(self, model: str | None = None, adapter: str | None = None) -> None:
        """Go on with other weights, or with another adapter of these; `adapter` "" takes an adapter away.

        Replies that are being written are finished with the old ones. Another model is loaded beside the present one, which
        takes its memory once more; an adapter is exchanged in place while requests wait. Raises InputError when the new ones
        cannot be used; then nothing changes.
        """
        if model is not None and model != self._config.model:
            config = self._config.model_copy(update={"model": model, "adapter": adapter or ""})
            loaded = load_qwen(config, self._device)
            with self._lock:
                self._config, self._loaded = config, loaded
        elif adapter is not None and adapter != self._config.adapter:
            with self._lock:
                config = self._config.model_copy(update={"adapter": adapter})
                self._loaded = _exchange_adapter(self._loaded, config)
                self._config = config

    def decide(self, observations: Sequence[Observation], limits: Bound = UNLIMITED) -> list[Decision | EngineError]:
        with self._lock:
            began = time.perf_counter()
            try:
                drafts = _write(self._loaded, self._config, observations, limits)
            except torch.OutOfMemoryError as error:
                raise OutOfMemory(f"{len(observations)} pictures at once do not fit into the GPU's memory") from error
            except RuntimeError as error:
                if self._loaded.device.type == "cpu":
                    raise
                raise EngineError(f"{self.name} failed on {self._loaded.device}: {_line(error)}") from error
            seconds = (time.perf_counter() - began) / len(observations)
        if limits.reached() is not None:
            return [EngineError("interrupted")] * len(observations)
        return [Decision(reply, seconds=seconds, details=details) for reply, details in drafts]


def load_qwen(config: QwenConfig, device: torch.device | Literal["balanced"]) -> Loaded:
    """Load a checkpoint, and its adapter if one is configured. Raises InputError with the field "mllm_path" or "adapter"."""
    gpu = device == "balanced" or device.type == "cuda"
    dtype = {"auto": torch.bfloat16 if gpu else torch.float32}.get(config.dtype) or getattr(torch, config.dtype)
    attention = config.attention
    if attention == "auto":
        attention = "flash_attention_2" if gpu and find_spec("flash_attn") else "sdpa"
    logging.disable_progress_bar()
    try:
        loading: Any = AutoModelForImageTextToText.from_pretrained(
            config.model,
            dtype=dtype,
            device_map="auto" if device == "balanced" else {"": device},
            attn_implementation=attention,
            output_loading_info=True,
        )
        model, info = loading
        processor = AutoProcessor.from_pretrained(config.model)
    except torch.OutOfMemoryError as error:
        raise InputError(f"{config.model} does not fit into the memory of {device}", "mllm_path") from error
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise InputError(f"{config.model} cannot be loaded: {_line(error)}", "mllm_path") from error
    if info["missing_keys"] or info["mismatched_keys"]:
        wrong = sorted(str(key) for key in [*info["missing_keys"], *info["mismatched_keys"]])
        raise InputError(f"{config.model} lacks {len(wrong)} tensors, such as {wrong[0]}: fetch it again", "mllm_path")
    loaded = prepare(model, processor, config, {"weights": config.model, "fingerprint": _fingerprint(Path(config.model))})
    return _exchange_adapter(loaded, config) if config.adapter else loaded


def _exchange_adapter(loaded: Loaded, config: QwenConfig) -> Loaded:
    """The same model with the configured adapter in the place of the one that it may have."""
    model, about = loaded.model, dict(loaded.about)
    before = about.pop("adapter_name", None)
    about.pop("adapter", None)
    if config.adapter:
        about["adapter_name"] = f"adapter{int(before.removeprefix('adapter')) + 1 if before else 0}"
        about["adapter"] = config.adapter
        try:
            model.load_adapter(config.adapter, adapter_name=about["adapter_name"])
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            if before:
                model.set_adapter(before)
            raise InputError(f"{config.adapter} is no adapter of {config.model}: {_line(error)}", "adapter") from error
        model.set_adapter(about["adapter_name"])
    if before:
        model.delete_adapter(before)
    return replace(loaded, about=MappingProxyType(about))


def prepare(model: Any, processor: Any, config: QwenConfig, about: Mapping[str, str]) -> Loaded:
    """A model and its processor, set up for deciding."""
    model.eval()
    size = processor.image_processor.size
    if config.max_pixels is not None and size["longest_edge"] > config.max_pixels:
        smallest = min(size["shortest_edge"], config.max_pixels)
        processor.image_processor.size = {"shortest_edge": smallest, "longest_edge": config.max_pixels}
    vocabulary = model.config.get_text_config().vocab_size
    closing = closing_tokens(processor.tokenizer, vocabulary).to(model.device)
    grammar = None
    if config.grammar:
        tokens = xgrammar.TokenizerInfo.from_huggingface(processor.tokenizer, vocab_size=vocabulary)
        grammar = xgrammar.GrammarCompiler(tokens).compile_regex(GRAMMAR)
    facts = {
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "attention": str(model.config._attn_implementation),
        "max_pixels": str(processor.image_processor.size["longest_edge"]),
    }
    return Loaded(model, processor, closing, grammar, model.device, MappingProxyType({**about, **facts}))


def _write(
    loaded: Loaded, config: QwenConfig, observations: Sequence[Observation], limits: Bound
) -> list[tuple[str, dict[str, float | int | str]]]:
    """The replies to all observations from one left-padded batch, each with what was measured."""
    tokenizer = loaded.processor.tokenizer
    began = time.perf_counter()
    conversations = [conversation(one, config.history, config.image_mark) for one in observations]
    painted = time.perf_counter()
    inputs = _inputs(loaded, conversations)
    length = inputs["input_ids"].shape[1]
    synchronise(loaded.device)
    ready = time.perf_counter()
    watch = Watch(loaded.device)
    riders: list[LogitsProcessor] = [watch]
    if loaded.grammar is not None:
        riders.append(Constraint(loaded.grammar, len(observations)))
    if any(one.complaint for one in observations):
        riders.append(Sampling([seed(one) if one.complaint else None for one in observations], config.temperature))
    with torch.inference_mode():
        sequences = loaded.model.generate(
            **inputs,
            generation_config=_generation(loaded, config),
            logits_processor=LogitsProcessorList(riders),
            stopping_criteria=StoppingCriteriaList([ReplyEnd(tokenizer, loaded.closing, length, limits)]),
        )
    values = watch.log_probabilities(sequences)
    done = time.perf_counter()
    first = watch.first or done
    shared: dict[str, float | int | str] = {
        "batch": len(observations),
        "picture_s": round((painted - began) / len(observations), 5),
        "processor_s": round((ready - painted) / len(observations), 5),
        "prefill_s": round((first - ready) / len(observations), 5),
        "decode_s": round((done - first) / len(observations), 5),
    }
    drafts = []
    for row, sequence in enumerate(sequences[:, length:].tolist()):
        ids = [token for token in sequence if token not in (tokenizer.pad_token_id, tokenizer.eos_token_id)]
        details = shared | {"prompt_tokens": int(inputs["attention_mask"][row].sum()), "reply_tokens": len(ids)}
        likely = action_log_probability(tokenizer.batch_decode([[token] for token in ids]), values[row][: len(ids)])
        if likely is not None:
            details["action_logprob"] = round(likely, 4)
        text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        drafts.append((cut(text), details))
    return drafts


def _inputs(loaded: Loaded, conversations: Sequence[Sequence[Message]]) -> dict[str, torch.Tensor]:
    processor = loaded.processor
    rendered: dict[tuple[Any, ...], str] = {}
    texts = []
    for messages in conversations:
        key = tuple((message.role, message.text, message.picture is None) for message in messages)
        if key not in rendered:
            rendered[key] = processor.apply_chat_template(
                [{"role": message.role, "content": _content(message)} for message in messages],
                tokenize=False,
                add_generation_prompt=True,
            )
        texts.append(rendered[key])
    pictures = [np.array(message.picture) for messages in conversations for message in messages if message.picture is not None]
    on_gpu = {"images_kwargs": {"device": loaded.device}} if loaded.device.type == "cuda" else {}
    inputs = processor(text=texts, images=pictures, padding=True, padding_side="left", return_tensors="pt", **on_gpu)
    return {name: tensor.to(loaded.device) for name, tensor in inputs.items()}


def _content(message: Message) -> list[dict[str, str]]:
    picture = [] if message.picture is None else [{"type": "image"}]
    return [*picture, {"type": "text", "text": message.text}]


def _generation(loaded: Loaded, config: QwenConfig) -> GenerationConfig:
    own, tokenizer = loaded.model.generation_config, loaded.processor.tokenizer
    return GenerationConfig(
        max_new_tokens=config.max_new_tokens,
        do_sample=False,
        repetition_penalty=1.0,
        eos_token_id=own.eos_token_id if own.eos_token_id is not None else tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        cache_implementation="static" if config.static_cache else None,
    )


def _fingerprint(folder: Path) -> str:
    weights = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    return fingerprint(weights) if weights else ""


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
