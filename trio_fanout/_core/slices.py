"""Letting other tasks run: functions that never wait must not keep Trio's loop to themselves."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

import attrs
import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

SLICE = 0.008
"""Seconds of real time that the tasks of a run may take before Trio's other tasks have their turn.

It is longer than `sys.getswitchinterval()`, 5 ms. In each turn Trio polls for I/O, which lets go of the interpreter
for a moment. With slices of the same length that moment comes just before a waiting thread would ask for the
interpreter, the thread is too late each time, and waits for seconds. And it is short enough to notice a cancellation
within 10 ms.
"""

AT_ONCE = 250
"""How many tasks wait for the next slice awake: about as many as it has time for.

Thousands may wait. If all of them woke for each slice, most would find it over again: the cost would grow with their
square.
"""


@attrs.define(eq=False)
class Slice:
    """The slice of time that the tasks of a run share."""

    end: float = 0.0  # by `perf_counter`; 0 before the first slice, and where a cancellation is to be looked for
    _awake: int = 0  # tasks that wait for the next slice, and are awake
    _asleep: trio.lowlevel.ParkingLot | None = None  # the others; made when there are any, as most runs have none

    def begin(self) -> None:
        """Begin a new slice: other tasks have just had their turn."""
        self.end = perf_counter() + SLICE

    def end_now(self) -> None:
        """End the slice, so that each task looks for a cancellation before it goes on."""
        self.end = 0.0

    @trio.lowlevel.enable_ki_protection
    async def next(self, checkpoint: Callable[[], Awaitable[None]] | None = None) -> None:
        """Let other tasks run, and begin the next slice. By default a cancellation is raised here.

        Where no slice has begun, other tasks have just had their turn: by default, only a cancellation is looked for.
        Where many tasks wait, the slice may be over again when this returns.
        """
        if checkpoint is None and self._awake >= AT_ONCE:
            if self._asleep is None:
                self._asleep = trio.lowlevel.ParkingLot()
            await self._asleep.park()
            if perf_counter() < self.end:
                self._asleep.unpark()  # if not, the caller comes back here, and wakes another from there
            return
        end = self.end
        if checkpoint is None:
            checkpoint = trio.lowlevel.checkpoint if end else trio.lowlevel.checkpoint_if_cancelled
        self._awake += 1
        try:
            await checkpoint()
        finally:
            self._awake -= 1
            if self._asleep:
                self._asleep.unpark()
        # All workers that wait here come back in one batch. Only the first begins a new slice; otherwise forty workers
        # would take forty slices before another task runs.
        if self.end == end:
            self.begin()
