"""`make conformance`: exports of a small store, read and trained on by LLaMA-Factory, TRL and verl.

Each has an environment of its own, made on the first call (some minutes and 5 GB each) from the requirement files beside this.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from lib.engines.tiny.qwen import make_tiny_qwen
from lib.trajectories.exports.export import ExportRequest, export
from lib.trajectories.store import TrajectoryStore
from tests.trajectories.recorded import fill

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
EXPORTS = {
    "sharegpt": ExportRequest("sharegpt"),
    "sharegpt-history": ExportRequest("sharegpt", history=True),
    "trl": ExportRequest("trl"),
    "trl-history": ExportRequest("trl", history=True),
    "trl-grpo": ExportRequest("trl", rows="grpo"),
    "verl-turns": ExportRequest("verl", rows="turn"),
    "verl-episodes": ExportRequest("verl", rows="episode"),
}
CONSUMERS: dict[str, tuple[tuple[str, ...], bool]] = {
    "llamafactory": (("sharegpt", "sharegpt-history"), False),
    "trl": (("trl", "trl-history", "trl-grpo"), True),
    "verl": (("verl-turns", "verl-episodes"), True),
}
"""The exports that each reads, and whether it takes the tiny model of the app's own environment."""


def environment(name: str, folder: Path) -> Path:
    """The consumer's Python; its environment is made where there is none for these requirements."""
    requirements = HERE / f"{name}.txt"
    mark = folder / name / ".ready"
    wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
    python = folder / name / "bin" / "python"
    if not mark.is_file() or mark.read_text() != wanted:
        shutil.rmtree(folder / name, ignore_errors=True)
        print(f"{name}: making its environment in {folder / name}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder / name)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", "-r", str(requirements)], check=True)
        mark.write_text(wanted)
    return python


def check(name: str, python: Path, exports: Path, model: Path, work: Path) -> dict:
    """What the consumer found. Raises CalledProcessError when it refuses something."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    folders, needs_model = CONSUMERS[name]
    arguments = [*(str(exports / folder) for folder in folders), *([str(model)] if needs_model else []), str(work)]
    caches = {"HF_HOME": str(work / "huggingface"), "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    surroundings = os.environ | caches | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with open(work / "log.txt", "w") as log:
        subprocess.run(
            [str(python), str(HERE / f"in_{name}.py"), *arguments],
            env=surroundings,
            stdout=log,
            stderr=log,
            cwd=work,
            check=True,
        )
    found: dict = json.loads((work / "report.json").read_text())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / "out" / "conformance", help="for exports, models and reports")
    parser.add_argument("--envs", type=Path, help="for the environments; default: in --folder")
    parser.add_argument("--only", choices=[*CONSUMERS], nargs="*", default=[*CONSUMERS])
    options = parser.parse_args()
    folder: Path = options.folder.absolute()
    for part in ("store", "exports", "model"):
        shutil.rmtree(folder / part, ignore_errors=True)
    model = make_tiny_qwen(folder / "model")
    store = TrajectoryStore(folder / "store")
    fill(store)
    for name, request in EXPORTS.items():
        exported = export(request, store, folder / "exports" / name, model=model)
        print(f"exported {name}: {sum(exported.rows.values())} rows, longest {exported.card['tokens']['longest_row']} tokens")
    store.close()
    failed = []
    for name in options.only:
        python = environment(name, options.envs or folder / "envs")
        began = time.perf_counter()
        try:
            report = check(name, python, folder / "exports", model, folder / name)
        except subprocess.CalledProcessError:
            failed.append(name)
            print(f"{name}: FAILED, see {folder / name / 'log.txt'}")
            continue
        print(f"{name}: {time.perf_counter() - began:.0f} s")
        for what, facts in report.items():
            print(f"  {what}: {', '.join(f'{fact} {value}' for fact, value in facts.items())}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
