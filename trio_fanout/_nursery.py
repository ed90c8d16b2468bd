"""A nursery whose exceptions leave it one at a time, and bare.

Trio's nursery wraps whatever leaves it in a group, because any number of things may go wrong at once. In a run, an
item's failure never leaves its worker: it is recorded. What does leave is rare and single: an exception of the block
or of a source, a `KeyboardInterrupt`, a cancellation. Those should look as if there were no nursery.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NoReturn

import trio

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from typing_extensions import TypeIs


class BareNursery:
    """`trio.open_nursery()`, except that what leaves the block is one exception, never wrapped in a group.

    Where several leave at once, one is raised, in this order: what is no `Exception` (`KeyboardInterrupt`,
    `SystemExit`), the block's own exception, a task's, `Cancelled`. Others than `Cancelled` are chained to it.

    Args:
        conclude: is given what is about to leave, or None, when all tasks have ended; returns what is to leave.
    """

    __slots__ = ("_conclude", "_manager", "_nursery")

    def __init__(self, conclude: Callable[[BaseException | None], BaseException | None]) -> None:
        # Strict by name: the caller's `trio.run(..., strict_exception_groups=False)` must not change what we see.
        self._manager: Final = trio.open_nursery(strict_exception_groups=True)
        self._conclude: Final = conclude

    @trio.lowlevel.enable_ki_protection
    async def __aenter__(self) -> trio.Nursery:
        self._nursery = await self._manager.__aenter__()
        return self._nursery

    @trio.lowlevel.enable_ki_protection
    async def __aexit__(
        self,
        etype: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> bool:
        leaving: BaseException | None = None
        if exc is not None:
            # Trio would do so too, but from a frame that holds the group of exceptions, which each task's Cancelled
            # then holds by its traceback: a cycle.
            self._nursery.cancel_scope.cancel()
        try:
            await self._manager.__aexit__(etype, exc, tb)
        except BaseExceptionGroup as group:
            leaving = _choose(group, exc)
        try:
            leaving = self._conclude(leaving)
            if leaving is None or leaving is exc:
                # Not to raise the block's own exception again keeps this frame out of its traceback.
                return leaving is None
            raise_unchanged(leaving)
        finally:
            del leaving, exc  # a frame in an exception's traceback must not hold the exception in turn


def _choose(group: BaseExceptionGroup[BaseException], block: BaseException | None) -> BaseException:
    """The one exception that stands for all in `group`; `block` is what the block itself raised."""
    others = [member for member in group.exceptions if not is_cancelled(member)]
    if not others:
        # Each worker has a Cancelled of its own; any one of them tells Trio all there is to tell.
        return _first_leaf(group)
    if isinstance(block, Exception):
        # Where a Cancelled was split off, the block's own group is there as a copy: put the original in its place.
        parts = leaves(block)
        others = [block, *(member for member in others if not leaves(member) <= parts)]
    chosen = next((member for member in others if not isinstance(member, Exception)), others[0])
    for other in others:
        if other is not chosen:
            chain(chosen, other)
    return chosen


def is_cancelled(exc: BaseException) -> bool:
    """Whether `exc` is a cancellation and nothing else."""
    if is_group(exc):
        return all(map(is_cancelled, exc.exceptions))
    return isinstance(exc, trio.Cancelled)


def _first_leaf(exc: BaseException) -> BaseException:
    while is_group(exc):
        exc = exc.exceptions[0]
    return exc


def is_group(exc: BaseException | None) -> TypeIs[BaseExceptionGroup[BaseException]]:
    """Whether `exc` is a group; for type checkers, one whose members are exceptions."""
    return isinstance(exc, BaseExceptionGroup)


def leaves(exc: BaseException) -> set[int]:
    """The identities of the exceptions in a group, at any depth; of a single exception, its own."""
    return {leaf for member in exc.exceptions for leaf in leaves(member)} if is_group(exc) else {id(exc)}


def raise_unchanged(exc: BaseException) -> NoReturn:
    """Raise `exc` with the `__context__` it has, where a plain `raise` puts whatever the caller is handling."""
    context = exc.__context__
    try:
        raise exc
    finally:
        set_context(exc, context)
        del exc, context  # or this frame, in the traceback, would make a cycle


def set_context(exc: BaseException, context: BaseException | None) -> None:
    """Set `exc.__context__`, also where the class of `exc` forbids to set attributes (a frozen one)."""
    BaseException.__setattr__(exc, "__context__", context)


def chain_of(exc: BaseException) -> list[BaseException]:
    """`exc` and what its traceback prints above it, from the last to the first."""
    links = [exc]
    seen = {id(exc)}
    while True:
        link = exc.__context__ if exc.__cause__ is None and not exc.__suppress_context__ else exc.__cause__
        if link is None or id(link) in seen:
            return links
        seen.add(id(link))
        links.append(link)
        exc = link


def chain(exc: BaseException, earlier: BaseException) -> None:
    """Have the traceback of `exc` print `earlier` before all that it prints now."""
    links = chain_of(exc)
    if any(link is earlier for link in links):
        return
    _cut(earlier, links)
    set_context(links[-1], earlier)
    BaseException.__setattr__(links[-1], "__suppress_context__", False)  # `raise ... from None` would hide it


def _cut(exc: BaseException, links: list[BaseException]) -> None:
    """Cut `exc`, and what it came out of, off `links`, which are about to be linked to it.

    A task that is cancelled while an exception is handled gets a Cancelled with that exception as its context.
    """
    todo, seen = [exc], set(map(id, links))
    while todo:
        exc = todo.pop()
        if id(exc) in seen:
            continue
        seen.add(id(exc))
        if any(exc.__context__ is link for link in links):
            set_context(exc, None)
        todo += [link for link in (exc.__context__, exc.__cause__) if link is not None]
        if is_group(exc):
            todo += exc.exceptions
