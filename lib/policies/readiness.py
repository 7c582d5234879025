"""Whether a model server is up and serves the model that is wanted, asked before any work begins."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from lib.policies.exchange import told


def unready(urls: list[str], model: str, key: str, timeout_s: float) -> dict[str, str]:
    """The base URLs among `urls` that cannot be used, each with the reason; all are asked at once."""
    with ThreadPoolExecutor(len(urls)) as pool:
        reasons = pool.map(lambda url: _reason(url, model, key, timeout_s), urls)
        return {url: reason for url, reason in zip(urls, reasons, strict=True) if reason is not None}


def _reason(url: str, model: str, key: str, timeout_s: float) -> str | None:
    """Why the server at `url` cannot be used; None when it can, as far as it tells.

    `GET /models` names what is served. Servers that do not list their model (`transformers serve` lists its download cache, and
    answers 500 without one) are taken at their word at `/health`, beside the base URL's version.
    """
    headers = {"Authorization": f"Bearer {key}"}
    try:
        listing = httpx.get(f"{url}/models", headers=headers, timeout=timeout_s)
        if listing.status_code in (401, 403):
            return f"{listing.status_code}, the key is refused"
        served = _served(listing)
        if served:
            return None if model in served else f"serves {', '.join(sorted(served)[:5])}"
        health = httpx.get(f"{url.removesuffix('/v1')}/health", headers=headers, timeout=timeout_s)
    except httpx.TimeoutException:
        return f"no answer within {timeout_s:g} s"
    except httpx.HTTPError as error:
        return told(error)
    if health.status_code == 200:
        return None
    return f"no OpenAI-compatible server: {listing.status_code} for /models, {health.status_code} for /health"


def _served(listing: httpx.Response) -> set[str]:
    """The model names of a listing; none when the answer is something else."""
    if listing.status_code != 200:
        return set()
    try:
        body: Any = listing.json()
    except ValueError:
        return set()
    entries = body.get("data") if isinstance(body, dict) else None
    return {str(entry["id"]) for entry in entries or () if isinstance(entry, dict) and "id" in entry}
