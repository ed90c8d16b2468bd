"""The exceptions of this package, and the texts that describe failures: messages and notes.

Failures come from foreign code, by the thousand. So nothing here trusts them: their `str()` may raise or be 20 MB
long, their class may forbid notes. And nothing takes more than linear time.
"""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, final

from ._groups import find_parts
from ._kinds import sort_into_kinds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

MAX_TEXT: Final = 80
"""The most characters shown of a failure's message, or of a step's name."""

MAX_INDICES: Final = 9
"""The most failed indices that the message of a `FanOutError` lists in full."""

FEW_INDICES: Final = 3
"""How many it lists if there are more."""

MAX_TYPES: Final = 5
"""The most types of failures that it counts one by one."""

MAX_ITEMS: Final = 10
"""The most other failures that the notes of a failure list, and the most items of one object that they name."""

MAX_NOTES: Final = 12
"""The most notes of an exception, those about other failures aside. A run writes no more than this to a new one."""


# Texts


def label(kind: str, name: object) -> str:
    """The name of an item in notes and messages: `item 3`, `job 3`, `step 'plan'`."""
    return f"{kind} {safe_repr(name)}"


def text_of(exc: BaseException) -> str:
    """The message of an exception."""
    try:
        return str.strip(str(exc))  # that of str itself: what `__str__` returned may be a subclass
    except Exception:  # noqa: BLE001
        return "<exception str() failed>"  # Python's words, in its own tracebacks


def one_line(exc: BaseException) -> str:
    """The type and the message of an exception, on one short line."""
    text = text_of(exc)
    # Cut before the text is split into words: it may be megabytes.
    start = text[: 10 * MAX_TEXT]
    line = " ".join(start.split())
    if len(line) > MAX_TEXT or len(text) > len(start):
        line = line[: MAX_TEXT - 1] + "…"
    return f"{type(exc).__name__}: {line}" if line else type(exc).__name__


def safe_repr(value: object) -> str:
    """The repr of something, cut short if it is long."""
    try:
        text = str.__str__(repr(value))
    except Exception:  # noqa: BLE001
        return f"<{type(value).__name__} repr() failed>"
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def _message(failures: Mapping[Any, Exception], total: int) -> str:
    return f"{len(failures)} of {total} items failed{_types(failures.values())}: {_indices(failures)}{_why(failures)}"


def _types(failures: Iterable[Exception]) -> str:
    """The number of failures of each type, if there are several types: the most frequent first."""
    names = {id(type(exc)): type(exc).__name__ for exc in failures}
    if len(names) < 2:  # noqa: PLR2004
        return ""
    counts = Counter(id(type(exc)) for exc in failures)  # by identity: a metaclass may forbid hashing
    shown = counts.most_common(MAX_TYPES)  # of equally frequent ones, the first seen
    texts = [f"{number} {names[key]}" for key, number in shown]
    if others := counts.total() - sum(number for _, number in shown):
        texts.append(f"{others} of other types")
    return f" ({', '.join(texts)})"


def _indices(failures: Mapping[Any, Exception]) -> str:
    if len(failures) <= MAX_INDICES:
        return ", ".join(map(safe_repr, failures))
    return f"{', '.join(map(safe_repr, islice(failures, FEW_INDICES)))} and {len(failures) - FEW_INDICES} more"


def _why(failures: Mapping[Any, Exception]) -> str:
    return "".join(f"; first: {one_line(exc)}" for exc in islice(failures.values(), 1))


# Notes

_ALSO_FAILED: Final = " also failed: "


def add_note(exc: BaseException, text: str) -> None:
    """Add a note to an exception, unless it has that note already, or too many."""
    try:
        notes = getattr(exc, "__notes__", ())
        # Bounded, because an object may be raised in one run after another. But runs may also be inside runs: what an
        # inner one says about other failures leaves room for the name of the outer one's item.
        if text not in notes and sum(_ALSO_FAILED not in note for note in notes) < MAX_NOTES:
            exc.add_note(text)
    except Exception:  # noqa: BLE001, S110
        pass  # a frozen class, for example: the exception matters, the note does not


def name_items(kind: str, failures: Mapping[Any, Exception]) -> None:
    """Add notes that name the item of each failure; of an object that many items raised, the first ten and a count."""
    raised: Counter[int] = Counter()
    for name, exc in failures.items():
        raised[id(exc)] += 1
        if raised[id(exc)] <= MAX_ITEMS:
            add_note(exc, label(kind, name))
    for exc in failures.values():
        if (more := raised.pop(id(exc), 0) - MAX_ITEMS) > 0:
            add_note(exc, f"and {more} more")


def tell_others(kind: str, exc: BaseException, others: Mapping[Any, Exception]) -> None:
    """Add notes about other failures to the one that is raised: a line each for the first ten, and a count."""
    for name, other in islice(others.items(), MAX_ITEMS):
        add_note(exc, f"{label(kind, name)}{_ALSO_FAILED}{one_line(other)}")
    if (more := len(others) - MAX_ITEMS) > 0:
        add_note(exc, f"and {more} more")


# The exceptions


@final
class FanOutError(ExceptionGroup[Exception]):
    """Raised when items failed under `Collect`, or when none succeeded under `FirstSuccess`.

    It is an `ExceptionGroup` of all the failures, so that ``except*`` works, and it knows which items they belong to.
    Its message counts them, by type if there are several, and has the text of the first. Each has a note that names its
    item (``item 13``), because Python numbers the members of a group in its own way.

    The parts that ``split``, ``subgroup`` and ``except*`` make of it are `FanOutError` too, each with the indices and
    items of its own members and the same `results` and `total`. It can be pickled and copied, if its contents can.

    In the errors of `run_graph`, the names of steps are used instead of indices.

    Attributes:
        indices: the indices of the items that failed, ascending; ``indices[k]`` belongs to ``exceptions[k]``.
        failures: the same as a mapping from index to exception.
        items: a mapping from index to item for the items that failed: what to try again. Empty for `open_group` and
            `run_graph`.
        results: a mapping from index to value for the items that succeeded. Empty for `do`, `stream` and
            `open_group`, which keep nothing.
        total: how many items were started (for `run_graph`, how many steps there are).

    Example::

        try:
            await fanout.do(save, pages, policy=fanout.Collect())
        except fanout.FanOutError as error:
            for kind in error.kinds():
                logger.warning("%s", kind)
            await fanout.do(save, error.items.values())
    """

    # Typed loosely, as an ExceptionGroup's contents have to be: an `except` clause cannot name type parameters. The
    # indices are ints, except in `run_graph`, where they are the keys of the mapping of steps.
    indices: tuple[Any, ...]
    failures: Mapping[Any, Exception]
    items: Mapping[Any, Any]
    results: Mapping[Any, Any]
    total: int

    def __new__(
        cls,
        failures: Mapping[Any, Exception],
        results: Mapping[Any, Any],  # noqa: ARG004  # for __init__
        total: int,
        *,
        items: Mapping[Any, Any] | None = None,  # noqa: ARG004  # for __init__
    ) -> FanOutError:
        """Make the error of `failures`, a mapping from index to exception in the order of the indices."""
        return super().__new__(cls, _message(failures, total), list(failures.values()))

    def __init__(
        self,
        failures: Mapping[Any, Exception],
        results: Mapping[Any, Any],
        total: int,
        *,
        items: Mapping[Any, Any] | None = None,
    ) -> None:
        super().__init__(*self.args)
        self.indices = tuple(failures)
        self.failures = failures
        self.items = {} if items is None else items
        self.results = results
        self.total = total

    def kinds(self) -> tuple[FanOutError, ...]:
        """Group the failures by kind: thousands of failures are usually of a few kinds.

        Two failures are of one kind if they have exactly the same type and the same place of origin. That is the file
        and line of the innermost frame that is not in the standard library, site-packages or this package, or of the
        innermost frame if there is no such frame. A failure without a traceback (an unpickled one, for example) is
        sorted by its type alone, as is a `DependencyFailed`. A group is one failure.

        Returns:
            A `FanOutError` for each kind, with its own `indices`, `failures` and `items`, the largest first, and then
            by first index. Each failure is in exactly one of them.

        Example::

            except fanout.FanOutError as error:
                for kind in error.kinds():
                    traceback.print_exception(kind.exceptions[0])
                    print("and as many more of its kind:", len(kind.exceptions) - 1)
        """
        return tuple(map(self._kind, sort_into_kinds(self.exceptions, by_type=DependencyFailed)))

    def _kind(self, places: list[int]) -> FanOutError:
        kind = self._part({place: self.exceptions[place] for place in places})
        # What `split` does, which would take a pass over all members for each kind.
        kind.__traceback__, kind.__context__, kind.__cause__ = self.__traceback__, self.__context__, self.__cause__
        kind.__suppress_context__ = self.__suppress_context__
        for note in getattr(self, "__notes__", ()):
            kind.add_note(note)
        return kind

    def __reduce__(self) -> tuple[Callable[..., FanOutError], tuple[Any, ...], dict[str, Any]]:
        return type(self), (self.failures, self.results, self.total), self.__dict__

    def derive(self, excs: Sequence[Any], /) -> Any:  # the overloads of the base class, all of which this serves
        """Make the error of some of the members, or a plain group if ``excs`` holds anything else.

        Python calls it for each half of a ``split``, and passes members or, where a member is itself a group and was
        split too, a part of it.
        """
        found = find_parts(excs, self.exceptions)
        return BaseExceptionGroup(self.message, excs) if found is None else self._part(found)

    def _part(self, members: Mapping[int, Exception]) -> FanOutError:
        """The error of some of the members, which are given by their places."""
        failures = {self.indices[place]: members[place] for place in sorted(members)}
        items = {index: self.items[index] for index in failures if index in self.items}
        return FanOutError(failures, self.results, self.total, items=items)


@final
class Unfinished(Exception):
    """Placeholder for an item that had no outcome when the ``move_on_after`` of `Settle` had passed.

    A run never raises it. It is returned inside an ``outcome.Error``, whose ``unwrap()`` raises it.

    Attributes:
        index: the item's index (in `run_graph`, the step's name).
        started: whether the item's function had been called.
    """

    index: Any
    started: bool

    def __init__(self, index: Any, started: bool, *, kind: str = "item") -> None:  # noqa: FBT001
        super().__init__(index, started)
        self.index = index
        self.started = started
        self._kind = kind

    def __str__(self) -> str:
        how = "started but not finished" if self.started else "not started"
        return f"{label(self._kind, self.index)} was {how} in time"


@final
class DependencyFailed(Exception):
    """Recorded for a step of `run_graph` that was not run because a step that it needs failed.

    Its ``__cause__`` is the exception of that other step: another `DependencyFailed` if that step was not run either.

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
        return f"{label('step', self.step)} was not run, because {safe_repr(self.dependency)} failed"
