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


def test_an_int_with_more_digits_than_python_prints_is_one():
    fanout.throttle(double, 1, burst=10**5000)
    fanout.Collect(max_failures=10**5000)
    fanout.cap(double, 10**5000)


async def test_of_a_policy_that_does_not_fit():
    with pytest.raises(TypeError, match=r"^policy of stream must be Settle\(\) without move_on_after"):
        fanout.stream(double, [], policy=fanout.Settle(move_on_after=1))
