"""The tokens of a cap that does not adapt: who holds them, and who is next.

Tokens are handed over: the call that puts some back gives them to the first in the line. So no call that comes in
between can take them, nothing is woken in vain, and a token that is waited for is always in use.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import TYPE_CHECKING, Protocol

import trio

from ._protection import protected
from ._units import Total

if TYPE_CHECKING:
    from trio.lowlevel import Abort, Task


class Tokens(Protocol):
    """What a call needs to know of its cap."""

    def holds(self, task: Task, /) -> bool:
        """Whether `task` holds a token."""
        ...

    async def acquire(self, task: Task, weight: float) -> int:
        """Wait until the calling task has its tokens. Returns the epoch."""
        ...

    def succeeded(self, epoch: int) -> None:
        """A call of that epoch, which still holds its tokens, has returned."""
        ...

    def failed(self, epoch: int, overloaded: object) -> None:
        """Such a call has raised an exception, of which the user's function gave this answer."""
        ...

    def release(self, task: Task) -> None:
        """Put back the tokens of `task`."""
        ...

    def expires(self) -> float:
        """The time from which it is no different from a new one, if no call uses it."""
        ...


class _Fixed:
    """What is the same for all that learn nothing from a call."""

    def succeeded(self, epoch: int) -> None: ...

    def failed(self, epoch: int, overloaded: object) -> None: ...

    def expires(self) -> float:
        return -math.inf


# Protected, here and below, or Ctrl-C could come between a token and the `try` that puts it back, or before that.
@protected()
class Count(_Fixed):
    """A number of tokens, of which each call takes its weight.

    A call heavier than all of them runs alone: it takes more than there are, so nothing fits beside it, not even a call
    of weight 0. A call that waits for a token costs half of what `trio.CapacityLimiter` costs.
    """

    def __init__(self, tokens: float) -> None:
        self._tokens = tokens
        self._taken = Total()
        self._holders: dict[Task, float] = {}  # and how many each has taken
        self._line: OrderedDict[Task, float] = OrderedDict()  # ordered by class: see `Adaptive`
        self.holds = self._holders.__contains__

    async def acquire(self, task: Task, weight: float) -> int:
        if self._line or not self._fits(weight):

            def abort(_: object) -> Abort:
                del self._line[task]
                return trio.lowlevel.Abort.SUCCEEDED

            self._line[task] = weight
            try:
                await trio.lowlevel.wait_task_rescheduled(abort)  # `_hand_out` has made it a holder
            except BaseException:
                # A light call behind a heavy one may fit now. Not in `abort`: what cancels this one may be about to
                # cancel those behind it, which would start all the same.
                self._hand_out()
                raise
        else:
            await trio.lowlevel.checkpoint_if_cancelled()  # lets no other task in
            self._take(task, weight)
            await trio.lowlevel.cancel_shielded_checkpoint()
        return 0

    def _fits(self, weight: float) -> bool:
        return not self._holders or self._taken.plus(weight) <= self._tokens

    def _take(self, task: Task, weight: float) -> None:
        self._taken.add(weight)
        self._holders[task] = weight

    def _hand_out(self) -> None:
        while self._line:
            task, weight = next(iter(self._line.items()))
            if not self._fits(weight):
                return
            del self._line[task]
            self._take(task, weight)
            trio.lowlevel.reschedule(task)

    def release(self, task: Task) -> None:
        self._taken.subtract(self._holders.pop(task))
        self._hand_out()


@protected()
class Borrowed(_Fixed):
    """The tokens of a limiter of the caller's."""

    def __init__(self, limiter: trio.CapacityLimiter) -> None:
        self._limiter = limiter

    def holds(self, task: Task, /) -> bool:
        return is_borrower(self._limiter, task)

    async def acquire(self, task: Task, weight: float) -> int:
        await self._limiter.acquire()
        return 0

    def release(self, task: Task) -> None:
        self._limiter.release_on_behalf_of(task)


@trio.lowlevel.enable_ki_protection
def is_borrower(limiter: trio.CapacityLimiter, task: Task) -> bool:
    """Whether `task` holds a token of `limiter`.

    In constant time, where `limiter.statistics()` copies all borrowers. A token that is taken and put back without a
    checkpoint in between is missed by no other task: if there are tokens left, none waits.
    """
    try:
        borrowed = borrow(limiter, task)
    except trio.WouldBlock:
        return False
    if borrowed:
        limiter.release_on_behalf_of(task)
    return not borrowed


@trio.lowlevel.enable_ki_protection
def borrow(limiter: trio.CapacityLimiter, task: Task) -> bool:
    """Borrow a token on behalf of `task`. Returns whether it had none before."""
    try:
        limiter.acquire_on_behalf_of_nowait(task)
    except RuntimeError:
        return False
    return True
