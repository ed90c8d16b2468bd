"""What an item leaves open in its task: cancel scopes and nurseries.

Trio shows the scopes that are open in a task only by a private attribute, and here is the one place that reads it,
apart from one line of the loop. Should it go, what items leave open is not noticed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from .._protection import protected

if TYPE_CHECKING:
    from trio.lowlevel import Task

_SHOWN = hasattr(trio.lowlevel.Task, "_cancel_status")


class _Unknown:
    """Stands for a task and for its status where Trio shows neither."""

    _cancel_status: Any = None
    effectively_cancelled = False


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
        return self.status is not None and self.status.effectively_cancelled


@protected()
class _TaskEnds(trio.abc.Instrument):
    """Notices when the tasks of some nurseries have ended."""

    def __init__(self, nurseries: list[trio.Nursery]) -> None:
        self._nurseries = nurseries
        self.all_ended = trio.Event()

    def task_exited(self, task: Task) -> None:
        """Called by Trio for each task that has ended."""
        if not any(nursery.child_tasks for nursery in self._nurseries):
            self.all_ended.set()


@protected()
class Abandoned:
    """The nurseries that items have left open.

    Nobody can close them from outside. Their tasks are cancelled, and may take their time.
    """

    def __init__(self) -> None:
        self._nurseries: list[trio.Nursery] = []

    def add(self, task: Task) -> bool:
        """Add the nurseries that are open in `task`, which is about to end. Returns whether there are any."""
        left_open = task.child_nurseries
        for nursery in left_open:
            nursery.cancel_scope.cancel("its block was left without closing it")
        self._nurseries += left_open
        return bool(left_open)

    async def wait(self) -> None:
        """Wait until all their tasks have ended."""
        if not any(nursery.child_tasks for nursery in self._nurseries):
            return
        # When the last task of such a nursery ends, Trio wakes nobody: hence an instrument. Not a loop that sleeps or
        # checks again and again, as the first needs a clock that goes on, and the second stops a clock that jumps.
        ends = _TaskEnds(self._nurseries)
        trio.lowlevel.add_instrument(ends)
        try:
            with trio.CancelScope(shield=True):  # they are cancelled: as in any nursery, they are waited for
                await ends.all_ended.wait()
        finally:
            trio.lowlevel.remove_instrument(ends)
