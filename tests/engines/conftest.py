"""A tiny checkpoint in the published layout."""

from pathlib import Path

import pytest

from lib.engines.tiny.qwen import make_tiny_qwen


@pytest.fixture(scope="session")
def published(tmp_path_factory) -> Path:
    return make_tiny_qwen(tmp_path_factory.mktemp("published"))
