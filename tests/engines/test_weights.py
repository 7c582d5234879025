"""Fetching weights from a hub over real HTTP, and the command."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from apps import cli
from lib.engines.describe import describe
from lib.engines.tiny.sam2 import make_tiny_sam2
from lib.engines.weights import Presence, Weights, catalogue, fetch, listing, presence, require_licence
from lib.errors import EngineError, InputError
from tests.engines.helpers import assert_one_line, edit
from tests.engines.hub import COMMIT, Hub, serve

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parent.parent.parent
WRITTEN = 10 << 20
"""The hub's library writes in pieces of this size; less is lost when the connection is."""
CUT = WRITTEN + 500_000
CLI = "import sys; from apps import cli; cli.main(sys.argv[1:])"


@pytest.fixture(scope="session")
def segmenter(tmp_path_factory) -> Path:
    """A SAM2 folder; the checkpoint has optimiser state too, as checkpoints of a training have, and is 21 MB."""
    checkpoint = make_tiny_sam2(tmp_path_factory.mktemp("sam"), image_size=64)
    content = torch.load(checkpoint, weights_only=True)
    torch.save({**content, "optimizer": torch.zeros(4_000_000)}, checkpoint)
    return checkpoint.parent


@pytest.fixture
def hub(published, segmenter, tmp_path) -> Iterator[Hub]:
    root = tmp_path / "hub"
    shutil.copytree(published, root / "owner/agent/qwen")
    (root / "owner/agent/qwen/optimizer.bin").write_bytes(b"0" * 100)
    (root / "owner/agent/README.md").write_text("card")
    shutil.copytree(segmenter, root / "owner/sam")
    with serve(root) as hub:
        yield hub


AGENT = Weights(
    kind="language model",
    use="tests",
    repo="owner/agent",
    folder="qwen",
    files=("*.json", "*.txt", "*.safetensors"),
    target="weights/agent",
    gigabytes=0.1,
    licence="none stated",
    terms="Tests only.",
    clean=False,
)
SAM = Weights(
    kind="segmenter",
    use="tests",
    repo="owner/sam",
    files=("sam2_tiny.pt", "sam2_tiny.yaml"),
    target="weights/sam2",
    gigabytes=0.1,
    licence="Apache-2.0",
    terms="Any use.",
    clean=True,
)


def run(*arguments: object, endpoint: str, limit: int = 0) -> subprocess.CompletedProcess[str]:
    """In a process of its own: huggingface_hub reads its environment when it is imported. `limit`: of a file, in kB."""
    command = shlex.join([sys.executable, "-c", CLI, *map(str, arguments)])
    if limit:
        command = f"ulimit -f {limit}; {command}"
    environment = os.environ | {"HF_ENDPOINT": endpoint}
    return subprocess.run(["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True)


def call(*arguments: object) -> int:
    try:
        cli.main(["weights", *map(str, arguments)])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_the_catalogue_is_consistent():
    entries = catalogue()
    assert not entries["ibis"].clean
    assert not entries["medsam2"].clean
    assert len({entry.place for entry in entries.values()}) == len(entries)
    from sam2.build_sam import HF_MODEL_ID_TO_FILENAMES

    files = {entry.repo: entry.files[0] for entry in entries.values() if entry.repo.startswith("facebook/")}
    assert files == {repo: file for repo, (_, file) in HF_MODEL_ID_TO_FILENAMES.items()}


def test_fetch_a_language_model(hub, published, tmp_path):
    folder = tmp_path / "here"
    assert presence("agent", AGENT, folder) is Presence.ABSENT
    facts = fetch("agent", AGENT, folder, hub.url)
    assert facts["architecture"] == "Qwen2_5_VLForConditionalGeneration"
    assert {path.name for path in folder.iterdir() if path.name[0] != "."} == {path.name for path in published.iterdir()}
    assert all((folder / path.name).read_bytes() == path.read_bytes() for path in published.iterdir())
    assert json.loads((folder / ".agent.weights.json").read_text())["commit"] == COMMIT
    assert presence("agent", AGENT, folder) is Presence.VERIFIED
    hub.downloads.clear()
    fetch("agent", AGENT, folder, hub.url)
    assert hub.downloads == []
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    assert presence("agent", AGENT, folder) is Presence.UNVERIFIED
    fetch("agent", AGENT, folder, hub.url)
    assert [name for name, _ in hub.downloads] == ["qwen/config.json"]
    assert presence("agent", AGENT, folder) is Presence.VERIFIED


def test_fetch_a_segmenter(hub, tmp_path):
    facts = fetch("sam", SAM, tmp_path, hub.url)
    assert facts["image size"] == "64 px"
    assert presence("sam", SAM, tmp_path) is Presence.VERIFIED


def test_a_cut_connection_goes_on(hub, tmp_path):
    hub.cut_after = CUT
    fetch("sam", SAM, tmp_path, hub.url)
    assert presence("sam", SAM, tmp_path) is Presence.VERIFIED
    assert [asked for name, asked in hub.downloads if name == "sam2_tiny.pt"] == ["", f"bytes={WRITTEN}-"]


def test_a_broken_fetch_resumes(hub, tmp_path):
    hub.cut_after, hub.dies = CUT, True
    with pytest.raises(EngineError, match="503") as caught:
        fetch("sam", SAM, tmp_path, hub.url)
    assert_one_line(str(caught.value), "fetch again", "hf download owner/sam")
    assert not (tmp_path / "sam2_tiny.pt").exists()
    assert presence("sam", SAM, tmp_path) is Presence.PARTLY
    hub.down = False
    hub.downloads.clear()
    fetch("sam", SAM, tmp_path, hub.url)
    assert hub.downloads[0] == ("sam2_tiny.pt", f"bytes={WRITTEN}-")
    assert (tmp_path / "sam2_tiny.pt").read_bytes() == (hub.root / "owner/sam/sam2_tiny.pt").read_bytes()
    assert not list(tmp_path.glob(".*.part"))


def test_a_part_of_an_older_file_is_not_gone_on_with(hub, tmp_path):
    (tmp_path / ".model.safetensors.0000000000000000.part").write_bytes(b"old")
    fetch("agent", AGENT, tmp_path, hub.url)
    assert ("qwen/model.safetensors", "") in hub.downloads
    assert not list(tmp_path.glob(".*.part"))


def test_a_wrong_checksum_is_refused(hub, tmp_path):
    hub.corrupt = True
    with pytest.raises(EngineError, match="another checksum"):
        fetch("agent", AGENT, tmp_path, hub.url)
    assert not (tmp_path / "model.safetensors").exists()
    assert not list(tmp_path.glob(".*.part"))
    assert presence("agent", AGENT, tmp_path) is not Presence.VERIFIED


def test_a_pinned_checksum(hub, tmp_path):
    pinned = SAM.model_copy(update={"sha256": {"sam2_tiny.pt": "0" * 64}})
    with pytest.raises(EngineError, match=r"pins"):
        listing(pinned, hub.url)
    right = next(file.digest for file in listing(SAM, hub.url).files if file.name == "sam2_tiny.pt")
    assert listing(SAM.model_copy(update={"sha256": {"sam2_tiny.pt": right}}), hub.url).commit == COMMIT


def test_whole_files_of_a_broken_model_get_no_record(hub, tmp_path):
    edit(hub.root / "owner/agent/qwen/config.json", architectures=["LlamaForCausalLM"])
    with pytest.raises(InputError, match="LlamaForCausalLM"):
        fetch("agent", AGENT, tmp_path, hub.url)
    assert presence("agent", AGENT, tmp_path) is Presence.UNVERIFIED


def test_too_little_space(hub, tmp_path):
    hub.pretended = 10**16
    with pytest.raises(EngineError, match=r"10000000\.\d GB are needed"):
        fetch("agent", AGENT, tmp_path, hub.url)
    assert not hub.downloads


def test_a_repository_that_is_not_there(hub, tmp_path):
    with pytest.raises(EngineError, match="404") as caught:
        fetch("agent", AGENT.model_copy(update={"repo": "owner/gone"}), tmp_path, hub.url)
    assert_one_line(str(caught.value), "owner/gone")
    with pytest.raises(EngineError, match="has none of"):
        fetch("agent", AGENT.model_copy(update={"folder": "other"}), tmp_path, hub.url)


def test_the_licence_must_be_accepted():
    with pytest.raises(InputError, match="not clean") as caught:
        require_licence("agent", AGENT, accepted=False)
    assert caught.value.field == "accept_licence"
    require_licence("agent", AGENT, accepted=True)
    require_licence("sam", SAM, accepted=False)


def test_two_fetches_into_one_folder(hub, tmp_path):
    from filelock import FileLock

    with FileLock(tmp_path / ".fetch.lock"), pytest.raises(EngineError, match="another fetch"):
        fetch("sam", SAM, tmp_path, hub.url)


def test_the_table_and_the_refusal(capsys):
    assert call() == 0
    shown = capsys.readouterr().out
    for word in ("ibis", "medsam2", "clinical", "weights/sam2/MedSAM2_latest.pt", "hf download manglu3935/IBIS"):
        assert word in shown
    assert call("fetch", "medsam2") == 2
    refused = capsys.readouterr()
    assert refused.err.startswith("error: --accept-licence")
    assert_one_line(refused.err.strip())
    assert "research and education" in refused.out
    assert call("fetch", "medsam3") == 2
    assert_one_line(capsys.readouterr().err.strip(), "medsam3", "medsam2")


def test_an_unreachable_hub_is_one_line(tmp_path):
    done = run("weights", "fetch", "sam2.1-tiny", "--to", tmp_path / "to", endpoint="http://127.0.0.1:9")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "hf download facebook/sam2.1-hiera-tiny" in done.stderr
    assert not (tmp_path / "to").exists()


def test_a_full_disk_is_one_line_and_fetch_goes_on(hub, tmp_path):
    """The limit on a file's size stands for the disk: writing fails in the middle of the file all the same."""
    entry = catalogue()["sam2.1-tiny"]
    served = hub.root / entry.repo / entry.files[0]
    served.parent.mkdir(parents=True)
    (hub.root / "owner/sam/sam2_tiny.pt").rename(served)
    done = run("weights", "fetch", "sam2.1-tiny", "--to", tmp_path / "to", endpoint=hub.url, limit=WRITTEN // 1024)
    assert done.returncode == 1
    assert_one_line(done.stderr.splitlines()[-1], "error: the disk is full", "go on")
    assert not (tmp_path / "to" / served.name).exists()
    hub.downloads.clear()
    with pytest.raises(InputError, match="is not one of"):
        fetch("sam2.1-tiny", entry, tmp_path / "to", hub.url)
    assert hub.downloads[0][1] == f"bytes={WRITTEN}-"
    assert (tmp_path / "to" / served.name).read_bytes() == served.read_bytes()


def test_check_says_what_it_is(published, tmp_path, capsys):
    assert call("check", published) == 0
    assert "3,136 to 12,544 pixels" in capsys.readouterr().out
    assert call("check", tmp_path) == 2
    assert_one_line(capsys.readouterr().err.strip(), "error: folder", "config.json")


@pytest.mark.parametrize("weights", [AGENT, SAM], ids=["language model", "segmenter"])
def test_the_plain_commands_do_the_same(weights, hub, tmp_path):
    hf = Path(sys.executable).with_name("hf")
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "cache"), "PATH": str(hf.parent)}
    environment["PATH"] += os.pathsep + os.environ["PATH"]
    done = subprocess.run(["bash", "-c", weights.download], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert describe(tmp_path / weights.place)["architecture"]
