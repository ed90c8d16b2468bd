"""Letting other tasks run: functions that never wait must not keep Trio's loop to themselves.

All runs of one Trio run share one `Slice`. If each had its own, forty runs side by side would hold up all other tasks
for forty slices in each turn of Trio's loop.
"""

from __future__ import annotations

import math
from time import perf_counter
from typing import TYPE_CHECKING, Final

import attrs
import trio

from .._protection import protected

if TYPE_CHECKING:
    from collections.abc import Callable

SLICE: Final = 0.008
"""Seconds that the runs may take together before Trio's other tasks have their turn.

It is longer than `sys.getswitchinterval()`, 5 ms. In each turn Trio polls for I/O, which lets go of the interpreter
for a moment. With slices of the same length that moment comes just before a waiting thread would ask for the
interpreter. The thread is too late each time, and waits for seconds. And a slice is short enough to notice a
cancellation within 10 ms.

These are seconds of real time where Trio keeps its own clock. Under any other clock, such as a `MockClock`, they are
seconds of that clock, and each look at it counts as `LOOK`: there a program does the same thing every time, however
busy the machine is.
"""

AT_ONCE: Final = 250
"""How many tasks may wait awake for the next slice. The others park.

It is about as many as a slice has time for. Thousands may wait, and if all of them woke for each slice, most would find
it over again: the cost would grow with their square.
"""

LOOK: Final = SLICE / AT_ONCE
"""Seconds by which a look at a virtual clock moves the time on."""

# Trio has no public name for the class of its own clock. Without the private one, slices take real time on any clock.
_TRIOS_CLOCK: Final = getattr(trio._core._run, "SystemClock", trio.abc.Clock)  # noqa: SLF001


@protected()
class VirtualTime:
    """Seconds that pass on a clock other than Trio's own, and while it is looked at."""

    def __init__(self, clock: trio.abc.Clock) -> None:
        self._clock = clock
        self._last = clock.current_time()
        self._now = 0.0

    def __call__(self) -> float:
        """The time now. Each call moves it on."""
        last, self._last = self._last, self._clock.current_time()
        # No more than a slice at a time: next to a very large number, a look would be rounded away.
        self._now += min(self._last - last, SLICE) + LOOK
        return self._now


@protected()
@attrs.define(eq=False, init=False)
class Slice:
    """The slice of time that all runs share."""

    now: Callable[[], float]  # the time
    end: float  # when this slice is over, by `now`
    _awake: int  # tasks that wait for the next slice, and are awake
    _asleep: trio.lowlevel.ParkingLot  # the others

    def __init__(self, clock: trio.abc.Clock) -> None:
        self.now = perf_counter if isinstance(clock, _TRIOS_CLOCK) else VirtualTime(clock)
        self.end = self.now() + SLICE
        self._awake = 0
        self._asleep = trio.lowlevel.ParkingLot()

    def over(self) -> bool:
        """Whether it is time to let other tasks run."""
        return self.now() >= self.end

    def end_now(self) -> None:
        """End the slice, so that each task looks for a cancellation before it goes on."""
        self.end = -math.inf

    async def next(self, *, shielded: bool = False) -> None:
        """Let other tasks run, and begin the next slice. A cancellation is raised here, unless `shielded`.

        Where many tasks wait, the slice may be over again when this returns.
        """
        if self._awake >= AT_ONCE and not shielded:
            await self._asleep.park()
            if not self.over():
                self._asleep.unpark()
                return
        end = self.end
        self._awake += 1
        try:
            await (trio.lowlevel.cancel_shielded_checkpoint if shielded else trio.lowlevel.checkpoint)()
        finally:
            self._awake -= 1
            self._asleep.unpark()  # each that was awake wakes another, as does one that was woken, above
        # All tasks that wait here come back in one batch. Only the first begins a new slice: otherwise forty of them
        # would take forty slices before another task runs.
        if self.end == end:
            self.end = self.now() + SLICE


_slice: Final = trio.lowlevel.RunVar[Slice]("trio_fanout slice")


def current_slice() -> Slice:
    """The slice of the Trio run that this is called in."""
    try:
        return _slice.get()
    except LookupError:
        slice_ = Slice(trio.lowlevel.current_clock())
        _slice.set(slice_)
        return slice_
