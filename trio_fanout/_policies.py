"""What a failure does, and what a call gives back.

A policy is frozen, and may serve any number of runs. Each run opens a `Ledger` by it, which keeps what happened and
tells what follows from it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Final, final

import attrs
import trio
from outcome import Error, Outcome, Value

from ._arguments import check_count, check_seconds, got
from ._errors import FanOutError, Notes, Unfinished, label
from ._nursery import chain, chain_of

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from ._run import Run


def _seconds_or_none(_: object, field: attrs.Attribute[float | None], value: object) -> None:
    check_seconds(value, field.name, zero=True)


def _count_or_none(_: object, field: attrs.Attribute[int | None], value: object) -> None:
    if value is not None:
        check_count(value, field.name)


@final
@attrs.frozen
class FailFast:
    """On a failure, cancel the run and raise that failure itself, not wrapped.

    Of several failures, the one with the lowest index is raised, except that one that came out of the cancellation (in
    a ``finally`` block, say) is raised only where there is no other. A note tells which item it was (``item 3``), and
    the other failures are told of in further notes, a line each. A call gives back a list of the results.

    Example::

        pages = await fanout.map(fetch, urls)  # this is the policy where none is given
    """


@final
@attrs.frozen
class Collect:
    """On a failure, go on; at the end raise a `FanOutError` of all failures, if there were any.

    A call gives back a list of the results if none failed. ``Collect(max_failures=1)`` is fail-fast with the index and
    the results so far in hand.

    Args:
        max_failures: how many failures cancel the run, an int of 1 or more; None means that none do. More may be
            recorded, of items that failed while they were cancelled.

    Raises:
        TypeError, ValueError: `max_failures` is something else.

    Example::

        try:
            pages = await fanout.map(fetch, urls, policy=fanout.Collect())
        except fanout.FanOutError as error:
            pages = await fanout.map(fetch, [urls[index] for index in error.indices])
    """

    max_failures: int | None = attrs.field(default=None, validator=_count_or_none)


@final
@attrs.frozen
class Settle:
    """On a failure, go on; give back a list with the outcome of each item.

    An outcome is an ``outcome.Value`` or an ``outcome.Error``; its ``unwrap()`` gives the value or raises.

    Args:
        move_on_after: cancel the run when this many seconds have passed, and give back what there is: an item
            without an outcome gets ``outcome.Error(Unfinished(...))``. A number of 0 or more; None means never.

    Raises:
        TypeError, ValueError: `move_on_after` is something else.

    Example::

        for host, answer in zip(hosts, await fanout.map(ping, hosts, policy=fanout.Settle(move_on_after=5))):
            print(host, "up" if isinstance(answer, outcome.Value) else answer.error)
    """

    move_on_after: float | None = attrs.field(default=None, validator=_seconds_or_none)


@final
@attrs.frozen
class FirstSuccess:
    """On a failure, go on; on the first success, cancel the rest and give back that result.

    The failures no longer matter then. If none succeeds, the call raises a `FanOutError`; if there were no items,
    `ValueError`.

    Example::

        page = await fanout.map(fetch, mirrors, policy=fanout.FirstSuccess())
    """


class Ledger:
    """What has happened in one run, and what follows from it: the sink of `map`, and a part of those of other calls."""

    outranks_cancellation: ClassVar[bool] = True
    """Whether failures are raised even where the run was cancelled from outside: a time-out never hides an error."""

    move_on_after: float | None = None
    """After how many seconds the run is cancelled."""

    def __init__(self, policy: object, noun: str, names: Sequence[Hashable] | None) -> None:
        self.results: dict[int, Any] = {}
        self.failures: dict[int, Exception] = {}
        self._items: dict[int, Any] = {}  # those that failed, for the error to give back
        self._notes: Final = Notes(noun)
        self._names: Final = names

    def name(self, index: int) -> Any:
        """What an item is called in what is raised and given back: by its index, or by its name if it has one."""
        return index if self._names is None else self._names[index]

    def succeeded(self, index: int, item: object, value: object, /) -> object:
        """Keep a result. True ends the run."""
        self.results[index] = value
        return False

    def failed(self, index: int, item: object, exc: Exception, /, *, secondary: bool) -> object:
        """Keep a failure. True ends the run."""
        self.failures[index] = exc
        if self._notes.kind == "item":  # a job or a step is no item to try again
            self._items[index] = item
        return False

    def cancelled(self, index: int, item: object, /) -> None:
        """Nothing: what has no outcome is found at the end."""

    def error(self, total: int) -> Exception | None:
        """What the run raises for its failures, given how many items were started."""
        return self.group(total)

    def group(self, total: int) -> FanOutError | None:
        """All failures, if there are any."""
        if not self.failures:
            return None
        failures = {self.name(index): exc for index, exc in sorted(self.failures.items())}
        self._notes.name_items(failures)
        results = {self.name(index): value for index, value in sorted(self.results.items())}
        items = {index: self._items[index] for index in failures if index in self._items}
        return FanOutError(failures, results, total, items=items)

    def conclude(self, run: Run[Any, Any], leaving: BaseException | None) -> BaseException | None:
        """What leaves the run, from which `leaving` would, if it were not for its failures."""
        if leaving is None:  # not `or`, here and below: an exception may be false
            leaving = run.take_stray()
        if not self.failures:
            return leaving
        total = run.started() if self._names is None else len(self._names)
        outcome: BaseException | None
        if leaving is None:
            outcome = self.error(total)
        elif isinstance(leaving, trio.Cancelled):
            error = self.error(total) if self.outranks_cancellation else None
            outcome = leaving if error is None else error
        else:
            outcome = leaving
            if self.error(total) is not leaving:  # it is where the block of a group asks for the value of a failed job
                links = set(map(id, chain_of(leaving)))
                self.failures = {index: exc for index, exc in self.failures.items() if id(exc) not in links}
                if group := self.group(total):
                    chain(leaving, group)
        if outcome is not None:
            self.clear()
        return outcome

    def clear(self) -> None:
        """Forget all: a failure's traceback leads here, and so must not be found here."""
        self.failures = {}
        self.results = {}
        self._items = {}

    def value(self, count: int, was_started: Callable[[int], bool]) -> Any:
        """What the call gives back, given how many items there are and which of them were started."""
        return list(map(self.results.__getitem__, range(len(self.results))))  # nothing failed: all are there


class FailFastLedger(Ledger):
    _primary: int | None = None  # the lowest index of those that did not come out of the cancellation

    def failed(self, index: int, item: object, exc: Exception, /, *, secondary: bool) -> object:
        super().failed(index, item, exc, secondary=secondary)
        if not secondary and (self._primary is None or index < self._primary):
            self._primary = index
        return True

    def error(self, total: int) -> Exception | None:
        index = min(self.failures) if self._primary is None else self._primary
        exc = self.failures[index]
        self._notes.add(exc, label(self._notes.kind, self.name(index)))
        others = {self.name(other): self.failures[other] for other in sorted(self.failures) if other != index}
        self._notes.tell_others(exc, others)
        return exc


class CollectLedger(Ledger):
    def __init__(self, policy: Collect, noun: str, names: Sequence[Hashable] | None) -> None:
        super().__init__(policy, noun, names)
        self._max_failures: Final = math.inf if policy.max_failures is None else policy.max_failures

    def failed(self, index: int, item: object, exc: Exception, /, *, secondary: bool) -> object:
        super().failed(index, item, exc, secondary=secondary)
        return len(self.failures) >= self._max_failures


class SettleLedger(Ledger):
    outranks_cancellation = False

    def __init__(self, policy: Settle, noun: str, names: Sequence[Hashable] | None) -> None:
        super().__init__(policy, noun, names)
        self.move_on_after = policy.move_on_after

    def failed(self, index: int, item: object, exc: Exception, /, *, secondary: bool) -> object:
        self.failures[index] = exc  # and not the item: there is no error that would give it back
        return False

    def error(self, total: int) -> Exception | None:
        return None

    def value(self, count: int, was_started: Callable[[int], bool]) -> Any:
        outcomes = [self._outcome(index, was_started) for index in range(count)]
        self.clear()
        return outcomes

    def _outcome(self, index: int, was_started: Callable[[int], bool]) -> Outcome[Any]:
        if index in self.results:
            return Value(self.results[index])
        if index in self.failures:
            return Error(self.failures[index])
        return Error(Unfinished(self.name(index), was_started(index), kind=self._notes.kind))


class FirstSuccessLedger(Ledger):
    outranks_cancellation = False

    def succeeded(self, index: int, item: object, value: object, /) -> object:
        if not self.results:  # others may succeed while they are cancelled
            self.results[index] = value
        return True

    def group(self, total: int) -> FanOutError | None:
        return None if self.results else super().group(total)

    def value(self, count: int, was_started: Callable[[int], bool]) -> Any:
        for value in self.results.values():
            self.clear()
            return value
        msg = "FirstSuccess() takes at least one item, got none: there is no result to give back"
        raise ValueError(msg)


_LEDGERS: Final[dict[type, Any]] = {
    FailFast: FailFastLedger,
    Collect: CollectLedger,
    Settle: SettleLedger,
    FirstSuccess: FirstSuccessLedger,
}


def open_ledger(
    policy: object,
    allowed: tuple[type, ...],
    caller: str,
    noun: str = "item",
    names: Sequence[Hashable] | None = None,
) -> Ledger:
    """The ledger of a run under `policy`, which must be an instance of one of the `allowed` classes."""
    if not isinstance(policy, allowed):
        *others, last = [f"{cls.__name__}()" for cls in allowed]
        msg = f"policy of {caller} must be {', '.join(others)} or {last}, got {got(policy)}"
        raise TypeError(msg)
    ledger: Ledger = _LEDGERS[type(policy)](policy, noun, names)
    return ledger


def check_never_moves_on(policy: object, caller: str) -> None:
    """Raise `TypeError` for a `Settle` with a time limit, for calls that have no list to give back early."""
    if isinstance(policy, Settle) and policy.move_on_after is not None:
        msg = f"policy of {caller} must be Settle() without move_on_after, got move_on_after={policy.move_on_after!r}"
        raise TypeError(msg)
