"""`python main.py pacs`: Orthanc, a phantom, the server, the links; and one Ctrl-C for all of it."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from lib.server.pacs.orthanc import Namespace, why_not

pytestmark = pytest.mark.e2e

MAIN = Path(__file__).resolve().parents[2] / "main.py"
PATIENCE_S = 90


@pytest.fixture
def namespace():
    reason = why_not()
    if reason:
        pytest.skip(reason)
    with Namespace() as found:
        yield found


def test_one_command_brings_up_a_pacs_with_a_study_and_ctrl_c_ends_it(namespace, tmp_path):
    command = [sys.executable, str(MAIN), "pacs", "--output", str(tmp_path / "pacs"), "--port", "8100", "--pacs-port", "8142"]
    quiet = os.environ | {"OMP_NUM_THREADS": "1", "HOME": str(tmp_path)}
    with open(tmp_path / "log", "wb") as log:
        process = namespace.call(subprocess.Popen, command, stdout=log, stderr=log, env=quiet, start_new_session=True)
    try:
        deadline = time.monotonic() + PATIENCE_S
        found: dict = {}
        while not found.get("total"):
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)
            try:
                found = namespace.call(httpx.get, "http://127.0.0.1:8100/info/", timeout=5).json()["datastore"]
            except httpx.TransportError:
                continue
        said = (tmp_path / "log").read_text()
        (link,) = re.findall(r"http://127\.0\.0\.1:8100/ohif/monai-label\?StudyInstanceUIDs=\S+", said)
        assert namespace.call(httpx.get, link).status_code == 200
        studies = namespace.call(httpx.get, "http://127.0.0.1:8142/dicom-web/studies").json()
        assert [study["0020000D"]["Value"][0] for study in studies] == [link.rpartition("=")[2]]
        again = namespace.call(
            subprocess.run, [*command[:-2], "--pacs-port", "8142"], capture_output=True, text=True, env=quiet
        )
        assert again.returncode == 2
        assert "--port" in again.stderr
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.wait(30)
    with pytest.raises(httpx.ConnectError):
        namespace.call(httpx.get, "http://127.0.0.1:8142/system")


def test_without_orthanc_it_says_what_to_install(tmp_path):
    done = subprocess.run(
        [sys.executable, str(MAIN), "pacs", "--output", str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": str(tmp_path)},
    )
    assert done.returncode == 2
    assert "apt-get install orthanc orthanc-dicomweb" in done.stderr
    assert len(done.stderr.splitlines()) == 1
