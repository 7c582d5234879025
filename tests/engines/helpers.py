"""What the tests of weights share."""

import json
from pathlib import Path


def assert_one_line(message: str, *words: str) -> None:
    assert "\n" not in message
    assert len(message) < 600
    for word in words:
        assert word in message


def edit(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
