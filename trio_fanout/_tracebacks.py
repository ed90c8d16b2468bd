"""Tracebacks that are too long: reading them, and cutting them down."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING

from ._core.exceptions import leads_to

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def shorten_shared(failures: Iterable[BaseException]) -> None:
    """Shorten the tracebacks of exception objects that several of `failures` are, or hold, or came out of.

    Each time that an object is raised, its traceback gets longer. A connection that is lost may raise one object in ten
    thousand items, and printing it for each of them would take minutes.
    """
    owners: dict[int, int] = {}  # by object, the first of the failures that leads to it
    shared: dict[int, BaseException] = {}
    for number, failure in enumerate(failures):
        todo = [failure]
        while todo:
            exc = todo.pop()
            if id(exc) not in owners:
                owners[id(exc)] = number
                if exc.__traceback__ is not None:  # or it was never raised, as a `DependencyFailed`, unlike its cause
                    todo += leads_to(exc)
            elif owners[id(exc)] != number:
                shared[id(exc)] = exc
    for exc in shared.values():
        _drop_repeats(exc)


def shorten_endless(exc: BaseException) -> None:
    """Shorten a traceback that is longer than a single raise can make it.

    For failures that are handed over one by one, so that nothing remembers which objects there have been. One that is
    raised again and again would keep the frames of all items that raised it.
    """
    if len(entries_of(exc)) > sys.getrecursionlimit():
        _drop_repeats(exc)


def _drop_repeats(exc: BaseException) -> None:
    """Keep just one entry of a traceback for each place in the code: the innermost, which is from the first raise."""
    places: dict[tuple[int, int], TracebackType] = {}
    for entry in reversed(entries_of(exc)):
        places.setdefault((id(entry.tb_frame.f_code), entry.tb_lasti), entry)
    set_entries(exc, [*reversed(places.values())])


def entries_of(exc: BaseException) -> list[TracebackType]:
    """The entries of the traceback of `exc`, the outermost first."""
    entries: list[TracebackType] = []
    tb = exc.__traceback__
    while tb is not None:
        entries.append(tb)
        tb = tb.tb_next
    return entries


def set_entries(exc: BaseException, entries: Sequence[TracebackType]) -> None:
    """Give `exc` a traceback of entries like these."""
    tb: TracebackType | None = None
    for entry in reversed(entries):
        tb = TracebackType(tb, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
    BaseException.with_traceback(exc, tb)  # that of its class may do anything
