"""Progress bars of the commands."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_RECENT = 50


@contextmanager
def counting_bar(
    name: str, total: int, *, console: Console | None = None, transient: bool = False
) -> Iterator[Callable[[int], None]]:
    """A bar that counts; what it yields moves it on.

    Args:
        name: What is counted.
        total: Of it.
        console: Where to draw it.
        transient: Take it away in the end.
    """
    with _progress(console, transient) as progress:
        task = progress.add_task(name, total=total)
        yield lambda count: progress.advance(task, count)


@contextmanager
def counting_bars(console: Console | None = None) -> Iterator[Callable[[str, int], None]]:
    """A bar for everything that is counted, made when it is first; what it yields takes a name and a total.

    Args:
        console: Where to draw them.
    """
    with _progress(console) as progress:
        tasks: dict[str, TaskID] = {}

        def count(name: str, total: int) -> None:
            if name not in tasks:
                tasks[name] = progress.add_task(name, total=total)
            progress.advance(tasks[name])

        yield count


@contextmanager
def training_bar(total: int) -> Iterator[Callable[[Any], None]]:
    """A bar with the mean loss of the last steps; what it yields takes the trainer, before and after each step.

    Args:
        total: Training steps.
    """
    with _progress() as progress:
        task = progress.add_task("training", total=total)

        def on_step(trainer: Any) -> None:
            recent = trainer.losses[-_RECENT:]
            name = f"loss {sum(recent) / len(recent):.4f}" if recent else "training"
            progress.update(task, completed=trainer.step, description=name)

        yield on_step


def _progress(console: Console | None = None, transient: bool = False) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    timing = (TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, *timing, console=console, transient=transient)
