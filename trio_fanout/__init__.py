"""Bounded fan-out for Trio: one loop that runs an async function over many items under a limiter.

========================  ==============================================================================
`map`                     many items, one function; returns the results, by index
`do`                      the same, results discarded
`fan_out`                 one item, many functions
`stream`                  many items, one function; results as they arrive, with backpressure
`open_group`              work discovered along the way: jobs that can start jobs
`run_graph`               steps that depend on each other
========================  ==============================================================================

All of them take a ``limit``, a ``policy`` and an ``item_timeout``. What the policies do in each:

==================  ================================  ================================  =======================
policy              `map`, `do`, `fan_out`            `stream`                          `open_group`, `run_graph`
==================  ================================  ================================  =======================
`FailFast`          cancel, raise the failure         hand over what is before it,      cancel, raise the failure
                                                      then raise it
`Collect`           continue, raise a `FanOutError`   hand over successes, then raise   continue, raise a
                                                      a `FanOutError`                   `FanOutError`
`Settle`            continue, return outcomes         hand over outcomes                continue, return outcomes
                    (not `do`)                                                          (a group: by its handles)
`FirstSuccess`      cancel the rest on a success,     `TypeError`                       `TypeError`
                    return it (not `do`)
==================  ================================  ================================  =======================

`in_thread`, `in_process`, `in_executor`, `cap` and `throttle` turn other functions into async functions for any of
them. A `Meter` counts calls and shows which of them are running.

**Cancellation** is Trio's, everywhere: it is always delivered promptly and never swallowed. Under `FailFast` and
`Collect`, a failure that was recorded before or during a cancellation from outside is raised instead of it. So a
timeout never hides the error behind it, and ``with trio.move_on_after(...)`` around a call with a failure raises that
failure. Anything that is not an `Exception`, such as `KeyboardInterrupt`, is never a failure: it cancels the run and
propagates unwrapped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._cap import cap as cap
from ._core.limits import DEFAULT_LIMIT as DEFAULT_LIMIT
from ._errors import DependencyFailed as DependencyFailed
from ._errors import FanOutError as FanOutError
from ._errors import Unfinished as Unfinished
from ._executors import in_executor as in_executor
from ._graph import Step as Step
from ._graph import run_graph as run_graph
from ._group import Group as Group
from ._group import GroupStatistics as GroupStatistics
from ._group import Handle as Handle
from ._group import open_group as open_group
from ._map import do as do
from ._map import fan_out as fan_out
from ._map import map as map
from ._meter import Ended as Ended
from ._meter import Meter as Meter
from ._meter import MeterStatistics as MeterStatistics
from ._meter import Running as Running
from ._policies import Collect as Collect
from ._policies import FailFast as FailFast
from ._policies import FirstSuccess as FirstSuccess
from ._policies import Settle as Settle
from ._processes import in_process as in_process
from ._stream import Completed as Completed
from ._stream import ResultChannel as ResultChannel
from ._stream import ResultStatistics as ResultStatistics
from ._stream import stream as stream
from ._threads import in_thread as in_thread
from ._throttle import throttle as throttle

__all__ = (
    "DEFAULT_LIMIT",
    "Collect",
    "Completed",
    "DependencyFailed",
    "Ended",
    "FailFast",
    "FanOutError",
    "FirstSuccess",
    "Group",
    "GroupStatistics",
    "Handle",
    "Meter",
    "MeterStatistics",
    "ResultChannel",
    "ResultStatistics",
    "Running",
    "Settle",
    "Step",
    "Unfinished",
    "cap",
    "do",
    "fan_out",
    "in_executor",
    "in_process",
    "in_thread",
    "map",
    "open_group",
    "run_graph",
    "stream",
    "throttle",
)

# Tracebacks, pickles and documentation should name the place where users find these.
for _public in [globals()[_name] for _name in __all__]:
    if hasattr(_public, "__module__"):
        _public.__module__ = __name__

if not TYPE_CHECKING:  # pragma: no branch  # or every unknown name would be a str to a type checker

    def __getattr__(name: str) -> str:
        if name != "__version__":
            msg = f"module {__name__!r} has no attribute {name!r}"
            raise AttributeError(msg)
        from importlib.metadata import version  # noqa: PLC0415  # slow, and seldom wanted

        return version("trio-fanout")
