"""Work that is found on the way: `open_group`.

A group is a run whose source is a queue, into which the block and the jobs themselves put jobs.
"""

from __future__ import annotations

import contextvars
import functools
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, TypeVarTuple, Unpack, final

import trio
from outcome import Error, Value

from ._arguments import check_function, check_seconds, name_of
from ._limits import DEFAULT_LIMIT, check_limit, check_not_held
from ._nursery import BareNursery, raise_unchanged
from ._policies import Collect, FailFast, Ledger, Settle, check_never_moves_on, open_ledger
from ._run import AHEAD, Run, same_context
from ._sources import Queue

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    from outcome import Outcome

R_co = TypeVar("R_co", covariant=True)
R = TypeVar("R")
Ts = TypeVarTuple("Ts")

_FAIL_FAST = FailFast()


def open_group(
    *,
    limit: float | trio.CapacityLimiter = DEFAULT_LIMIT,
    policy: FailFast | Collect | Settle = _FAIL_FAST,
    item_timeout: float | None = None,
) -> AbstractAsyncContextManager[Group]:
    """Open a group: a nursery with a limit and a policy, whose jobs can start jobs.

    ``async with open_group() as group`` gives a `Group`, whose `start_soon` queues jobs, from the block or from inside
    of jobs. The block ends when the queue is empty and every job is done. Jobs that start jobs never deadlock, at
    any limit; jobs that wait for other jobs can, see `Handle.wait`. There is one task for each running job, none
    for a queued one.

    Args:
        limit: how many jobs may run at once, as for `map`.
        policy: `FailFast()`, the default: a failure cancels the jobs and the block, and is raised. `Collect()`: the
            other jobs go on, and a `FanOutError` is raised at the end, without `results`: the handles have them.
            `Settle()`: failures are for the handles alone.
        item_timeout: seconds that each job may take, as for `map`.

    Returns:
        An async context manager. What its block raises cancels the jobs, and leaves it bare.

    Raises:
        TypeError, ValueError: at once, if an argument is wrong.
        RuntimeError: on entry, if the task holds a token of `limit`, as for `map`.

    **Cancellation** of the block cancels the jobs, and those that are queued are dropped. Under `FailFast` and
    `Collect` a failure is raised in its place. `Group.cancel_scope` cancels the group alone.

    Example::

        async def crawl(url):
            for link in await links_of(url):
                if link not in seen:
                    seen.add(link)
                    group.start_soon(crawl, link)

        async with fanout.open_group(limit=10) as group:
            group.start_soon(crawl, "https://example.org")
    """
    check_limit(limit)
    check_seconds(item_timeout, "item_timeout")
    ledger = open_ledger(policy, (FailFast, Collect, Settle), "open_group", "job")
    check_never_moves_on(policy, "open_group")
    return _OpenGroup(ledger, limit, item_timeout)


@final
class Handle(Generic[R_co]):
    """A job of a group, as `Group.start_soon` returns it.

    Attributes:
        index: how many jobs were submitted before this one.
        outcome: an ``outcome.Value`` or ``outcome.Error`` when the job has finished. None until then, and for good if
            the job was cancelled.
    """

    __slots__ = ("_done", "_waited_for", "index", "outcome")

    def __init__(self, index: int) -> None:
        self.index: Final = index
        self.outcome: Outcome[R_co] | None = None
        self._done = False
        self._waited_for: trio.Event | None = None

    def __repr__(self) -> str:
        state = self.outcome or ("cancelled" if self._done else "not finished")
        return f"<trio_fanout.Handle of job {self.index}: {state}>"

    @property
    def value(self) -> R_co:
        """What the job returned; raises its failure if it failed.

        Raises:
            RuntimeError: the job has not finished, or was cancelled.
        """
        if self.outcome is None:
            msg = f"job {self.index} has no value: it {'was cancelled' if self._done else 'has not finished'}"
            raise RuntimeError(msg)
        if isinstance(self.outcome, Value):
            value: R_co = self.outcome.value
            return value
        assert isinstance(self.outcome, Error)
        try:
            raise_unchanged(self.outcome.error)
        finally:
            del self  # this frame is in the traceback of the error

    async def wait(self) -> None:
        """Wait until the job is done, however it ended. It raises nothing on account of the job.

        A job that waits for another one holds its own place in the limit meanwhile: at ``limit=1`` that is a deadlock,
        and so it is at any limit when all places are taken by jobs that wait. Shielded, it then waits even when the
        group is cancelled. To be cancelled while it waits does nothing to the job.
        """
        if self._done:
            await trio.lowlevel.checkpoint()
            return
        if self._waited_for is None:
            self._waited_for = trio.Event()
        await self._waited_for.wait()

    def _end(self, outcome: Outcome[R_co] | None) -> None:
        self.outcome = outcome
        self._done = True
        if self._waited_for is not None:
            self._waited_for.set()


class _Job:
    """What a worker needs of a job, and nobody when it has run."""

    __slots__ = ("args", "context", "fn", "handle")

    def __init__(
        self,
        fn: Callable[..., Awaitable[Any]],
        args: tuple[Any, ...],
        context: contextvars.Context,
        handle: Handle[Any],
    ) -> None:
        self.fn: Final = fn
        self.args: Final = args
        self.context: Final = context
        self.handle: Final = handle


class _Jobs(Queue[_Job]):
    """The queue of a group, in which each job brings the context that it is to see."""

    __slots__ = ("_last_context", "_last_fn", "_last_name", "_own_context", "over")

    def __init__(self) -> None:
        super().__init__()
        self._own_context: Final = contextvars.copy_context()
        self._last_context = self._own_context
        self._last_fn: object = None
        self._last_name = ""
        self.over: bool = False  # the group has ended

    @property
    def context(self) -> contextvars.Context:
        """The context of the first job; with none left the group's own, which keeps alive nothing that a job did."""
        return self._waiting[0][1].context if self._waiting else self._own_context

    def take(self) -> tuple[int, _Job] | None:
        """The first job that nobody has taken yet."""
        entry = super().take()
        if not self._waiting:
            self._last_context = self._own_context  # the variables of a job are kept no longer than the job
        return entry

    def current_context(self) -> contextvars.Context:
        """A copy of the context of the caller: one for all jobs that are submitted with the same variables."""
        context = contextvars.copy_context()
        if (len(context) or len(self._last_context)) and not same_context(context, self._last_context):
            self._last_context = context
        return self._last_context

    def end(self) -> None:
        """Take no more jobs, and let go of the last one's function, which often knows the group."""
        self.over = True
        self._last_fn = None

    def start(self, job: _Job) -> Awaitable[Any]:
        """Call the function of a job, and name the task after it."""
        if job.fn is not self._last_fn:
            self._last_fn = job.fn
            self._last_name = f"open_group({name_of(job.fn)})"
        trio.lowlevel.current_task().name = self._last_name
        return job.fn(*job.args)


class _Outcomes:
    """The sink of a group: tells the handles, and of failures the policy."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger: Final = ledger

    def succeeded(self, index: int, job: _Job, value: object, /) -> None:
        job.handle._end(Value(value))

    def failed(self, index: int, job: _Job, exc: Exception, /, *, secondary: bool) -> object:
        job.handle._end(Error(exc))
        return self._ledger.failed(index, job, exc, secondary=secondary)

    def cancelled(self, index: int, job: _Job, /) -> None:
        job.handle._end(None)


@final
class Group:
    """What `open_group` gives to its block: a nursery with a limit and a policy, whose jobs can start jobs.

    It may be used by the block and by the jobs, until the last of them has ended.
    """

    def __init__(self, run: Run[_Job, Any], jobs: _Jobs, cancel_scope: trio.CancelScope) -> None:
        self._run: Final = run
        self._jobs: Final = jobs
        self._cancel_scope: Final = cancel_scope

    @property
    def cancel_scope(self) -> trio.CancelScope:
        """The scope around the block and all jobs. To cancel it ends the group without an error."""
        return self._cancel_scope

    def start_soon(self, fn: Callable[[Unpack[Ts]], Awaitable[R]], *args: *Ts) -> Handle[R]:
        """Queue a job, and return at once.

        The job sees the context variables as they are now, and starts when those before it have and there is room. It
        may be called from the block and from inside of jobs.

        Args:
            fn: an async function.
            *args: what it is called with. For keyword arguments, use `functools.partial`.

        Returns:
            A `Handle`, with which to wait for the job and to ask for its outcome.

        Raises:
            TypeError: `fn` is no function.
            RuntimeError: the group is over.
        """
        check_function(fn)
        if self._jobs.over:
            msg = "start_soon() after the end of the group: no job can be started any more"
            raise RuntimeError(msg)
        handle: Handle[R] = Handle(self._jobs.given)
        self._jobs.put(_Job(fn, args, self._jobs.current_context(), handle))
        if self._run.stopped:
            self._run.drop()
        else:
            self._run.hire(AHEAD)
        return handle


class _OpenGroup:
    """The context manager that `open_group` returns."""

    def __init__(self, ledger: Ledger, limit: float | trio.CapacityLimiter, item_timeout: float | None) -> None:
        self._ledger: Final = ledger
        self._limit: Final = limit
        self._item_timeout: Final = item_timeout

    @trio.lowlevel.enable_ki_protection
    async def __aenter__(self) -> Group:
        check_not_held(self._limit)
        self._jobs = _Jobs()
        sink = _Outcomes(self._ledger)
        self._run = Run(self._jobs.start, self._jobs, sink, self._limit, self._item_timeout, "open_group")
        self._bare = BareNursery(functools.partial(self._ledger.conclude, self._run))
        nursery = await self._bare.__aenter__()
        self._run.start(nursery)
        return Group(self._run, self._jobs, nursery.cancel_scope)

    @trio.lowlevel.enable_ki_protection
    async def __aexit__(
        self,
        etype: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> bool:
        if exc is None:
            self._run.close()  # workers that find no job leave; jobs may still start jobs
        else:
            self._run.cancel()
        try:
            return await self._bare.__aexit__(etype, exc, tb)
        finally:
            self._jobs.end()
            self._ledger.clear()  # the handles have them
            del exc, tb  # this frame is in the traceback of each Cancelled, which may be part of a chain
