"""The strategies behind "Next Sample": which image an annotator should label next.

Shared between request threads; what they share is in `Leases` and `Gain`, which have locks of their own. They may wait for the
datastore and for the store of trajectories.
"""

import random
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy

from lib.activelearning.leases import Lease, Leases
from lib.trajectories.gain import Candidate, Gain, GainConfig, gain_config
from lib.trajectories.store import TrajectoryStore

_MINUTE_S = 60


def strategies(store: TrajectoryStore | None, config: GainConfig | None = None) -> dict[str, Strategy]:
    """The strategies by name. `random`, which OHIF's "Next Sample" asks for, is `ibis_gain` where there is a store."""
    config = config or gain_config()
    leases = Leases(config.lease_minutes * _MINUTE_S, config.skip_minutes * _MINUTE_S)
    gain = None if store is None else Gain(store, config)
    uniform = UniformStrategy(leases, gain)
    plain: dict[str, Strategy] = {"random": uniform, "random_uniform": uniform, "first": FirstStrategy(leases, gain)}
    if gain is None:
        return plain
    best = GainStrategy(leases, gain)
    return {"ibis_gain": best, **plain, "random": best}


class IBISStrategy(Strategy):
    """Gives out unlabelled images, to one annotator at a time; labelled ones only when all are."""

    description: str

    def __init__(self, leases: Leases, gain: Gain | None):
        super().__init__(self.description)
        self._leases = leases
        self._gain = gain

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """The next image of the annotator `client_id`: its `id`, whether it has a label already, and why this one; None when
        there is no image."""
        images = sorted(set(datastore.list_images()))
        keys = {} if self._gain is None else {image: self._gain.key(image) for image in images}
        unlabelled = set(datastore.get_unlabeled_images(request.get("label_tag"), request.get("labels")))
        if self._gain is not None:  # labels arrive through the run's route and from the PACS too
            arrived = self._gain.labels()
            unlabelled = {image for image in unlabelled & set(images) if keys[image] not in arrived}
            self._note_runs(self._gain, {key: image for image, key in keys.items()})
        done = self._leases.held() | (set(images) - unlabelled)
        choice = [image for image in images if image in unlabelled] or images
        ordered = self.order(choice, keys, [keys[image] for image in done if image in keys])
        chosen = self._leases.take(ordered, str(request.get("client_id") or ""))
        return None if chosen is None else {"id": chosen, "labelled": chosen not in unlabelled, **ordered[chosen]}

    @abstractmethod
    def order(self, images: Sequence[str], keys: Mapping[str, str], done: Collection[str]) -> dict[str, dict[str, Any]]:
        """The images, the one to be labelled next first, each with what to tell about the choice. `keys` are the images' hashes
        in the store, `done` the hashes of those that are labelled or worked on."""

    def _note_runs(self, gain: Gain, names: Mapping[str, str]) -> None:
        """Whoever runs the agent on an image works on it, however they came to it."""
        since = datetime.fromtimestamp(self._leases.now() - self._leases.lease_s, UTC).isoformat(timespec="milliseconds")
        for key, user, created in gain.busy(since):
            if key in names:
                self._leases.note(names[key], Lease(user, datetime.fromisoformat(created).timestamp()))


class FirstStrategy(IBISStrategy):
    """In the order of the names."""

    description = "The first unlabelled image, in the order of the names"

    def order(self, images: Sequence[str], keys: Mapping[str, str], done: Collection[str]) -> dict[str, dict[str, Any]]:
        return {image: {} for image in images}


class UniformStrategy(IBISStrategy):
    """Every image is as likely as the next: what an unbiased estimate of the agent's quality needs."""

    description = "An unlabelled image by chance"

    def order(self, images: Sequence[str], keys: Mapping[str, str], done: Collection[str]) -> dict[str, dict[str, Any]]:
        return {image: {} for image in random.sample(images, len(images))}


class GainStrategy(IBISStrategy):
    """By expected gain (`lib.trajectories.gain`)."""

    description = "The unlabelled image from which the agent would learn most, as its recorded runs tell"

    def __init__(self, leases: Leases, gain: Gain):
        super().__init__(leases, gain)
        self._ranking = gain

    def order(self, images: Sequence[str], keys: Mapping[str, str], done: Collection[str]) -> dict[str, dict[str, Any]]:
        names = {keys[image]: image for image in images}
        return {names[one.image]: _told(one) for one in self._ranking.rank(names, done)}

    def warm(self, datastore: Datastore) -> None:
        """Rank once, so that the first annotator does not wait for what has to be read."""
        keys = [self._ranking.key(image) for image in datastore.list_images()]
        self._ranking.rank(keys, [])


def _told(candidate: Candidate) -> dict[str, Any]:
    """Why, for the client: the gain, and each kind of evidence from 0 to 1."""
    evidence = None if candidate.evidence is None else asdict(candidate.evidence)
    told = None if evidence is None else {name: round(value, 4) for name, value in evidence.items()}
    return {"weight": round(candidate.gain, 4), "evidence": told}
