"""Engines from configurations, and what is said when one cannot start."""

import json
import resource
import subprocess
import sys

import numpy as np
import pytest
import yaml
from PIL import Image

from apps import cli
from lib.engines.build import EngineOptions, build_engine
from lib.engines.shared import SharedPolicy, SharedSegmenter
from lib.engines.tiny.lesson import scenes
from lib.engines.tiny.sam2 import make_tiny_sam2
from lib.errors import InputError
from lib.server.process import ROOT, free_port


@pytest.fixture(scope="module")
def tiny_sam2(tmp_path_factory):
    return make_tiny_sam2(tmp_path_factory.mktemp("sam2"), train_steps=40)


@pytest.fixture(scope="module")
def engine_file(tiny_qwen, tiny_sam2, tmp_path_factory):
    path = tmp_path_factory.mktemp("engine") / "tiny.yaml"
    parts = {
        "policy": {"kind": "qwen", "model": str(tiny_qwen)},
        "segmenter": {"kind": "sam2", "checkpoint": str(tiny_sam2)},
        "batch": 8,
    }
    path.write_text(yaml.safe_dump(parts))
    return path


@pytest.fixture
def disc(tmp_path):
    supply = scenes(1)
    scene = next(scene for scene in supply if "Positive" in scene.reply)
    Image.fromarray(scene.picture).save(tmp_path / "disc.png")
    return tmp_path / "disc.png"


def segment(*arguments, capsys=None):
    try:
        cli.main(["segment", *map(str, arguments)])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_an_engine_file_gives_an_engine_with_its_report(engine_file, tiny_qwen):
    engine = build_engine(str(engine_file))
    assert (engine.name, engine.batch) == ("tiny", 8)
    assert isinstance(engine.policy, SharedPolicy)
    assert isinstance(engine.segmenter, SharedSegmenter)
    assert engine.policy.about["weights"] == str(tiny_qwen)
    assert engine.policy.about["device"] == engine.segmenter.about["device"] == "cpu"
    assert build_engine(str(engine_file)) is engine


def test_the_released_scripts_options_do_what_they_did(tiny_qwen, tiny_sam2, disc, tmp_path, capsys):
    out = tmp_path / "outputs"
    code = segment(
        *("--image", disc, "--prompt", "bright disc", "--mllm_path", tiny_qwen, "--sam2_ckpt", tiny_sam2),
        *("--sam2_cfg", tiny_sam2.with_suffix(".yaml"), "--max_turns", 4, "--use_history", 1, "--output_dir", out),
    )
    assert code == 0
    trace = json.loads((out / "trace.json").read_text())
    assert trace["engine"]["name"] == "ibis"
    assert trace["engine"]["policy_details"]["weights"] == str(tiny_qwen)
    (episode,) = trace["slices"]
    clicks = [step for step in episode["steps"] if step["mask"] is not None]
    assert 1 <= len(clicks) <= 4
    assert sorted(path.name for path in out.glob("*.png")) == sorted(
        ["mask.png", "final_segmentation.png", *(f"turn_{step['turn']}_state.png" for step in clicks)]
    )
    assert episode["steps"][0]["details"]["reply_tokens"] > 10
    assert set(np.unique(np.asarray(Image.open(out / "mask.png")))) == {0, 255}


def test_history_is_on_and_off_by_option(tiny_qwen, tiny_sam2, disc, tmp_path):
    tokens = {}
    for history in ("0", "1"):
        out = tmp_path / history
        models = ("--mllm-path", tiny_qwen, "--sam2-ckpt", tiny_sam2, "--use-history", history)
        assert segment("--image", disc, "--prompt", "bright disc", *models, "--max-turns", 3, "--output", out) == 0
        steps = json.loads((out / "trace.json").read_text())["slices"][0]["steps"]
        assert len(steps) > 1
        tokens[history] = [step["details"]["prompt_tokens"] for step in steps]
    assert tokens["0"][0] == tokens["1"][0]
    assert tokens["1"][1] > tokens["0"][1] + 40


@pytest.mark.parametrize(
    ("options", "field", "words"),
    [
        ({"engine": "nobody"}, "engine", "embedded, ibis, ibis-remote"),
        ({"engine": "nobody.yaml"}, "engine", "nobody.yaml cannot be read"),
        ({"engine": "ibis"}, "mllm_path", "main.py weights fetch ibis"),
        ({"mllm_path": "/nowhere"}, "mllm_path", "no language model at /nowhere"),
        ({"mllm_path": "{picture}"}, "mllm_path", "disc.png"),
        ({"mllm_path": "{qwen}", "sam2_ckpt": "/nowhere.pt"}, "sam2_ckpt", "main.py weights"),
        ({"mllm_path": "{qwen}", "sam2_ckpt": "{picture}"}, "sam2_ckpt", "disc.png"),
        ({"mllm_path": "{qwen}", "sam2_ckpt": "{sam2}", "sam2_cfg": "sam2_hiera_x"}, "sam2_cfg", "sam2_hiera_x"),
        ({"mllm_path": "{qwen}", "sam2_ckpt": "{sam2}", "device": "cuda"}, "device", "sees no GPU"),
        ({"mllm_path": "{qwen}", "sam2_ckpt": "{sam2}", "device": "tpu"}, "device", "'tpu' is unknown"),
        ({"mllm_path": "{qwen}", "sam2_ckpt": "{sam2}", "protocol": "old"}, "protocol", "corrected or released"),
        ({"mllm_path": "{qwen}", "sam2_ckpt": "{sam2}", "adapter": "/nowhere"}, "adapter", "/nowhere"),
        ({"mllm_path": "{qwen}", "sam2_ckpt": "{sam2}", "use_history": "maybe"}, "engine", "history"),
        ({"engine": "embedded", "sam2_ckpt": "{sam2}"}, "sam2_ckpt", "choose another engine"),
        ({"engine": "embedded", "device": "cpu"}, "device", "choose another"),
    ],
)
def test_what_cannot_start_is_one_clear_line(options, field, words, tiny_qwen, tiny_sam2, disc, capsys):
    given = {key: value.format(qwen=tiny_qwen, sam2=tiny_sam2, picture=disc) for key, value in options.items()}
    with pytest.raises(InputError) as caught:
        build_engine(EngineOptions(**given))
    assert caught.value.field == field
    assert words in caught.value.message
    assert "\n" not in caught.value.message
    arguments = [word for key, value in given.items() for word in (f"--{key.replace('_', '-')}", value)]
    assert segment("--image", disc, "--prompt", "liver", *arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: --")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"policy": {"kind": "oracle"}}, "policy 'oracle' is unknown"),
        ({"policy": {"kind": "rules", "speed": 3}}, "speed"),
        ({"segmenter": {"kind": "sam2"}}, "checkpoint"),
        ({"segmenter": {"kind": "graphcut"}, "batch": 0}, "batch"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_wrong_engine_file_says_what_is_wrong(change, words, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"policy": {"kind": "rules"}, "segmenter": {"kind": "graphcut"}, "batch": 1} | change))
    with pytest.raises(InputError, match=words):
        build_engine(str(path))


def test_another_architecture_is_named(tiny_qwen, tmp_path):
    for path in tiny_qwen.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}))
    with pytest.raises(InputError, match="LlamaForCausalLM"):
        build_engine(EngineOptions(mllm_path=str(tmp_path)))


def test_a_model_server_that_is_not_there_is_named(tiny_sam2):
    url = f"http://127.0.0.1:{free_port()}/v1"
    with pytest.raises(InputError, match=url):
        build_engine(EngineOptions(endpoints=url, sam2_ckpt=str(tiny_sam2)))


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(engine_file, disc, tmp_path):
    out = tmp_path / "out"
    command = ["segment", "--image", disc, "--prompt", "bright disc", "--engine", engine_file, "--output", out]
    done = subprocess.run(
        [sys.executable, str(ROOT / "main.py"), *map(str, command)],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300)),
    )
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "too large" in errors[0]
    assert "Traceback" not in done.stderr
    assert all(path.stat().st_size < 300 for path in out.iterdir())
