"""One run in a process of its own: how long it takes, and how much memory above the idle engine.

`python -m lib.engines.measure IMAGE PROMPT ENGINE` prints a Measurement as JSON.
"""

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from lib.agent.limits import StopReason
from lib.agent.run import RunRequest, run
from lib.engines.build import build_engine
from lib.errors import EngineError
from lib.imaging.load import load_volume
from lib.imaging.volume import Modality, Volume

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Measurement:
    """Times in seconds, wall clock; memory as a share of the volume stored as float32."""

    shape: tuple[int, int, int]
    load: float
    run: float
    first_decision: float
    """Finding the structure in the volume happens with the first decision."""
    policy: float
    """The other decisions."""
    segmenter: float
    slices: int
    absent: int
    turns: int
    absent_slice: float
    """Median time of a slice that the policy called absent; the first decision is not counted."""
    present_slice: float
    peak_memory: float
    """Peak resident memory of loading and running, above the idle engine, per byte of the volume as float32."""


def measure(image: Path, prompt: str, engine: str) -> Measurement:
    """Run in a fresh child process. Raises EngineError with its last line when it fails."""
    command = [sys.executable, "-m", "lib.engines.measure", str(image.resolve()), prompt, engine]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise EngineError(f"measuring {image.name} failed: {done.stderr.strip().splitlines()[-1]}")
    fields = json.loads(done.stdout)
    return Measurement(**fields | {"shape": tuple(fields["shape"])})


def _measure(image: Path, prompt: str, name: str) -> Measurement:
    engine = build_engine(name)
    _warm_up(prompt)
    base = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the kernel's peak, VmHWM
    began = time.perf_counter()
    volume = load_volume(image)
    loaded = time.perf_counter()
    result = run(RunRequest(prompt), volume, engine)
    ended = time.perf_counter()
    peak = _resident("VmHWM")
    steps = [step for outcome in result.outcomes for step in outcome.steps]
    first = max(steps, key=lambda step: step.policy_seconds)
    times: dict[bool, list[float]] = {True: [], False: []}
    for outcome in result.outcomes:
        seconds = sum(s.policy_seconds + s.segmenter_seconds for s in outcome.steps if s is not first)
        times[outcome.stop is StopReason.ABSENT].append(seconds)
    return Measurement(
        shape=(volume.data.shape[0], volume.data.shape[1], volume.data.shape[2]),
        load=loaded - began,
        run=ended - loaded,
        first_decision=first.policy_seconds,
        policy=sum(step.policy_seconds for step in steps) - first.policy_seconds,
        segmenter=sum(step.segmenter_seconds for step in steps),
        slices=len(result.outcomes),
        absent=len(times[True]),
        turns=len(steps),
        absent_slice=float(np.median(times[True])) if times[True] else 0.0,
        present_slice=float(np.median(times[False])) if times[False] else 0.0,
        peak_memory=max(0, peak - base) / (volume.data.size * 4),
    )


def _warm_up(prompt: str) -> None:
    """Load every library that a run needs, on an image of another size."""
    noise = np.random.default_rng(0).normal(40, 20, (48, 40, 6)).astype(np.int16)
    run(RunRequest(prompt), Volume(noise, np.diag([4.0, 4.0, 5.0, 1.0]), Modality.CT, Path("warm-up")), build_engine())


def _resident(field: str) -> int:
    """Bytes that /proc/self/status gives for a field such as VmRSS."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise EngineError(f"this system's /proc/self/status has no {field}")


if __name__ == "__main__":
    print(json.dumps(asdict(_measure(Path(sys.argv[1]), sys.argv[2], sys.argv[3]))))
