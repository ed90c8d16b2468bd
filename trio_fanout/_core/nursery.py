"""A nursery that raises a single exception, never a group of its own.

Trio's nursery wraps what it raises in a group, because any number of tasks may fail at once. In a run, an item's
failure never leaves its worker: it is recorded. What does leave is rare and single: an exception of the block or of a
source, a `KeyboardInterrupt`, a cancellation. Those should look as if there were no nursery.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import trio

from .._protection import protected
from .exceptions import chain, first_leaf, is_cancelled, is_group, raise_unchanged, split_cancelled

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


FRAMES: Final = 50
"""How many frames must fit on the stack for what must not be left halfway: opening a nursery, and ending a run.

With less room, a `RecursionError` in between would leave the nursery open, or tasks asleep forever.
"""

CALL_FRAMES: Final = 20
"""The same for a call of an adapter, from its arrival to its place in a line and its tokens, and back."""


def reserve(frames: int = FRAMES) -> None:
    """Raise `RecursionError` unless there is room for that many frames."""
    if frames:
        reserve(frames - 1)


@protected()
class SingleExceptionNursery:
    """A nursery whose `close` returns the one exception to raise for everything that its block and its tasks raised.

    Only cancellations go through Trio's nursery. Everything else is kept here: Trio would wrap it, split groups, and
    ask for its `repr`, which may raise.

    Of several exceptions, `close` returns one, in this order: one that is not an `Exception` (`KeyboardInterrupt`,
    `SystemExit`), one that the block raised, one that a task raised, a `Cancelled`. The others, except `Cancelled`, are
    chained to it.

    A *foreign* `Cancelled` is one that no scope around its task has caused: an item or a source raised again what it
    got elsewhere. Trio's nursery would take it for its own, cancel itself and swallow it, and whatever had been done by
    then would look complete.
    """

    __slots__ = ("_foreign", "_manager", "_raised", "cancel_scope", "start_soon", "trio_adds_an_error")

    start_soon: Callable[..., None]

    def __init__(self) -> None:
        # Strict by name: the caller's `trio.run(..., strict_exception_groups=False)` must not change what we see.
        self._manager = trio.open_nursery(strict_exception_groups=True)
        self._raised: list[BaseException] = []  # by the block and by tasks, except cancellations
        self._foreign: BaseException | None = None  # the last foreign `Cancelled`
        self.cancel_scope: trio.CancelScope | None = None  # None until the nursery is open
        # Whether a task has left a nursery of its own open. Trio then raises a RuntimeError about corrupted stacks, and
        # that says less than the one that is kept here for it.
        self.trio_adds_an_error: bool = False

    async def open(self) -> None:
        """Open the nursery, if there is room on the stack for what follows."""
        reserve()
        nursery = await self._manager.__aenter__()
        self.start_soon = nursery.start_soon
        self.cancel_scope = nursery.cancel_scope

    def cancel(self, reason: str) -> None:
        """Cancel the block and all tasks, if the nursery is open."""
        # Asked first, as many failures at once come here, and Trio's `cancel` asks for the `repr` of the caller.
        if self.cancel_scope is not None and not self.cancel_scope.cancel_called:
            self.cancel_scope.cancel(reason)

    def keep(self, exc: BaseException, reason: str) -> bool:
        """Keep what a task or the block has raised, and cancel the rest.

        False for a pure cancellation, which has to be raised into Trio's nursery; that cancels the rest.
        """
        _, rest = split_cancelled(exc)
        if rest is not None:
            self._raised.append(rest)
        elif not self._is_cancelled():  # before the scope is cancelled, or that would hide it
            self._foreign = exc
        kept = rest is not None
        del exc, rest  # before others are cancelled: this frame is in their tracebacks; see `exceptions`
        if kept:
            self.cancel(reason)
        return kept

    def _is_cancelled(self) -> bool:
        # The first says so even if an item has left a shield open in the calling task.
        assert self.cancel_scope is not None
        return self.cancel_scope.cancel_called or trio.current_effective_deadline() == -math.inf

    async def close(self, exc: BaseException | None) -> BaseException | None:
        """Wait until all tasks have ended. Returns what to raise, or None; `exc` is what the block has raised."""
        members: Sequence[BaseException] = ()
        if exc is not None and self.keep(exc, f"the block raised {type(exc).__name__}"):
            self._raised.insert(0, self._raised.pop())  # before those of tasks
            exc = None
        if exc is not None:
            # Trio would do so too, but from a frame that holds all exceptions. Each task's Cancelled then holds that
            # frame by its traceback: a cycle.
            self.cancel("the block was cancelled")
        try:
            if exc is None:
                await self._manager.__aexit__(None, None, None)
            else:
                # A single Cancelled stands for a group of them, whose class may be the user's.
                exc = first_leaf(exc)
                await self._manager.__aexit__(type(exc), exc, exc.__traceback__)
        except BaseException as raised:  # noqa: ASYNC103, BLE001  # chosen from, below
            # It is a group, unless the block left a cancel scope open.
            members = raised.exceptions if is_group(raised) else (raised,)
        try:
            return self._choose(members, exc)
        finally:
            # What is raised has this run in its traceback, so it must not be reachable from here; see `exceptions`.
            self._raised = []
            self._foreign = None
            del exc, members

    def _choose(self, members: Sequence[BaseException], block: BaseException | None) -> BaseException | None:
        """The exception to raise; `members` came through Trio's nursery, `block` is a cancellation of the block."""
        if not members and not self._raised:
            return self._foreign
        if self.trio_adds_an_error:
            members = [member for member in members if type(member) is not RuntimeError]
        others = [*self._raised, *(member for member in members if not is_cancelled(member))]
        if not others:
            # Each task has a Cancelled of its own; any one of them tells Trio all there is to tell.
            return first_leaf(members[0]) if block is None else block
        return most_important(others)


def most_important(raised: Sequence[BaseException | None]) -> BaseException | None:
    """Of what was raised, the first that is not an `Exception`, or else the first that is not a cancellation.

    The others are chained to it, except cancellations.
    """
    excs = [exc for exc in raised if exc is not None]
    if not excs:
        return None
    chosen = min(excs, key=lambda exc: (is_cancelled(exc), isinstance(exc, Exception)))
    chain(chosen, *(exc for exc in excs if exc is not chosen and not is_cancelled(exc)))
    return chosen


def raise_or_return(exc: BaseException | None, block: BaseException | None) -> bool:
    """Raise `exc` from an `__aexit__`, or give its return value; `block` is what the block has raised."""
    try:
        if exc is None or exc is block:
            # Not to raise the block's own exception again keeps this frame out of its traceback.
            return exc is None
        raise_unchanged(exc)
    finally:
        del exc, block  # see `exceptions`
