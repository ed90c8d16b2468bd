"""Settings and fixtures for the whole suite.

CONTRIBUTING.md says which folder a test belongs in. Shared functions are in helpers.py, shared fixtures here, and what
the models have in common in model.py. Type checkers read tests/typing only, so there are no annotations elsewhere
except for the fields of dataclasses.
"""

import functools
import gc
import inspect
import math
import os
import signal

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import AsyncCountingSource, CountingSource, aiter_of

# No deadline: a slow moment of the machine is not a failure. In CI the same examples every time: what a random search
# finds should turn up on a developer's machine, not in an unrelated change.
settings.register_profile("here", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")

# The terminal that the tests are run from is not what is tested.
os.environ["TERM"] = "xterm"
for name in ("COLUMNS", "LINES", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
    os.environ.pop(name, None)

# A program that a shell starts in the background ignores some signals, and so would the commands under test, which
# inherit that. They do not inherit handlers.
for name in ("SIGHUP", "SIGINT", "SIGQUIT"):
    number = getattr(signal, name, None)
    if number is not None and signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if name == "SIGINT" else lambda *_: None)

# A test that asks for one of these fixtures runs once with each of its values.


@pytest.fixture(params=[list, iter, aiter_of])
def make(request):
    """Makes a source of the items it is given: one with a length, an iterator, an async generator."""
    return request.param


@pytest.fixture(params=[CountingSource, AsyncCountingSource], ids=["sync", "async"])
def source_class(request):
    return request.param


@pytest.fixture(params=[False, True], ids=["private", "shared"])
def shared(request):
    """Whether the limit is a limiter that others use as well; see `helpers.limit_of`."""
    return request.param


@pytest.fixture(params=[True, False], ids=["ordered", "unordered"])
def ordered(request):
    return request.param


def pytest_collection_modifyitems(items):
    for item in items:
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
            item.obj = not_left_by_a_cancellation(item.obj)


def not_left_by_a_cancellation(test):
    """`test`, which fails if it is left by a `Cancelled` that no scope around it asked for.

    To pytest-trio that is a pass, and what the test had still to check is not checked.
    """

    @functools.wraps(test)
    async def checked(*args, **kwargs):
        try:
            await test(*args, **kwargs)
        except trio.Cancelled as exc:
            if trio.current_effective_deadline() == -math.inf:
                raise
            raise AssertionError("a Cancelled has left the test") from exc

    return checked


def pytest_collection_finish():
    """Freeze what lives as long as the suite: hundreds of tests collect garbage, and would go through it each time."""
    use_hypothesis()
    gc.freeze()


@settings(max_examples=1, database=None)
@given(st.none())
def use_hypothesis(_):
    """Have Hypothesis register its random numbers: it warns if it finds nobody who holds them, and looks at no frozen
    object."""
