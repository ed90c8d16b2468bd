"""The results and failures of one run, and what its policy does with them.

A ledger is the sink of `map`; other calls wrap it in sinks of their own. It answers their questions for its policy, so
that none of them has to ask which policy it is.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Final

from outcome import Error, Outcome, Value

from ._core.exceptions import chain, chain_of, is_cancelled, parts_of
from ._errors import DependencyFailed, FanOutError, Unfinished, add_note, label, name_items, tell_others
from ._policies import Collect, FailFast, FirstSuccess, Settle, check_policy
from ._tracebacks import shorten_shared

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

MISSING: Final[Any] = object()
"""Stands in the list of results where an item has no result (yet)."""


class Ledger:
    """The results and failures of one run.

    Args:
        policy: the policy whose ledger this is.
        kind: what an item is called: ``item``, ``job`` or ``step``.
        names: the names of steps, if items are not called by their index.
    """

    hands_over_failures: ClassVar[bool] = False
    """Whether a failure is a result like others: a stream hands it over, a group leaves it to the handle."""

    goes_on: ClassVar[bool] = True
    """Whether the run goes on after a failure: a stream skips the gap, a graph the steps that depend on the failed."""

    outranks_cancellation: ClassVar[bool] = True
    """Whether failures are raised even if the run was cancelled from outside: a timeout never hides an error."""

    move_on_after: float | None = None
    """Seconds after which the run is cancelled."""

    def __init__(self, policy: Any, kind: str = "item", names: Sequence[Hashable] | None = None) -> None:
        self.results: list[Any] = []  # by index, as far as items have ended; MISSING for those without a result
        self.failures: dict[int, Exception] = {}
        self._items: dict[int, Any] = {}  # those that failed, for the error
        self._names = names
        self._kind = kind

    def name(self, index: int) -> Any:
        """The key of an item: its index, or its name if it has one."""
        return index if self._names is None else self._names[index]

    def label(self, index: int, /) -> str:
        """What an item is called in messages: ``item 3``, ``step 'plan'``."""
        return label(self._kind, self.name(index))

    # While the run goes on

    def succeeded(self, index: int, item: object, value: object, /) -> str | None:
        """Keep a result. Returns a reason to cancel the run, or None."""
        results = self.results
        if index == len(results):
            results.append(value)
        elif index < len(results):
            results[index] = value
        else:
            # Items that were started before this one have not ended: no more of them than are in flight.
            results += [MISSING] * (index - len(results))
            results.append(value)
        return None

    def failed(self, index: int, item: object, exc: Exception, /, *, secondary: bool) -> str | None:
        """Keep a failure. Returns a reason to cancel the run, or None."""
        self.failures[index] = exc
        if self._kind == "item":  # a job or a step is not an item to try again
            self._items[index] = item
        return None

    def skip(self, index: int, need: int) -> None:
        """Keep, as the failure of a step that is not run, that one of its needs has failed."""
        failure = DependencyFailed(self.name(index), self.name(need))
        failure.__cause__ = self.failures[need]
        self.failures[index] = failure

    def cancelled(self, index: int, item: object, /) -> None:
        """Keep nothing: items without an outcome are found at the end."""

    # When it is over

    def conclude(self, leaving: BaseException | None, started: int, /, *, complete: bool) -> BaseException | None:
        """Choose what the call raises, given what would leave its nursery; see `Sink`."""
        raised = leaving
        if leaving is None or (self.outranks_cancellation and is_cancelled(leaving)):
            error = self.make_error(started)
            if error is not None:
                raised = error
            elif leaving is None and not complete and not self.may_be_incomplete():
                raised = RuntimeError(
                    "items were cancelled from inside of this call, or its cancellation was shielded away: it has no "
                    "result and no failure for them"
                )
        elif not is_cancelled(leaving):
            self._chain_to(leaving, started)
        if raised is not None:
            self.clear()
        return raised

    def make_error(self, started: int) -> Exception | None:
        """Make the exception that the run raises for its failures, once; None if it raises nothing."""
        return self._group(self.failures, started)

    def may_be_incomplete(self) -> bool:
        """Whether the call has something to return even if some items have no outcome."""
        return False

    def result(self, count: int, was_started: Callable[[int], bool]) -> Any:
        """What the call returns, given how many items there are and which of them were started."""
        return self.results  # nothing failed, and all are there

    def clear(self) -> None:
        """Forget everything: a failure's traceback leads here, so it must not be reachable from here."""
        self.failures = {}
        self.results = []
        self._items = {}

    def _group(self, failures: Mapping[int, Exception], started: int) -> FanOutError | None:
        """Make the error of `failures`, if there are any."""
        if not failures:
            return None
        named = {self.name(index): failures[index] for index in sorted(failures)}
        results = {self.name(index): value for index, value in enumerate(self.results) if value is not MISSING}
        items = {index: self._items[index] for index in named if index in self._items} if self._items else {}
        name_items(self._kind, named)
        shorten_shared(named.values())
        return FanOutError(named, results, started, items=items)

    def _chain_to(self, leaving: BaseException, started: int) -> None:
        """Have the traceback of what is raised print the failures, except those that it prints anyway."""
        links = set(map(id, chain_of(leaving)))
        group = self._group({index: exc for index, exc in self.failures.items() if id(exc) not in links}, started)
        if group is not None:
            chain(leaving, group)


class FailFastLedger(Ledger):
    goes_on = False
    _primary: int | None = None  # the lowest index of those that did not come out of the cancellation

    def failed(self, index: int, item: object, exc: Exception, /, *, secondary: bool) -> str | None:
        self.failures[index] = exc  # and not the item: no error will have it
        if not secondary and (self._primary is None or index < self._primary):
            self._primary = index
        return f"{self.label(index)} failed"

    def make_error(self, started: int) -> Exception | None:
        if not self.failures:
            return None
        chosen = self._chosen()
        exc = self.failures[chosen]
        add_note(exc, self.label(chosen))
        others = {self.name(index): self.failures[index] for index in sorted(self.failures) if index != chosen}
        tell_others(self._kind, exc, others)
        shorten_shared(self.failures.values())
        return exc

    def _chain_to(self, leaving: BaseException, started: int) -> None:
        # The block of a group may ask for the value of the failed job.
        if self.failures and self.failures[self._chosen()] is leaving:
            self.make_error(started)
        else:
            super()._chain_to(leaving, started)

    def _chosen(self) -> int:
        return min(self.failures) if self._primary is None else self._primary


class CollectLedger(Ledger):
    def __init__(self, policy: Collect, kind: str = "item", names: Sequence[Hashable] | None = None) -> None:
        super().__init__(policy, kind, names)
        self._left = math.inf if policy.max_failures is None else policy.max_failures  # failures until the run ends
        self._fatal = policy.fatal

    def failed(self, index: int, item: object, exc: Exception, /, *, secondary: bool) -> str | None:
        super().failed(index, item, exc, secondary=secondary)
        self._left -= 1
        if self._fatal and (fatal := _first_of(self._fatal, exc)) is not None:
            return f"{self.label(index)} failed with {type(fatal).__name__}, which is fatal"
        return f"{self.label(index)} failed, the last that max_failures allows" if self._left <= 0 else None


def _first_of(classes: tuple[type[Exception], ...], exc: BaseException) -> BaseException | None:
    """The first of `exc` and what is in it that is of one of the classes, a `DependencyFailed` aside."""
    for part in parts_of(exc):
        # By inheritance, as `except` does it. `isinstance` would ask the class of the class, which may do anything.
        bases = set(map(id, type(part).__mro__))
        if type(part) is not DependencyFailed and any(id(cls) in bases for cls in classes):
            return part
    return None


class SettleLedger(Ledger):
    hands_over_failures = True
    outranks_cancellation = False

    def __init__(self, policy: Settle, kind: str = "item", names: Sequence[Hashable] | None = None) -> None:
        super().__init__(policy, kind, names)
        self.move_on_after = policy.move_on_after

    def failed(self, index: int, item: object, exc: Exception, /, *, secondary: bool) -> str | None:
        self.failures[index] = exc  # and not the item: no error will have it
        return None

    def make_error(self, started: int) -> Exception | None:
        return None

    def may_be_incomplete(self) -> bool:
        return self.move_on_after is not None

    def result(self, count: int, was_started: Callable[[int], bool]) -> Any:
        outcomes = [self._outcome(index, was_started) for index in range(count)]
        shorten_shared(self.failures.values())
        self.clear()
        return outcomes

    def _outcome(self, index: int, was_started: Callable[[int], bool]) -> Outcome[Any]:
        if index in self.failures:
            return Error(self.failures[index])
        value = self.results[index] if index < len(self.results) else MISSING
        if value is not MISSING:
            return Value(value)
        return Error(Unfinished(self.name(index), was_started(index), kind=self._kind))


class FirstSuccessLedger(Ledger):
    outranks_cancellation = False

    def succeeded(self, index: int, item: object, value: object, /) -> str | None:
        if not self.results:  # others may succeed while they are cancelled
            self.results.append(value)
        return f"{self.label(index)} succeeded"

    def may_be_incomplete(self) -> bool:
        return bool(self.results)

    def _group(self, failures: Mapping[int, Exception], started: int) -> FanOutError | None:
        return None if self.results else super()._group(failures, started)

    def result(self, count: int, was_started: Callable[[int], bool]) -> Any:
        for value in self.results:
            self.clear()
            return value
        msg = "FirstSuccess() takes at least one item, got none: there is no result to return"
        raise ValueError(msg)


_LEDGERS: Final[dict[type, Any]] = {
    FailFast: FailFastLedger,
    Collect: CollectLedger,
    Settle: SettleLedger,
    FirstSuccess: FirstSuccessLedger,
}


def start_ledger(
    policy: object,
    allowed: tuple[type, ...],
    caller: str,
    kind: str = "item",
    names: Sequence[Hashable] | None = None,
) -> Ledger:
    """The ledger of a run under `policy`, which must be an instance of one of the `allowed` classes."""
    check_policy(policy, allowed, caller)
    made_by = _LEDGERS.get(type(policy)) or next(_LEDGERS[cls] for cls in allowed if isinstance(policy, cls))
    ledger: Ledger = made_by(policy, kind, names)
    return ledger
