"""Counting calls and seeing which of them are running: `Meter`."""

from __future__ import annotations

import inspect
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, ParamSpec, TypeVar, final

import attrs
import trio
from trio.lowlevel import current_clock, current_task

from ._arguments import (
    check_awaitable,
    check_function,
    close_if_coroutine,
    describe,
    is_async,
    is_exception_class,
    name_of,
)
from ._core.exceptions import is_cancelled
from ._naming import named_like
from ._opening import check_in_trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

P = ParamSpec("P")
R = TypeVar("R")

_COROUTINE: Final[type] = CoroutineType


@attrs.frozen
class MeterStatistics:
    """How many calls a `Meter` has seen, from `Meter.statistics`.

    Attributes:
        started: calls that have started: the sum of the next four.
        succeeded: calls that have returned.
        failed: calls that have raised something other than a cancellation.
        cancelled: calls that have ended by `trio.Cancelled`.
        running: calls that have started and not ended.
        peak_running: the most calls that have run at once.
    """

    started: int
    succeeded: int
    failed: int
    cancelled: int
    running: int
    peak_running: int


class Running(NamedTuple):
    """A call that is running, from `Meter.running`.

    Attributes:
        args: the positional arguments of the call.
        started: when the function was called, on Trio's clock (`trio.current_time`).
        task: the task that made the call. Its ``iter_await_frames()`` shows where the call is.
    """

    args: tuple[Any, ...]
    started: float
    task: trio.lowlevel.Task


class Ended(NamedTuple):
    """A call that has ended, as passed to ``on_end`` of a `Meter`.

    Attributes:
        args: the positional arguments of the call.
        task: the task that made the call. The workers of a run are tasks, and run one item at a time.
        started: when the function was called, on Trio's clock (`trio.current_time`).
        ended: when the call ended, on the same clock.
        error: what the call raised, or None if it returned. A `trio.Cancelled`, or a group of nothing else, is a
            cancellation.
    """

    args: tuple[Any, ...]
    task: trio.lowlevel.Task
    started: float
    ended: float
    error: BaseException | None


@final
class Meter:
    """Counts the calls of async functions, knows which of them are running, and reports each as it ends.

    A meter sees the calls of the functions that `wrap` returns, made by this package or by other code. One meter may
    wrap many functions, and several Trio runs may use it, even at the same time in different threads: it counts all of
    their calls together. It keeps nothing of a call that has ended. It costs about 1 µs per call.

    Args:
        on_end: a function that is not async, called with an `Ended` as each call ends, in its task, after the call has
            been counted and is no longer in `running`. Its return value is ignored. If it raises, the call raises that,
            with the call's own error as the context, even if the call was cancelled or succeeded. Ctrl-C is held back
            while it runs.

    Raises:
        TypeError: immediately, if `on_end` cannot be called, or is async.

    Example::

        with tqdm(total=len(urls)) as bar:
            meter = fanout.Meter(on_end=lambda ended: bar.update())
            pages = await fanout.map(meter.wrap(fetch), urls, limit=20)
        assert meter.statistics().succeeded == len(urls)
    """

    def __init__(self, *, on_end: Callable[[Ended], object] | None = None) -> None:
        _check_on_end(on_end)
        self._on_end = on_end
        # (args, started, task, clock) of each call that runs, in the order in which they started.
        self._calls: dict[object, tuple[tuple[Any, ...], float, trio.lowlevel.Task, trio.abc.Clock]] = {}
        # Trio runs in several threads may share a meter. It needs no lock, which would add a third to its cost: CPython
        # switches threads neither in an operation on the dict, nor between the load and the store of a `+=` on an
        # attribute, nor between loads of attributes (only at calls and at jumps back).
        self._started = 0
        self._succeeded = 0
        self._failed = 0
        self._cancelled = 0
        self._peak_running = 0

    def __repr__(self) -> str:
        now = self.statistics()
        return (
            f"<trio_fanout.Meter: {now.running} running, {now.succeeded} succeeded, {now.failed} failed, "
            f"{now.cancelled} cancelled>"
        )

    def wrap(self, fn: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
        """Make an async function that calls `fn` and is seen by this meter.

        A call starts when `fn` is called and ends when the awaitable it returned is done. The call is *cancelled* if it
        raises `trio.Cancelled` or a group of nothing else; an `item_timeout` does that too, since it cancels the item
        from outside. It has *failed* if it raises anything else, such as a group that mixes `trio.Cancelled` with
        errors, or a `KeyboardInterrupt`. Otherwise it has *succeeded*.

        Wrapped functions may call each other, and a function may be wrapped more than once: each layer counts.

        **Cancellation** passes through, and no checkpoint is added.

        Args:
            fn: an async function.

        Returns:
            An async function that takes the arguments of `fn`, and is named like it. Called outside a Trio run, it
            raises `RuntimeError`, without calling `fn`.

        Raises:
            TypeError: immediately, if `fn` cannot be called.
        """
        check_function(fn)
        start, end, name = self._start, self._end, name_of(fn)

        @named_like(fn)
        async def call(*args: P.args, **kwargs: P.kwargs) -> R:
            # This frame is in the traceback of a failure. So it holds a key, not the task, which leads to all that the
            # task runs, and would make a cycle with whatever keeps the failure.
            try:
                key = start(args)
            except RuntimeError:
                check_in_trio(name)
                raise
            try:
                awaitable = fn(*args, **kwargs)
                if type(awaitable) is not _COROUTINE:  # cheaper than the check
                    check_awaitable(awaitable)
                value = await awaitable
            except BaseException as exc:
                end(key, exc)
                raise
            end(key, None)
            return value

        return call

    # Protected from Ctrl-C: interrupted halfway, these two could leave a call in `running` forever.

    @trio.lowlevel.enable_ki_protection
    def _start(self, args: tuple[Any, ...]) -> object:
        task, clock = current_task(), current_clock()
        key = object()
        self._calls[key] = args, clock.current_time(), task, clock
        self._started += 1
        running = len(self._calls)
        if running > self._peak_running:  # noqa: PLR1730  # `max` takes five times as long
            self._peak_running = running
        return key

    @trio.lowlevel.enable_ki_protection
    def _end(self, key: object, error: BaseException | None) -> None:
        args, started, task, clock = self._calls.pop(key)
        try:
            cancelled = error is not None and is_cancelled(error)
        except RecursionError:  # a full stack, which looking into a group may take
            cancelled = False
        if error is None:
            self._succeeded += 1
        elif cancelled:
            self._cancelled += 1
        else:
            self._failed += 1
        if self._on_end is None:
            return
        # The clock of its run: a coroutine that is closed may be so after the run, where `trio.current_time` fails.
        returned = self._on_end(Ended(args, task, started, clock.current_time(), error))
        if inspect.iscoroutine(returned):
            returned.close()  # or Python would warn that it was never awaited
            msg = f"on_end must be a function that is not async, got {describe(returned)} from it"
            raise TypeError(msg)

    def running(self) -> list[Running]:
        """Return the calls that are running now, the one that has run longest first.

        This may be called from anywhere: inside or outside a Trio run, from any thread, from a signal handler.

        Example::

            for call in meter.running():
                print(f"{trio.current_time() - call.started:.1f} s", *call.args)
                for frame, line in call.task.iter_await_frames():
                    print("   ", frame.f_code.co_qualname, line)
        """
        return [Running(args, started, task) for args, started, task, _ in list(self._calls.values())]

    def statistics(self) -> MeterStatistics:
        """Return how many calls there have been and how they ended. May be called from anywhere, like `running`."""
        started, succeeded, failed, cancelled = self._started, self._succeeded, self._failed, self._cancelled
        return MeterStatistics(
            started=started,
            succeeded=succeeded,
            failed=failed,
            cancelled=cancelled,
            running=started - succeeded - failed - cancelled,
            peak_running=self._peak_running,
        )


def _check_on_end(on_end: object) -> None:
    """Raise `TypeError` unless `on_end` is None or can be called, is not async, and is not an exception class."""
    if on_end is None or (callable(on_end) and not is_async(on_end) and not is_exception_class(on_end)):
        return
    close_if_coroutine(on_end)
    what = f"the async function {name_of(on_end)}" if is_async(on_end) else describe(on_end)
    msg = f"on_end must be None or a function that is not async, got {what}"
    raise TypeError(msg)
