"""Settings for the whole suite."""

import os
import signal

import pytest
from hypothesis import settings

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

# What a shell starts in the background ignores some signals, and so would the commands that are tested: they inherit
# that. A handler they don't inherit.
for name in ("SIGHUP", "SIGINT", "SIGQUIT"):
    number = getattr(signal, name, None)
    if number is not None and signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if name == "SIGINT" else lambda *_: None)

# What a test asks for by these names, it is run with each of.


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
