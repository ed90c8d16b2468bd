"""Adapters take any callable, whatever it answers when it is asked for an attribute."""

import concurrent.futures
import functools
import inspect
import xmlrpc.client
from unittest.mock import MagicMock, call

import pytest
import trio
import trio.lowlevel

import trio_fanout as fanout

EXECUTOR = concurrent.futures.ThreadPoolExecutor(1)

BLOCKING = {
    "in_thread": fanout.in_thread,
    "in_process": fanout.in_process,
    "in_executor": functools.partial(fanout.in_executor, EXECUTOR),
}
ASYNC = {
    "cap": lambda fn: fanout.cap(fn, 1),
    "throttle": lambda fn: fanout.throttle(fn, 1000),
    "meter": lambda fn: fanout.Meter().wrap(fn),
}
ADAPTERS = pytest.mark.parametrize("adapter", [*BLOCKING.values(), *ASYNC.values()], ids=[*BLOCKING, *ASYNC])


class AnswersAll:
    """Has every attribute that it is asked for."""

    def __init__(self, fn):
        object.__setattr__(self, "fn", fn)

    def __getattr__(self, name):
        return AnswersAll(functools.partial(pytest.fail, f"{name} was called"))

    def __call__(self, *args, **kwargs):
        return self.fn(*args, **kwargs)


class AnswersEvenSpecialNames(AnswersAll):
    def __getattribute__(self, name):
        return object.__getattribute__(self, "__getattr__")(name)

    def __call__(self, *args, **kwargs):
        return object.__getattribute__(self, "fn")(*args, **kwargs)


class Raises:
    """Raises something other than an `AttributeError`, as a proxy does that has nothing behind it."""

    __slots__ = ("fn",)

    def __init__(self, fn):
        self.fn = fn

    def __getattr__(self, name):
        raise RuntimeError(name)

    def __call__(self, *args, **kwargs):
        return self.fn(*args, **kwargs)


ODD = pytest.mark.parametrize("odd", [AnswersAll, AnswersEvenSpecialNames, Raises])


@ADAPTERS
def test_remote_method_that_answers_every_attribute(adapter):
    method = xmlrpc.client.ServerProxy("http://localhost:1").method
    assert adapter(method).__name__ == "_Method"


@ADAPTERS
@ODD
def test_object_with_odd_attributes_gets_the_name_of_its_class(adapter, odd):
    adapted = adapter(odd(len))
    assert adapted.__name__ == odd.__name__
    assert isinstance(adapted.__qualname__, str)
    assert isinstance(adapted.__module__, str)
    assert isinstance(adapted.__annotations__, dict)
    assert adapted.__doc__ is None or isinstance(adapted.__doc__, str)
    assert inspect.iscoroutinefunction(adapted)


@ADAPTERS
@pytest.mark.parametrize("odd", [MagicMock(), call, call.method, functools.partial(call)])
def test_mocks(adapter, odd):
    assert isinstance(adapter(odd).__name__, str)


@pytest.mark.parametrize("adapter", [BLOCKING["in_thread"], BLOCKING["in_executor"]])
@ODD
async def test_blocking_one_is_called(adapter, odd):
    assert await fanout.map(adapter(odd(len)), ["a", "bc"]) == [1, 2]


@pytest.mark.parametrize("adapter", ASYNC.values(), ids=ASYNC)
@ODD
async def test_async_one_is_called(autojump_clock, adapter, odd):
    async def double(x):
        await trio.lowlevel.checkpoint()
        return 2 * x

    assert await fanout.map(adapter(odd(double)), [1, 2]) == [2, 4]


class Application:
    """Its instances are async callables. It is not."""

    def __init__(self, config):
        self.config = config

    async def __call__(self, scope):
        raise NotImplementedError


async def test_a_class_is_not_async_because_its_instances_are():
    made = await fanout.in_thread(Application)("config")
    assert made.config == "config"
    with pytest.raises(TypeError, match="must be a function that is not async"):
        fanout.in_thread(made)


@pytest.mark.parametrize("argument", ["key", "overloaded", "weight"])
@ODD
async def test_callbacks_of_cap(autojump_clock, argument, odd):
    async def fail(x):
        raise ValueError(x)

    with pytest.raises(ValueError, match="1"):
        await fanout.cap(fail, 1, **{argument: odd(lambda x: 1)})(1)


@pytest.mark.parametrize("argument", ["key", "cost"])
@ODD
async def test_callbacks_of_throttle(autojump_clock, argument, odd):
    async def double(x):
        return 2 * x

    assert await fanout.throttle(double, 1, **{argument: odd(lambda x: 1)})(1) == 2


@ODD
async def test_callback_of_a_meter(odd):
    async def double(x):
        return 2 * x

    ended = []
    assert await fanout.Meter(on_end=odd(ended.append)).wrap(double)(1) == 2
    assert len(ended) == 1


@ADAPTERS
def test_function_keeps_what_belongs_to_it(adapter):
    adapted = adapter(documented)
    assert adapted.__name__ == adapted.__qualname__ == "documented"
    assert adapted.__doc__ == "It does something."
    assert adapted.__module__ == __name__
    assert adapted.__annotations__ == {"x": int}
    assert adapted.__wrapped__ is documented
    assert adapted.mark == "mine"


def documented(x: int):
    """It does something."""


documented.mark = "mine"
