"""The `openai` policy: a language model behind OpenAI-compatible servers decides (vLLM, SGLang, `transformers serve`).

Threads: `decide`, `check_ready` and `close` may be called from any thread at once. Requests run in one asyncio loop in a thread
of its own, started by the first `decide` and ended by `close`; one lock guards starting and ending it. `decide` waits for its
replies, or until its limits are reached; then its requests are cancelled in the loop, which closes their connections, so that
the servers stop working for them.
"""

import asyncio
import os
import random
import threading
import time
from collections.abc import Coroutine, Iterable, Sequence
from concurrent.futures import CancelledError, Future, wait
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Literal
from urllib.parse import urlsplit

from openai import AsyncOpenAI, Timeout
from pydantic import BaseModel, ConfigDict, Field, field_validator

from lib.agent.limits import UNLIMITED, Bound
from lib.agent.policy import Decision, Observation
from lib.agent.protocol import GRAMMAR
from lib.errors import EngineError, InputError
from lib.policies.conversation import Message, conversation
from lib.policies.endpoints import Endpoint, Endpoints
from lib.policies.exchange import Details, Fault, exchange, wire
from lib.policies.language import LanguagePolicy, seed
from lib.policies.readiness import unready

_POLL_S = 0.05
_CONNECT_S = 5.0
_FIRST_BACKOFF_S = 0.5
_MAX_BACKOFF_S = 8.0


class OpenAIConfig(BaseModel):
    """The policy's settings in `configs/engines.yaml`."""

    model_config = ConfigDict(extra="forbid")
    endpoints: tuple[str, ...] = Field(min_length=1)
    """Base URLs, usually ending in /v1. Each serves the same model."""
    model: str = Field(min_length=1)
    """The name that the servers give it; for `transformers serve` the folder that it was started with."""
    api_key_env: str = ""
    """Name of the environment variable that holds the servers' key; empty where they want none."""
    concurrency: int = Field(16, ge=1)
    """Requests that one endpoint works on at once."""
    timeout_s: float = Field(120, gt=0)
    """For one request, from its sending to the end of the reply."""
    retries: int = Field(4, ge=0)
    """How often a request that failed is sent again while no other endpoint is well."""
    max_tokens: int = Field(512, ge=8)
    max_pixels: int | None = Field(512 * 512, ge=28 * 28)
    """Larger pictures are scaled down before they are sent, as in the published training; null: sent as they are."""
    history: bool = False
    """Whether earlier turns stay in the conversation."""
    image_mark: bool = True
    """Whether the literal `<image>` stays in the text, as the released weights expect."""
    structured: Literal["none", "vllm"] = "none"
    """Whether decoding is constrained to replies of the grammar, in the words of that server."""
    logprobs: bool = False
    """Whether to ask for the tokens' log-probabilities."""
    temperature: float = Field(0.7, gt=0)
    """For asking again after a reply that could not be used; everything else is greedy."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """More fields for every request. `transformers serve` samples only with `generation_config: '{"do_sample": true}'`."""

    @field_validator("endpoints")
    @classmethod
    def _usable(cls, endpoints: tuple[str, ...]) -> tuple[str, ...]:
        urls = tuple(url.strip().rstrip("/") for url in endpoints)
        for url in urls:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError(f"{url!r} is no base URL such as http://127.0.0.1:8000/v1")
            if parts.username or parts.password or parts.query or parts.fragment:
                raise ValueError(f"a base URL ends with its path, and keys go into `api_key_env`: {parts.hostname} has more")
        if len(set(urls)) < len(urls):
            raise ValueError("an endpoint stands there twice")
        return urls


class OpenAIPolicy(LanguagePolicy):
    """Implements `lib.agent.policy.Policy`. Several endpoints share the work; it goes on as long as one of them lives."""

    name = "openai"

    def __init__(self, config: OpenAIConfig, cap_pixels: bool = True):
        """Sends nothing yet. Raises InputError when the environment does not hold the key."""
        super().__init__()
        if not cap_pixels:
            config = config.model_copy(update={"max_pixels": None})
        self._config = config
        self._key = os.environ.get(config.api_key_env, "") if config.api_key_env else "none"
        if not self._key:
            raise InputError(f"the environment variable {config.api_key_env} must hold the model servers' key", "api_key_env")
        self.about = MappingProxyType(
            {"model": config.model, "endpoints": ", ".join(config.endpoints), "max_pixels": str(config.max_pixels or "any")}
        )
        self._lock = threading.Lock()
        self._session: _Session | None = None

    def check_ready(self, timeout_s: float = 10) -> dict[str, str]:
        """Ask all endpoints whether they are up and serve the model. Returns those that do not, with the reason.

        Raises InputError with the field "endpoints" when none does.
        """
        ill = unready(list(self._config.endpoints), self._config.model, self._key, timeout_s)
        if len(ill) == len(self._config.endpoints):
            reasons = "; ".join(f"{url}: {reason}" for url, reason in ill.items())
            message = f"no endpoint serves {self._config.model} ({reasons}): start the model server or correct `endpoints`"
            raise InputError(message, "endpoints")
        return ill

    def decide(self, observations: Sequence[Observation], limits: Bound = UNLIMITED) -> list[Decision | EngineError]:
        return self._send((_request(observation, self._config) for observation in observations), len(observations), limits)

    def converse(self, conversations: Sequence[Sequence[Message]], limits: Bound = UNLIMITED) -> list[Decision | EngineError]:
        """Free replies, not of the grammar, to other conversations than an episode's; otherwise as `decide`."""
        return self._send((_body(messages, self._config) for messages in conversations), len(conversations), limits)

    def _send(self, bodies: Iterable[dict[str, Any]], count: int, limits: Bound) -> list[Decision | EngineError]:
        """Send `count` requests, each made when its turn comes, and wait for the replies."""
        began = time.perf_counter()
        with self._lock:
            self._session = session = self._session or _Session(self._config, self._key)
        futures: list[Future[Decision | EngineError]] = []
        waiting = iter(bodies)
        try:
            while len(futures) < count and limits.reached() is None:
                futures.append(session.submit(session.ask(next(waiting))))
            out = set(futures)
            while out and limits.reached() is None:
                left = limits.left()
                out = wait(out, _POLL_S if left is None else min(_POLL_S, left)).not_done
        finally:
            for future in futures:
                future.cancel()
        share = (time.perf_counter() - began) / count if count else 0.0
        results = [_result(future) for future in futures]
        results += [EngineError("interrupted")] * (count - len(futures))
        return [replace(result, seconds=share) if isinstance(result, Decision) else result for result in results]

    def close(self) -> None:
        """End all traffic; those who wait in `decide` get errors. A later `decide` starts afresh."""
        with self._lock:
            session, self._session = self._session, None
        if session is not None:
            session.close()


class _Session:
    """The loop in its thread, the connections, and what is known of the endpoints."""

    def __init__(self, config: OpenAIConfig, key: str):
        self._config = config
        self._key = key
        self._lock = threading.Lock()
        self._closed = False
        timeout = Timeout(config.timeout_s, connect=min(_CONNECT_S, config.timeout_s))
        self._endpoints = Endpoints(
            [Endpoint(url, AsyncOpenAI(base_url=url, api_key=key, max_retries=0, timeout=timeout)) for url in config.endpoints],
            config.concurrency,
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="openai-policy", daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Have the loop do it; never blocks. After `close` the work is dropped, its future cancelled."""
        with self._lock:
            if not self._closed:
                return asyncio.run_coroutine_threadsafe(work, self._loop)
        work.close()
        dropped: Future[Any] = Future()
        dropped.cancel()
        return dropped

    async def ask(self, body: dict[str, Any]) -> Decision | EngineError:
        """Get a reply from one of the endpoints, in as many attempts as the retries and the endpoints allow."""
        attempts, backoff = self._config.retries + len(self._config.endpoints), _FIRST_BACKOFF_S
        for attempt in range(1, attempts + 1):
            async with self._endpoints.lend() as endpoint:
                began = time.monotonic()
                try:
                    reply = await exchange(endpoint.client, body, self._config.timeout_s)
                except Fault as fault:
                    error = self._note(endpoint, fault, began, backoff)
                    if not fault.again or (fault.pause_s or 0) > self._config.timeout_s:
                        return error
                else:
                    endpoint.answer()
                    seconds = round(time.monotonic() - began, 4)
                    facts: Details = {"endpoint": endpoint.url, "attempts": attempt, "request_s": seconds}
                    return Decision(reply.text, details=reply.details | facts)
            if attempt == attempts or self._endpoints.given_up(self._config.retries):
                break
            if not self._endpoints.any_well:
                await asyncio.sleep(_jittered(backoff))
            backoff = min(_MAX_BACKOFF_S, 2 * backoff)
        return error

    def _note(self, endpoint: Endpoint, fault: Fault, began: float, backoff: float) -> EngineError:
        """Keep in mind what the fault says of the endpoint, and put it into words with what is known of the others."""
        if fault.ill:
            endpoint.fail(fault.reason, began)
        else:
            endpoint.answer()
        if fault.again and (fault.pause_s is not None or not fault.ill):
            endpoint.pause(_jittered(backoff) if fault.pause_s is None else fault.pause_s)
        others = [f"{e.url}: {e.reason}" for e in self._endpoints.all if e.failures and e is not endpoint and fault.ill]
        message = "; ".join([f"{endpoint.url}: {fault.reason}", *others, fault.remedy])
        return EngineError(message.replace(self._key, "***") if self._config.api_key_env else message)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            last = asyncio.run_coroutine_threadsafe(self._shut(), self._loop)
        last.result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _shut(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for endpoint in self._endpoints.all:
            await endpoint.client.close()


def _body(messages: Sequence[Message], config: OpenAIConfig) -> dict[str, Any]:
    """A request's body, greedy."""
    return {
        "model": config.model,
        "messages": wire(messages, config.max_pixels),
        "max_tokens": config.max_tokens,
        "temperature": 0.0,
        "extra_body": dict(config.extra_body),
    }


def _request(observation: Observation, config: OpenAIConfig) -> dict[str, Any]:
    """The body of an episode's turn. Asking again is sampled, the rest is greedy."""
    body = _body(conversation(observation, config.history, config.image_mark), config)
    if observation.complaint:
        body |= {"temperature": config.temperature, "seed": seed(observation)}
    if config.logprobs:
        body["logprobs"] = True
    if config.structured == "vllm":
        body["extra_body"]["structured_outputs"] = {"regex": GRAMMAR}
    return body


def _jittered(seconds: float) -> float:
    return random.uniform(seconds / 2, seconds)


def _result(future: Future[Decision | EngineError]) -> Decision | EngineError:
    try:
        return future.result()
    except CancelledError:
        return EngineError("interrupted")
