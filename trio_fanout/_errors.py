"""The exceptions of this package."""

from __future__ import annotations

from collections import defaultdict, deque
from typing import TYPE_CHECKING, Any, final

from ._nursery import is_group, leaves

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

SHOWN_INDICES = 10
"""How many failed indices the message of a `FanOutError` names before it only counts."""


@final
class FanOutError(ExceptionGroup[Exception]):
    """Raised when items failed under `Collect`, or when none succeeded under `FirstSuccess`.

    It is an `ExceptionGroup` of all the failures, so that ``except*`` works, and it knows whose they are. What
    `split`, `subgroup` and ``except*`` make of it are `FanOutError` too, with the indices of just their own members
    and the same `results` and `total`; it can be pickled and copied.

    In the errors of `run_graph`, the names of steps stand wherever this says index.

    Attributes:
        indices: the indices of the items that failed, ascending; ``indices[k]`` belongs to ``exceptions[k]``.
        failures: the same as a mapping from index to exception.
        results: a mapping from index to value for the items that succeeded. Empty for `do`, `stream` and
            `open_group`, which keep nothing.
        total: how many items were started (for `run_graph`, how many steps there are).

    Example::

        try:
            pages = await fanout.map(fetch, urls, policy=fanout.Collect())
        except fanout.FanOutError as error:
            retry = [urls[index] for index in error.indices]
    """

    # Typed loosely, as an ExceptionGroup's contents have to be: an `except` clause cannot name type parameters. The
    # indices are ints, but for `run_graph`, where they are the keys of the mapping of steps.
    indices: tuple[Any, ...]
    failures: Mapping[Any, Exception]
    results: Mapping[Any, Any]
    total: int

    def __new__(
        cls,
        failures: Mapping[Any, Exception],
        results: Mapping[Any, Any],  # noqa: ARG004  # for __init__
        total: int,
    ) -> FanOutError:
        """Make the error of `failures`, a mapping from index to exception in the order of the indices."""
        return super().__new__(cls, _message(failures, total), list(failures.values()))

    def __init__(self, failures: Mapping[Any, Exception], results: Mapping[Any, Any], total: int) -> None:
        super().__init__(_message(failures, total), list(failures.values()))
        self.indices = tuple(failures)
        self.failures = failures
        self.results = results
        self.total = total

    def __reduce__(self) -> tuple[Callable[..., FanOutError], tuple[Any, ...], dict[str, Any]]:
        return type(self), (self.failures, self.results, self.total), self.__dict__

    def derive(self, excs: Sequence[Any], /) -> Any:  # the overloads of the base class, all of which this serves
        """Make the error of some of the members, or a plain group where `excs` holds anything else.

        Python calls it for each half of a `split`, and hands over either members or, for a member that is a group
        itself and was split too, a part of one.
        """
        places = _Places(self.exceptions)
        found: dict[int, Any] = {}
        for exc in excs:
            place = places.take(exc)
            if place is None:
                return BaseExceptionGroup(self.message, excs)
            found[place] = exc
        return FanOutError({self.indices[place]: found[place] for place in sorted(found)}, self.results, self.total)


class _Places:
    """Where in a `FanOutError` the members of a part of it come from."""

    def __init__(self, members: Sequence[BaseException]) -> None:
        # By identity, and each place once: one exception object that two items raised is two failures.
        self._places: defaultdict[int, deque[int]] = defaultdict(deque)
        self._leaves: dict[int, set[int]] = {}
        for place, member in enumerate(members):
            self._places[id(member)].append(place)
            if is_group(member):
                self._leaves[place] = leaves(member)

    def take(self, exc: BaseException) -> int | None:
        """The first place, not taken before, of the member that `exc` is, or is a part of."""
        if same := self._places[id(exc)]:
            place: int | None = same.popleft()
        elif is_group(exc):
            parts = leaves(exc)
            place = next((place for place, whole in self._leaves.items() if parts <= whole), None)
        else:
            return None
        if place is not None:
            self._leaves.pop(place, None)
        return place


def _message(failures: Mapping[Any, Exception], total: int) -> str:
    shown = ", ".join(map(repr, list(failures)[:SHOWN_INDICES]))
    more = len(failures) - SHOWN_INDICES
    return f"{len(failures)} of {total} items failed: {shown}" + (f" and {more} more" if more > 0 else "")


@final
class Unfinished(Exception):
    """What stands for an item that a `Settle(move_on_after=...)` run left without an outcome.

    It is never raised by a run; it comes back inside an ``outcome.Error``, whose ``unwrap()`` raises it.

    Attributes:
        index: the item's index (in `run_graph`, the step's name).
        started: whether the item's function had been called.
    """

    index: Any
    started: bool

    def __init__(self, index: Any, started: bool) -> None:  # noqa: FBT001
        super().__init__(index, started)
        self.index = index
        self.started = started

    def __str__(self) -> str:
        return f"item {self.index!r} was {'started but not finished' if self.started else 'not started'} in time"


@final
class DependencyFailed(Exception):
    """What a step of `run_graph` fails with that was not run, because a step that it needs failed.

    Its ``__cause__`` is the exception of that other step: a `DependencyFailed` too, where that one was not run either.

    Attributes:
        step: the name of the step that was not run.
        dependency: the name of the first of its own needs that failed.
    """

    step: Any
    dependency: Any

    def __init__(self, step: Any, dependency: Any) -> None:
        super().__init__(step, dependency)
        self.step = step
        self.dependency = dependency

    def __str__(self) -> str:
        return f"step {self.step!r} was not run, because {self.dependency!r} failed"
