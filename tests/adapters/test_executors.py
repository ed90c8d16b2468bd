"""`in_executor`: functions in executors of `concurrent.futures`."""

import contextvars
import functools
import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
import weakref
from concurrent.futures import CancelledError, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import trio_fanout as fanout
from helpers import PATIENCE, no_cycles, nothing_left
from trio_fanout import in_executor, in_thread

tint = contextvars.ContextVar("tint", default="none")


class ByHand(Executor):
    """An executor that does nothing by itself: the test finishes its futures."""

    def __init__(self):
        self.futures = []
        self.calls = []
        self.changed = trio.Event()
        self._token = trio.lowlevel.current_trio_token()

    def submit(self, fn, /, *args, **kwargs):
        future = self.new_future()
        self.calls.append((fn, args, kwargs))
        self.futures.append(future)
        self._token.run_sync_soon(self._tell)
        return future

    def new_future(self):
        return Future()

    def _tell(self):
        self.changed.set()
        self.changed = trio.Event()

    async def submitted(self, count):
        while len(self.futures) < count:
            await self.changed.wait()
        await wait_all_tasks_blocked()


class SlowFuture(Future):
    """One whose `cancel` blocks until it is told to go on."""

    def __init__(self):
        super().__init__()
        self.cancelling = threading.Event()
        self.go_on = threading.Event()

    def cancel(self):
        self.cancelling.set()
        return self.go_on.wait(PATIENCE) and super().cancel()


class SlowToSubmit(ByHand):
    """One whose `submit` blocks until it is told to go on."""

    def __init__(self):
        super().__init__()
        self.submitting = threading.Event()
        self.go_on = threading.Event()

    def submit(self, fn, /, *args, **kwargs):
        self.submitting.set()
        assert self.go_on.wait(PATIENCE)
        return super().submit(fn, *args, **kwargs)


async def others_have_their_turn():
    """Fails to return while anything blocks the Trio thread."""
    for _ in range(10):
        await trio.lowlevel.checkpoint()


def square(x):
    return x * x


def fail_by_key(item):
    return {0: "zero"}[item]


def kill_itself():
    os.kill(os.getpid(), signal.SIGKILL)


def leave(code):
    sys.exit(code)


def interrupt(_):
    raise KeyboardInterrupt


def leave_several(_):
    raise BaseExceptionGroup("several", [SystemExit(2), ValueError()])


def returns_coroutine(_):
    return coroutine_function()


class Awaitable:
    def __await__(self):
        raise AssertionError


def awaitable(_):
    return Awaitable()


def pid(_):
    return os.getpid()


async def coroutine_function():
    raise AssertionError


@pytest.fixture
def threads():
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture(scope="module")
def processes():
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


# Results and failures


async def test_thread_pool_results_in_order(threads):
    assert await fanout.map(in_executor(threads, square), range(2_000), limit=50) == [x * x for x in range(2_000)]


async def test_process_pool_results_in_order(processes):
    assert await fanout.map(in_executor(processes, square), range(200), limit=20) == [x * x for x in range(200)]


async def test_process_pool_runs_elsewhere(processes):
    assert os.getpid() not in await fanout.map(in_executor(processes, pid), range(4))


async def test_all_arguments_arrive(threads):
    """Keyword arguments are no business of `submit`, which may have some of the same name."""

    def fn(*args, **kwargs):
        return args, kwargs

    assert await in_executor(threads, fn)(1, key=2, fn=3) == ((1,), {"key": 2, "fn": 3})
    pool = ByHand()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(functools.partial(in_executor(pool, fn), 1, pure=False))
        await pool.submitted(1)
        pool.futures[0].set_result(None)
    ((bound, args, kwargs),) = pool.calls
    assert (args, kwargs) == ((1,), {})
    assert bound(1) == ((1,), {"pure": False})


async def test_no_more_futures_than_the_limit():
    pool = ByHand()

    async def finish():
        for done in range(10):
            await pool.submitted(min(done + 3, 10))
            assert len(pool.futures) - done <= 3
            pool.futures[done].set_result(done)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(finish)
        assert await fanout.map(in_executor(pool, square), range(10), limit=3) == list(range(10))


async def test_calls_are_submitted_in_the_order_they_are_made():
    pool = ByHand()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(functools.partial(fanout.map, limit=100), in_executor(pool, square), range(100))
        await pool.submitted(100)
        assert [args for _, args, _ in pool.calls] == [(item,) for item in range(100)]
        for future in pool.futures:
            future.set_result(None)


async def test_failure_keeps_its_type_and_gets_its_index(threads, processes):
    for pool in (threads, processes):
        with pytest.raises(KeyError) as caught:
            await fanout.map(in_executor(pool, fail_by_key), range(2))
        assert caught.value.__notes__ == ["item 1"]


async def test_failure_keeps_its_traceback(threads):
    with pytest.raises(KeyError) as caught:
        await in_executor(threads, fail_by_key)(3)
    assert caught.traceback[-1].name == "fail_by_key"


async def test_what_cannot_be_pickled_is_one_items_failure(processes):
    outcomes = await fanout.map(in_executor(processes, square), [1, threading.Lock(), 3], policy=fanout.Settle())
    assert isinstance(outcomes[1].error, TypeError)
    assert [outcomes[0].unwrap(), outcomes[2].unwrap()] == [1, 9]


async def test_failure_to_submit_is_one_items_failure(threads):
    threads.shutdown()
    fn = in_executor(threads, square)
    for _ in range(2):  # the second finds its turn free
        with pytest.raises(RuntimeError, match="after shutdown") as caught:
            await fanout.map(fn, [1])
        assert caught.value.__notes__ == ["item 0"]


@pytest.mark.skipif(sys.platform == "win32", reason="processes are not killed by signals there")
async def test_broken_process_pool_is_a_failure():
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        with pytest.raises(BrokenProcessPool):
            await in_executor(pool, kill_itself)()
        with pytest.raises(BrokenProcessPool):
            await in_executor(pool, square)(3)


async def test_cancelled_by_others_is_a_failure():
    pool = ByHand()

    async def cancel():
        await pool.submitted(1)
        pool.futures[0].cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cancel)
        with pytest.raises(CancelledError, match=r"^the executor or somebody else"):
            await in_executor(pool, square)(3)


# What must not come out of an executor, or never does


@pytest.mark.parametrize("abandon_on_cancel", [False, True])
async def test_function_that_returns_a_coroutine_is_a_type_error(threads, abandon_on_cancel):
    """And no warning that a coroutine was never awaited."""
    for fn, returned in ((lambda _: coroutine_function(), "a coroutine"), (awaitable, "an Awaitable")):
        with pytest.raises(TypeError, match=f"^fn of in_executor must be .* not async, but .* returned {returned}"):
            await fanout.map(in_executor(threads, fn, abandon_on_cancel=abandon_on_cancel), [1])


async def test_function_that_returns_a_coroutine_is_a_type_error_across_processes(processes, capfd):
    for fn in (returns_coroutine, functools.partial(returns_coroutine), awaitable):
        with pytest.raises(TypeError, match="must be a function that is not async") as caught:
            await in_executor(processes, fn)(1)
        assert fanout.in_executor(processes, fn).__name__ in str(caught.value)
    assert "never awaited" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("fn", "arg", "told"),
    [
        (leave, 3, r"leave raised SystemExit\(3\), which under in_executor ends just this call"),
        (leave, "out of disk", "'out of disk'"),
        (interrupt, None, r"interrupt raised KeyboardInterrupt\(\)"),
        (leave_several, None, "leave_several raised BaseExceptionGroup"),
    ],
)
@pytest.mark.parametrize("where", ["threads", "processes"])
async def test_a_base_exception_is_one_items_failure(request, where, fn, arg, told):
    """`sys.exit()` in an executor does not end the caller's program."""
    work = in_executor(request.getfixturevalue(where), fn)
    with pytest.raises(RuntimeError, match=told) as caught:
        await fanout.map(work, [arg])
    assert caught.value.__notes__ == ["item 0"]
    assert caught.value.__cause__ is not None
    (one,) = await fanout.map(work, [arg], policy=fanout.Settle())
    assert type(one.error) is RuntimeError


@pytest.mark.parametrize("exc", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
async def test_a_base_exception_is_a_failure_also_if_the_executor_puts_it_into_the_future(exc):
    class Failing(ByHand):
        def new_future(self):
            future = Future()
            future.set_exception(exc)
            return future

    with pytest.raises(RuntimeError, match=f"square raised {type(exc).__name__}") as caught:
        await in_executor(Failing(), square)(3)
    assert caught.value.__cause__ is exc


async def test_submit_that_exits_is_a_failure():
    class Exiting(ByHand):
        def new_future(self):
            sys.exit("no more")

    for _ in range(2):  # the second finds its turn free
        with pytest.raises(RuntimeError, match=r"SystemExit\('no more'\)"):
            await fanout.map(in_executor(Exiting(), square), [3])


@pytest.mark.parametrize("future", [None, 3, []])
async def test_submit_that_gives_no_future_is_one_items_failure(future):
    pool = ByHand()
    pool.new_future = lambda: future
    with pytest.raises(TypeError, match=r"^submit\(\) of the executor must return a concurrent\.futures\.Future, got"):
        await fanout.map(in_executor(pool, square), [3])
    (one,) = await fanout.map(in_executor(pool, square), [3], policy=fanout.Settle())
    assert type(one.error) is TypeError


class Improper(Future):
    """A future some of whose methods raise."""

    def __init__(self, *broken, error):
        super().__init__()
        self.set_result("done")
        for name in broken:
            setattr(self, name, self._raise)
        self._error = error

    def _raise(self, *args):
        raise self._error


@pytest.mark.parametrize("broken", ["add_done_callback", "cancelled", "exception", "result"])
@pytest.mark.parametrize(("error", "raised"), [(ValueError("broken"), ValueError), (SystemExit(3), RuntimeError)])
async def test_future_whose_methods_raise_is_one_items_failure(broken, error, raised):
    pool = ByHand()
    pool.new_future = functools.partial(Improper, broken, error=error)
    fn = in_executor(pool, square)
    with nothing_left():
        for _ in range(2):
            with pytest.raises(raised):
                await fanout.map(fn, [3])
        outcomes = await fanout.map(fn, range(3), policy=fanout.Settle())
    assert [type(one.error) for one in outcomes] == [raised] * 3


async def test_future_that_takes_no_callback_is_cancelled(caplog):
    """Nothing can wait for it."""
    cancelled = threading.Event()

    class Deaf(Future):
        def add_done_callback(self, fn):
            raise ValueError("deaf")

        def cancel(self):
            cancelled.set()
            return super().cancel()

    pool = ByHand()
    pool.new_future = Deaf
    with pytest.raises(ValueError, match="deaf"):
        await in_executor(pool, square)(3)
    assert await in_thread(cancelled.wait)(PATIENCE)


async def test_cancelled_while_it_submits_what_is_not_a_future():
    """The cancellation does not hide it."""

    class Nothing(SlowToSubmit):
        def new_future(self):
            return None

    pool = Nothing()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def _call():
            with pytest.raises(TypeError, match="must return"):
                await in_executor(pool, square)(3)

        await in_thread(pool.submitting.wait)(PATIENCE)
        nursery.cancel_scope.cancel()
        pool.go_on.set()


async def test_future_without_cancel_does_not_keep_others_from_being_cancelled(caplog):
    class NoCancel(Future):
        cancel = property()

    pool = ByHand()
    fn = in_executor(pool, square, abandon_on_cancel=True)
    for pool.new_future in (NoCancel, Future):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fn, 3)
            await pool.submitted(len(pool.futures) + 1)
            nursery.cancel_scope.cancel()
        if pool.new_future is NoCancel:
            while not caplog.records:
                await trio.lowlevel.checkpoint()
    await finished(pool.futures[1])
    assert pool.futures[1].cancelled()


async def test_failure_whose_class_has_its_own_idea_of_tracebacks_arrives(threads):
    class Odd(Exception):
        def with_traceback(self, tb):
            raise AssertionError

    def fail(_):
        raise Odd

    with pytest.raises(Odd):
        await in_executor(threads, fail)(3)


async def test_future_that_is_done_at_once():
    class AtOnce(ByHand):
        def new_future(self):
            future = Future()
            future.set_result("done")
            return future

    assert await fanout.map(in_executor(AtOnce(), square), range(3)) == ["done"] * 3


async def test_submits_in_the_context_of_the_call():
    class Tinted(ByHand):
        def new_future(self):
            future = Future()
            future.set_result(tint.get())
            return future

    tint.set("outer")
    assert await in_executor(Tinted(), square)(3) == "outer"


async def test_no_thread_to_submit_in_is_a_failure(threads, monkeypatch):
    def start_thread_soon(*args):
        raise RuntimeError("can't start new thread")

    fn = in_executor(threads, square)
    with monkeypatch.context() as patch:
        patch.setattr(trio.lowlevel, "start_thread_soon", start_thread_soon)
        with pytest.raises(RuntimeError, match="new thread"):
            await fn(3)
    assert await fn(3) == 9


# Nothing blocks the Trio thread


async def test_submit_that_blocks_lets_other_tasks_run():
    pool = SlowToSubmit()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_executor(pool, square), 3)
        await in_thread(pool.submitting.wait)(PATIENCE)
        await others_have_their_turn()
        pool.go_on.set()
        await pool.submitted(1)
        pool.futures[0].set_result(9)


async def test_cancel_that_blocks_lets_other_tasks_run():
    pool = ByHand()
    pool.new_future = SlowFuture
    with nothing_left():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(in_executor(pool, square), 3)
            await pool.submitted(1)
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await in_thread(pool.futures[0].cancelling.wait)(PATIENCE)
                await others_have_their_turn()
            pool.futures[0].go_on.set()
    assert nursery.cancel_scope.cancelled_caught
    assert pool.futures[0].cancelled()


# Cancellation


async def test_cancelled_before_it_starts_submits_nothing():
    pool = ByHand()
    with trio.CancelScope() as scope:
        scope.cancel()
        await in_executor(pool, square)(3)
    assert scope.cancelled_caught
    assert pool.futures == []


async def test_cancelled_while_another_submits_submits_nothing():
    pool = SlowToSubmit()
    fn = in_executor(pool, square)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fn, 3)
        await in_thread(pool.submitting.wait)(PATIENCE)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as inner:
                inner.start_soon(fn, 4)
                await wait_all_tasks_blocked()
                scope.cancel()
        assert scope.cancelled_caught
        pool.go_on.set()
        await pool.submitted(1)
        pool.futures[0].set_result(9)
    assert [args for _, args, _ in pool.calls] == [(3,)]


async def test_cancelled_while_it_submits_is_cancelled_once_it_has():
    pool = SlowToSubmit()
    with nothing_left():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(in_executor(pool, square), 3)
            await in_thread(pool.submitting.wait)(PATIENCE)
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await wait_all_tasks_blocked()
                assert len(nursery.child_tasks) == 1
            pool.go_on.set()
    assert nursery.cancel_scope.cancelled_caught
    assert pool.futures[0].cancelled()


async def test_what_has_not_started_is_cancelled_and_what_runs_is_waited_for(threads):
    """Of ten calls in a pool of two, two run: their results come back, and the rest is cancelled."""
    release = threading.Event()
    running = threading.Barrier(3, timeout=PATIENCE)
    results = []

    def fn(item):
        running.wait()
        return release.wait(PATIENCE) and item

    async def call(item):
        results.append(await in_executor(threads, fn)(item))

    with nothing_left():
        async with trio.open_nursery() as nursery:
            for item in range(10):
                nursery.start_soon(call, item)
            await in_thread(running.wait)()
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                while len(nursery.child_tasks) > 2:
                    await trio.lowlevel.checkpoint()
                assert results == []
            release.set()
    assert len(results) == 2


async def test_failure_of_what_was_waited_for_is_raised_over_the_cancellation(threads):
    """It did not come out of the cancellation, so that a time-out does not hide it."""
    release, running = threading.Event(), threading.Event()

    def fn(_):
        running.set()
        release.wait(PATIENCE)
        raise KeyError

    async def call():
        with pytest.raises(KeyError) as caught:
            await fanout.map(in_executor(threads, fn), [0])
        assert caught.value.__notes__ == ["item 0"]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        await in_thread(running.wait)(PATIENCE)
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await wait_all_tasks_blocked()
        release.set()


async def test_item_timeout_cancels_the_future(autojump_clock):
    pool = ByHand()
    with pytest.raises(trio.TooSlowError):
        await fanout.map(in_executor(pool, square), [3], item_timeout=5)
    assert pool.futures[0].cancelled()


async def test_abandoned_at_once_while_it_runs():
    pool = ByHand()
    with nothing_left():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(in_executor(pool, square, abandon_on_cancel=True), 3)
            await pool.submitted(1)
            pool.futures[0].set_running_or_notify_cancel()
            nursery.cancel_scope.cancel()
    assert nursery.cancel_scope.cancelled_caught
    pool.futures[0].set_exception(ValueError())  # is lost
    await wait_all_tasks_blocked()


async def test_abandoned_at_once_while_cancelling_blocks():
    pool = ByHand()
    pool.new_future = SlowFuture
    with nothing_left():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(in_executor(pool, square, abandon_on_cancel=True), 3)
            await pool.submitted(1)
            nursery.cancel_scope.cancel()
    assert not pool.futures[0].cancelled()
    pool.futures[0].go_on.set()
    await finished(pool.futures[0])
    assert pool.futures[0].cancelled()


async def test_abandoned_at_once_while_it_submits_is_cancelled_later():
    pool = SlowToSubmit()
    with nothing_left():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(in_executor(pool, square, abandon_on_cancel=True), 3)
            await in_thread(pool.submitting.wait)(PATIENCE)
            nursery.cancel_scope.cancel()
    pool.go_on.set()
    await pool.submitted(1)
    await finished(pool.futures[0])
    assert pool.futures[0].cancelled()


async def finished(future):
    """Wait until a future is done, and all that it tells of it has been told."""
    done = trio.Event()
    token = trio.lowlevel.current_trio_token()
    future.add_done_callback(lambda _: token.run_sync_soon(done.set))
    await done.wait()


def abandon_one(pool_class, ready):
    """Run a call in an executor until `ready` says that it has come far enough, and leave it behind."""

    async def main():
        pool = pool_class()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(in_executor(pool, square, abandon_on_cancel=True), 3)
            await ready(pool)
            nursery.cancel_scope.cancel()
        return pool

    return trio.run(main)


def until_gone(ref, meanwhile=lambda: time.sleep(0)):
    """Wait until an object is gone that a thread has, until it is done with it."""
    deadline = time.monotonic() + PATIENCE
    while ref() is not None:
        assert time.monotonic() < deadline
        meanwhile()


def test_callback_after_the_run_has_ended_harms_nothing(caplog):
    async def ready(pool):
        await pool.submitted(1)
        pool.futures[0].set_running_or_notify_cancel()

    future = abandon_one(ByHand, ready).futures.pop()
    future.set_result(9)
    assert caplog.records == []
    gone = weakref.ref(future)
    del future
    until_gone(gone)  # no cycle keeps it


class SlowToSubmitForGood(SlowToSubmit):
    """The same, for when there is no run left to tell."""

    def _tell(self):
        raise AssertionError

    def submit(self, fn, /, *args, **kwargs):
        self.submitting.set()
        assert self.go_on.wait(PATIENCE)
        future = Future()
        self.futures.append(future)
        return future


def test_submitted_after_the_run_has_ended_is_cancelled():
    async def ready(pool):
        await in_thread(pool.submitting.wait)(PATIENCE)

    pool = abandon_one(SlowToSubmitForGood, ready)
    pool.go_on.set()
    while not pool.futures:
        time.sleep(0)
    with pytest.raises(CancelledError):
        pool.futures[0].result(PATIENCE)


def test_failure_to_submit_after_the_run_has_ended_is_lost(capfd):
    class LostError(Exception):
        pass

    class Failing(SlowToSubmitForGood):
        def submit(self, fn, /, *args, **kwargs):
            error = LostError()
            self.lost = weakref.ref(error)
            self.submitting.set()
            assert self.go_on.wait(PATIENCE)
            try:
                raise error
            finally:
                del error

    async def ready(pool):
        await in_thread(pool.submitting.wait)(PATIENCE)

    pool = abandon_one(Failing, ready)
    pool.go_on.set()
    until_gone(pool.lost, gc.collect)  # the thread's frame has it, and its traceback leads to that
    assert capfd.readouterr().err == ""


def no_threads(*args):
    raise RuntimeError("can't start new thread")


@pytest.mark.parametrize("starts", [True, False], ids=["in a thread", "where none can be started"])
async def test_cancel_that_raises_is_logged_and_the_call_waited_for(starts, monkeypatch, caplog):
    class Uncancellable(Future):
        def cancel(self):
            raise OSError("no route to the scheduler")

    pool = ByHand()
    pool.new_future = Uncancellable
    results = []

    async def call(fn):
        results.append(await fn(3))

    async with trio.open_nursery() as nursery:
        fn = in_executor(pool, square)
        nursery.start_soon(call, fn)
        await pool.submitted(1)
        if not starts:
            monkeypatch.setattr(trio.lowlevel, "start_thread_soon", no_threads)
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            while not caplog.records:  # the future may still be on its way here
                await trio.lowlevel.checkpoint()
        pool.futures[0].set_result(9)
    assert results == [9]
    assert caplog.records[0].message == "Future.cancel() raised"
    assert "no route to the scheduler" in caplog.text


@pytest.mark.parametrize("abandon_on_cancel", [False, True])
async def test_cancelled_when_no_thread_can_be_started(abandon_on_cancel, monkeypatch):
    """The future is cancelled all the same, and so are later ones."""
    pool = ByHand()
    fn = in_executor(pool, square, abandon_on_cancel=abandon_on_cancel)
    for count in (1, 2):
        with nothing_left():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fn, 3)
                await pool.submitted(count)
                with monkeypatch.context() as patch:
                    if count == 1:
                        patch.setattr(trio.lowlevel, "start_thread_soon", no_threads)
                    nursery.cancel_scope.cancel()
                    with trio.CancelScope(shield=True):
                        await wait_all_tasks_blocked()
        assert nursery.cancel_scope.cancelled_caught
        await finished(pool.futures[-1])
        assert pool.futures[-1].cancelled()


async def test_no_thread_to_submit_in_is_one_calls_failure(monkeypatch):
    pool = ByHand()
    fn = in_executor(pool, square)
    with monkeypatch.context() as patch:
        patch.setattr(trio.lowlevel, "start_thread_soon", no_threads)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            await fn(3)
    async with trio.open_nursery() as nursery:  # it finds its turn free
        nursery.start_soon(fn, 3)
        await pool.submitted(1)
        pool.futures[0].set_result(9)


async def test_cancelled_as_the_thread_that_cancels_others_leaves(monkeypatch):
    """In the moment between the thread's last look and the release of its lock."""
    lock_class = threading.Lock
    leaving, asked = threading.Event(), threading.Event()

    class Lock:
        def __init__(self):
            self.lock = lock_class()

        def acquire(self, *, blocking):
            acquired = self.lock.acquire(blocking)
            if not acquired:
                asked.set()
            return acquired

        def release(self):
            leaving.set()
            assert asked.wait(PATIENCE)
            self.lock.release()

    async def call(scope):
        with scope:
            await fn(3)

    pool = ByHand()
    with monkeypatch.context() as patch:
        patch.setattr(threading, "Lock", Lock)
        fn = in_executor(pool, square)
    first, second = trio.CancelScope(), trio.CancelScope()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(call, first)
        nursery.start_soon(call, second)
        await pool.submitted(2)
        first.cancel()
        await in_thread(leaving.wait)(PATIENCE)
        second.cancel()
    assert asked.is_set()
    assert all(future.cancelled() for future in pool.futures)


def test_keyboard_interrupt_cancels_the_future():
    """Ctrl-C comes to a waiting call as a cancellation does."""

    @trio.lowlevel.enable_ki_protection
    async def interrupt(pool):
        await pool.submitted(1)
        signal.raise_signal(signal.SIGINT)

    async def main():
        pool = ByHand()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(interrupt, pool)
            with pytest.raises(KeyboardInterrupt):
                await in_executor(pool, square)(3)
            await finished(pool.futures[0])
        assert pool.futures[0].cancelled()

    trio.run(main)


# The rest


async def test_leaves_no_cycles():
    async def call(fn):
        try:
            await fn(3)
        except ValueError as exc:
            del exc

    with no_cycles():
        pool = ByHand()
        for finish in (lambda future: future.set_result(9), lambda future: future.set_exception(ValueError())):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(call, in_executor(pool, square))
                await pool.submitted(1)
                finish(pool.futures.pop())
        del pool, nursery, finish


@pytest.mark.parametrize("broken", ["add_done_callback", "cancelled", "exception", "result", "function"])
async def test_what_an_executor_does_wrong_leaves_no_cycles(broken):
    class Broken(Future):
        pass

    def fail(self, *args):
        raise SystemExit(3)

    setattr(Broken, broken, fail)

    class Inline(ByHand):
        def submit(self, fn, *args):
            future = Broken()
            try:
                future.set_result(fn(*args))
            except RuntimeError as exc:
                future.set_exception(exc)
            return future

    async def call(fn):
        try:
            await fn(3)
        except RuntimeError as exc:
            del exc

    pool = Inline()
    await call(in_executor(pool, sys.exit))
    with no_cycles():
        await call(in_executor(pool, leave if broken == "function" else square))


async def test_failure_does_not_keep_its_future():
    """Also where the executor has raised it once, in a frame that knows the future; Dask does."""
    pool = ByHand()

    def raise_it():
        raise KeyError

    def fail(future):
        try:
            raise_it()
        except KeyError as exc:
            future.set_exception(exc)

    async def finish():
        await pool.submitted(1)
        fail(pool.futures.pop())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(finish)
        with pytest.raises(KeyError) as caught:
            await in_executor(pool, square)(3)
    names = [entry.name for entry in caught.traceback]
    assert "fail" not in names
    assert names[-1] == "raise_it"


async def test_cancelled_leaves_no_cycles():
    with no_cycles():
        pool = ByHand()
        for abandon in (False, True):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(in_executor(pool, square, abandon_on_cancel=abandon), 3)
                await pool.submitted(1)
                nursery.cancel_scope.cancel()
            await finished(pool.futures.pop())
        del pool, nursery


def test_works_in_a_second_run_and_in_two_threads_at_once(threads):
    fn = in_executor(threads, square)
    results = {}

    def run(which):
        results[which] = trio.run(fanout.map, fn, range(100))

    for _ in range(2):
        runners = [threading.Thread(target=run, args=(which,)) for which in "ab"]
        for runner in runners:
            runner.start()
        for runner in runners:
            runner.join()
        assert results == {which: [x * x for x in range(100)] for which in "ab"}
        results.clear()


@pytest.mark.parametrize(("fn", "name"), [(square, "square"), (functools.partial(int, base=2), "int"), (len, "len")])
def test_is_named_like_the_function(threads, fn, name):
    assert in_executor(threads, fn).__name__ == name


@pytest.mark.parametrize("executor", [None, 3, ThreadPoolExecutor])
def test_executor_that_is_none_is_a_type_error_at_once(executor):
    with pytest.raises(
        TypeError, match=r"^executor must be a concurrent\.futures\.Executor, got (None|3|the class Th)"
    ):
        in_executor(executor, square)


def test_async_function_is_a_type_error_at_once_that_names_it(threads):
    with pytest.raises(TypeError, match=r"^fn of in_executor must be a function that is not async, but coroutine_fun"):
        in_executor(threads, coroutine_function)


def test_abandon_on_cancel_must_be_a_bool(threads):
    with pytest.raises(TypeError, match=r"^abandon_on_cancel must be True or False, got 1$"):
        in_executor(threads, square, abandon_on_cancel=1)


def test_function_in_the_place_of_the_executor_is_a_type_error():
    with pytest.raises(TypeError, match=r"^executor must be"):
        in_executor(square, None)
