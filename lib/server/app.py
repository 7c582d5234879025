"""The MONAI Label app: registers the infer tasks, and opens the door when the server starts."""

import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.batch_infer import BatchInferTask
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from lib.activelearning.strategies import strategies
from lib.engines.build import OPTIONS, EngineOptions, build_engine
from lib.engines.hotswap import WEIGHTS
from lib.errors import InputError
from lib.imaging.cache import ImageRef, VolumeCache
from lib.imaging.masks import write_mask
from lib.infers.agent import AgentInfer
from lib.infers.clicks import ClickInfer
from lib.infers.task import ANYONE, image_of
from lib.scoring.quality import METHOD, QualityScoring
from lib.server.door import Door
from lib.server.errors import HANDLERS
from lib.server.finallabels import FinalLabels
from lib.server.imageroutes import image_routes
from lib.server.images import located
from lib.server.jobroutes import job_routes, run_routes
from lib.server.jobs.clicks import ClickDesk
from lib.server.jobs.queue import JobQueue
from lib.server.jobs.refusal import Refusal, answer_refusal
from lib.server.jobs.runs import Runs
from lib.server.jobs.takeover import Takeover
from lib.server.labelroutes import label_routes
from lib.server.labels import Arrived, LabelDesk
from lib.server.ohifroutes import ohif_routes
from lib.server.pacs.build import WithoutQuery, build_store
from lib.server.pacs.datastore import PacsDatastore
from lib.server.pacs.poller import Poller
from lib.server.pacs.proxy import proxy_routes
from lib.server.pacs.routes import answer_pacs, pacs_routes
from lib.server.pacs.segs import SegFound
from lib.server.pacs.settings import pacs_settings
from lib.server.pacs.web import PacsError
from lib.server.pageroutes import page_routes
from lib.server.routes import engine_routes, infer_routes
from lib.server.runstore import RUNS, RunStore
from lib.server.store import PRIVATE, StudiesDatastore
from lib.server.takeroutes import takeover_routes
from lib.server.taskroutes import task_routes
from lib.server.uploads import upload_routes
from lib.trajectories.recorder import Recording
from lib.trajectories.rewards.recipes import recipe_named
from lib.trajectories.store import TrajectoryStore

logger = logging.getLogger(__name__)

NAME = "IBIS Label"


class IBISApp(MONAILabelApp):
    """Segments by language: `ibis_agent` for text, `ibis_click_2d` and `ibis_click_3d` for the annotator's points.

    `conf` (`--conf KEY VALUE`): `engine` (a name of configs/engines.yaml, or a YAML file) and the other fields of
    `lib.engines.build.EngineOptions`, such as `mllm_path`; `workers` (inferences at a time, by default as many as the engine is
    made for; one more is kept for clicks), `runs_per_user` (that may wait or run at a time, default 20), `weights` (folder
    whose models and adapters may be exchanged for the engine's), `cache_mb` (volumes kept in memory, default 512), `auth`
    ("token", or "none" to let anyone who reaches the port in), `origins` (comma-separated URLs of other sites whose pages may
    use this server, such as an OHIF of your own), `hosts` (comma-separated names under which a reverse proxy on this machine
    passes requests on), `pacs` and `modalities` (see `lib.server.pacs.settings`), `trajectories` (where runs are recorded: a
    folder, a database URL such as postgresql://USER@HOST/NAME, or "none"; by default beside the studies), `identifiers` ("keep"
    to store the names of images beside their hashes), `rewards` (a recipe of configs/rewards.yaml that final labels are graded
    by).
    """

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str]):
        conf = dict(conf or {})
        self._open_to_all = _open_to_all(conf)
        self._origins = [origin.strip() for origin in conf.get("origins", "").split(",") if origin.strip()]
        self._hosts = frozenset(host.strip().lower() for host in conf.get("hosts", "").split(",") if host.strip())
        self._pacs = pacs_settings(conf)
        self._volumes = VolumeCache(_number(conf, "cache_mb", 512) * 1024**2)
        self._engine = build_engine(EngineOptions(**{option: conf[option] for option in OPTIONS if option in conf}))
        self._weights = Path(conf["weights"]) if conf.get("weights") else WEIGHTS
        self._queue = JobQueue(_number(conf, "workers", self._engine.runs), _number(conf, "runs_per_user", 20))
        self._trajectories = _trajectories(conf, _private(studies) / "trajectories")
        self._recording = None if self._trajectories is None else Recording(self._trajectories)
        self._runs = Runs(RunStore(_private(studies) / RUNS), self._queue, self._engine, self._volumes, self._recording)
        self._labels: LabelDesk | None = None
        if self._recording is not None:
            recipe = recipe_named(conf.get("rewards", ""))
            grading = _private(studies) / "grading"
            self._labels = LabelDesk(grading, self._recording, self._engine, self._volumes, recipe, self._located)
            self._finals = FinalLabels(self.datastore, self._labels)
        self._takeover = Takeover(self._runs, self._queue, self._engine, self._volumes)
        super().__init__(
            app_dir, studies, conf, name=NAME, version="1.0.0", description="An agent that segments by language, click by click"
        )

    def init_datastore(self) -> Datastore:
        if self.studies.startswith(("http://", "https://")):
            if settings.MONAI_LABEL_DATASTORE.lower() in ("xnat", "dsa"):
                return super().init_datastore()
            return build_store(self.studies, self._pacs, _private(self.studies), self._volumes)
        return StudiesDatastore(
            self.studies,
            extensions=settings.MONAI_LABEL_DATASTORE_FILE_EXT,
            auto_reload=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
            read_only=settings.MONAI_LABEL_DATASTORE_READ_ONLY,
            volumes=self._volumes,
        )

    def init_infers(self) -> dict[str, InferTask]:
        engine, volumes = self._engine, self._volumes
        structures = engine.policy.structures
        agent = AgentInfer(engine, volumes, self._runs, structures)
        clicks = ClickDesk(self._runs, self._takeover, engine, volumes)
        return {
            "ibis_agent": agent,
            "ibis_click_2d": ClickInfer(engine, volumes, structures, 2, agent, clicks),
            "ibis_click_3d": ClickInfer(engine, volumes, structures, 3, agent, clicks),
        }

    def init_strategies(self) -> dict[str, Strategy]:
        return strategies(self._trajectories)

    def init_scoring_methods(self) -> dict[str, ScoringMethod]:
        return {} if self._trajectories is None else {METHOD: QualityScoring(self._trajectories)}

    def async_scoring(self, method: str | None, params: dict[str, Any] | None = None) -> Any:
        """Quick and in this process; stock MONAI Label starts a second interpreter with the whole app."""
        if not self._server_mode:
            return super().async_scoring(method, params)
        for name in self._scoring_methods if method is None else (method,):
            request = {"method": name, **(params or {}).get(name, {})}
            threading.Thread(target=self.scoring, args=(request,), name="scoring", daemon=True).start()
        return {}

    def init_batch_infer(self) -> BatchInferTask:
        return _Batch()

    def on_init_complete(self) -> None:
        super().on_init_complete()
        server = sys.modules["monailabel.app"].app
        stopping = _stopping(self._end)
        agent = self._infers["ibis_agent"]
        assert isinstance(agent, AgentInfer)
        self._runs.recover()
        routes = [
            infer_routes(self, stopping),
            job_routes(self._queue),
            run_routes(self, agent, self._runs, self._volumes, stopping),
            takeover_routes(self._runs, self._takeover, self._volumes),
            engine_routes(self._engine, self._weights),
            task_routes(self),
            upload_routes(self),
            image_routes(self, self._volumes),
            page_routes(),
            ohif_routes(),
        ]
        store = self.datastore()
        if self._labels is not None and self._trajectories is not None:
            self._labels.start()
            ranking = self._strategies["ibis_gain"]
            threading.Thread(target=ranking.warm, args=(store,), name="ranking", daemon=True).start()
            routes.append(label_routes(self._runs, self._finals, self._labels, self._trajectories, self._volumes))
        if isinstance(store, PacsDatastore):
            poller = Poller(store, self._pacs.poll_s, self._found)
            routes += [pacs_routes(store, poller), proxy_routes(store.web, poller.wake)]
            store.start()
            poller.start()
        # The first route that matches answers, so ours stand in front of the stock ones.
        server.router.routes[0:0] = [route for router in routes for route in router.routes]
        server.exception_handlers.update({**HANDLERS, Refusal: answer_refusal, PacsError: answer_pacs})
        # Stock MONAI Label lets the pages of every site in.
        server.user_middleware[:] = [
            Middleware(Door, os.environ.get("IBIS_TOKEN", ""), self._open_to_all, self._hosts),
            Middleware(CORSMiddleware, allow_origins=self._origins, allow_methods=["*"], allow_headers=["*"]),
        ]
        server.middleware_stack = server.build_middleware_stack()
        server.title = NAME
        logging.getLogger("monailabel").setLevel(logging.WARNING)  # its INFO lines hold whole requests and file names
        logging.getLogger("uvicorn.access").addFilter(WithoutQuery())

    def on_save_label(self, image_id: str, label_id: str) -> None:
        """A client has stored a label: a final one is what recorded episodes are graded against."""
        if self._labels is not None:
            self._finals.saved(image_id)

    def _found(self, seg: SegFound) -> None:
        """Somebody has stored a segmentation in the PACS: it is a final label."""
        if self._labels is None:
            return
        volume = self._volumes.get(self._located(seg.image_id))
        with tempfile.TemporaryDirectory(prefix="ibis-seg-") as folder:
            path = Path(folder, "label.nrrd")
            write_mask(path, seg.label, volume)
            self._labels.arrived(Arrived(seg.image_id, seg.names, seg.annotator or ANYONE, "pacs"), path)

    def _located(self, image_id: str) -> ImageRef:
        """Where an image of the store is. Raises InputError."""
        try:
            return image_of(located(self, image_id, ""))
        except HTTPException as error:
            raise InputError(str(error.detail), "image") from error

    def _end(self) -> None:
        """Interrupt the work, and write what is to be written."""
        self._queue.close()
        if self._labels is not None:
            self._labels.close()
        if self._recording is not None:
            self._recording.close()


def _stopping(close: Callable[[], None]) -> threading.Event:
    """Set when the process is told to stop. What the queue works on is interrupted first; only then the server hears of it, as
    it ends the process as soon as its requests are answered. A second signal passes at once."""
    stopping = threading.Event()

    def note(before: Any) -> Callable[[int, Any], None]:
        def end(number: int) -> None:
            close()
            if callable(before):
                before(number, None)

        def handle(number: int, frame: Any) -> None:
            if stopping.is_set():
                if callable(before):
                    before(number, frame)
                return
            stopping.set()
            threading.Thread(target=end, args=(number,), name="stopping").start()

        return handle

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, note(signal.getsignal(number)))
    return stopping


class _Batch(BatchInferTask):
    """Stock batch inference divides the work among GPUs, and fails where there is none."""

    def __call__(self, request: dict[str, Any], datastore: Datastore, infer: Callable[..., Any]) -> Any:
        return super().__call__({"multi_gpu": False, **request}, datastore, infer)


def _private(studies: str) -> Path:
    """Where our own records of these studies live: beside local ones, in the user's cache for remote ones."""
    if studies.startswith(("http://", "https://")):
        return Path.home() / ".cache" / "ibis-label" / blake2b(studies.encode(), digest_size=8).hexdigest()
    return Path(studies) / PRIVATE


def _trajectories(conf: Mapping[str, str], folder: Path) -> TrajectoryStore | None:
    where = conf.get("trajectories", "")
    if where == "none":
        return None
    if conf.get("identifiers", "") not in ("", "keep"):
        raise InputError(f"--conf identifiers {conf['identifiers']!r} is not 'keep'", "identifiers")
    keep = conf.get("identifiers") == "keep"
    if "://" in where:
        return TrajectoryStore(folder, where, keep)
    return TrajectoryStore(Path(where) if where else folder, identifiers=keep)


def _number(conf: Mapping[str, str], key: str, default: int) -> int:
    text = conf.get(key, str(default))
    if not text.isdigit() or int(text) < 1:
        raise InputError(f"--conf {key} {text!r} is not a whole number of at least 1", key)
    return int(text)


def _open_to_all(conf: Mapping[str, str]) -> bool:
    if conf.get("auth", "token") not in ("token", "none"):
        raise InputError(f"--conf auth {conf['auth']!r} is neither 'token' nor 'none'", "auth")
    return conf.get("auth") == "none"
