"""The remote policy, against `transformers serve` with a taught checkpoint, and against a server that misbehaves on demand."""

import base64
import io
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from lib.agent.engine import Engine
from lib.agent.limits import Limits, StopReason
from lib.agent.loop import Observer
from lib.agent.policy import Decision, Observation
from lib.agent.protocol import GRAMMAR, Click, Reply, parse, render
from lib.agent.run import RunRequest, run
from lib.engines.tiny.lesson import SIDE, tiny_agent
from lib.errors import EngineError
from lib.imaging.planes import Plane, ViewGrid, ViewPoint
from lib.imaging.views import View
from lib.imaging.volume import Modality, Volume
from lib.imaging.windows import Window
from lib.policies.conversation import conversation
from lib.policies.exchange import capped
from lib.policies.openai import OpenAIConfig, OpenAIPolicy
from lib.segmenters.graphcut import GraphCut
from lib.server.process import free_port
from tests.policies.faults import STOP, FaultyServer, breaks_off, chunk, echoes, garbles, refuses, says, says_on
from tests.serving import ModelServer

SAMPLING = {"generation_config": '{"do_sample": true}'}
SOON_S = 0.8
"""Generous: 0.1 s on an idle machine."""


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    torch.set_num_threads(1)
    return tiny_agent()


@pytest.fixture(scope="session")
def server(checkpoint, tmp_path_factory):
    with ModelServer(checkpoint, tmp_path_factory.mktemp("serve") / "log.txt") as running:
        yield running


@pytest.fixture
def policy():
    """Makes policies; all are closed in the end."""
    made = []

    def make(*urls: str, cap_pixels: bool = True, **settings) -> OpenAIPolicy:
        made.append(OpenAIPolicy(OpenAIConfig(**({"model": "m", "endpoints": urls} | settings)), cap_pixels))
        return made[-1]

    yield make
    for one in made:
        one.close()


def discs(count: int) -> Volume:
    """`count` axial slices with a bright disc in each, somewhere else in every one, as the checkpoint was taught."""
    rng = np.random.default_rng(5)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    data = rng.normal(40, 8, (SIDE, SIDE, count))
    for k in range(count):
        x, y = rng.integers(28, SIDE - 28, 2)
        data[:, :, k] += 150 * ((columns - x) ** 2 + (rows - y) ** 2 < 20**2)
    return Volume(data.clip(0, 255).astype(np.uint8), np.diag([1.0, -1.0, 1.0, 1.0]), Modality.OTHER, Path("discs.nii.gz"))


def observe(volume: Volume, index: int = 0, **more) -> Observation:
    view = View(ViewGrid(volume, Plane.AXIAL), index, Window(0, 255, "test"))
    return Observation("bright disc", view, more.pop("mask", None), more.pop("actions", ()), **more)


@pytest.fixture(scope="module")
def seen() -> list[Observation]:
    volume = discs(6)
    return [observe(volume, index) for index in range(6)]


def generate(folder: Path, observation: Observation) -> str:
    """The greedy reply of the same checkpoint in this process."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    torch.set_num_threads(1)
    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    messages, pictures = [], []
    for message in conversation(observation):
        shown = [] if message.picture is None else [{"type": "image"}]
        pictures += [] if message.picture is None else [message.picture]
        messages.append({"role": message.role, "content": [*shown, {"type": "text", "text": message.text}]})
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    inputs = processor(text=[text], images=pictures, return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=200, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    return processor.tokenizer.decode(ids, skip_special_tokens=True)


# A real server.


def test_a_served_model_says_what_it_says_in_process(server, checkpoint, policy, seen):
    remote = policy(server.url, model=server.model)
    masked = observe(seen[0].view.volume, 0, mask=seen[0].view.grey() > 120, actions=(Click(ViewPoint(0.5, 0.5), True),))
    decisions = remote.decide([seen[0], masked])
    for observation, decision in zip([seen[0], masked], decisions, strict=True):
        assert isinstance(decision, Decision), decision
        assert decision.reply == generate(checkpoint, observation)
        assert isinstance(parse(decision.reply), Reply)
        assert decision.details["endpoint"] == server.url
        assert decision.details["completion_tokens"] > 10
        assert decision.details["prompt_tokens"] > 100
        assert decision.seconds > 0
    assert decisions[0].reply != decisions[1].reply


def test_asking_again_can_be_sampled_by_a_real_server(server, policy, seen):
    remote = policy(server.url, model=server.model, temperature=8.0, max_tokens=24, extra_body=SAMPLING)
    greedy, again, repeated = (
        remote.decide([observation])[0].reply
        for observation in (seen[0], *[observe(seen[0].view.volume, complaint="the reply is empty")] * 2)
    )
    assert again != greedy
    assert again == repeated


def test_another_model_name_is_refused_and_not_asked_for_again(server, policy, seen):
    began = time.monotonic()
    (error,) = policy(server.url, model="another").decide(seen[:1])
    assert isinstance(error, EngineError)
    assert str(error).startswith(f"{server.url}: 400 Server is pinned to")
    assert "correct `model`" in str(error)
    assert time.monotonic() - began < 2


def test_a_real_server_without_a_model_list_is_ready(server, policy):
    absent = f"http://127.0.0.1:{free_port()}/v1"
    ill = policy(server.url, absent, model=server.model).check_ready()
    assert ill == {absent: "connection refused"}


def test_one_of_two_endpoints_is_dead_and_all_goes_on(server, policy, seen):
    remote = policy(f"http://127.0.0.1:{free_port()}/v1", server.url, model=server.model)
    decisions = remote.decide(seen)
    assert all(isinstance(decision, Decision) for decision in decisions)
    assert {decision.details["endpoint"] for decision in decisions} == {server.url}


def test_a_run_outlives_its_server_and_the_next_one_finds_it_again(server, policy):
    class Killer(Observer):
        def __init__(self):
            self.episodes = 0

        def ended(self, episode):
            self.episodes += 1
            if self.episodes == 3:
                server.kill()

    engine = Engine("remote", policy(server.url, model=server.model, retries=1), GraphCut(), batch=2)
    request, volume = RunRequest("bright disc", max_turns=4), discs(12)
    began = time.monotonic()
    try:
        result = run(request, volume, engine, Limits(began + 60), [Killer()])
        assert time.monotonic() - began < 30
        stops = [outcome.stop for outcome in result.outcomes]
        assert len(stops) == 12
        lost = [outcome for outcome in result.outcomes if outcome.stop is StopReason.FAILED]
        assert 8 <= len(lost) <= 9
        assert {outcome.detail for outcome in lost} == {
            f"{server.url}: connection refused; start the model server or correct `endpoints`"
        }
        assert result.mask.any()
        assert result.status == "incomplete"

        began = time.monotonic()
        result = run(request, volume, engine, Limits(began + 1))
        assert time.monotonic() - began < 1 + SOON_S
        assert not any(outcome.conclusive for outcome in result.outcomes)
    finally:
        server.start()
    assert run(request, volume, engine, Limits(time.monotonic() + 60)).status == "complete"


# What a healthy server does not do on demand.


def test_a_pause_that_the_server_asks_for_is_kept(policy, seen):
    with FaultyServer(refuses(429, Retry_After="1"), says(STOP)) as busy:
        began = time.monotonic()
        (decision,) = policy(busy.url).decide(seen[:1])
        assert decision.reply == STOP
        assert decision.details["attempts"] == 2
        assert time.monotonic() - began >= 1


def test_a_pause_longer_than_the_request_may_take_is_an_answer(policy, seen):
    with FaultyServer(refuses(429, "come back tomorrow", Retry_After="86400")) as busy:
        began = time.monotonic()
        (error,) = policy(busy.url).decide(seen[:1])
        assert str(error) == f"{busy.url}: 429 come back tomorrow; lower `concurrency`, or add a server to `endpoints`"
        assert time.monotonic() - began < 1


@pytest.mark.parametrize(
    "fault",
    [
        refuses(503),
        refuses(408),
        breaks_off("<think>"),
        garbles,
        lambda call: call.stream([]),
        lambda call: call.reply(200, []),
    ],
    ids=["unavailable", "timeout", "broken off", "garbled", "empty", "no stream"],
)
def test_what_may_pass_is_tried_again(policy, seen, fault):
    with FaultyServer(fault, says(STOP)) as flaky:
        (decision,) = policy(flaky.url).decide(seen[:1])
        assert decision.reply == STOP
        assert decision.details["attempts"] == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_what_cannot_pass_is_not_tried_again(policy, seen, status, monkeypatch):
    monkeypatch.setenv("MODEL_KEY", "s3cret")
    with FaultyServer(refuses(status, "the key s3cret is wrong")) as strict:
        (error,) = policy(strict.url, api_key_env="MODEL_KEY").decide(seen[:1])
        assert len(strict.calls) == 1
        assert strict.keys == {"Bearer s3cret"}
        assert str(error).startswith(f"{strict.url}: {status} the key *** is wrong; ")


def test_retries_are_bounded_and_a_known_outage_is_not_waited_for_again(policy, seen):
    with FaultyServer(refuses(500, "no memory")) as broken:
        remote = policy(broken.url, retries=1)
        errors = remote.decide(seen[:2])
        assert {str(error) for error in errors} == {f"{broken.url}: 500 no memory; see the model server's log"}
        assert len(broken.calls) <= 4
        before = len(broken.calls)
        remote.decide(seen)
        assert len(broken.calls) - before == len(seen)


def test_a_failing_endpoint_is_left_in_peace_and_gets_its_chance(policy, seen):
    with FaultyServer(refuses(503), says(STOP)) as failing, FaultyServer(says(STOP, wait_s=0.01)) as well:
        remote = policy(failing.url, well.url, concurrency=1)
        assert all(isinstance(decision, Decision) for decision in remote.decide(seen))
        assert len(failing.calls) == 1
        time.sleep(1.0)
        remote.decide(seen * 2)
        assert len(failing.calls) > 2


def test_an_endpoint_takes_no_more_than_its_share_at_once(policy, seen):
    with FaultyServer(says(STOP, wait_s=0.05)) as a, FaultyServer(says(STOP, wait_s=0.05)) as b:
        policy(a.url, b.url, concurrency=2).decide(seen * 2)
        assert (a.most_active, b.most_active) == (2, 2)
        assert min(len(a.calls), len(b.calls)) >= 4


def test_many_threads_get_their_own_replies_in_order(policy, seen):
    volume = seen[0].view.volume
    with FaultyServer(echoes) as echo, ThreadPoolExecutor(8) as pool:
        remote = policy(echo.url, concurrency=5)
        asked = [[replace(observe(volume), prompt=f"disc {run} {i}") for i in range(6)] for run in range(8)]
        for prompts, decisions in zip(asked, pool.map(remote.decide, asked), strict=True):
            assert [parse(decision.reply).thought for decision in decisions] == [one.prompt for one in prompts]
        assert echo.most_active <= 5


@pytest.mark.parametrize("how", ["cancel", "deadline", "close"])
def test_nothing_holds_a_request_up_that_is_no_longer_wanted(policy, seen, how):
    with FaultyServer(says_on("<think>", 0.02)) as talker, FaultyServer(refuses(429, Retry_After="60")) as busy:
        remote = policy(talker.url, busy.url, concurrency=1)
        limits = Limits(time.monotonic() + 0.5) if how == "deadline" else Limits()
        threading.Timer(0.5, {"cancel": limits.cancelled.set, "close": remote.close}.get(how, lambda: None)).start()
        began = time.monotonic()
        errors = remote.decide(seen, limits)
        assert 0.45 < time.monotonic() - began < 0.5 + SOON_S
        assert [str(error) for error in errors] == ["interrupted"] * len(seen)
        assert talker.hung_up.wait(1), "the server must notice"
        talker.answers = [says(STOP)]
        assert isinstance(remote.decide(seen[:1])[0], Decision)


@pytest.mark.parametrize("slow", [lambda call: time.sleep(3), says(*"a" * 60, wait_s=0.05)], ids=["silent", "trickling"])
def test_a_slow_server_is_given_up_after_its_time(policy, seen, slow):
    with FaultyServer(slow) as server:
        (error,) = policy(server.url, timeout_s=0.5, retries=0).decide(seen[:1])
        assert re.match(rf"{server.url}: no reply after \d\.\d s; raise `timeout_s`", str(error))
        assert float(str(error).split("after ")[1].split()[0]) < 0.5 + SOON_S


def test_a_model_that_writes_on_is_cut_off(policy, seen):
    reply = render(Reply("here", Click(ViewPoint(0.5, 0.25), positive=True)))
    with FaultyServer(says_on(reply)) as talker:
        (decision,) = policy(talker.url).decide(seen[:1])
        assert decision.reply == reply
        assert talker.hung_up.wait(1)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, len(STOP) + 6), max_size=12), split_off=st.booleans())
def test_a_reply_is_the_same_however_it_is_streamed(policy, seen, cuts, split_off):
    text = STOP + "\nWell."
    thought = text[len("<think>") : text.index("</think>")] if split_off else ""
    content = text[text.index("</think>") + len("</think>") :] if split_off else text
    places = [0, *sorted(cut for cut in cuts if cut < len(content)), len(content)]
    pieces = [content[a:b] for a, b in pairwise(places)]
    events = [*[chunk(reasoning_content=letter) for letter in thought], *map(chunk, pieces), chunk(finish="stop")]
    with FaultyServer(lambda call: call.stream(events)) as one:
        assert policy(one.url).decide(seen[:1])[0].reply == STOP


def test_the_likelihood_of_the_action_is_that_of_its_tokens(policy, seen):
    tokens = [
        ("<think>a</think>", -9.0),
        ("<action>\nTermin", -1.0),
        ("ate\n", -2.0),
        ("</action>", -9.0),
        ("<answer></answer>", -9.0),
    ]
    events = [chunk(text, logprobs={"content": [{"token": text, "logprob": p, "top_logprobs": []}]}) for text, p in tokens]
    with FaultyServer(lambda call: call.stream([*events, chunk(finish="stop")])) as one:
        (decision,) = policy(one.url, logprobs=True).decide(seen[:1])
        assert decision.details["action_logprob"] == -1.5
        assert one.calls[0]["logprobs"] is True


# What is sent.


def test_the_conversation_goes_out_greedily_with_its_picture_before_the_text(policy, seen):
    with FaultyServer() as one:
        policy(one.url).decide(seen[:1])
        body = one.calls[0]
    assert (body["model"], body["temperature"], body["max_tokens"], body["stream"]) == ("m", 0.0, 512, True)
    assert not {"stop", "seed", "structured_outputs", "logprobs"} & set(body)
    system, user = body["messages"]
    assert system["content"][0]["type"] == "text"
    assert [part["type"] for part in user["content"]] == ["image_url", "text"]
    assert user["content"][1]["text"] == "<image>bright disc"
    assert np.array_equal(sent(user), seen[0].picture())


def sent(message: dict) -> np.ndarray:
    url = message["content"][0]["image_url"]["url"]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,")))))


def test_asking_again_draws_with_a_seed_of_the_turn(policy, seen):
    again = [observe(seen[0].view.volume, index, complaint="the reply is empty") for index in (0, 0, 1)]
    with FaultyServer() as one:
        remote = policy(one.url, structured="vllm", extra_body={"top_p": 0.9})
        for observation in again:
            remote.decide([observation])
        first, same, other = one.calls
    assert first["temperature"] == 0.7
    assert first["seed"] == same["seed"] != other["seed"]
    assert first["top_p"] == 0.9
    assert first["structured_outputs"] == {"regex": GRAMMAR}


def test_large_pictures_are_capped_as_in_training(policy, picture):
    observation = observe(picture(np.zeros((600, 900), np.uint8)))
    height, width = observation.picture().shape[:2]
    with FaultyServer() as one:
        policy(one.url).decide([observation])
        policy(one.url, cap_pixels=False).decide([observation])
        small, whole = (sent(call["messages"][1]) for call in one.calls)
    assert whole.shape == (height, width, 3)
    assert small.shape[0] * small.shape[1] <= 512 * 512 < height * width


@given(st.integers(1, 300), st.integers(1, 300), st.integers(784, 40_000))
def test_a_capped_picture_keeps_its_proportions(height, width, cap):
    small = capped(np.zeros((height, width, 3), np.uint8), cap)
    assert small.shape[0] * small.shape[1] <= cap
    assert abs(small.shape[0] / height - small.shape[1] / width) <= 1 / min(height, width) + 1e-9
