"""`ibis_agent`: a text prompt or a class in, a mask out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from monailabel.interfaces.tasks.infer_v2 import InferType

from lib.agent.anatomy import anatomy
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

    Text gives voxel values 1..N in the order of the prompts. OHIF reads values by this model's own labels whatever the answer
    says, so class prompts, and several texts at once from OHIF, get those values. A typed prompt goes before class prompts:
    OHIF sends along what was chosen before.
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
        targets = self._targets(options, ohif="restore_label_idx" in request)
        image = image_of(request, options.modality)
        volume = self.volumes.get(image)
        bounds = limits(request, options.budget_s)
        results = []
        for target in targets:
            asked = RunRequest(target.prompt, options.plane, options.slices, options.max_turns, options.window, options.overlay)
            results.append(run(asked, volume, self.engine, bounds))
        mask, overlap = merge(results, [target.value for target in targets])
        notes = list(volume.warnings)
        if overlap:
            notes.append(f"{overlap} voxels were claimed by two targets; each went to the one named first")
        keys = []
        try:
            keys = [self._keep(result, image) for result in results]
        except OSError as error:
            notes.append(f"the traces could not be kept: {error.strerror}")
        params = {
            "answer": "; ".join(result.answer for result in results),
            "status": "complete" if all(result.status == "complete" for result in results) else "incomplete",
            "engine": self.engine.name,
            "warnings": notes,
            "runs": [_summary(target, result, key) for target, result, key in zip_longest(targets, results, keys)],
        }
        return Answer(mask, volume, {target.name: target.value for target in targets}, params)

    def _targets(self, options: AgentOptions, ohif: bool) -> tuple[Target, ...]:
        text = options.prompt
        if not text.strip() and options.label_prompt:
            names = {value: name for name, value in self.labels.items() if name != TARGET}
            unknown = [value for value in options.label_prompt if value not in names]
            if unknown:
                raise InputError(f"class {unknown[0]} is none of this model's structures", "label_prompt")
            return tuple(Target(names[value].replace("_", " "), names[value], value) for value in options.label_prompt)
        if not text.strip() and options.label != TARGET:
            text = options.label.replace("_", " ").replace(";", " ")
        prompts = split_prompts(text)
        if ohif and len(prompts) > 1:
            return tuple(self._shown_in_ohif(prompt) for prompt in prompts)
        return tuple(Target(prompt, prompt, index + 1) for index, prompt in enumerate(prompts))

    def _shown_in_ohif(self, prompt: str) -> Target:
        structure = anatomy().find(prompt)
        if structure is None or structure.name not in self.labels:
            raise InputError(f"OHIF can show {prompt!r} only when it is asked for alone", "prompt")
        return Target(prompt, structure.name, self.labels[structure.name])


def _summary(target: Target, result: RunResult, key: str | None) -> dict[str, Any]:
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
        "trace": None if key is None else f"/ibis/runs/{key}/trace.html",
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
