"""One exchange with an OpenAI-compatible server: a conversation goes out, a reply is streamed in."""

import asyncio
import base64
import io
import os
import re
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from openai import APIConnectionError, APIError, APIStatusError, APITimeoutError, AsyncOpenAI
from PIL import Image

from lib.agent.protocol import complete, cut
from lib.policies.conversation import Message
from lib.policies.language import action_log_probability

Details = dict[str, float | int | str]
"""What was measured, as `Decision.details` holds it."""
GRACE_S = 0.5
"""How long to wait behind a complete reply for the server's token counts."""
_BUSY = (408, 409, 429)
_LONGEST_REASON = 300


class Fault(Exception):
    """Why a request got no reply."""

    def __init__(self, reason: str, remedy: str, *, again: bool, ill: bool, pause_s: float | None = None):
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy
        self.again = again
        """Whether it is worth another try."""
        self.ill = ill
        """Whether the server is to blame, rather than the request."""
        self.pause_s = pause_s
        """How long the server asks to be left in peace."""


@dataclass
class Reply:
    """A reply as it comes in."""

    thought: str = ""
    """Some servers split off what stands between the think tags."""
    content: str = ""
    finish: str = ""
    """Why the server says that the reply has ended; empty while it has not."""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    tokens: list[tuple[str, float]] = field(default_factory=list)
    """Text and log-probability of each token, where the server gives them."""

    @property
    def text(self) -> str:
        """The reply as the model wrote it."""
        return f"<think>{self.thought}</think>{self.content}" if self.thought else self.content

    @property
    def details(self) -> Details:
        """What there is of token counts, the action's mean log-probability per token, and an unusual reason for the end."""
        found: dict[str, float | int | str | None] = {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "action_logprob": action_log_probability([text for text, _ in self.tokens], [value for _, value in self.tokens]),
            "finish": self.finish if self.finish not in ("", "stop") else None,
        }
        return {name: value for name, value in found.items() if value is not None}

    def add(self, chunk: Any) -> bool:
        """Take a piece of the stream. Whether it brought text."""
        usage = getattr(chunk, "usage", None)
        if usage is not None:
            self.prompt_tokens, self.completion_tokens = usage.prompt_tokens, usage.completion_tokens
        before = len(self.thought) + len(self.content)
        for choice in getattr(chunk, "choices", None) or ():
            extra = choice.delta.model_extra or {}
            self.thought += extra.get("reasoning_content") or extra.get("reasoning") or ""
            self.content += choice.delta.content or ""
            self.finish = choice.finish_reason or self.finish
            if choice.logprobs is not None:
                self.tokens += [(token.token, token.logprob) for token in choice.logprobs.content or ()]
        return len(self.thought) + len(self.content) > before


def wire(messages: Sequence[Message], max_pixels: int | None) -> list[dict[str, Any]]:
    """The messages as the API takes them: text parts, and pictures as PNG data URLs of at most `max_pixels`."""
    return [{"role": message.role, "content": _parts(message, max_pixels)} for message in messages]


def _parts(message: Message, max_pixels: int | None) -> list[dict[str, Any]]:
    text = {"type": "text", "text": message.text}
    if message.picture is None:
        return [text]
    png = io.BytesIO()
    Image.fromarray(capped(message.picture, max_pixels)).save(png, "PNG", compress_level=1)
    url = "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
    return [{"type": "image_url", "image_url": {"url": url}}, text]


def capped(picture: np.ndarray, max_pixels: int | None) -> np.ndarray:
    """The picture, uint8 RGB `[height, width, 3]`, scaled down in proportion to at most `max_pixels`; None: as it is.

    Bicubic, sides rounded down, as LLaMA-Factory's `image_max_pixels` does, with which the published weights were trained.
    """
    height, width = picture.shape[:2]
    if max_pixels is None or height * width <= max_pixels:
        return picture
    factor = (max_pixels / (height * width)) ** 0.5
    size = max(1, int(width * factor)), max(1, int(height * factor))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))


async def exchange(client: AsyncOpenAI, body: dict[str, Any], timeout_s: float) -> Reply:
    """Send the request and read the reply until it is complete; what the model writes on behind it is not waited for.

    Raises Fault.
    """
    reply, began = Reply(), time.monotonic()
    try:
        async with asyncio.timeout(timeout_s):
            stream = await client.chat.completions.create(**body, stream=True, stream_options={"include_usage": True})
            async with stream:
                await _read(aiter(stream), reply)
    except (TimeoutError, APITimeoutError) as error:
        remedy = "raise `timeout_s`, lower `concurrency`, or see the model server's log"
        raise Fault(f"no reply after {time.monotonic() - began:.1f} s", remedy, again=True, ill=True) from error
    except APIStatusError as error:
        raise _refusal(error) from error
    except APIConnectionError as error:
        raise Fault(told(error), "start the model server or correct `endpoints`", again=True, ill=True) from error
    except APIError as error:
        raise Fault(_line(error.message), "see the model server's log", again=True, ill=True) from error
    except ValueError as error:
        raise Fault("its answer is not of the OpenAI protocol", "correct `endpoints`", again=True, ill=True) from error
    if not reply.finish and not complete(reply.text):
        raise Fault("it broke off its reply", "see the model server's log", again=True, ill=True)
    reply.content, reply.thought = cut(reply.text), ""
    return reply


async def _read(chunks: AsyncIterator[Any], reply: Reply) -> None:
    async for chunk in chunks:
        if reply.add(chunk) and complete(reply.text):
            break
    with suppress(TimeoutError, APIError, ValueError):
        async with asyncio.timeout(GRACE_S):
            async for chunk in chunks:
                if reply.add(chunk):
                    return


def _refusal(error: APIStatusError) -> Fault:
    status = error.status_code
    reason = f"{status} {_said(error)}".strip()
    if status in _BUSY:
        return Fault(
            reason, "lower `concurrency`, or add a server to `endpoints`", again=True, ill=False, pause_s=_asked(error)
        )
    if status >= 500:
        return Fault(reason, "see the model server's log", again=True, ill=True, pause_s=_asked(error))
    if status in (401, 403):
        remedy = "put the server's key into the environment variable that `api_key_env` names"
    elif status == 404:
        remedy = "correct `endpoints` (base URLs usually end in /v1) or `model`"
    else:
        remedy = "correct `model`, or the settings that are sent with each request"
    return Fault(reason, remedy, again=False, ill=False)


def _said(error: APIStatusError) -> str:
    """The server's own words."""
    body = error.body
    if isinstance(body, dict):
        inner = body.get("detail") or body.get("message") or body.get("error") or ""
        return _line(inner if isinstance(inner, str) else str(inner))
    return _line(error.response.reason_phrase if not body else str(body))


def _asked(error: APIStatusError) -> float | None:
    """Seconds of the Retry-After header (RFC 9110, section 10.2.3); dates are rare there and not read."""
    text = error.response.headers.get("retry-after", "")
    return float(text) if re.fullmatch(r"\d{1,9}(\.\d{1,6})?", text) else None


def told(error: BaseException) -> str:
    """What the operating system says of a connection, such as "connection refused"; else what the error itself says."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno and cause.strerror:
            system = type(cause) is OSError or isinstance(cause, ConnectionError)
            reason = os.strerror(cause.errno) if system else cause.strerror
            return reason[0].lower() + reason[1:]
        cause = cause.exceptions[0] if isinstance(cause, BaseExceptionGroup) else cause.__cause__ or cause.__context__
    return _line(str(error.__cause__ or error)) or type(error).__name__


def _line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_REASON else line[:_LONGEST_REASON] + "…"
