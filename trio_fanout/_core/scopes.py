"""What an item leaves open in its task: cancel scopes and nurseries.

Trio shows the scopes that are open in a task only by a private attribute, and here is the one place that reads it,
apart from one line of the loop. Should it go, what items leave open is not noticed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import trio

from .._protection import protected

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trio.lowlevel import Task

_SHOWN = hasattr(trio.lowlevel.Task, "_cancel_status")


class _Unknown:
    """Stands for a task and for its status where Trio shows neither."""

    _cancel_status: Any = None


class Scopes:
    """The cancel scopes that are open in a task.

    A nursery has one of its own. `task` and `status` are there for the loop, which compares them itself: the scopes
    have changed if ``task._cancel_status is not status``.
    """

    __slots__ = ("status", "task")

    def __init__(self, task: Task) -> None:
        self.task: Any = task if _SHOWN else _Unknown
        self.status: Any = self.task._cancel_status  # noqa: SLF001

    def changed(self) -> bool:
        """Whether a scope was opened or closed since."""
        return self.task._cancel_status is not self.status  # noqa: SLF001

    def cancelled(self) -> bool:
        """Whether the task is cancelled from around the scopes that were open then."""
        if self.status is None:
            return trio.current_effective_deadline() == -math.inf
        cancelled: bool = self.status.effectively_cancelled
        return cancelled


@protected()
class _TaskEnds(trio.abc.Instrument):
    """Notices when all tasks of some nurseries have ended."""

    def __init__(self, nurseries: Sequence[trio.Nursery]) -> None:
        self._nurseries = nurseries
        self.noticed = trio.Event()

    def task_exited(self, task: Task) -> None:
        """Called by Trio for each task that has ended."""
        if not any(nursery.child_tasks for nursery in self._nurseries):
            self.noticed.set()


@trio.lowlevel.enable_ki_protection
async def tasks_ended(nurseries: Sequence[trio.Nursery]) -> KeyboardInterrupt | None:
    """Wait until the tasks of nurseries have ended that nobody will close: they were left open, and are cancelled.

    Returns the Ctrl-C that came meanwhile, if any: as in Trio's own nursery, it does not end the wait.
    """
    interrupt = None
    if not any(nursery.child_tasks for nursery in nurseries):
        return None
    # When the last task of such a nursery ends, Trio wakes nobody: hence an instrument. Not a loop that sleeps or
    # checks again and again: the first needs a clock that goes on, and the second stops a clock that jumps.
    ends = _TaskEnds(nurseries)
    trio.lowlevel.add_instrument(ends)
    try:
        with trio.CancelScope(shield=True):
            while not ends.noticed.is_set():
                try:
                    await ends.noticed.wait()
                except KeyboardInterrupt as exc:
                    interrupt = exc
    finally:
        trio.lowlevel.remove_instrument(ends)
    return interrupt
