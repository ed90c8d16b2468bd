"""Chaining exceptions, and looking into groups of them.

**Why frames here forget exceptions.** An exception has its traceback, and with it each frame that it passed through. A
frame that still has the exception in a variable when the function ends, because the function raised it or was left by
it, makes a cycle: the exception, and all that these frames know of the run, would stay until the garbage collector
comes. This also holds for frames that only a `Cancelled` passes through: each task has one of its own, and an item's
failure may have it as its context. So functions that handle an exception, and may be left by one, say ``del exc`` in a
`finally`. The tests of cycles (`no_cycles`) are what notices where it is missing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import trio

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

    from typing_extensions import TypeIs


def is_group(exc: BaseException | None) -> TypeIs[BaseExceptionGroup[BaseException]]:
    """Whether `exc` is a group; for type checkers, one whose members are exceptions."""
    return isinstance(exc, BaseExceptionGroup)


def members_of(group: BaseExceptionGroup[BaseException]) -> tuple[BaseException, ...]:
    """The exceptions in a group, whatever its class says."""
    members: tuple[BaseException, ...] = BaseExceptionGroup.exceptions.__get__(group)
    return members


def parts_of(exc: BaseException) -> Iterator[BaseException]:
    """`exc` and, if it is a group, all that is in it at any depth, groups included; each object once."""
    # Not by `subgroup`, which the class of a group may have replaced.
    todo, seen = [exc], {id(exc)}
    while todo:
        exc = todo.pop()
        yield exc
        for member in members_of(exc) if is_group(exc) else ():
            if id(member) not in seen:
                seen.add(id(member))
                todo.append(member)


def is_cancelled(exc: BaseException) -> bool:
    """Whether `exc` is a cancellation and nothing else."""
    # By its type, as `Cancelled` is final: `isinstance` takes ten times as long, because of its metaclass.
    if is_group(exc):
        return all(is_group(part) or type(part) is trio.Cancelled for part in parts_of(exc))
    return type(exc) is trio.Cancelled


def holds_cancelled(exc: BaseException) -> bool:
    """Whether `exc` is a cancellation, or a group with one in it."""
    return any(type(part) is trio.Cancelled for part in parts_of(exc)) if is_group(exc) else type(exc) is trio.Cancelled


def split_cancelled(exc: BaseException) -> tuple[BaseException | None, BaseException | None]:
    """The part of `exc` that is a cancellation, and the rest; either may be None."""
    if type(exc) is trio.Cancelled:
        return exc, None
    if not is_group(exc):
        return None, exc
    if is_cancelled(exc):
        return exc, None
    if not holds_cancelled(exc):
        return None, exc  # itself, as callers compare by identity
    return split_group(exc, trio.Cancelled)


def split_group(
    exc: BaseExceptionGroup[BaseException], kind: type[BaseException]
) -> tuple[BaseException | None, BaseException | None]:
    """The part of a group that is of this kind, and the rest; either may be None."""
    try:
        return BaseExceptionGroup.split(exc, kind)
    except Exception:  # noqa: BLE001  # its class, or that of a group in it, has a `derive` that fails
        return _plain(exc).split(kind)


def _plain(exc: BaseExceptionGroup[BaseException]) -> BaseExceptionGroup[BaseException]:
    """A group of Python's own class with the same members."""
    return BaseExceptionGroup(
        exc.message, [_plain(member) if is_group(member) else member for member in members_of(exc)]
    )


def first_leaf(exc: BaseException) -> BaseException:
    """The first exception of a group, at any depth, that is not a group; a single exception is its own first."""
    while is_group(exc):
        exc = members_of(exc)[0]
    return exc


def raise_unchanged(exc: BaseException) -> NoReturn:
    """Raise `exc` with the `__context__` it has; a plain `raise` would replace it by what the caller is handling."""
    context = exc.__context__
    try:
        raise exc
    finally:
        set_context(exc, context)
        del exc, context  # see above


def set_context(exc: BaseException, context: BaseException | None) -> None:
    """Set `exc.__context__`, even if the class of `exc` forbids setting attributes (a frozen one)."""
    BaseException.__setattr__(exc, "__context__", context)


def set_links(
    exc: BaseException, cause: BaseException | None, context: BaseException | None, *, suppress: bool
) -> None:
    """Set all that links `exc` to what it came out of; see `set_context`."""
    BaseException.__setattr__(exc, "__cause__", cause)
    set_context(exc, context)
    BaseException.__setattr__(exc, "__suppress_context__", suppress)


def chain_of(exc: BaseException) -> list[BaseException]:
    """`exc` and what its traceback prints above it, from the last to the first."""
    links: dict[int, BaseException] = {}
    _follow(exc, links)
    return [*links.values()]


def chain(exc: BaseException, *earlier: BaseException) -> None:
    """Have the traceback of `exc` print `earlier`, the last of them first, before all that it prints now."""
    links: dict[int, BaseException] = {}
    last = _follow(exc, links)
    for other in earlier:
        if id(other) not in links:
            _cut(other, links)
            set_context(last, other)
            BaseException.__setattr__(last, "__suppress_context__", False)  # `raise ... from None` would hide it
            last = _follow(other, links)


def _follow(exc: BaseException, links: dict[int, BaseException]) -> BaseException:
    """Add `exc` and what its traceback prints above it to `links`, by id. Returns the first that is printed."""
    while True:
        links[id(exc)] = exc
        link = exc.__context__ if exc.__cause__ is None and not exc.__suppress_context__ else exc.__cause__
        if link is None or id(link) in links:
            return exc
        exc = link


def _cut(exc: BaseException, targets: Container[int]) -> None:
    """Cut `exc`, and what it came out of, off the exceptions with these ids, which are about to be linked to it.

    A task that is cancelled while an exception is handled gets a Cancelled with that exception as its context.
    """
    todo: list[BaseException] = [exc]
    seen: set[int] = set()
    while todo:
        exc = todo.pop()
        if id(exc) in seen or id(exc) in targets:
            continue
        seen.add(id(exc))
        if id(exc.__context__) in targets:
            set_context(exc, None)
        todo += leads_to(exc)


def leads_to(exc: BaseException) -> list[BaseException]:
    """What a traceback of `exc` may print besides: its context, its cause, and the members of a group."""
    links = [link for link in (exc.__context__, exc.__cause__) if link is not None]
    return [*links, *members_of(exc)] if is_group(exc) else links
