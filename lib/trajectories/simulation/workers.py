"""Several processes that work on the jobs of a simulation, on one store.

Each process has a session of its own and nothing is shared but the store and an event that says "stop": an interrupt reaches
this process alone, the others finish the step that they are at, record what had ended, and go.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing.synchronize import Event
from pathlib import Path

from lib.agent.limits import Limits
from lib.engines.build import EngineOptions, build_engine_for
from lib.errors import EngineError, InputError
from lib.policies.openai import OpenAIConfig, OpenAIPolicy
from lib.policies.simulated import SimulatedPolicy
from lib.policies.teacher import Teacher
from lib.trajectories.simulation.correction import useful
from lib.trajectories.simulation.session import Lessons, Played, Session
from lib.trajectories.simulation.targets import Job
from lib.trajectories.store import TrajectoryStore

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_TAUGHT_TOGETHER = 16
"""Episodes whose steps a teacher is asked about at once."""


@dataclass(frozen=True)
class Setting:
    """What a process needs to begin; can be sent to one."""

    lessons: Lessons
    engine: EngineOptions
    store: Path
    url: str = ""
    teacher: OpenAIConfig | None = None

    def session(self, limits: Limits) -> Session:
        """Raises InputError when the engine, the teacher or the store cannot start."""
        engine = build_engine_for(SimulatedPolicy({}, useful), self.engine)
        teacher = None
        if self.teacher is not None:
            engine = replace(engine, batch=max(engine.batch, _TAUGHT_TOGETHER))
            client = OpenAIPolicy(self.teacher)
            client.check_ready()
            teacher = Teacher(client)
        return Session(TrajectoryStore(self.store, self.url), engine, self.lessons, limits, teacher)


def simulate(jobs: Iterable[Job], setting: Setting, workers: int, done: Callable[[Played], None]) -> None:
    """Work on all jobs in `workers` processes; `done` hears of each job as it ends. Call it in the main thread.

    On an interrupt the jobs under way are cut short, `done` hears of them too, and KeyboardInterrupt goes on. Raises
    InputError when a process cannot start its session, EngineError when one dies.
    """
    for name in _THREADS:
        os.environ.setdefault(name, "1")
    context = multiprocessing.get_context("spawn")
    cancelled = context.Event()
    with ProcessPoolExecutor(workers, context, _begin, (setting, cancelled)) as pool:
        interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)  # processes that begin inherit this
        futures = [pool.submit(_work, job) for job in jobs]
        signal.signal(signal.SIGINT, interrupt)
        told: set[Future[Played]] = set()
        try:
            for future in as_completed(futures):
                done(future.result())
                told.add(future)
        except BrokenProcessPool as error:
            raise EngineError("a process of the simulation died: see what it wrote, or lower --workers") from error
        except BaseException:
            cancelled.set()
            pool.shutdown(wait=True, cancel_futures=True)
            for future in futures:
                if future not in told and not future.cancelled() and future.exception() is None:
                    done(future.result())
            raise


_session: Session | InputError | None = None
"""Of this process."""


def _begin(setting: Setting, cancelled: Event) -> None:
    """Open this process's session. An error is kept for the first job: one raised here would only break the pool."""
    global _session
    limits = Limits()
    threading.Thread(target=_pass_on, args=(cancelled, limits), daemon=True).start()
    try:
        _session = setting.session(limits)
    except InputError as error:
        _session = error


def _pass_on(cancelled: Event, limits: Limits) -> None:
    cancelled.wait()
    limits.cancelled.set()


def _work(job: Job) -> Played:
    if isinstance(_session, InputError):
        raise _session
    assert _session is not None
    return _session.work(job)
