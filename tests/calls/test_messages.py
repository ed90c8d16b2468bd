"""What is said of bad input begins with the name of the argument."""

import pytest
import trio

import trio_fanout as fanout
from helpers import double


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: fanout.throttle(double, 0), "rate must be a finite number above 0, got 0"),
        (lambda: fanout.throttle(double, 1, per=-1), "per must be a finite number above 0, got -1"),
        (lambda: fanout.cap(double, 0), "limit must be an int of 1 or more, math.inf or a trio.CapacityLimiter, got 0"),
        (
            lambda: fanout.cap(double, trio.CapacityLimiter(1), key=str),
            (
                "limit must be an int of 1 or more or math.inf where there is a key, got a CapacityLimiter: "
                "each key has a limit of its own"
            ),
        ),
        (lambda: fanout.Meter(on_end=3), "on_end must be None or a function that is not async, got 3"),
        (
            lambda: fanout.stream(double, [], buffer=-1),
            "buffer must be an int of 0 or more, math.inf or None, got -1",
        ),
        (lambda: fanout.stream(double, 3), "items must be an iterable or an async iterable, got 3"),
        (
            lambda: fanout.throttle(double, 10**5000),  # more digits than Python prints
            "rate must be a finite number above 0, got an int of 16610 bits",
        ),
        (lambda: fanout.cap(double, type("", (), {})()), "limit must be an int of 1 or more, math.inf or a "),
    ],
)
async def test_at_its_beginning(call, says):
    with pytest.raises((TypeError, ValueError)) as info:
        call()
    assert str(info.value).startswith(says)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: fanout.fan_out(3, 1), "fns must be an iterable of async functions, got 3"),
        (
            lambda: fanout.fan_out([], 1, policy=3),
            "policy of fan_out must be FailFast(), Collect(), Settle() or FirstSuccess(), got 3",
        ),
        (lambda: fanout.run_graph(3), "steps must be a mapping from names to Steps, got 3"),
        (lambda: fanout.run_graph({"a": 3}), "steps must be a mapping from names to Steps, got 3 for step 'a'"),
        (
            lambda: fanout.run_graph({"a": fanout.Step(double, ["b"])}),
            "step 'a' needs 'b', which is not one of the steps",
        ),
        (
            lambda: fanout.run_graph({}, policy=fanout.FirstSuccess()),
            "policy of run_graph must be FailFast(), Collect() or Settle(), got a FirstSuccess",
        ),
        (
            lambda: fanout.open_group(policy=fanout.FirstSuccess()),
            "policy of open_group must be FailFast(), Collect() or Settle(), got a FirstSuccess",
        ),
        (
            lambda: fanout.open_group(policy=fanout.Settle(move_on_after=1)),
            "policy of open_group must be Settle() without move_on_after, got move_on_after=1",
        ),
        (
            lambda: fanout.map(double, [], item_timeout=0),
            "item_timeout must be None or a number of seconds above 0, got 0",
        ),
        (
            lambda: fanout.Settle(move_on_after=-1),
            "move_on_after must be None or a number of seconds of 0 or more, got -1",
        ),
        (
            lambda: fanout.Settle(move_on_after=10**400),
            "move_on_after must be a number of seconds that fits a float; math.inf is one",
        ),
        (
            lambda: fanout.in_thread(double),
            "fn of in_thread must be a function that is not async, but double is: Trio can run it as it is",
        ),
    ],
)
async def test_as_a_whole(call, says):
    with pytest.raises((TypeError, ValueError)) as info:
        await call()
    assert str(info.value) == says


async def test_of_a_coroutine_for_a_function():
    coroutine = double(1)
    with pytest.raises(TypeError) as info:
        await fanout.map(coroutine, [1])
    coroutine.close()
    assert str(info.value) == (
        "fn must be an async function, got a coroutine: pass the function itself, without calling it"
    )


async def test_of_a_group_that_has_ended():
    async with fanout.open_group() as group:
        job = group.start_soon(double, 1)
        with pytest.raises(RuntimeError, match=r"^job 0 has no value: it has not finished$"):
            _ = job.value
    with pytest.raises(RuntimeError, match=r"^start_soon\(\) was called after the group had ended$"):
        group.start_soon(double, 1)


@pytest.mark.parametrize("block", [fanout.open_group(), fanout.stream(double, [])])
async def test_of_a_call_in_another_thread(block):
    async with block as opened:
        with pytest.raises(RuntimeError, match=r"^stop\(\) must be called from a task of its own Trio run; "):
            await trio.to_thread.run_sync(opened.stop)


def test_an_int_with_more_digits_than_python_prints_is_one():
    fanout.throttle(double, 1, burst=10**5000)
    fanout.Collect(max_failures=10**5000)
    fanout.cap(double, 10**5000)


async def test_of_a_policy_that_does_not_fit():
    with pytest.raises(TypeError, match=r"^policy of stream must be Settle\(\) without move_on_after"):
        fanout.stream(double, [], policy=fanout.Settle(move_on_after=1))
