"""`ibis_agent`: a text prompt or a class in, a mask out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from monailabel.interfaces.tasks.infer_v2 import InferType

from lib.agent.engine import Engine
from lib.agent.run import RunRequest, RunResult, run
from lib.agent.targets import merge, split_prompts
from lib.errors import InputError
from lib.imaging.cache import ImageRef, VolumeCache
from lib.infers.options import AgentOptions
from lib.infers.task import TARGET, Answer, IBISInfer, image_of, limits


@dataclass(frozen=True)
class Target:
    """One thing to look for, and the voxel value that it gets."""

    prompt: str
    name: str
    value: int


class AgentInfer(IBISInfer):
    """Free text through the `prompt` option (several targets separated by `;`), classes through labels.

    Text gives voxel values 1..N in the order of the prompts. OHIF's class prompts give the values of this model's own labels,
    since that is how OHIF reads them.
    """

    options = AgentOptions

    def __init__(
        self, engine: Engine, volumes: VolumeCache, keep: Callable[[RunResult, ImageRef], str], structures: tuple[str, ...]
    ) -> None:
        """`keep` stores a finished run for later viewing and returns its id; `structures` are offered as classes."""
        super().__init__(
            engine,
            volumes,
            (TARGET, *structures),
            InferType.SEGMENTATION,
            3,
            "The agent: type what to segment into `prompt` (several: separated by ;), or choose classes",
        )
        self._keep = keep

    def infer(self, request: Mapping[str, Any]) -> Answer:
        options = AgentOptions.read(request)
        assert isinstance(options, AgentOptions)
        targets = self._targets(options)
        image = image_of(request, options.modality)
        volume = self.volumes.get(image)
        bounds = limits(options.budget_s)
        results = []
        for target in targets:
            asked = RunRequest(target.prompt, options.plane, options.slices, options.max_turns, options.window, options.overlay)
            results.append(run(asked, volume, self.engine, bounds))
        mask, overlap = merge(results, [target.value for target in targets])
        keys = [self._keep(result, image) for result in results]
        params = self._params(targets, results, keys, overlap)
        return Answer(mask, volume, {target.name: target.value for target in targets}, params)

    def _targets(self, options: AgentOptions) -> tuple[Target, ...]:
        if options.label_prompt:
            names = {value: name for name, value in self.labels.items()}
            unknown = [value for value in options.label_prompt if value not in names]
            if unknown:
                raise InputError(f"class {unknown[0]} does not exist: this model has 1 to {len(names)}", "label_prompt")
            chosen = [value for value in options.label_prompt if names[value] != TARGET]
            if chosen:
                return tuple(Target(names[value].replace("_", " "), names[value], value) for value in chosen)
        text = options.prompt
        if not text.strip() and options.label != TARGET:
            text = options.label.replace("_", " ")
        return tuple(Target(prompt, prompt, index + 1) for index, prompt in enumerate(split_prompts(text)))

    def _params(
        self, targets: Sequence[Target], results: Sequence[RunResult], keys: Sequence[str], overlap: int
    ) -> dict[str, Any]:
        notes = list(results[0].volume.warnings)
        if overlap:
            notes.append(f"{overlap} voxels were claimed by two targets; each went to the one named first")
        return {
            "answer": "; ".join(result.answer for result in results),
            "status": "complete" if all(result.status == "complete" for result in results) else "incomplete",
            "engine": self.engine.name,
            "warnings": notes,
            "runs": [_summary(*parts) for parts in zip(targets, results, keys, strict=True)],
        }


def _summary(target: Target, result: RunResult, key: str) -> dict[str, Any]:
    return {
        "id": key,
        "prompt": target.prompt,
        "value": target.value,
        "answer": result.answer,
        "status": result.status,
        "voxels": result.voxels,
        "volume_ml": round(result.volume_ml, 3),
        "seconds": round(result.seconds, 3),
        "plane": result.request.plane.value,
        "window": str(result.window),
        "trace": f"/ibis/runs/{key}/trace.html",
        "slices": [
            {
                "index": outcome.index,
                "stop_reason": outcome.stop.value,
                "turns": len(outcome.steps),
                "confidence": None if outcome.confidence is None else round(outcome.confidence, 4),
            }
            for outcome in result.outcomes
        ],
    }
