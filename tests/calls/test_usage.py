"""Wrong use: an error at once, before any item starts, that names the argument, what it got and what it takes."""

import asyncio
import functools
import math
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import trio

import trio_fanout as fanout
from helpers import ALL_POLICIES, POLICIES, deeper, deepest, double, nothing_left

ran = []


async def record(x):
    ran.append(x)


class Untouched:
    """An iterable that must not be iterated."""

    def __iter__(self):
        raise AssertionError


@pytest.fixture(autouse=True)
def _nothing_starts():
    ran.clear()
    yield
    assert ran == []


async def wrong(error, words, call, *args, **kwargs):
    """Check that a call fails in the way it should, and that the message holds all of `words`."""
    with nothing_left(), pytest.raises(error) as excinfo:
        await call(*args, **kwargs)
    assert type(excinfo.value) is error
    message = str(excinfo.value)
    assert all(re.search(rf"(?<!\w){re.escape(word)}", message) for word in words), message
    assert "\n" not in message
    assert getattr(excinfo.value, "__notes__", []) == []


CALLS = pytest.mark.parametrize("call", [fanout.map, fanout.do])


@CALLS
@pytest.mark.parametrize(("fn", "got"), [(None, "None"), (3, "3"), ("f", "str"), ([record], "list")])
async def test_fn_that_is_not_callable(call, fn, got):
    await wrong(TypeError, ["fn", got, "async function"], call, fn, Untouched())


@CALLS
async def test_fn_that_is_a_coroutine_object(call):
    """And Python does not warn, later and elsewhere, that it was never awaited."""
    await wrong(TypeError, ["fn", "coroutine", "async function"], call, record(1), Untouched())


@CALLS
@pytest.mark.parametrize(
    ("items", "got"), [(None, "None"), (3, "3"), (object(), "object"), (record, "function"), (list, "class list")]
)
async def test_items_that_cannot_be_iterated(call, items, got):
    await wrong(TypeError, ["items", got, "iterable"], call, record, items)


async def test_items_that_are_an_async_function_not_called():
    async def source():
        yield 1

    await wrong(TypeError, ["items", "function", "iterable"], fanout.map, record, source)


LIMITS = [
    (True, TypeError, "True"),
    (False, TypeError, "False"),
    (2.5, TypeError, "2.5"),
    (2.0, TypeError, "2.0"),
    (math.nan, TypeError, "nan"),
    (None, TypeError, "None"),
    ("3", TypeError, "str"),
    (trio.CapacityLimiter, TypeError, "class CapacityLimiter"),
    (0, ValueError, "0"),
    (-1, ValueError, "-1"),
]


@pytest.mark.parametrize("name", ["map", "do", "fan_out"])
@pytest.mark.parametrize(("limit", "error", "got"), LIMITS, ids=str)
async def test_limit_of_the_wrong_kind_or_size(name, limit, error, got):
    words = ["limit", got, "1 or more", "math.inf", "CapacityLimiter"]
    args = ([record], 1) if name == "fan_out" else (record, Untouched())
    await wrong(error, words, getattr(fanout, name), *args, limit=limit)


async def test_limit_that_is_another_primitive():
    await wrong(TypeError, ["limit", "Semaphore"], fanout.map, record, Untouched(), limit=trio.Semaphore(3))


async def test_limit_may_be_any_int_of_one_or_more():
    class Number(int):
        pass

    async def fn(x):
        return x

    for limit in (1, Number(3), 10**30, math.inf, trio.CapacityLimiter(math.inf)):
        assert await fanout.map(fn, [1], limit=limit) == [1]


@pytest.mark.parametrize("name", ["map", "do", "fan_out"])
@pytest.mark.parametrize(
    ("policy", "got"),
    [
        (None, "None"),
        (fanout.FailFast, "class FailFast"),
        (fanout.Collect, "class Collect"),
        ("fail", "str"),
        (3, "3"),
        (True, "True"),
    ],
    ids=str,
)
async def test_policy_of_the_wrong_kind(name, policy, got):
    args = ([record], 1) if name == "fan_out" else (record, Untouched())
    words = ["policy", got, "FailFast()", "Collect()"]
    if name != "do":
        words += ["Settle()", "FirstSuccess()"]
    await wrong(TypeError, words, getattr(fanout, name), *args, policy=policy)


@pytest.mark.parametrize("policy", [fanout.Settle(), fanout.Settle(move_on_after=1), fanout.FirstSuccess()], ids=str)
async def test_do_takes_no_policy_that_gives_something_back(policy):
    words = ["policy", type(policy).__name__, "FailFast()", "Collect()"]
    await wrong(TypeError, words, fanout.do, record, Untouched(), policy=policy)


@pytest.mark.parametrize("name", ["map", "do", "fan_out"])
@pytest.mark.parametrize(
    ("seconds", "error", "got"),
    [
        (0, ValueError, "0"),
        (0.0, ValueError, "0.0"),
        (-1, ValueError, "-1"),
        (-math.inf, ValueError, "-inf"),
        (math.nan, ValueError, "nan"),
        ("5", TypeError, "str"),
        (True, TypeError, "True"),
        ([], TypeError, "list"),
    ],
    ids=str,
)
async def test_item_timeout_that_is_not_above_zero(name, seconds, error, got):
    args = ([record], 1) if name == "fan_out" else (record, Untouched())
    await wrong(error, ["item_timeout", got, "seconds above 0"], getattr(fanout, name), *args, item_timeout=seconds)


@POLICIES
async def test_wrong_use_is_an_error_under_every_policy(policy):
    await wrong(TypeError, ["fn"], fanout.map, None, [1], policy=policy)
    await wrong(TypeError, ["items"], fanout.map, record, None, policy=policy)
    await wrong(ValueError, ["limit"], fanout.map, record, [1], policy=policy, limit=0)
    await wrong(ValueError, ["item_timeout"], fanout.map, record, [1], policy=policy, item_timeout=0)
    await wrong(TypeError, ["fns[1]"], fanout.fan_out, [record, None], 1, policy=policy)


async def test_wrong_use_is_an_error_without_items_too():
    await wrong(TypeError, ["fn"], fanout.map, None, [])
    await wrong(ValueError, ["limit"], fanout.map, record, [], limit=0)


# fan_out


@pytest.mark.parametrize(("fns", "got"), [(None, "None"), (record, "function"), (3, "3")])
async def test_fns_that_cannot_be_iterated(fns, got):
    await wrong(TypeError, ["fns", got, "iterable"], fanout.fan_out, fns, 1)


async def test_fns_that_are_only_async_iterable():
    async def source():
        yield record

    generator = source()
    await wrong(TypeError, ["fns", "iterable"], fanout.fan_out, generator, 1)
    await generator.aclose()


@pytest.mark.parametrize("bad", [None, 3, "text"])
async def test_fan_out_checks_all_its_functions_first(bad):
    await wrong(TypeError, ["fns[2]", "async function"], fanout.fan_out, [record, record, bad], 1)
    await wrong(TypeError, ["fns[2]"], fanout.fan_out, iter([record, record, bad]), 1)


async def test_fan_out_takes_no_coroutine_objects():
    await wrong(TypeError, ["fns[1]", "coroutine"], fanout.fan_out, [record, record(1)], 1)


# Policies


@pytest.mark.parametrize(
    ("value", "error", "got"),
    [
        (0, ValueError, "0"),
        (-3, ValueError, "-3"),
        (True, TypeError, "True"),
        (1.5, TypeError, "1.5"),
        (math.inf, TypeError, "inf"),
        ("1", TypeError, "str"),
    ],
    ids=str,
)
def test_wrong_max_failures(value, error, got):
    with pytest.raises(error) as excinfo:
        fanout.Collect(max_failures=value)
    assert all(word in str(excinfo.value) for word in ("max_failures", got, "1 or more"))


@pytest.mark.parametrize(
    ("value", "error", "got"),
    [
        (-1, ValueError, "-1"),
        (math.nan, ValueError, "nan"),
        ("1", TypeError, "str"),
        (True, TypeError, "True"),
    ],
    ids=str,
)
def test_wrong_move_on_after(value, error, got):
    with pytest.raises(error) as excinfo:
        fanout.Settle(move_on_after=value)
    assert all(word in str(excinfo.value) for word in ("move_on_after", got, "seconds"))


# Functions that turn out not to be async


def blocking(x):
    return x


@POLICIES
@pytest.mark.parametrize("item_timeout", [None, 5])
@pytest.mark.parametrize(("fn", "got"), [(blocking, "1"), (lambda x: None, "None"), (lambda x: [x], "list")])
async def test_fn_that_returns_what_cannot_be_awaited(policy, item_timeout, fn, got):
    """It is never recorded as a failure of the item."""
    kwargs = {"policy": policy, "item_timeout": item_timeout}
    await wrong(TypeError, ["in_thread", got], fanout.map, fn, [1, 2], **kwargs)
    await wrong(TypeError, ["in_thread", got], fanout.fan_out, [fn], 1, **kwargs)
    if policy in ALL_POLICIES[:2]:
        await wrong(TypeError, ["in_thread", got], fanout.do, fn, iter([1, 2]), **kwargs)


@POLICIES
async def test_fn_that_returns_what_cannot_be_awaited_ends_the_run(shared, policy, autojump_clock):
    """Also for one item only, after others have failed or succeeded."""
    cancelled = []

    async def good(x):
        if x == 0 and isinstance(policy, (fanout.Collect, fanout.Settle, fanout.FirstSuccess)):
            raise ValueError
        try:
            await trio.sleep(9)
        except trio.Cancelled:
            cancelled.append(x)
            raise
        return x

    async def late():
        yield 0
        yield 1
        await trio.sleep(1)
        yield 2

    limiter = trio.CapacityLimiter(3)
    fn = functools.partial(lambda x: 7 if x == 2 else good(x))
    await wrong(TypeError, ["in_thread"], fanout.map, fn, late(), limit=limiter if shared else 3, policy=policy)
    assert 1 in cancelled
    assert limiter.borrowed_tokens == 0


@POLICIES
async def test_what_cannot_be_awaited_is_told_with_the_name_of_the_run(policy):
    with pytest.raises(TypeError, match=r"^map\(blocking\): fn must be an async function, but calling it returned 1"):
        await fanout.map(blocking, [1], policy=policy)


@POLICIES
async def test_an_async_generator_function_is_not_an_async_function(policy):
    async def generate(x):
        yield x

    await wrong(TypeError, ["async_generator", "in_thread"], fanout.map, generate, [1], policy=policy)


async def test_a_type_error_of_the_items_own_is_a_failure_like_any_other():
    """Only the caller's mistake is taken for one."""

    async def fn(x):
        raise TypeError("mine")

    with pytest.raises(fanout.FanOutError) as excinfo:
        await fanout.map(fn, [1, 2], policy=fanout.Collect())
    assert excinfo.value.indices == (0, 1)


async def test_wrong_use_of_a_nested_run_is_a_failure_of_the_outer_item():
    async def outer(x):
        return await fanout.map(blocking, [1])

    with pytest.raises(fanout.FanOutError) as excinfo:
        await fanout.map(outer, [1, 2], policy=fanout.Collect())
    assert [type(exc) for exc in excinfo.value.exceptions] == [TypeError] * 2
    with pytest.raises(TypeError) as raised:
        await fanout.map(outer, [1])
    assert raised.value.__notes__ == ["item 0"]


async def test_each_coroutine_among_fns_is_closed():
    with pytest.raises(TypeError, match=r"fns\[0\] must be an async function"):
        coroutines = [double(1), 3, double(2)]
        await fanout.fan_out(coroutines, 1)


@pytest.mark.parametrize("needs", [{"a", "b"}, frozenset("ab"), set()])
def test_needs_without_an_order(needs):
    with pytest.raises(TypeError, match=r"in order, got a (frozen)?set"):
        fanout.Step(trio.sleep, needs=needs)


@pytest.mark.parametrize("needs", [{"a": 1, "b": 2}, {"a": 1, "b": 2}.keys(), ["a", "b"], iter("ab")])
def test_needs_with_an_order(needs):
    assert fanout.Step(trio.sleep, needs=needs).needs == ("a", "b")


@pytest.mark.parametrize("needs", [[["x"]], [{}]])
def test_needs_that_cannot_be_names(needs):
    with pytest.raises(TypeError, match=r"^needs of a Step must be an iterable of names"):
        fanout.Step(trio.sleep, needs=needs)


async def test_seconds_that_no_float_can_hold():
    with pytest.raises(ValueError, match="item_timeout"):
        await fanout.map(trio.sleep, [0], item_timeout=10**400)
    with pytest.raises(ValueError, match="move_on_after"):
        fanout.Settle(move_on_after=10**400)


# Where it is called


async def in_a_stream():
    async with fanout.stream(double, [1]):
        pass


async def in_a_group():
    async with fanout.open_group():
        pass


CALLS = {
    "map": lambda: fanout.map(double, [1]),
    "do": lambda: fanout.do(double, [1]),
    "fan_out": lambda: fanout.fan_out([double], 1),
    "run_graph": lambda: fanout.run_graph({}),
    "stream": in_a_stream,
    "open_group": in_a_group,
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_outside_trio_says_what_to_do(name):
    with pytest.raises(RuntimeError, match=rf"^{name}\(\) needs Trio.*trio\.run"):
        CALLS[name]().send(None)
    with pytest.raises(RuntimeError, match=rf"^{name}\(\) needs Trio.*trio\.run"):
        asyncio.run(CALLS[name]())


ADAPTERS = {
    "cap": lambda: fanout.cap(double, 2),
    "cap, adaptive": lambda: fanout.cap(double, 2, overloaded=bool),
    "throttle": lambda: fanout.throttle(double, 2),
    "in_thread": lambda: fanout.in_thread(str),
    "in_process": lambda: fanout.in_process(str),
    "in_executor": lambda: fanout.in_executor(ThreadPoolExecutor(), str),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_called_outside_trio_says_what_to_do(name):
    fn = ADAPTERS[name]()
    with pytest.raises(RuntimeError, match=r"^(double|str)\(\) needs Trio.*trio\.run"):
        fn(1).send(None)
    with pytest.raises(RuntimeError, match=r"^(double|str)\(\) needs Trio.*trio\.run"):
        asyncio.run(fn(1))


@pytest.mark.parametrize("name", CALLS)
async def test_a_call_in_a_thread_of_trios_says_what_to_do(name):
    with pytest.raises(RuntimeError, match="not a Trio task"):
        await trio.to_thread.run_sync(lambda: CALLS[name]().send(None))


@pytest.mark.parametrize("name", ["start_soon", "statistics", "limiter", "cancel_scope", "stop"])
def test_what_open_group_returns_says_how_to_get_at_the_group(name):
    opener = fanout.open_group()
    with pytest.raises(AttributeError, match="use 'async with open_group"):
        getattr(opener, name)
    assert not hasattr(opener, name)


@pytest.mark.parametrize("name", ["receive", "stop", "statistics", "limiter", "aclose"])
def test_what_stream_returns_says_how_to_get_at_the_results(name):
    opener = fanout.stream(double, [1])
    with pytest.raises(AttributeError, match="use 'async with stream"):
        getattr(opener, name)


@pytest.mark.parametrize("opener", [fanout.open_group(), fanout.stream(double, [1])])
@pytest.mark.parametrize("name", ["start_sooner", "_run_", "__len__"])
def test_an_attribute_that_neither_has_is_a_plain_attribute_error(opener, name):
    with pytest.raises(AttributeError, match=f"object has no attribute '{name}'") as raised:
        getattr(opener, name)
    assert raised.value.name == name


@pytest.mark.parametrize("opener", [fanout.open_group(), fanout.stream(double, [1])])
def test_a_plain_for_says_what_is_to_be_written(opener):
    with pytest.raises(RuntimeError, match=r"use 'async with .* not 'for \.\.\. in"):
        for _ in opener:
            pass


# A full stack


@pytest.mark.parametrize("name", CALLS)
async def test_a_full_stack_leaves_no_nursery_open(name):
    """Whatever room is left when the call is made, it works or raises the RecursionError."""
    depth = await deepest()
    raised = 0
    for room in range(depth - 160, depth + 1):
        try:
            await deeper(room, CALLS[name])
        except RecursionError:
            raised += 1
        assert not trio.lowlevel.current_task().child_nurseries[1:]
    assert 0 < raised < 160


ADAPTED = {
    "cap": lambda: fanout.cap(trio.sleep, 1),
    "cap, key": lambda: fanout.cap(trio.sleep, 1, key=lambda seconds: 0),
    "cap, limiter": lambda: fanout.cap(trio.sleep, trio.CapacityLimiter(1)),
    "cap, overloaded": lambda: fanout.cap(trio.sleep, 1, overloaded=bool),
    "cap, weight": lambda: fanout.cap(trio.sleep, 1, weight=lambda seconds: 0.5),
    "throttle": lambda: fanout.throttle(trio.sleep, 1),
    "throttle, cost": lambda: fanout.throttle(trio.sleep, 1, cost=lambda seconds: 0.5),
}


@pytest.mark.parametrize("others", [0, 1, 2], ids=["none before", "one before", "two before"])
@pytest.mark.parametrize("name", ADAPTED)
async def test_a_full_stack_leaves_no_call_of_an_adapter_half_made(name, others, autojump_clock):
    """Whatever room is left, the call works or raises the RecursionError, and those after it have their turn."""
    raised = set()

    async def call_from(frames):
        try:
            await deeper(frames, functools.partial(call, 0))
        except RecursionError:
            raised.add(frames)
        await trio.sleep_forever()  # what the call has left behind does not go with its task

    most = await deepest() - 12  # what the tasks below have on their stacks less is within the range
    for frames in range(most - 100, most + 24):
        call = ADAPTED[name]()
        async with trio.open_nursery() as nursery:
            for _ in range(others):
                nursery.start_soon(call, 1)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(call_from, frames)
            await trio.testing.wait_all_tasks_blocked()
            with trio.fail_after(10):
                await call(0)
            nursery.cancel_scope.cancel()
    assert 0 < len(raised) < 124


@pytest.mark.parametrize("name", ["stop", "aclose", "group stop"])
async def test_a_full_stack_leaves_no_run_half_ended(name, autojump_clock):
    """Whatever room is left, it is ended or the RecursionError is raised. Otherwise, tasks would sleep forever."""

    async def source():
        yield 1
        await trio.sleep_forever()

    depth = await deepest()
    raised = 0
    for room in range(depth - 160, depth + 1):
        if name == "group stop":
            async with fanout.open_group() as group:
                handle = group.start_soon(double, 1)
                await handle.wait()
                try:
                    await deeper(room, group.stop)
                except RecursionError:
                    raised += 1
                    group.stop()
        else:
            async with fanout.stream(double, source()) as results:
                await results.receive()
                try:
                    await deeper(room, getattr(results, name))
                except RecursionError:
                    raised += 1
                    results.stop()
    assert 0 < raised < 160
    assert trio.current_time() == 0
