"""What the commands share on the terminal."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from lib.agent.episode import Outcome
from lib.agent.loop import Observer

_terminal = Console()
console = _terminal if _terminal.is_terminal else Console(width=140)
"""Standard output: as wide as the terminal, or wide enough for every table where there is none."""


class RunProgress(Observer):
    """An observer that moves a progress bar as slices are settled."""

    def __init__(self, progress: Progress, label: str, total: int):
        self._progress = progress
        self._task = progress.add_task(label, total=total)

    def settled(self, outcome: Outcome) -> None:
        self._progress.advance(self._task)


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A progress bar on standard error; silent where that is not a terminal."""
    error_console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=error_console, transient=True, disable=not error_console.is_terminal) as progress:
        yield progress
