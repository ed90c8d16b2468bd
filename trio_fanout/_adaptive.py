"""The tokens of a cap that adapts to a server: a limiter behind a gate, and one line of calls for both.

A call keeps its place in the line until it has a token and the gate is open. The *first* waits for the gate and then,
in the limiter's own line, for a token: so a gate that moves wakes one call, however many wait, and the cap takes its
turn among all who use the limiter. The others are parked. A token that is put back is given to the first of them in the
same turn of Trio's loop, on its behalf.

A call that was given a token is *served*, and leaves the line. It has yet to run. If the gate is closed before it does,
its token is put back, and it returns to the front of the line, where it stood. Hence, at all times:

* if a call is served, the gate is open;
* if a call is served, none is in the limiter's own line, other than of somebody else;
* if there is a line and no call is served, the first is awake, at the gate, or in the limiter's own line.
"""

from __future__ import annotations

import functools
import math
import sys
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, Literal, TypeAlias
from weakref import WeakKeyDictionary, proxy

import trio

from ._arguments import close_if_coroutine, describe
from ._overload import Block, Size
from ._protection import protected
from ._states import PerRun
from ._tokens import borrow, is_borrower

if TYPE_CHECKING:
    from trio.lowlevel import Abort, Task


_Place: TypeAlias = Literal[
    "awake",  # it is going to look what it can do
    "parked",  # behind the first
    "at gate",  # parked too, until the gate opens
    "at limiter",  # in the limiter's own line, or has just got a token there
]
"""Where a call in the line is."""


# Protected, or Ctrl-C could come between a token and the `try` that puts it back, or between two steps of one change.
@protected()
class Adaptive:
    """The tokens of one limiter, in one Trio run."""

    def __init__(self, limiter: trio.CapacityLimiter, size: Size) -> None:
        self._limiter = limiter
        self._size = size
        self._block = Block()
        self._gate = -math.inf  # the time that the server has named
        # Ordered by class, as the first entry of a plain dict is behind the holes of all that were deleted before it.
        self._line: OrderedDict[Task, _Place] = OrderedDict()
        self._served: dict[Task, None] = {}

    def holds(self, task: Task, /) -> bool:
        return is_borrower(self._limiter, task)

    def expires(self) -> float:
        """The time at which the gate opens."""
        return max(self._gate, self._block.next)

    def _is_open(self) -> bool:
        return trio.current_time() >= self.expires()

    async def acquire(self, task: Task, weight: float) -> int:
        await trio.lowlevel.checkpoint_if_cancelled()  # lets no other task in
        self._line[task] = "awake"
        try:
            while task not in self._served:
                await self._wait(task)
        except BaseException:
            # A call that was cancelled while it waited may have been served between then and now.
            if self._line.pop(task, None) is None:
                del self._served[task]
                self._limiter.release_on_behalf_of(task)
            self._hand_out()
            raise
        del self._served[task]
        if self._block:
            self._follow()
            self._block.postpone(trio.current_time())
            self._take_back()
        self._hand_out()
        return self._size.epoch

    async def _wait(self, task: Task) -> None:
        """Wait for what comes next for a call in the line."""
        if self._first() is not task:
            await self._park(task, "parked")
        elif not self._is_open():
            with trio.move_on_at(self.expires()):
                await self._park(task, "at gate")
        elif self._limiter.available_tokens > 0:
            self._hand_out()
            await trio.lowlevel.cancel_shielded_checkpoint()
        elif self._served:
            await self._park(task, "parked")
        else:
            self._size.waited = True
            await self._stand_in_line_of_limiter(task)

    async def _park(self, task: Task, place: _Place) -> None:
        def abort(_: object) -> Abort:
            self._line[task] = "awake"
            return trio.lowlevel.Abort.SUCCEEDED

        self._line[task] = place
        await trio.lowlevel.wait_task_rescheduled(abort)

    async def _stand_in_line_of_limiter(self, task: Task) -> None:
        self._line[task] = "at limiter"
        await self._limiter.acquire()
        # Since the limiter gave it the token, it may have been served with it, and that may have been taken back.
        if task in self._line:
            self._line[task] = "awake"
            if self.holds(task):
                if self._is_open():
                    self._serve(task)
                else:
                    self._limiter.release_on_behalf_of(task)

    def _first(self) -> Task:
        return next(iter(self._line))

    def _hand_out(self) -> None:
        """Serve the line, as far as tokens go. If none is served, have the first look at the gate and the limiter."""
        while self._line and self._limiter.available_tokens > 0 and self._is_open():
            self._serve(self._first())
        if self._line and not self._served and self._line[self._first()] == "parked":
            self._wake(self._first())

    def _serve(self, task: Task) -> None:
        borrow(self._limiter, task)  # unless it has just got one in the limiter's own line
        self._wake(task)
        del self._line[task]
        self._served[task] = None

    def _wake(self, task: Task) -> None:
        if self._line[task] in {"parked", "at gate"}:
            self._line[task] = "awake"
            trio.lowlevel.reschedule(task)

    def _take_back(self) -> None:
        """If the gate has been closed, return those that are served to the front of the line."""
        if self._is_open():
            return
        for task in reversed(self._served):
            self._limiter.release_on_behalf_of(task)
            self._line[task] = "awake"
            self._line.move_to_end(task, last=False)
        self._served.clear()

    def release(self, task: Task) -> None:
        self._limiter.release_on_behalf_of(task)
        if self._block:
            self._follow()
        self._hand_out()

    def succeeded(self, epoch: int) -> None:
        self._follow()
        if self._block.succeeded(epoch):
            self._size.block_ended()
            self._look_again()
        if self._size.succeeded(epoch):
            self._resize()

    def failed(self, epoch: int, overloaded: object) -> None:
        pause = _pause_of(overloaded)
        if pause is None:
            return
        now = trio.current_time()
        self._follow()
        self._hand_out()  # tokens that the user has just added: for the cut, they are in use
        if epoch == self._size.epoch:
            self._block.cut(now, epoch + 1)
            self._size.cut(self._limiter.borrowed_tokens, to_one=bool(self._block))
            self._resize()
        self._gate = max(self._gate, now + pause)
        self._take_back()

    def _follow(self) -> None:
        """Take over what the user has assigned to `total_tokens`."""
        if self._limiter.total_tokens != self._size.now:
            self._size.assign(self._limiter.total_tokens)
            self._resize()
            self._block.end()
            self._look_again()

    def _look_again(self) -> None:
        """Have the first leave the gate, as it may open earlier than it was to."""
        if self._line:
            self._wake(self._first())

    def _resize(self) -> None:
        """Let the limiter have the size, and note whether a call still waits for a token after the change."""
        self._limiter.total_tokens = self._size.now
        if self._line:
            first = self._first()
            self._size.waited = self._line[first] == "at limiter" and not self.holds(first)


def _pause_of(overloaded: object) -> float | None:
    """The seconds for which to leave a server alone, or None if it is not overloaded."""
    if overloaded is None or overloaded is False:
        return None
    if isinstance(overloaded, (int, float)):
        # True is not a number of seconds, and NaN fails the comparison.
        return min(overloaded, sys.float_info.max) if overloaded is not True and overloaded > 0 else 0.0
    close_if_coroutine(overloaded)
    msg = f"overloaded must return a bool, a number of seconds or None, got {describe(overloaded)} from it"
    raise TypeError(msg)


# Kept as long as the limiter, and hence without a reference to it.
_adaptive: Final[WeakKeyDictionary[trio.CapacityLimiter, PerRun[Adaptive]]] = WeakKeyDictionary()


def adaptive_on(limiter: trio.CapacityLimiter) -> Adaptive:
    """What all adaptive caps on one limiter share: its size in all runs, and its line, gate and block in one."""
    in_run = _adaptive.get(limiter)
    if in_run is None:
        size = Size(limiter.total_tokens)
        limiter.total_tokens = size.now
        in_run = _adaptive[limiter] = PerRun(functools.partial(Adaptive, proxy(limiter), size))
    return in_run.get()
