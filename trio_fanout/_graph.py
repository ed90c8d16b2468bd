"""Work that depends on other work: `run_graph`.

A graph is a run whose source holds the steps that are ready, and whose sink adds those that a finished step makes
ready. `graphlib` keeps the order and finds the cycles.
"""

from __future__ import annotations

import contextvars
import functools
from collections.abc import Hashable, Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast, final, overload

import attrs
import trio

from ._arguments import check_function, check_seconds, got
from ._drive import drive
from ._errors import DependencyFailed
from ._limits import DEFAULT_LIMIT, check_limit, check_not_held
from ._policies import Collect, FailFast, Ledger, Settle, open_ledger
from ._run import Run

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from outcome import Outcome

NameT = TypeVar("NameT", bound=Hashable)
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

_FAIL_FAST = FailFast()


def _check_step_function(_: object, field: attrs.Attribute[Any], value: object) -> None:
    check_function(value, f"{field.name} of a Step")


def _names(needs: object) -> tuple[Hashable, ...]:
    if isinstance(needs, (str, bytes)) or not isinstance(needs, Iterable):
        msg = f"needs of a Step must be an iterable of names of steps, got {got(needs)}"
        raise TypeError(msg)
    names: tuple[Any, ...] = tuple(cast("Iterable[Any]", needs))  # type: ignore[redundant-cast]  # not to pyright
    for name in names:
        if not isinstance(name, Hashable):
            msg = f"needs of a Step must be an iterable of names of steps, got {got(name)} in it"
            raise TypeError(msg)
    return names


@final
@attrs.frozen
class Step(Generic[R_co]):
    """A step of `run_graph`.

    Args:
        fn: an async function, called with the results of `needs` as positional arguments, in that order.
        needs: the names of the steps that have to succeed before this one starts.

    Raises:
        TypeError: `fn` is no function, or `needs` is a string or cannot be iterated.
    """

    fn: Callable[..., Awaitable[R_co]] = attrs.field(validator=_check_step_function)
    needs: tuple[Hashable, ...] = attrs.field(default=(), converter=_names)


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
    policy: FailFast | Collect | Settle = _FAIL_FAST,
    item_timeout: float | None = None,
) -> dict[NameT, Any]:
    """Run steps that need each other's results, each as soon as its own needs are done.

    A step starts the moment that all it needs has succeeded and there is room under the limit, and not when a whole
    level is done. Among those that are ready, the first in the mapping starts first.

    Args:
        steps: a mapping from names to `Step` objects. A name is anything that can be a key.
        limit: how many steps may run at once, as for `map`.
        policy: `FailFast()`, the default: a failure cancels the run, and is raised. `Collect()`: steps that do not
            depend on a failed one still run; those that do fail with `DependencyFailed`, which does not count towards
            `max_failures`; a `FanOutError` by the names of the steps is raised at the end. `Settle()`: the same, but
            outcomes are given back.
        item_timeout: seconds that each step may take, as for `map`.

    Returns:
        A dict from names to results, or to outcomes under `Settle`, in the order of the mapping.

    Raises:
        Exception: under `FailFast`, the failure of the step that comes first in the mapping, itself.
        FanOutError: under `Collect`, if any step failed.
        graphlib.CycleError: before anything starts, if steps need each other in a circle, with the circle in it.
        ValueError: before anything starts, if a step needs one that is not there, or an argument is out of range.
        TypeError: an argument is of the wrong type, or the function of a step is not async.
        RuntimeError: the task holds a token of `limit`, as for `map`.

    **Cancellation**: as for `map`; the call is a checkpoint also with no steps.

    Example::

        results = await fanout.run_graph({
            "flights": Step(search_flights),
            "hotels": Step(search_hotels),
            "plan": Step(make_plan, needs=("flights", "hotels")),
        })
    """
    names = list(_check_steps(steps))
    ledger = open_ledger(policy, (FailFast, Collect, Settle), "run_graph", "step", names)
    check_limit(limit)
    check_seconds(item_timeout, "item_timeout")
    graph = _Graph(steps, names, ledger, skips=not isinstance(policy, FailFast))
    check_not_held(limit)
    await trio.lowlevel.checkpoint_if_cancelled()  # without a step there is no worker, who would do it
    run: Run[int, Any] = Run(graph.call, graph, graph, limit, item_timeout, "run_graph")
    await drive(run, graph, functools.partial(graph.conclude, run), ledger.move_on_after)
    values = ledger.value(len(names), set(graph.started).__contains__)
    return dict(zip(names, values, strict=True))


def _check_steps(steps: Any) -> Mapping[Any, Step[Any]]:
    if not isinstance(steps, Mapping):
        msg = f"steps must be a mapping from names to Steps, got {got(steps)}"
        raise TypeError(msg)
    checked = cast("Mapping[Any, Any]", steps)  # type: ignore[redundant-cast]  # not to pyright
    for name, step in checked.items():
        if not isinstance(step, Step):
            msg = f"steps must be a mapping from names to Steps, got {got(step)} for {name!r}"
            raise TypeError(msg)
        for need in step.needs:
            if need not in checked:
                msg = f"step {name!r} needs {need!r}, which is none of the steps"
                raise ValueError(msg)
    return checked


class _Graph:
    """The steps of a run, known by their places in the mapping: its source, and its sink."""

    def __init__(self, steps: Mapping[Any, Step[Any]], names: list[Any], ledger: Ledger, *, skips: bool) -> None:
        self.context: Final = contextvars.copy_context()
        self.open = False
        self.length: int | None = len(names)
        self._names: Final = names
        self._ledger: Final = ledger
        self._skips: Final = skips
        place = {name: index for index, name in enumerate(names)}
        self._steps: Final = [
            (name, step.fn, tuple(map(place.__getitem__, step.needs))) for name, step in steps.items()
        ]
        self._sorter: Final = self._sort()
        self._needed: Final = {need for _, _, needs in self._steps for need in needs}
        # A heap: of those that are ready, the first in the mapping starts first.
        self._ready: Final = sorted(self._sorter.get_ready())
        # What a worker takes is a turn. Which step it is for is known when it starts: while the worker waited for a
        # token, one may have become ready that comes before. Turns start in order, so this is the step of each turn.
        self.started: Final[list[int]] = []
        self._turns = 0

    def _sort(self) -> TopologicalSorter[int]:
        sorter = TopologicalSorter(self._needs())
        try:
            sorter.prepare()
        except CycleError as error:
            message, cycle = error.args
            raise CycleError(message, [self._names[index] for index in cycle]) from None
        return sorter

    def _needs(self) -> dict[int, tuple[int, ...]]:
        return {index: needs for index, (_, _, needs) in enumerate(self._steps)}

    # The source

    def take(self) -> tuple[int, int] | None:
        """A turn, for one of the steps that are ready."""
        turn = self._turns
        if turn - len(self.started) >= len(self._ready):
            return None
        self._turns += 1
        return turn, turn

    def ready(self, taken: int, /) -> int:
        """How many steps are ready for which there is no turn yet."""
        return len(self._ready) - taken + len(self.started)

    def drop(self) -> list[tuple[int, int]]:
        """Nothing: the ledger finds what has not been run."""
        return []

    def call(self, turn: int) -> Awaitable[Any]:
        """Start the first of the steps that are ready."""
        index = heappop(self._ready)
        self.started.append(index)
        name, fn, needs = self._steps[index]
        trio.lowlevel.current_task().name = f"run_graph({name})"
        return fn(*[self._ledger.results[need] for need in needs]) if needs else fn()

    # The sink

    def succeeded(self, turn: int, item: int, value: object, /) -> None:
        """Keep the result, and add the steps that now are ready. The worker takes the first, and hires for others."""
        index = self.started[turn]
        self._ledger.succeeded(index, item, value)
        if index in self._needed:
            self._sorter.done(index)
            for step in self._sorter.get_ready():
                heappush(self._ready, step)

    def failed(self, turn: int, item: int, exc: Exception, /, *, secondary: bool) -> object:
        """Keep the failure. The step is never done, so that those that need it never are ready."""
        return self._ledger.failed(self.started[turn], item, exc, secondary=secondary)

    def cancelled(self, turn: int, item: int, /) -> None:
        """Nothing: what has no outcome is found at the end."""

    # The end

    def conclude(self, run: Run[int, Any], leaving: BaseException | None) -> BaseException | None:
        """What leaves the call."""
        if self._skips and self._ledger.failures:
            self._fail_dependents()
        return self._ledger.conclude(run, leaving)

    def _fail_dependents(self) -> None:
        failures = self._ledger.failures
        # In an order in which needs come first, so that a chain of skipped steps is told link by link.
        for index in TopologicalSorter(self._needs()).static_order():
            name, _, needs = self._steps[index]
            failed = next((need for need in needs if need in failures), None)
            if failed is not None:
                failures[index] = DependencyFailed(name, self._names[failed])
                failures[index].__cause__ = failures[failed]
