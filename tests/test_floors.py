"""The floors of the house: an import looks only down."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = [
    {"lib.errors"},
    {"lib.config"},
    {"lib.imaging"},
    {"lib.agent"},
    {"lib.policies", "lib.segmenters"},
    {"lib.engines"},
    {"lib.trajectories"},
    {"lib.infers", "lib.trainers", "lib.activelearning", "lib.scoring"},
    {"lib.server"},
    {"apps"},
    {"main"},
]
MONAI_LABEL = {"lib.infers", "lib.trainers", "lib.activelearning", "lib.scoring", "lib.server", "apps", "main"}
TORCH = {"lib.policies", "lib.segmenters", "lib.engines", "lib.trainers"}


def _room(module: str) -> str:
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "lib" else parts[0]


def _height(room: str) -> int:
    return next(height for height, rooms in enumerate(FLOORS) if room in rooms)


def _modules() -> list[Path]:
    return [ROOT / "main.py", *sorted((ROOT / "apps").rglob("*.py")), *sorted((ROOT / "lib").rglob("*.py"))]


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names if (ROOT / "lib" / alias.name).is_dir()}
    return found


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_from_floors_below_it(path: Path) -> None:
    if path.name == "__init__.py" and path.parent.name == "lib":
        assert not _imports(path)
        return
    here = _room(".".join(path.relative_to(ROOT).with_suffix("").parts))
    for module in _imports(path):
        top = module.split(".")[0]
        if top in ("lib", "apps", "main") and module != "lib":
            there = _room(module)
            assert there == here or _height(there) < _height(here), f"{here} imports {module}"
        assert top != "monailabel" or here in MONAI_LABEL, f"{here} imports MONAI Label"
        assert top not in ("torch", "transformers", "sam2") or here in TORCH, f"{here} imports {top}"


def _loads(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(' '.join(m for m in ('torch', 'monailabel', 'transformers') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split()) if done.stdout.strip() else set()


def test_help_and_the_embedded_engine_load_neither_torch_nor_monai_label() -> None:
    assert _loads("import apps.cli; from lib.engines.build import build_engine; build_engine()") == set()


def test_the_check_can_fail(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("from lib.server.app import IBISApp\n")
    assert "lib.server.app" in _imports(bad)
    assert _height("lib.server") > _height("lib.agent")
