"""Work that depends on other work: `run_graph`.

A graph is a run whose source holds the steps that are ready, and whose sink adds those that a finished step makes
ready. `graphlib` keeps the order and finds the cycles.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Reversible
from collections.abc import Set as AbstractSet
from graphlib import CycleError, TopologicalSorter
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, final, overload

import attrs
import trio
from outcome import Error, Value

from ._arguments import check_bool, check_function, check_seconds, describe
from ._core.feeding import run_all
from ._core.limits import DEFAULT_LIMIT, Tokens, check_limit, check_not_held
from ._core.run import Run
from ._core.sources import Source
from ._errors import label, safe_repr
from ._ledgers import MISSING, Ledger, start_ledger
from ._opening import check_in_trio
from ._policies import FAIL_FAST, Collect, FailFast, Settle

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from outcome import Outcome

NameT = TypeVar("NameT", bound=Hashable)
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


def _check_step_function(_: object, field: attrs.Attribute[Any], value: object) -> None:
    check_function(value, f"{field.name} of a Step")


def _check_bool(_: object, field: attrs.Attribute[bool], value: object) -> None:
    check_bool(value, f"{field.name} of a Step")


def _can_be_names(needs: object) -> bool:
    """Whether it has an order, which a set does not (but the keys of a dict do), and is not a single name."""
    if isinstance(needs, AbstractSet) and not isinstance(needs, Reversible):
        return False
    return isinstance(needs, Iterable) and not isinstance(needs, (str, bytes))


def _names(needs: object) -> tuple[Hashable, ...]:
    if not _can_be_names(needs):
        msg = f"needs of a Step must be an iterable of names of steps, in order, got {describe(needs)}"
        raise TypeError(msg)
    names = tuple(cast("Iterable[Any]", needs))
    for name in names:
        if not isinstance(name, Hashable):
            msg = f"needs of a Step must be an iterable of names of steps, got {describe(name)} in it"
            raise TypeError(msg)
    return names


@final
@attrs.frozen
class Step(Generic[R_co]):
    """A step of `run_graph`.

    Args:
        fn: an async function, called with the results of `needs` as positional arguments, in that order.
        needs: the names of the steps that have to succeed before this one starts.
        settled: whether this step runs even if some of its needs fail. It then starts when all of them have ended,
            however they did, and is called with their outcomes (``outcome.Value`` or ``outcome.Error``) instead of
            their results. By default it is skipped if one of them fails. Under `FailFast` a failure ends the run all
            the same.

    Raises:
        TypeError: `fn` is not callable, `needs` is a string, a set or not iterable, or `settled` is not a bool.

    Example::

        async def answer(*findings):
            return [finding.value for finding in findings if isinstance(finding, outcome.Value)]

        step = fanout.Step(answer, needs=("web", "database"), settled=True)
    """

    fn: Callable[..., Awaitable[R_co]] = attrs.field(validator=_check_step_function)
    needs: tuple[Hashable, ...] = attrs.field(default=(), converter=_names)
    settled: bool = attrs.field(default=False, kw_only=True, validator=_check_bool)


@overload
async def run_graph(
    steps: Mapping[NameT, Step[R]],
    *,
    limit: float | trio.CapacityLimiter = ...,
    policy: FailFast | Collect = ...,
    item_timeout: float | None = ...,
) -> dict[NameT, R]: ...
@overload
async def run_graph(
    steps: Mapping[NameT, Step[R]],
    *,
    limit: float | trio.CapacityLimiter = ...,
    policy: Settle,
    item_timeout: float | None = ...,
) -> dict[NameT, Outcome[R]]: ...
async def run_graph(
    steps: Mapping[NameT, Step[R]],
    *,
    limit: float | trio.CapacityLimiter = DEFAULT_LIMIT,
    policy: FailFast | Collect | Settle = FAIL_FAST,
    item_timeout: float | None = None,
) -> dict[NameT, Any]:
    """Run steps that need each other's results, each as soon as its own needs are done.

    A step starts as soon as its own needs have succeeded and there is room under the limit, not when a whole level is
    done. Among those that are ready, the first in the mapping starts first.

    Args:
        steps: a mapping from names to `Step` objects. A name is anything that can be a key.
        limit: how many steps may run at once, as for `map`.
        policy: `FailFast()`, the default: a failure cancels the run, and is raised. `Collect()`: steps that do not
            depend on a failed one still run; those that do fail with `DependencyFailed`, which does not count towards
            `max_failures`; a `FanOutError` by the names of the steps is raised at the end. `Settle()`: the same, but
            outcomes are returned.
        item_timeout: seconds that each step may take, as for `map`.

    Returns:
        A dict from names to results, or to outcomes under `Settle`, in the order of the mapping.

    Raises:
        Exception: under `FailFast`, the failure of the step that comes first in the mapping, unwrapped.
        FanOutError: under `Collect`, if any step failed.
        graphlib.CycleError: before anything starts, if steps need each other in a cycle, with the cycle in it.
        ValueError: before anything starts, if a step needs one that does not exist, or an argument is out of range.
        TypeError: an argument is of the wrong type, or the function of a step is not async.
        RuntimeError: the task holds a token of `limit`, as for `map`.

    **Cancellation**: as for `map`; the call is a checkpoint even with no steps.

    Example::

        results = await fanout.run_graph({
            "flights": Step(search_flights),
            "hotels": Step(search_hotels),
            "plan": Step(make_plan, needs=("flights", "hotels")),
        })
    """
    check_in_trio("run_graph")
    steps = _checked(steps)
    names = list(steps)
    check_limit(limit)
    ledger = start_ledger(policy, (FailFast, Collect, Settle), "run_graph", "step", names)
    check_seconds(item_timeout, "item_timeout")
    graph = _Graph(steps, names, ledger)
    check_not_held(limit)
    await trio.lowlevel.checkpoint_if_cancelled()  # without a step there is no worker that would do it
    run: Run[int, Any] = Run(
        graph.call,
        graph,
        graph,
        Tokens(limit),
        "run_graph",
        item_timeout=item_timeout,
        move_on_after=ledger.move_on_after,
    )
    await run_all(run, graph)
    values = ledger.result(len(names), set(graph.started).__contains__)
    return dict(zip(names, values, strict=True))


def _checked(steps: Any) -> dict[Any, Step[Any]]:
    """The steps in a plain dict: another kind of mapping may accept more as a name, for example one that folds case."""
    if not isinstance(steps, Mapping):
        msg = f"steps must be a mapping from names to Steps, got {describe(steps)}"
        raise TypeError(msg)
    checked = dict(cast("Mapping[Any, Any]", steps))  # type: ignore[redundant-cast]  # not to pyright
    for name, step in checked.items():
        if not isinstance(step, Step):
            msg = f"steps must be a mapping from names to Steps, got {describe(step)} for {label('step', name)}"
            raise TypeError(msg)
        for need in step.needs:
            if need not in checked:
                msg = f"{label('step', name)} needs {safe_repr(need)}, which is not one of the steps"
                raise ValueError(msg)
    return checked


class _Graph(Source[int]):
    """The steps of a run, known by their places in the mapping: its source, and its sink.

    What a worker takes is a ticket. Which step it is for is known when it starts: while the worker waited for a token,
    a step may have become ready that comes before. Tickets start in order, so `started` has the step of each.
    """

    def __init__(self, steps: Mapping[Any, Step[Any]], names: list[Any], ledger: Ledger) -> None:
        super().__init__()
        self._ledger = ledger
        place = {name: index for index, name in enumerate(names)}
        self._steps = [
            (name, step.fn, tuple(map(place.__getitem__, step.needs)), step.settled) for name, step in steps.items()
        ]
        self._sorter = self._sort()
        self._needed = {need for _, _, needs, _ in self._steps for need in needs}
        # A heap: of those that are ready, the first in the mapping starts first.
        self._ready = sorted(self._sorter.get_ready())
        self._tickets = 0  # taken, of which
        self.started: list[int] = []  # have started, and
        self._ended = 0  # have ended

    def _sort(self) -> TopologicalSorter[int]:
        sorter = TopologicalSorter(self._needs())
        try:
            sorter.prepare()
        except CycleError as error:
            message, cycle = error.args
            raise CycleError(message, [self._ledger.name(index) for index in cycle]) from None
        return sorter

    def _needs(self) -> dict[int, tuple[int, ...]]:
        return {index: needs for index, (_, _, needs, _) in enumerate(self._steps)}

    # The source

    @property
    def may_grow(self) -> bool:
        """Whether steps are ready or running. Those that run may make others ready."""
        return bool(self._ready) or self._ended < self._tickets

    def take(self) -> tuple[int, int] | None:
        """Take a ticket, for one of the steps that are ready."""
        ticket = self._tickets
        if len(self._ready) <= ticket - len(self.started):
            return None
        self._tickets += 1
        return ticket, ticket

    def ready(self, taken: int, /) -> int:
        """How many steps are ready for which there is no ticket yet."""
        return len(self._ready) - taken + len(self.started)

    def call(self, ticket: int) -> Awaitable[Any]:
        """Start the first of the steps that are ready."""
        index = heappop(self._ready)
        self.started.append(index)
        name, fn, needs, settled = self._steps[index]
        # A plain name is shown as it is; another one might raise for it.
        shown = name if type(name) in (str, int) else safe_repr(name)
        trio.lowlevel.current_task().name = f"run_graph({shown})"
        if not needs:
            return fn()
        results, failures = self._ledger.results, self._ledger.failures
        if settled:
            return fn(*[Error(failures[need]) if need in failures else Value(results[need]) for need in needs])
        return fn(*[results[need] for need in needs])

    # The sink

    def succeeded(self, ticket: int, item: int, value: object, /) -> None:
        """Keep the result, and add the steps that now are ready. The worker takes the first, and starts others."""
        index = self.started[ticket]
        self._ended += 1
        self._ledger.succeeded(index, item, value)
        if index in self._needed:
            self._add_ready(index)

    def failed(self, ticket: int, item: int, exc: Exception, /, *, secondary: bool) -> str | None:
        """Keep the failure, skip the steps that depend on it, and add the settled ones, which get it as a result."""
        index = self.started[ticket]
        self._ended += 1
        reason = self._ledger.failed(index, item, exc, secondary=secondary)
        if index in self._needed and self._ledger.goes_on:
            self._add_ready(index)
        return reason

    def cancelled(self, ticket: int, item: int, /) -> None:
        """Keep nothing: what has no outcome is found at the end."""
        self._ended += 1

    def label(self, ticket: int, /) -> str:
        """What a step is called in messages."""
        return self._ledger.label(self.started[ticket])

    def conclude(self, leaving: BaseException | None, started: int, /, *, complete: bool) -> BaseException | None:
        """Choose what the call raises."""
        failures, results = self._ledger.failures, self._ledger.results
        if not complete and failures and self._ledger.goes_on:
            # The run was cut short. Needs come first, so that a chain of skipped steps is recorded link by link.
            for index in TopologicalSorter(self._needs()).static_order():
                if index not in failures and (index >= len(results) or results[index] is MISSING):
                    self._skip(index)
        return self._ledger.conclude(leaving, len(self._steps), complete=complete or not self._steps)

    def _add_ready(self, index: int) -> None:
        """Add the steps that are ready now that one has ended, or skip them, and then what depends on them."""
        ended: list[int] = [index]
        while ended:
            self._sorter.done(*ended)
            ended = list[int]()
            for step in self._sorter.get_ready():
                if self._skip(step):
                    ended.append(step)
                else:
                    heappush(self._ready, step)

    def _skip(self, index: int) -> bool:
        """Record that a step was skipped, if one of its needs failed. A settled step is not."""
        _, _, needs, settled = self._steps[index]
        failures = self._ledger.failures
        failed = None if settled else next((need for need in needs if need in failures), None)
        if failed is None:
            return False
        self._ledger.skip(index, failed)
        return True
