"""`in_thread`: blocking functions in Trio's threads."""

import contextvars
import functools
import sys
import threading

import pytest
import trio
from trio.testing import assert_checkpoints

import trio_fanout as fanout
from helpers import PATIENCE, no_cycles, nothing_left
from trio_fanout import in_thread

tint = contextvars.ContextVar("tint", default="none")


async def coroutine_function():
    raise AssertionError


async def async_generator_function():
    yield


class AsyncCall:
    async def __call__(self):
        raise AssertionError


class Caller:
    """An object that can be called, and has no name of its own."""

    def __call__(self, item):
        return item


async def test_results_in_order():
    assert await fanout.map(in_thread(str.upper), ["a", "b", "c"]) == ["A", "B", "C"]


async def test_runs_in_a_thread_of_trio_and_passes_all_arguments():
    def fn(*args, **kwargs):
        assert threading.current_thread() is not threading.main_thread()
        return args, kwargs

    assert await in_thread(fn)(1, 2, key=3) == ((1, 2), {"key": 3})


async def test_limit_of_the_call_is_the_only_one():
    """A hundred threads, all there at once; Trio's own limit is 40."""
    barrier = threading.Barrier(100, timeout=PATIENCE)
    assert sorted(await fanout.map(in_thread(lambda _: barrier.wait()), range(100), limit=100)) == list(range(100))


async def test_limit_of_the_call_bounds_the_threads():
    lock, now, peak = threading.Lock(), 0, 0
    pair = threading.Barrier(2, timeout=PATIENCE)

    def fn(_):
        nonlocal now, peak
        with lock:
            now += 1
            peak = max(peak, now)
        pair.wait()
        with lock:
            now -= 1

    await fanout.map(in_thread(fn), range(10), limit=2)
    assert peak == 2


async def test_does_not_use_up_trios_own_tokens():
    limiter = trio.to_thread.current_default_thread_limiter()

    async def borrowed():
        return limiter.borrowed_tokens

    assert await in_thread(lambda: trio.from_thread.run(borrowed))() == 0


async def test_from_thread_works_inside():
    async def double(x):
        await trio.lowlevel.checkpoint()
        return x * 2

    def fn(x):
        return trio.from_thread.run(double, x) + trio.from_thread.run_sync(lambda: x)

    assert await fanout.map(in_thread(fn), range(3)) == [0, 3, 6]


async def test_context_goes_in_and_does_not_come_back():
    def fn(item):
        seen = tint.get()
        tint.set(item)
        return seen

    tint.set("outer")
    assert await fanout.map(in_thread(fn), ["a", "b"], limit=1) == ["outer", "outer"]
    assert tint.get() == "outer"


async def test_threads_are_named_after_function_and_task():
    def resize(_):
        return threading.current_thread().name

    for fn in (resize, functools.partial(resize)):
        assert await fanout.map(in_thread(fn), [0]) == ["resize from map(resize)"]


@pytest.mark.parametrize(
    ("fn", "name"), [(len, "len"), (functools.partial(int, base=2), "int"), (Caller(), "Caller"), (str.upper, "upper")]
)
async def test_is_named_like_the_function(fn, name):
    assert in_thread(fn).__name__ == name
    assert in_thread(fn).__doc__ == fn.__doc__


async def test_failure_keeps_its_type_and_gets_its_index():
    def fn(item):
        if item == 2:
            raise KeyError(item)
        return item

    with pytest.raises(KeyError) as caught:
        await fanout.map(in_thread(fn), range(3))
    assert caught.value.__notes__ == ["item 2"]


@pytest.mark.parametrize("policy", [fanout.FailFast(), fanout.Settle()])
async def test_exit_in_a_thread_is_one_of_the_program(policy):
    """A thread is part of it: unlike another process, or an executor."""
    with pytest.raises(SystemExit, match="3"):
        await fanout.map(in_thread(sys.exit), [3], policy=policy)


async def test_each_call_is_a_checkpoint():
    with assert_checkpoints():
        await in_thread(int)()


async def test_cancelled_before_it_starts_calls_nothing():
    called = []
    with trio.CancelScope() as scope:
        scope.cancel()
        await in_thread(called.append)(1)
    assert scope.cancelled_caught
    assert called == []


async def test_cancelled_is_waited_for_by_default():
    """And gives back what the function did."""
    release = threading.Event()
    with nothing_left():
        async with trio.open_nursery() as nursery:
            results = []

            @nursery.start_soon
            async def _call():
                results.append(await in_thread(lambda: release.wait(PATIENCE))())

            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await trio.testing.wait_all_tasks_blocked()
                assert results == []
                release.set()
    assert results == [True]


async def test_function_can_ask_whether_it_was_cancelled():
    asking = threading.Event()

    def fn():
        asking.wait(PATIENCE)
        trio.from_thread.check_cancelled()
        raise AssertionError

    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_thread(fn))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        asking.set()
    assert nursery.cancel_scope.cancelled_caught


async def test_abandoned_at_once_and_its_failure_lost():
    release, done = threading.Event(), threading.Event()

    def fn():
        release.wait(PATIENCE)
        done.set()
        raise ValueError

    with nothing_left():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(in_thread(fn, abandon_on_cancel=True))
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    assert nursery.cancel_scope.cancelled_caught
    assert not done.is_set()
    release.set()
    assert await in_thread(done.wait)(PATIENCE)


async def test_abandoned_work_may_exceed_the_limit(autojump_clock):
    """With a limit of 1, three threads meet: each item timed out, and left its thread behind."""
    meeting = threading.Barrier(4, timeout=PATIENCE)
    fn = in_thread(lambda _: meeting.wait(), abandon_on_cancel=True)
    await fanout.map(fn, range(3), limit=1, item_timeout=1, policy=fanout.Settle())
    assert await in_thread(meeting.wait)() in range(4)


def test_works_in_runs_in_two_threads_at_once():
    """The same adapter: nothing in it belongs to a Trio run."""
    barrier = threading.Barrier(2, timeout=PATIENCE)
    fn = in_thread(lambda item: (barrier.wait(), item)[1])
    results = {}

    def run(which):
        results[which] = trio.run(functools.partial(fanout.map, fn, [which] * 5, limit=1))

    threads = [threading.Thread(target=run, args=(which,)) for which in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {"a": ["a"] * 5, "b": ["b"] * 5}


async def test_leaves_no_cycles():
    def fail():
        raise ValueError

    with no_cycles():
        try:
            await in_thread(fail)()
        except ValueError as exc:
            del exc


@pytest.mark.parametrize(
    "fn",
    [coroutine_function, async_generator_function, AsyncCall(), functools.partial(coroutine_function)],
)
def test_async_function_is_a_type_error_at_once_that_names_it(fn):
    name = getattr(fn, "__name__", "AsyncCall|coroutine_function")
    with pytest.raises(TypeError, match=f"fn of in_thread must be a function that is not async, but ({name}) is"):
        in_thread(fn)


def test_async_method_is_a_type_error_at_once():
    with pytest.raises(TypeError, match="but __call__ is"):
        in_thread(AsyncCall().__call__)


def test_abandon_on_cancel_must_be_a_bool():
    with pytest.raises(TypeError, match=r"^abandon_on_cancel must be True or False, got None$"):
        in_thread(print, abandon_on_cancel=None)


def test_coroutine_in_the_place_of_the_function_is_a_type_error_that_says_what_to_do():
    """And no warning that it was never awaited."""
    with pytest.raises(TypeError, match="got a coroutine: pass the function itself, without calling it"):
        in_thread(coroutine_function())


@pytest.mark.parametrize(("fn", "got"), [(3, "3"), (None, "None"), ("f", "a str")])
def test_what_cannot_be_called_is_a_type_error_at_once(fn, got):
    with pytest.raises(TypeError, match=f"fn of in_thread must be a function that is not async, got {got}"):
        in_thread(fn)


async def test_function_that_returns_a_coroutine_is_a_type_error():
    """Seen only when it is called: Trio says so."""
    with pytest.raises(TypeError, match="asynchronous"):
        await in_thread(lambda: coroutine_function())()  # noqa: PLW0108
