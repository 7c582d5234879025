"""The real server with real model classes on tiny checkpoints: in process, and with the language model behind a server."""

import io
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import nibabel
import numpy as np
import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForImageTextToText

from lib.engines.tiny.qwen import make_tiny_qwen
from lib.engines.tiny.sam2 import make_tiny_sam2
from lib.server.process import ServerProcess
from tests.e2e.conftest import form
from tests.serving import ModelServer

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def discs(tmp_path_factory):
    """Three volumes of grey 0..255 with a bright disc that drifts through the slices; their arrays `[i, j, k]` by name."""
    folder = tmp_path_factory.mktemp("discs")
    rows, columns = np.mgrid[:96, :96]
    truth = {}
    for number in range(3):
        rng = np.random.default_rng(number)
        data = rng.normal(40, 8, (96, 96, 8)).clip(0, 255)
        mask = np.zeros(data.shape, bool)
        for k in range(1, 7):
            mask[:, :, k] = (rows - 40 - k) ** 2 + (columns - 45 - 3 * number) ** 2 < 15**2
        data[mask] += 150
        image = nibabel.Nifti1Image(data.astype(np.float32), np.diag([1.0, 1.0, 2.0, 1.0]))
        nibabel.save(image, folder / f"disc{number}.nii.gz")
        truth[f"disc{number}"] = mask
    return folder, truth


@pytest.fixture(scope="module")
def sam2(tmp_path_factory):
    return make_tiny_sam2(tmp_path_factory.mktemp("sam2"), train_steps=60)


def engine_file(folder, policy, sam2):
    path = folder / "tiny.yaml"
    parts = {"policy": policy, "segmenter": {"kind": "sam2", "checkpoint": str(sam2)}, "batch": 8, "runs": 4}
    path.write_text(yaml.safe_dump(parts))
    return path


@pytest.fixture(scope="module")
def weights(tiny_qwen, tmp_path_factory):
    """A weights folder: the taught model, an untaught one, and an adapter."""
    folder = tmp_path_factory.mktemp("weights")
    shutil.copytree(tiny_qwen, folder / "taught")
    make_tiny_qwen(folder / "untaught", seed=5)
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_pretrained(tiny_qwen)
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    tuned.save_pretrained(folder / "lora")
    return folder


@pytest.fixture(scope="module")
def server(discs, weights, sam2, tmp_path_factory):
    scratch = tmp_path_factory.mktemp("server")
    path = engine_file(scratch, {"kind": "qwen", "model": str(weights / "taught")}, sam2)
    arguments = ("--engine", str(path), "--conf", "weights", str(weights), "--conf", "device", "cpu")
    with ServerProcess(discs[0], scratch / "server.log", arguments) as running:
        yield running


def ask(server, image, model="ibis_agent", **params):
    answer = httpx.post(f"{server.url}/infer/{model}?image={image}&output=json", data=form(**params), timeout=120)
    assert answer.status_code == 200, answer.text
    return answer.json()["params"] if "params" in answer.json() else answer.json()


def mask_of(server, image, model="ibis_agent", **params):
    answer = httpx.post(
        f"{server.url}/infer/{model}?image={image}&output=image", data=form(result_extension=".nii.gz", **params), timeout=120
    )
    assert answer.status_code == 200, answer.text
    return np.asarray(nibabel.Nifti1Image.from_bytes(_unzipped(answer.content)).dataobj)


def _unzipped(content):
    import gzip

    return gzip.GzipFile(fileobj=io.BytesIO(content)).read()


def trace_of(server, params):
    return httpx.get(f"{server.url}/ibis/runs/{params['runs'][0]['id']}/trace", timeout=30).json()


def test_the_agent_reads_a_prompt_and_draws_a_mask(server, discs):
    params = ask(server, "disc0", prompt="bright disc", max_turns=4)
    assert params["status"] == "complete"
    trace = trace_of(server, params)
    assert (trace["engine"]["policy"], trace["engine"]["protocol"]) == ("qwen", "corrected")
    assert trace["engine"]["segmenter_details"]["image_size"] == "256"
    steps = [step for episode in trace["slices"] for step in episode["steps"]]
    assert len(trace["slices"]) == 8
    assert all(step["details"]["reply_tokens"] > 10 for step in steps)
    clicked = [step for step in steps if step["mask"]]
    assert clicked
    assert all(step["thought"] for step in clicked)
    mask = mask_of(server, "disc0", prompt="bright disc", max_turns=4)
    assert mask.dtype == np.uint8
    assert mask.shape == discs[1]["disc0"].shape


def test_users_at_once_get_what_they_get_alone(server, discs):
    names = sorted(discs[1])
    alone = [mask_of(server, name, prompt="bright disc", max_turns=3) for name in names]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda name: mask_of(server, name, prompt="bright disc", max_turns=3), names))
    assert all((a == b).all() for a, b in zip(alone, together, strict=True))


def test_a_click_is_drawn_and_carried_by_sam2s_memory(server, discs):
    truth = discs[1]["disc0"]
    points = {"foreground": [[44, 45, 4]], "label": "bright disc", "client_id": "annotator"}
    mask = mask_of(server, "disc0", "ibis_click_3d", **points) > 0
    dice = 2 * (mask & truth).sum() / (mask.sum() + truth.sum())
    assert dice > 0.8
    slices = ask(server, "disc0", "ibis_click_3d", **points)["slices"]
    assert {one["stop_reason"] for one in slices if one["carried"]} == {"propagated"}
    alone = mask_of(server, "disc0", "ibis_click_2d", **points) > 0
    assert set(np.nonzero(alone)[2]) == {4}


def test_weights_are_exchanged_without_dropping_a_request(server):
    def engine():
        return httpx.get(f"{server.url}/ibis/engine", timeout=30).json()["policy"]

    def put(**wanted):
        return httpx.put(f"{server.url}/ibis/engine/weights", json=wanted, timeout=120)

    first = engine()
    done, codes = threading.Event(), []

    def keep_asking():
        while not done.is_set():
            url = f"{server.url}/infer/ibis_agent?image=disc1&output=json"
            codes.append(httpx.post(url, data=form(prompt="liver", max_turns=1, slices="3"), timeout=120).status_code)

    asker = threading.Thread(target=keep_asking)
    asker.start()
    try:
        assert put(adapter="lora").json()["policy"]["adapter"].endswith("lora")
        assert put(model="untaught").json()["policy"]["weights"].endswith("untaught")
        assert engine()["fingerprint"] != first["fingerprint"]
        assert put(model="taught").status_code == 200
    finally:
        done.set()
        asker.join()
    assert set(codes) == {200}
    assert engine() == first
    for wanted, word in (
        ({"model": "nobody"}, "taught"),
        ({"model": "../x"}, "model:"),
        ({"adapter": "taught"}, "adapter:"),
        ({}, "name"),
    ):
        refused = put(**wanted)
        assert refused.status_code == 422
        assert word in refused.json()["detail"]
    assert engine() == first


def test_the_model_server_dies_and_comes_back(discs, sam2, tiny_qwen, tmp_path):
    log = tmp_path / "model" / "serve.log"
    log.parent.mkdir()
    with ModelServer(tiny_qwen, log) as model:
        policy = {"kind": "openai", "endpoints": [model.url], "model": model.model, "retries": 1, "timeout_s": 20}
        arguments = ("--engine", str(engine_file(tmp_path, policy, sam2)))
        with ServerProcess(discs[0], tmp_path / "server.log", arguments) as server:
            before = ask(server, "disc0", prompt="bright disc", max_turns=3)
            assert before["status"] == "complete"
            assert trace_of(server, before)["engine"]["policy"] == "openai"
            model.kill()
            began = time.monotonic()
            gone = ask(server, "disc0", prompt="bright disc", max_turns=3, budget_s=20)
            assert time.monotonic() - began < 25
            assert gone["status"] == "incomplete"
            assert {one["stop_reason"] for one in gone["runs"][0]["slices"]} == {"failed"}
            detail = trace_of(server, gone)["slices"][0]["stop_detail"]
            assert model.root in detail
            model.start()
            after = ask(server, "disc0", prompt="bright disc", max_turns=3)
            assert after["status"] == "complete"
            said = [
                [[step["reply"] for step in one["steps"]] for one in trace_of(server, p)["slices"]] for p in (before, after)
            ]
            assert said[0] == said[1]
