"""Letting other tasks run: functions that never wait must not keep Trio's loop to themselves.

All runs of one Trio run share one `Slice`. If each had its own, forty runs side by side would hold up all other tasks
for forty slices in each turn of Trio's loop.
"""

from __future__ import annotations

import math
from collections import OrderedDict
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
    _line: OrderedDict[object, int]  # the runs whose turn it is next, and how many workers of each wait awake
    _awake: int  # how many that is together
    _asleep: trio.lowlevel.ParkingLot  # the other workers that wait

    def __init__(self, clock: trio.abc.Clock) -> None:
        self.now = perf_counter if isinstance(clock, _TRIOS_CLOCK) else VirtualTime(clock)
        self.end = self.now() + SLICE
        self._line = OrderedDict()  # ordered by class, as the first entry of a plain dict is behind holes
        self._awake = 0
        self._asleep = trio.lowlevel.ParkingLot()

    def over(self) -> bool:
        """Whether it is time to let other tasks run."""
        return self.now() >= self.end

    def end_now(self) -> None:
        """End the slice, so that each task looks for a cancellation before it goes on."""
        self.end = -math.inf

    async def next(self, run: object) -> None:
        """Let other tasks run until this worker of `run` may go on, in a slice that has begun or in one that it begins.

        Only a worker of the first run in the line begins a slice, and its run then goes to the end. So there is one
        slice in each turn of Trio's loop, and all runs have their turn, however many workers each has. If whoever comes
        first began the slice, the same few would do so for ever, and use it up before the others have looked: Trio
        resumes tasks in the order in which they were scheduled, or in the opposite one.

        The reader of a stream stands in the line like a run of its own.
        """
        line = self._line
        # A run with nobody awake does not stand behind all workers of another one.
        if self._awake >= AT_ONCE and (run in line or len(line) >= AT_ONCE):
            await self._asleep.park()
            if not self.over():
                self._asleep.unpark()
                return
        line[run] = line.get(run, 0) + 1
        self._awake += 1
        try:
            while True:
                end = self.end
                await trio.lowlevel.checkpoint()
                if not self.over():
                    return
                if self.end == end and next(iter(line)) is run:
                    self._begin()
                    line.move_to_end(run)
                    return
        finally:
            line[run] -= 1
            if not line[run]:
                del line[run]
            self._awake -= 1
            self._asleep.unpark()  # each that was awake wakes another, as does one that was woken, above

    async def pause(self) -> None:
        """Let other tasks run once, and go on: for what must not be cancelled here, and so not wait for its turn."""
        end = self.end
        await trio.lowlevel.cancel_shielded_checkpoint()
        if self.end == end and not self._line:
            self._begin()

    def _begin(self) -> None:
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
