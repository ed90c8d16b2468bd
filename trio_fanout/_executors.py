"""Functions in any executor of `concurrent.futures`, on this machine or on others: `in_executor`."""

from __future__ import annotations

import contextvars
import functools
import logging
import pickle
import threading
from collections import deque
from concurrent.futures import CancelledError, Executor, Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Generic, ParamSpec, TypeVar

import attrs
import outcome
import trio

from ._arguments import check_blocking, check_bool, describe
from ._blocking import Blocking, PickledCall, as_failure, run_pickled_call, unpickled
from ._core.exceptions import raise_unchanged
from ._crossing import plain_trial, portable
from ._naming import named_like
from ._opening import check_in_trio
from ._states import PerRun

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio.lowlevel import Abort, RaiseCancelT, Task, TrioToken

P = ParamSpec("P")
R = TypeVar("R")

logger: Final = logging.getLogger(__name__)


def in_executor(
    executor: Executor, fn: Callable[P, R], *, abandon_on_cancel: bool = False
) -> Callable[P, Awaitable[R]]:
    """Make an async function out of a blocking one, by calling it in an executor.

    Any executor with the interface of `concurrent.futures` will do: a process pool, loky, mpi4py, or a Dask cluster
    through ``client.get_executor(pure=False)``, which is how work leaves one machine. The executor is the caller's, who
    opens it and shuts it down. The limit of the call that the result is passed to decides how many calls are in the
    executor at a time. Choose a few times the number of workers, to keep all of them busy.

    Calls are submitted in the order they are made, one at a time, in a worker thread, because submitting may block.
    An exception arrives with its type. Anything that is not an `Exception`, such as `SystemExit`, arrives as a
    `RuntimeError` that says so, because it must not end the caller's program. If the executor's workers are other
    processes, whatever crosses is pickled: `fn`, its arguments, and what it returns or raises. A failure that cannot be
    pickled is replaced by a `TypeError` that has its type's name and its text. This package has to be installed there,
    too. Context variables do not cross, and `trio.from_thread` does not work inside.

    **Cancellation** calls ``Future.cancel()``, in a worker thread. A call that has not started is then cancelled. If
    the executor cannot cancel it, as a pool cannot once the function runs, it is waited for, and its value is returned
    or its exception raised, even after an `item_timeout`. With `abandon_on_cancel` nothing is waited for: the call is
    cancelled immediately, whatever runs in the executor is left to itself, and its result is lost. Dask lets go of any
    call.

    Note:
        Abandoned work no longer counts against the limiter. New items start while abandoned ones still run, so more
        calls can be in the executor than the limit says.

    Note:
        By default, Dask takes functions to be pure: equal calls run once, and cancelling one of them cancels all. Hence
        ``pure=False`` above. A ``ProcessPoolExecutor`` that forks does so in the worker thread. Python 3.12 and later
        warn about that, with reason; give it an ``mp_context`` that spawns.

    Args:
        executor: a `concurrent.futures.Executor`.
        fn: a function that is not async.
        abandon_on_cancel: whether cancellation leaves behind what the executor cannot cancel. By default it is waited
            for.

    Returns:
        An async function that takes the arguments of `fn`, and is named like it. If the future is cancelled by other
        means, it raises `concurrent.futures.CancelledError`, a failure like any other.

    Raises:
        TypeError: immediately, if `executor` is not an executor, if `fn` is not callable, or is async, or if
            `abandon_on_cancel` is not a bool; from the call, if it shows only then that `fn` is async, or that the
            executor returns something that is not a future.

    Example::

        with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
            primes = await fanout.map(fanout.in_executor(pool, is_prime), numbers)
    """
    _check_executor(executor)
    check_blocking(fn, "in_executor")
    check_bool(abandon_on_cancel, "abandon_on_cancel")
    turns = PerRun(lambda: trio.CapacityLimiter(1))
    canceller = _Canceller()
    blocking = Blocking(fn, "in_executor")
    pickles = _is_process_pool(executor)

    @named_like(fn)
    async def call(*args: P.args, **kwargs: P.kwargs) -> R:
        check_in_trio(blocking.__name__)
        # Keyword arguments are bound to the function: Dask's `submit` has some of its own.
        function: Callable[..., Any] = functools.partial(blocking, **kwargs) if kwargs else blocking
        arguments: tuple[Any, ...] = args
        if pickles:
            function, arguments = _run_in_pool, (blocking.__name__, PickledCall(blocking, _dumps, args, kwargs))
        context = contextvars.copy_context()  # for `submit` itself: Dask has settings in it

        def submit() -> Future[Any]:
            future = context.run(executor.submit, function, *arguments)
            if not hasattr(future, "add_done_callback"):
                msg = f"submit() of the executor must return a concurrent.futures.Future, got {describe(future)}"
                raise TypeError(msg)
            return future

        result = await _Call[Any](blocking, turns.get(), canceller, abandon_on_cancel).result_of(submit)
        value: R = unpickled(result, blocking, pickle.loads) if pickles else result
        return value

    return call


def _check_executor(executor: object) -> None:
    if not isinstance(executor, Executor):
        msg = f"executor must be a concurrent.futures.Executor, got {describe(executor)}"
        raise TypeError(msg)


def _is_process_pool(executor: Executor) -> bool:
    """Whether the executor is Python's own process pool, found out without importing it.

    Unpickling that fails breaks such a pool, for all calls: a call's arguments in the worker, or its outcome here.
    """
    return any(cls.__module__ == "concurrent.futures.process" for cls in type(executor).__mro__)


def _dumps(value: object) -> bytes:
    """Pickle a call or its result as a process pool does."""
    from multiprocessing.reduction import ForkingPickler  # noqa: PLC0415  # imported by the pool anyway

    return bytes(ForkingPickler.dumps(value))


def _run_in_pool(name: str, call: bytes) -> bytes:
    """Run a call in a worker of a process pool. Returns its result, pickled."""
    try:
        return _dumps(run_pickled_call(call, "in_executor"))
    except BaseException as exc:  # noqa: ASYNC103, BLE001  # raised again, as a failure
        raise_unchanged(portable(as_failure(exc, name, "in_executor"), plain_trial))


@attrs.define(eq=False)
class _Call(Generic[R]):
    """A call on its way through an executor, and the task that waits for it.

    All of it runs in the Trio thread, except `_deliver` and `_done`, which only send word there. So there are no races
    to think about: the future is submitted before or after a cancellation, never during one.
    """

    _blocking: Blocking[R]
    _turn: trio.CapacityLimiter
    _canceller: _Canceller
    _abandon_on_cancel: bool
    _token: TrioToken = attrs.field(init=False, factory=trio.lowlevel.current_trio_token)
    _task: Task | None = attrs.field(init=False, factory=trio.lowlevel.current_task)  # None once it no longer waits
    _future: Future[R] | None = attrs.field(init=False, default=None)  # while it may have to be cancelled
    _raise_cancel: RaiseCancelT | None = attrs.field(init=False, default=None)  # once cancelled

    # Ctrl-C comes in as a cancellation: anywhere else it could lose the future.
    @trio.lowlevel.enable_ki_protection
    async def result_of(self, submit: Callable[[], Future[R]]) -> R:
        """Submit the call, and wait for its outcome."""
        await self._turn.acquire_on_behalf_of(self)  # the only place where a cancelled call has not been submitted
        try:
            trio.lowlevel.start_thread_soon(submit, self._deliver)
        except BaseException:
            self._turn.release_on_behalf_of(self)
            raise
        result: R = await trio.lowlevel.wait_task_rescheduled(self._abort)
        return result

    def _deliver(self, submitted: outcome.Outcome[Future[R]]) -> None:
        try:
            self._token.run_sync_soon(self._submitted, submitted)
        except trio.RunFinishedError:  # this was abandoned: a task that waits would have kept the run going
            if isinstance(submitted, outcome.Value):
                self._canceller.cancel(submitted.value)

    def _submitted(self, submitted: outcome.Outcome[Future[R]]) -> None:
        self._turn.release_on_behalf_of(self)
        if isinstance(submitted, outcome.Error):
            self._resume(self._failure(submitted.error))
            return
        future = submitted.unwrap()
        if self._raise_cancel is None:
            self._future = future
        else:
            self._canceller.cancel(future)
        try:
            future.add_done_callback(self._done)
        except BaseException as exc:  # noqa: ASYNC103, BLE001  # its outcome will never be known: no use in waiting
            self._future = None
            self._canceller.cancel(future)
            self._resume(self._failure(_cut_loose(exc, future)))

    def _abort(self, raise_cancel: RaiseCancelT) -> Abort:
        self._raise_cancel = raise_cancel
        if self._future is not None:
            self._canceller.cancel(self._future)
            self._future = None
        if not self._abandon_on_cancel:
            return trio.lowlevel.Abort.FAILED  # it may yet be cancelled: `_done` is called for such a future too
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _done(self, future: Future[R]) -> None:
        with suppress(trio.RunFinishedError):  # as above
            self._token.run_sync_soon(self._finished, future)

    def _finished(self, future: Future[R]) -> None:
        self._future = None  # which has this as a callback, and so would make a cycle
        try:
            result = self._outcome_of(future)
        except BaseException as exc:  # noqa: ASYNC103, BLE001  # raised here, it would be Trio's internal error
            result = self._failure(_cut_loose(exc, future))
        self._resume(result)
        del result  # or this frame, to which the traceback of a Cancelled leads, would make a cycle

    def _outcome_of(self, future: Future[R]) -> outcome.Outcome[R]:
        if future.cancelled():
            if self._raise_cancel is not None:
                return outcome.capture(self._raise_cancel)
            return outcome.Error(CancelledError("the executor or somebody else cancelled this call"))
        exc = future.exception()
        if exc is not None:
            return self._failure(_cut_loose(exc, future))
        return outcome.Value(future.result())

    def _failure(self, exc: BaseException) -> outcome.Error:
        """What the executor or its future raised, or what the future holds."""
        return outcome.Error(self._blocking.failure(exc))

    def _resume(self, result: outcome.Outcome[R]) -> None:
        if self._task is not None:
            trio.lowlevel.reschedule(self._task, result)
        self._task = self._raise_cancel = None


def _cut_loose(exc: BaseException, future: Future[Any]) -> BaseException:
    """Take the frames that know `future` off the traceback of its exception.

    Dask raises the exception once before it hands it over. The frame where it does so would keep the future alive for
    as long as the exception is kept, and with it the task on the scheduler.
    """
    tb = exc.__traceback__
    while tb is not None and any(value is future for value in tb.tb_frame.f_locals.values()):
        tb = tb.tb_next
    return BaseException.with_traceback(exc, tb)  # that of its class may do anything


def _cancel(future: Future[Any]) -> bool:
    return future.cancel()


class _Canceller:
    """Cancels futures in a worker thread, one after another.

    `Future.cancel()` may block: Dask's has to ask its own event loop. A thread for each would be no faster, and a
    large run that is cancelled would start thousands.
    """

    __slots__ = ("_futures", "_running")

    def __init__(self) -> None:
        self._futures: deque[Future[Any]] = deque()
        self._running = threading.Lock()

    def cancel(self, future: Future[Any]) -> None:
        """Cancel `future` soon, from any thread."""
        self._futures.append(future)
        if self._running.acquire(blocking=False):
            try:
                trio.lowlevel.start_thread_soon(self._work, lambda _: None)
            except Exception:  # noqa: BLE001  # no thread can be started
                self._work()  # this may block, but nobody else would cancel them

    def _work(self) -> None:
        while True:
            while self._futures:
                cancelled = outcome.capture(_cancel, self._futures.popleft())
                if isinstance(cancelled, outcome.Error):  # so it is not, and the call is waited for
                    logger.error("Future.cancel() raised", exc_info=cancelled.error)
            self._running.release()
            # A caller after the last look, and before the release, has left the next future to this thread.
            if not self._futures or not self._running.acquire(blocking=False):
                return
