"""`ibis_agent`: a text prompt or a class in, a mask out."""

from collections.abc import Mapping
from typing import Any

from monailabel.interfaces.tasks.infer_v2 import InferType

from lib.agent.anatomy import anatomy
from lib.agent.engine import Engine
from lib.agent.run import RunRequest, RunResult
from lib.agent.targets import split_prompts
from lib.errors import InputError
from lib.imaging.cache import ImageRef, VolumeCache
from lib.infers.asked import Asked, Runner, Target
from lib.infers.options import AgentOptions
from lib.infers.task import TARGET, Answer, IBISInfer, image_of, limits, user_of


class AgentInfer(IBISInfer):
    """Free text through the `prompt` option (several targets separated by `;`), classes through labels.

    Text gives voxel values 1..N in the order of the prompts. OHIF reads values by this model's own labels whatever the answer
    says, so class prompts, and several texts at once from OHIF, get those values. A typed prompt goes before class prompts:
    OHIF sends along what was chosen before.
    """

    options = AgentOptions

    def __init__(self, engine: Engine, volumes: VolumeCache, runner: Runner, structures: tuple[str, ...]) -> None:
        """`runner` carries runs out; `structures` are offered as classes."""
        super().__init__(
            engine,
            volumes,
            (TARGET, *structures),
            InferType.SEGMENTATION,
            3,
            "The agent: type what to segment into `prompt` (several: separated by ;), or choose classes",
        )
        self._runner = runner

    def infer(self, request: Mapping[str, Any]) -> Answer:
        options = AgentOptions.read(request)
        assert isinstance(options, AgentOptions)
        bounds = limits(request, options.budget_s)
        image = image_of(request, options.modality)
        image_id = str(request.get("image_id") or image.path.name)
        asked = self.asked(options, image, image_id, user_of(request), ohif="restore_label_idx" in request)
        finished = self._runner.run(asked, bounds)
        params = {
            "answer": "; ".join(result.answer for result in finished.results),
            "status": "complete" if all(result.status == "complete" for result in finished.results) else "incomplete",
            "engine": self.engine.name,
            "warnings": list(finished.notes),
            "runs": [
                _summary(number, target, result, finished.key)
                for number, (target, result) in enumerate(zip(asked.targets, finished.results, strict=True), start=1)
            ],
        }
        labels = {target.name: target.value for target in asked.targets}
        return Answer(finished.labels, finished.results[0].volume, labels, params)

    def asked(
        self,
        options: AgentOptions,
        image: ImageRef,
        image_id: str,
        user: str,
        budget_s: float | None = None,
        ohif: bool = False,
    ) -> Asked:
        """The run that the options ask for; `ohif` for the values that OHIF can show. Raises InputError."""
        targets = tuple(
            Target(
                RunRequest(prompt, options.plane, options.slices, options.max_turns, options.window, options.overlay),
                name,
                value,
            )
            for prompt, name, value in self._targets(options, ohif)
        )
        return Asked(image, image_id, targets, user, budget_s)

    def _targets(self, options: AgentOptions, ohif: bool) -> tuple[tuple[str, str, int], ...]:
        """Prompt, label name and voxel value of each target."""
        text = options.prompt
        if not text.strip() and options.label_prompt:
            names = {value: name for name, value in self.labels.items() if name != TARGET}
            unknown = [value for value in options.label_prompt if value not in names]
            if unknown:
                raise InputError(f"class {unknown[0]} is none of this model's structures", "label_prompt")
            return tuple((names[value].replace("_", " "), names[value], value) for value in options.label_prompt)
        if not text.strip() and options.label != TARGET:
            text = options.label.replace("_", " ").replace(";", " ")
        prompts = split_prompts(text)
        if ohif and len(prompts) > 1:
            return tuple(self._shown_in_ohif(prompt) for prompt in prompts)
        return tuple((prompt, prompt, index + 1) for index, prompt in enumerate(prompts))

    def _shown_in_ohif(self, prompt: str) -> tuple[str, str, int]:
        structure = anatomy().find(prompt)
        if structure is None or structure.name not in self.labels:
            raise InputError(f"OHIF can show {prompt!r} only when it is asked for alone", "prompt")
        return prompt, structure.name, self.labels[structure.name]


def _summary(number: int, target: Target, result: RunResult, key: str) -> dict[str, Any]:
    return {
        "id": key,
        "prompt": target.request.prompt,
        "value": target.value,
        "answer": result.answer,
        "status": result.status,
        "voxels": result.voxels,
        "volume_ml": round(result.volume_ml, 3),
        "seconds": round(result.seconds, 3),
        "plane": result.request.plane.value,
        "window": str(result.window),
        "trace": f"/ibis/runs/{key}/trace.html" + (f"?target={number}" if number > 1 else ""),
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
