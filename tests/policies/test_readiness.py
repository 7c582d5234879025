"""What is checked before the remote policy sends anything: its settings, and whether anybody is there."""

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from lib.errors import InputError
from lib.imaging.volume import Modality, Volume
from lib.policies.openai import OpenAIConfig, OpenAIPolicy
from lib.server.process import free_port
from tests.policies.faults import FaultyServer


def policy(*urls: str, **settings) -> OpenAIPolicy:
    return OpenAIPolicy(OpenAIConfig(model="m", endpoints=urls, **settings))


def test_readiness_names_every_endpoint_and_its_reason():
    listing = {"/v1/models": (200, {"data": [{"id": "other"}]})}
    locked = {"/v1/models": (401, {"detail": "key"})}
    gone = f"http://127.0.0.1:{free_port()}/v1"
    with (
        FaultyServer(pages=listing) as wrong,
        FaultyServer(pages=locked) as shut,
        FaultyServer() as stranger,
        pytest.raises(InputError) as caught,
    ):
        policy(wrong.url, shut.url, stranger.url, gone).check_ready()
    assert caught.value.field == "endpoints"
    assert caught.value.message == (
        f"no endpoint serves m ({wrong.url}: serves other; {shut.url}: 401, the key is refused; {stranger.url}: no "
        f"OpenAI-compatible server: 404 for /models, 404 for /health; {gone}: connection refused): start the model server or "
        "correct `endpoints`"
    )


def test_a_listed_model_is_ready():
    with FaultyServer(pages={"/v1/models": (200, {"data": [{"id": "base"}, {"id": "m"}]})}) as one:
        assert policy(one.url).check_ready() == {}


def test_a_missing_key_is_said_at_once(monkeypatch):
    monkeypatch.delenv("MODEL_KEY", raising=False)
    with pytest.raises(InputError, match="environment variable MODEL_KEY"):
        policy("http://127.0.0.1:1/v1", api_key_env="MODEL_KEY")


@pytest.mark.parametrize(
    "endpoints",
    [[], ["ftp://a/v1"], ["a/v1"], ["http://user:key@a/v1"], ["http://a/v1?key=1"], ["http://a/v1", "http://a/v1/"]],
)
def test_endpoints_are_plain_web_addresses(endpoints):
    with pytest.raises(ValidationError):
        OpenAIConfig(model="m", endpoints=endpoints)


def test_it_offers_the_anatomy_and_takes_any_text():
    remote = policy("http://127.0.0.1:1/v1")
    assert {"liver", "lung_left"} <= set(remote.structures)
    remote.check(Volume(np.zeros((2, 2, 2)), np.eye(4), Modality.OTHER, Path("a.nii.gz")), "the thing that looks odd")
    assert remote.window_preset("left lung") == "lung"
    assert remote.window_preset("the thing that looks odd") is None
    assert remote.about["model"] == "m"
