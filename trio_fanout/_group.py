"""Work discovered along the way: `open_group`.

A group is a run whose source is a queue, into which the block and the jobs themselves put jobs.
"""

from __future__ import annotations

import contextvars
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, TypeVarTuple, Unpack, final

import attrs
import trio
from outcome import Error, Value

from ._arguments import check_function, check_seconds, name_of
from ._core.crew import MAX_COMING
from ._core.exceptions import raise_unchanged
from ._core.items import same_context
from ._core.limits import DEFAULT_LIMIT, Tokens, check_limit, check_not_held
from ._core.run import Run
from ._core.sources import Queue
from ._ledgers import Ledger, start_ledger
from ._opening import NoPublicConstructor, OpensOnce, check_in_run, create
from ._policies import FAIL_FAST, Collect, FailFast, Settle, check_never_moves_on
from ._protection import protected
from ._tracebacks import shorten_endless

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    from outcome import Outcome

R_co = TypeVar("R_co", covariant=True)
R = TypeVar("R")
Ts = TypeVarTuple("Ts")


def open_group(
    *,
    limit: float | trio.CapacityLimiter = DEFAULT_LIMIT,
    policy: FailFast | Collect | Settle = FAIL_FAST,
    item_timeout: float | None = None,
) -> AbstractAsyncContextManager[Group]:
    """Open a group: a nursery with a limit and a policy, whose jobs can start jobs.

    ``async with open_group() as group`` yields a `Group`. `Group.start_soon` queues jobs, from the block or from inside
    jobs. The block ends when the queue is empty and every job is done. Jobs that start jobs never deadlock, at any
    limit; jobs that wait for other jobs can, see `Handle.wait`. There is one task for each running job, none for a
    queued one.

    Args:
        limit: how many jobs may run at once, as for `map`.
        policy: `FailFast()`, the default: a failure cancels the jobs and the block, and is raised. `Collect()`: the
            other jobs go on, and a `FanOutError` is raised at the end, without `results`: the handles have them.
            `Settle()`: failures are only in the handles.
        item_timeout: seconds that each job may take, as for `map`.

    Returns:
        An async context manager, to be entered once. If its block raises, the jobs are cancelled, and the exception is
        raised unwrapped.

    Raises:
        TypeError, ValueError: immediately, if an argument is wrong.
        RuntimeError: on entry, if the task holds a token of `limit`, as for `map`.

    **Cancellation** of the block cancels the jobs, and those that are queued are dropped. Under `FailFast` and
    `Collect` a failure is raised instead of the cancellation. `Group.cancel_scope` cancels the group alone.

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
    ledger = start_ledger(policy, (FailFast, Collect, Settle), "open_group", "job")
    check_never_moves_on(policy, "open_group")
    check_seconds(item_timeout, "item_timeout")
    return _OpenGroup(ledger, limit, item_timeout)


@attrs.define(eq=False)
class _Job:
    """A job, as the group and its handle see it."""

    index: int  # how many jobs were submitted before
    # What a worker needs to run it; dropped once it has run.
    fn: Callable[..., Awaitable[Any]] | None
    args: tuple[Any, ...]
    context: contextvars.Context | None
    # How it ended.
    done: bool = False
    outcome: Outcome[Any] | None = None  # None until done, and for one that was cancelled
    traceback: TracebackType | None = None  # of a failure, when it was first raised to a reader of the value
    waited_for: trio.Event | None = None  # set when it is done, if anything waits

    def end(self, outcome: Outcome[Any] | None) -> None:
        """Note how the job ended, and wake what waits for that."""
        self.outcome = outcome
        self.done = True
        self.fn = self.context = None
        self.args = ()
        if self.waited_for is not None:
            self.waited_for.set()


@final
@protected()  # interrupted as it begins, `Event.wait` would leave its task in the event
class Handle(Generic[R_co], metaclass=NoPublicConstructor):
    """A job of a group, as `Group.start_soon` returns it.

    Attributes:
        index: how many jobs were submitted before this one.
        outcome: an ``outcome.Value`` or ``outcome.Error`` when the job has finished. None until then, and for good if
            the job was cancelled.
    """

    __slots__ = ("__weakref__", "_job")

    def __init__(self, job: _Job) -> None:
        self._job = job

    def __repr__(self) -> str:
        state = self.outcome or ("cancelled" if self._job.done else "not finished")
        return f"<trio_fanout.Handle of job {self.index}: {state}>"

    @property
    def index(self) -> int:
        """How many jobs were submitted before this one."""
        return self._job.index

    @property
    def outcome(self) -> Outcome[R_co] | None:
        """An ``outcome.Value`` or ``outcome.Error`` when the job has finished.

        None until then, and for good if the job was cancelled.
        """
        return self._job.outcome

    @property
    def value(self) -> R_co:
        """What the job returned; raises its failure if it failed.

        Raises:
            RuntimeError: the job has not finished, or was cancelled.
        """
        outcome = self._job.outcome
        if outcome is None:
            msg = f"job {self.index} has no value: it {'was cancelled' if self._job.done else 'has not finished'}"
            raise RuntimeError(msg)
        if isinstance(outcome, Value):
            value: R_co = outcome.value
            return value
        assert isinstance(outcome, Error)
        # Raising puts frames on top of the traceback, and each reader would see those of all before.
        self._job.traceback = self._job.traceback or outcome.error.__traceback__
        BaseException.with_traceback(outcome.error, self._job.traceback)
        try:
            raise_unchanged(outcome.error)
        finally:
            del self, outcome  # see `exceptions`

    async def wait(self) -> None:
        """Wait until the job is done, however it ended. It raises nothing on account of the job.

        A job that waits for another one keeps its own slot meanwhile: at ``limit=1`` that is a deadlock, and at any
        limit it is one when all slots are taken by jobs that wait. If the wait is shielded, it goes on even when the
        group is cancelled. Cancelling the wait does nothing to the job.
        """
        if self._job.done:
            await trio.lowlevel.checkpoint()
            return
        if self._job.waited_for is None:
            self._job.waited_for = trio.Event()
        await self._job.waited_for.wait()


@protected(but="start")
class _Jobs(Queue[_Job]):
    """The jobs of a group: the source of its run, in which each job brings the context that it is to see, and the sink.

    As the sink, it tells the handles how their jobs ended, and the policy about failures.
    """

    __slots__ = ("_last_context", "_last_fn", "_last_name", "_ledger", "_running", "closing")
    context_of: Callable[[Any], contextvars.Context] | None = attrgetter("context")

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self._ledger = ledger
        self._running: dict[int, _Job] = {}  # those that were taken and have not ended
        self.closing: bool = False  # the block has ended: only jobs may start jobs
        self._last_context = self.context
        self._last_fn: object = None
        self._last_name = ""

    # The source

    @property
    def may_grow(self) -> bool:
        """Whether jobs may still arrive."""
        return not self.closing or bool(self._queued) or bool(self._running)

    def add(self, fn: Callable[..., Awaitable[Any]], args: tuple[Any, ...]) -> _Job:
        """Queue a job of the calling task."""
        job = _Job(self.given, fn, args, self._current_context())
        self.put(job)
        return job

    def take(self) -> tuple[int, _Job] | None:
        """Take the first job."""
        if not self._queued:
            return None
        index, job = entry = self._queued.popleft()
        self._running[index] = job
        if not self._queued:
            self._last_context = self.context  # the variables of a job are kept no longer than the job
        return entry

    def _current_context(self) -> contextvars.Context:
        """A copy of the context of the caller: one for all jobs that are submitted with the same variables."""
        context = contextvars.copy_context()
        if (len(context) or len(self._last_context)) and not same_context(context, self._last_context):
            self._last_context = context
        return self._last_context

    def start(self, job: _Job) -> Awaitable[Any]:
        """Call the function of a job, and name the task after it."""
        fn = job.fn
        assert fn is not None
        if fn is not self._last_fn:
            self._last_fn = fn
            self._last_name = f"open_group({name_of(fn)})"
        trio.lowlevel.current_task().name = self._last_name
        return fn(*job.args)

    def end(self) -> None:
        """End the jobs that Ctrl-C has left without an end, and drop the last function, which often knows the group."""
        for job in self._running.values():
            job.end(None)
        self._running.clear()
        self._last_fn = None
        self._ledger.clear()  # the handles have what there is

    # The sink

    def succeeded(self, index: int, job: _Job, value: object, /) -> None:
        """Tell the handle."""
        job.end(Value(value))
        del self._running[index]

    def failed(self, index: int, job: _Job, exc: Exception, /, *, secondary: bool) -> str | None:
        """Tell the handle, and the policy if the failure does not stay with the handle."""
        job.end(Error(exc))
        del self._running[index]
        if self._ledger.hands_over_failures:
            shorten_endless(exc)
            return None
        return self._ledger.failed(index, None, exc, secondary=secondary)

    def cancelled(self, index: int, job: _Job, /) -> None:
        """Tell the handle."""
        job.end(None)
        self._running.pop(index, None)  # not there if it was never taken

    def label(self, index: int, /) -> str:
        """What a job is called in messages."""
        return self._ledger.label(index)

    def conclude(self, leaving: BaseException | None, started: int, /, *, complete: bool) -> BaseException | None:
        """Choose what the group raises. Its jobs may be cancelled: the handles show it."""
        return self._ledger.conclude(leaving, started, complete=True)


@final
@attrs.frozen
class GroupStatistics:
    """What a group is doing, as `Group.statistics` returns it.

    Attributes:
        queued: how many jobs were submitted and have not started.
        running: how many jobs are running.
        stopped: whether `Group.stop` has ended the group.
    """

    queued: int
    running: int
    stopped: bool = False


@final
@protected()
class Group(metaclass=NoPublicConstructor):
    """What the block of `open_group` gets: a nursery with a limit and a policy, whose jobs can start jobs.

    It may be used by the block and by the jobs, until the last of them has ended.
    """

    def __init__(self, run: Run[_Job, Any], jobs: _Jobs, limiter: trio.CapacityLimiter) -> None:
        self._run = run
        self._jobs = jobs
        self._limiter = limiter
        self._cancel_scope = run.cancel_scope
        self._trio_token = trio.lowlevel.current_trio_token()

    def __repr__(self) -> str:
        now = self.statistics()
        state = "ended" if not self._jobs.may_grow else "stopped" if now.stopped else "open"
        return f"<trio_fanout.Group, {state}: {now.queued} queued, {now.running} running>"

    @property
    def cancel_scope(self) -> trio.CancelScope:
        """The scope around the block and all jobs. Cancelling it ends the group without an error."""
        return self._cancel_scope

    @property
    def limiter(self) -> trio.CapacityLimiter:
        """The `trio.CapacityLimiter` that drives the group, which is the one that was passed, or its own.

        Changing its `total_tokens` slows the group down or speeds it up while it runs, at the latest when the next job
        finishes; 0 pauses it. To share tokens with other tasks, pass a limiter: on its own one, a group may keep a
        token from job to job, and others wait until it finds none.
        """
        return self._limiter

    def start_soon(self, fn: Callable[[Unpack[Ts]], Awaitable[R]], *args: *Ts) -> Handle[R]:
        """Queue a job, and return immediately.

        The job sees the context variables as they are now, and starts when the jobs before it have started and there is
        room. This method may be called from the block and from inside jobs.

        Args:
            fn: an async function.
            *args: what it is called with. For keyword arguments, use `functools.partial`.

        Returns:
            A `Handle`, with which to wait for the job and to ask for its outcome.

        Raises:
            TypeError: `fn` is not callable.
            RuntimeError: the group is over, or this is called from another thread.
        """
        check_function(fn)
        check_in_run(self._trio_token, "start_soon()")
        if self._jobs.closing and not self._jobs.may_grow:
            msg = "start_soon() was called after the group had ended"
            raise RuntimeError(msg)
        handle: Handle[R] = create(Handle, self._jobs.add(fn, args))
        if self._run.ended_early:
            self._run.drop_queued()
        else:
            self._run.start_workers(MAX_COMING)
        return handle

    def stop(self) -> None:
        """Start no more jobs. Jobs that are running finish.

        Jobs that are queued, wait for a token or are submitted afterwards never start. Their handles end as cancelled,
        immediately. The block is not cancelled. Failures of the jobs that run are raised as the policy says.

        Use it to wind down without losing work, for example from a task that waits for Ctrl-C. Calling it again, or
        after the end of the group, does nothing.

        Raises:
            RuntimeError: called from another thread.

        Example::

            async def stop_on_ctrl_c(group):
                with trio.open_signal_receiver(signal.SIGINT) as signals:
                    async for _ in signals:
                        group.stop()
        """
        check_in_run(self._trio_token, "stop()")
        self._run.stop()

    def statistics(self) -> GroupStatistics:
        """What the group is doing now.

        Returns:
            A frozen `GroupStatistics`.
        """
        running = self._run.running()
        queued = int(self._jobs.ready()) + self._run.unfinished() - running
        return GroupStatistics(queued=queued, running=running, stopped=self._run.stopped)


@protected()
class _OpenGroup(OpensOnce):
    """The context manager that `open_group` returns."""

    opener: ClassVar[str] = "open_group"
    opens: ClassVar[type] = Group

    def __init__(self, ledger: Ledger, limit: float | trio.CapacityLimiter, item_timeout: float | None) -> None:
        self._ledger = ledger
        self._limit = limit
        self._item_timeout = item_timeout

    async def __aenter__(self) -> Group:
        self.note_entry()
        check_not_held(self._limit)
        tokens = Tokens(self._limit)
        self._jobs = _Jobs(self._ledger)
        self._run: Run[_Job, Any] = Run(
            self._jobs.start,
            self._jobs,
            self._jobs,
            tokens,
            "open_group",
            item_timeout=self._item_timeout,
            limiter_shown=True,
        )
        await self._run.__aenter__()
        group: Group = create(Group, self._run, self._jobs, tokens.limiter)
        return group

    async def __aexit__(
        self,
        etype: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> bool:
        self._jobs.closing = True
        if exc is None and not self._jobs.may_grow:
            self._run.source_ended()
        try:
            return await self._run.__aexit__(etype, exc, tb)
        finally:
            self._jobs.end()
            del exc, tb  # see `exceptions`
