"""The exceptions of this package, and the texts that tell of failures: messages and notes.

Failures come from foreign code, by the thousand. So nothing here trusts them: their `str()` may raise or be 20 MB
long, their class may forbid notes. And nothing takes more than linear time.
"""

from __future__ import annotations

import functools
import os
from collections import Counter, defaultdict, deque
from itertools import chain, count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

from ._core.exceptions import is_group

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

MAX_TEXT: Final = 80
"""How many characters of a failure's message, or of a step's name, are shown."""

MAX_INDICES: Final = 9
"""Up to how many failed indices the message of a `FanOutError` has all of."""

FEW_INDICES: Final = 3
"""How many it has where there are more."""

MAX_TYPES: Final = 5
"""How many types of failures it counts one by one."""

MAX_ITEMS: Final = 10
"""How many other failures the notes of a failure tell of, and how many items that raised the same object."""

MAX_NOTES: Final = 100
"""How many notes an exception may have and still be given another, if a thousand runs at once raise one object."""


# Texts


def label(kind: str, name: object) -> str:
    """What notes and messages call an item: `item 3`, `job 3`, `step 'plan'`."""
    return f"{kind} {safe_repr(name)}"


def one_line(exc: BaseException) -> str:
    """The type and the message of an exception, on one short line."""
    try:
        text = str.strip(str(exc))  # that of str itself: what `__str__` returned may be a subclass
    except Exception:  # noqa: BLE001
        text = "<exception str() failed>"  # Python's words, in its own tracebacks
    # Cut before the text is split into words: it may be megabytes.
    start = text[: 10 * MAX_TEXT]
    line = " ".join(start.split())
    if len(line) > MAX_TEXT or len(text) > len(start):
        line = line[: MAX_TEXT - 1] + "…"
    return f"{type(exc).__name__}: {line}" if line else type(exc).__name__


def safe_repr(value: object) -> str:
    """The repr of something, cut short where that is long."""
    try:
        text = str.__str__(repr(value))
    except Exception:  # noqa: BLE001
        return f"<{type(value).__name__} repr() failed>"
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def _message(failures: Mapping[Any, Exception], total: int) -> str:
    return f"{len(failures)} of {total} items failed{_types(failures.values())}: {_indices(failures)}{_why(failures)}"


def _types(failures: Iterable[Exception]) -> str:
    """How many failures there are of each type, if there are several: the most frequent first."""
    names = {id(type(exc)): type(exc).__name__ for exc in failures}
    if len(names) < 2:  # noqa: PLR2004
        return ""
    counts = Counter(id(type(exc)) for exc in failures)  # by identity: a metaclass may forbid hashing
    shown = counts.most_common(MAX_TYPES)  # of those as frequent as each other, the first seen
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

_moments: Final = count()
"""Numbers the starts of runs and the notes that they write, to tell what was first."""


class _Note(str):
    """A note that a run wrote. Pickled and copied, it is a plain str."""

    __slots__ = ("run", "written")

    run: int  # the moment when the run that wrote it started
    written: int

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (str(self),)


class Notes:
    """Writes the notes of one run, which is taken to start now.

    An exception that comes out of a run inside of an item has a note of each run. But an object that is raised again
    and again, in one run after the other, would collect them without end: so those of runs that were over before this
    one started go.

    Args:
        kind: what the run calls an item: `item`, `job`, `step`.
    """

    __slots__ = ("_started", "kind")

    def __init__(self, kind: str) -> None:
        self.kind: Final = kind
        self._started = next(_moments)

    def add(self, exc: BaseException, text: str) -> None:
        """Add a note to an exception, if it takes any and this run has not written the same."""
        note = _Note(text)
        note.run, note.written = self._started, next(_moments)
        try:
            notes: list[str] = getattr(exc, "__notes__", [])
            ours = [other for other in notes if isinstance(other, _Note)]
            if any(other.written < self._started for other in ours):
                notes[:] = [other for other in notes if not isinstance(other, _Note) or other.written > self._started]
            if len(notes) < MAX_NOTES and not any(other == text and other.run == note.run for other in ours):
                exc.add_note(note)
        except Exception:  # noqa: BLE001, S110
            pass  # a frozen class, say: the exception matters, the note does not

    def name_items(self, failures: Mapping[Any, Exception]) -> None:
        """Name the item of each failure; of an object that many items raised, the first ten and a count."""
        raised: Counter[int] = Counter()
        for name, exc in failures.items():
            raised[id(exc)] += 1
            if raised[id(exc)] <= MAX_ITEMS:
                self.add(exc, label(self.kind, name))
        for exc in failures.values():
            if (more := raised.pop(id(exc), 0) - MAX_ITEMS) > 0:
                self.add(exc, f"and {more} more")

    def tell_others(self, exc: BaseException, others: Mapping[Any, Exception]) -> None:
        """Tell of other failures in the notes of the one that is raised: the first ten, a line each, and a count."""
        for name, other in islice(others.items(), MAX_ITEMS):
            self.add(exc, f"{label(self.kind, name)} also failed: {one_line(other)}")
        if (more := len(others) - MAX_ITEMS) > 0:
            self.add(exc, f"and {more} more")


# The exceptions


@final
class FanOutError(ExceptionGroup[Exception]):
    """Raised when items failed under `Collect`, or when none succeeded under `FirstSuccess`.

    It is an `ExceptionGroup` of all the failures, so that ``except*`` works, and it knows whose they are. Its message
    counts them, by type if there are several, and has the text of the first. Each has a note that names its item
    (``item 13``), as Python numbers the members of a group by itself.

    What ``split``, ``subgroup`` and ``except*`` make of it are `FanOutError` too, with the indices and items of just
    their own members and the same `results` and `total`. It can be pickled and copied, if its contents can.

    In the errors of `run_graph`, the names of steps stand wherever this says index.

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
    # indices are ints, but for `run_graph`, where they are the keys of the mapping of steps.
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
        """Sort the failures into kinds: thousands of them are usually few.

        Two failures are of one kind if they are of exactly the same type and came out of the same place: file and line
        of the innermost frame that is neither in the standard library, nor in site-packages, nor in this package, or
        of the innermost frame if there is none. One without a traceback (unpickled, say) goes by its type alone, as
        does a `DependencyFailed`. A group is one failure.

        Returns:
            A `FanOutError` for each kind, with its own `indices`, `failures` and `items`; the largest first, and then
            by first index. Each failure is in exactly one.

        Example::

            except fanout.FanOutError as error:
                for kind in error.kinds():
                    traceback.print_exception(kind.exceptions[0])
                    print("and as many more of its kind:", len(kind.exceptions) - 1)
        """
        kinds: defaultdict[Any, list[int]] = defaultdict(list)
        for place, exc in enumerate(self.exceptions):
            kinds[id(type(exc)), _origin(exc)].append(place)
        # The sort is stable: of kinds of one size, the one with the first index stays first.
        return tuple(map(self._kind, sorted(kinds.values(), key=len, reverse=True)))

    def _kind(self, places: list[int]) -> FanOutError:
        kind = self._part({place: self.exceptions[place] for place in places})
        # As `split` does, which would take a pass over all members for each kind.
        kind.__traceback__, kind.__context__, kind.__cause__ = self.__traceback__, self.__context__, self.__cause__
        kind.__suppress_context__ = self.__suppress_context__
        for note in getattr(self, "__notes__", ()):
            kind.add_note(note)
        return kind

    def __reduce__(self) -> tuple[Callable[..., FanOutError], tuple[Any, ...], dict[str, Any]]:
        return type(self), (self.failures, self.results, self.total), self.__dict__

    def derive(self, excs: Sequence[Any], /) -> Any:  # the overloads of the base class, all of which this serves
        """Make the error of some of the members, or a plain group where ``excs`` holds anything else.

        Python calls it for each half of a ``split``, and hands over either members or, for a member that is a group
        itself and was split too, a part of one.
        """
        found = _find(excs, self.exceptions)
        return BaseExceptionGroup(self.message, excs) if found is None else self._part(found)

    def _part(self, members: Mapping[int, Exception]) -> FanOutError:
        """The error of some of the members, which are given by their places."""
        failures = {self.indices[place]: members[place] for place in sorted(members)}
        items = {index: self.items[index] for index in failures if index in self.items}
        return FanOutError(failures, self.results, self.total, items=items)


def _find(parts: Sequence[BaseException], members: Sequence[BaseException]) -> dict[int, Any] | None:
    """Find the places of the members that `parts` are, or are parts of. None if any of them is neither.

    Each place counts once: one exception object that two items raised is two failures.
    """
    same: defaultdict[int, deque[int]] = defaultdict(deque)
    for index, member in enumerate(members):
        same[id(member)].append(index)
    found: dict[int, Any] = {}
    following = 0
    for part in parts:
        if same[id(part)]:
            place: int | None = same[id(part)].popleft()
        else:
            # A split gives the parts in the order of the members, so that it is linear to go on where the last was
            # found, even if all groups share their leaves. Only in parts put together by hand is any before that.
            places = chain(range(following, len(members)), range(following))
            place = next((place for place in places if place not in found and _is_part(part, members[place])), None)
        if place is None or place in found:
            return None
        found[place] = part
        following = place + 1
    return found


def _is_part(part: BaseException, whole: BaseException) -> bool:
    """Whether the group `part` came out of a split of `whole`."""
    if not is_group(part) or not is_group(whole):
        return False
    if part.__traceback__ is not None:
        return part.__traceback__ is whole.__traceback__  # a split copies it, and so tells apart what looks alike
    # Unpickled, or never raised. A part has some of the same members, in the same order.
    candidates = iter(whole.exceptions)  # each is looked at once
    return all(any(inner is exc or _is_part(inner, exc) for exc in candidates) for inner in part.exceptions)


def _origin(exc: BaseException) -> tuple[str, int | None] | None:
    """Where an exception came from, as far as `FanOutError.kinds` tells places apart."""
    if isinstance(exc, DependencyFailed):
        return None
    innermost = own = None
    tb = exc.__traceback__
    while tb is not None:
        innermost = tb
        if _is_own(tb.tb_frame.f_code.co_filename):
            own = tb
        tb = tb.tb_next
    origin = innermost if own is None else own
    return None if origin is None else (origin.tb_frame.f_code.co_filename, origin.tb_lineno)


@functools.lru_cache(maxsize=1024)
def _is_own(filename: str) -> bool:
    """Whether a file belongs to the program that uses this package, and to no library."""
    return not filename.startswith(_LIBRARIES) and _SITE_PACKAGES.isdisjoint(Path(filename).parts)


_LIBRARIES: Final = (
    "<frozen ",  # modules of the standard library that come with the interpreter
    *(str(Path(file).parent) + os.sep for file in (functools.__file__, __file__)),  # the others, and this package
)
_SITE_PACKAGES: Final = frozenset({"site-packages", "dist-packages"})  # of any environment; the second is Debian's


@final
class Unfinished(Exception):
    """Placeholder for an item that had no outcome when a run under `Settle` with a ``move_on_after`` gave up.

    It is never raised by a run; it comes back inside an ``outcome.Error``, whose ``unwrap()`` raises it.

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
    """Recorded for a step of `run_graph` that was not run, because a step that it needs failed.

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
        return f"{label('step', self.step)} was not run, because {safe_repr(self.dependency)} failed"
