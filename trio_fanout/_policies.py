"""Policies: what a failure does, and what a call returns.

A policy is frozen, and may serve any number of runs. For each run it has a ledger (`_ledgers`).
"""

from __future__ import annotations

from typing import cast, final

import attrs

from ._arguments import check_count, check_seconds, describe


def _seconds_or_none(_: object, field: attrs.Attribute[float | None], value: object) -> None:
    check_seconds(value, field.name, zero=True)


def _count_or_none(_: object, field: attrs.Attribute[int | None], value: object) -> None:
    if value is not None:
        check_count(value, field.name)


def _is_exception_class(cls: object) -> bool:
    return isinstance(cls, type) and issubclass(cls, Exception)


def _classes(fatal: type[Exception] | tuple[type[Exception], ...]) -> tuple[type[Exception], ...]:
    """Check `fatal`, and put a single class into a tuple."""
    classes = fatal if isinstance(fatal, tuple) else (fatal,)
    for cls in cast("tuple[object, ...]", classes):
        if not _is_exception_class(cls):
            msg = f"fatal must be a subclass of Exception or a tuple of them, got {describe(cls)}"
            raise TypeError(msg if cls is fatal else f"{msg} in a tuple")
    return classes


@final
@attrs.frozen
class FailFast:
    """On a failure, cancel the run and raise the original exception, unwrapped.

    If several items fail, the failure with the lowest index is raised; but one that came out of the cancellation (in a
    ``finally`` block, say) is raised only if there is no other. A note names its item (``item 3``), and further notes
    list the other failures, one line each. A call returns a list of the results.

    Example::

        pages = await fanout.map(fetch, urls)  # FailFast() is the default
    """


@final
@attrs.frozen
class Collect:
    """On a failure, go on; at the end raise a `FanOutError` with all failures, if there were any.

    A call returns a list of the results if nothing failed. Two limits can cancel the run early; the first that is
    reached does. The `FanOutError` then has every failure so far, those of items that fail while being cancelled, and
    the results.

    ``Collect(max_failures=1)`` is fail-fast with the index and the partial results available.

    Args:
        max_failures: the number of failures that cancels the run, an int of 1 or more; None for no such limit. A
            `DependencyFailed` does not count.
        fatal: a subclass of `Exception`, or a tuple of them. A failure that is an instance of one, or a group that has
            one anywhere inside, cancels the run immediately: a wrong API key is not worth ten thousand failures. Its
            ``__cause__`` and ``__context__`` are not considered, and a `DependencyFailed` is never fatal.

    Raises:
        TypeError, ValueError: `max_failures` or `fatal` is something else.

    Example::

        try:
            pages = await fanout.map(fetch, urls, policy=fanout.Collect())
        except fanout.FanOutError as error:
            pages = await fanout.map(fetch, error.items.values())  # once more, for those that failed

        pages = await fanout.map(fetch, urls, policy=fanout.Collect(fatal=PermissionError))
    """

    max_failures: int | None = attrs.field(default=None, validator=_count_or_none)
    fatal: tuple[type[Exception], ...] = attrs.field(default=(), converter=_classes)


@final
@attrs.frozen
class Settle:
    """On a failure, go on; return a list with the outcome of each item.

    An outcome is an ``outcome.Value`` or an ``outcome.Error``; its ``unwrap()`` returns the value or raises.

    Args:
        move_on_after: cancel the run after this many seconds, and return the outcomes so far; an item without an
            outcome gets ``outcome.Error(Unfinished(...))``. A number of 0 or more; None for no such limit.

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
    """On a failure, go on; on the first success, cancel the rest and return that result.

    After a success, failures no longer matter. If no item succeeds, the call raises a `FanOutError`; if there were no
    items, a `ValueError`.

    Example::

        page = await fanout.map(fetch, mirrors, policy=fanout.FirstSuccess())
    """


FAIL_FAST = FailFast()
"""The default policy."""


def check_policy(policy: object, allowed: tuple[type, ...], caller: str) -> None:
    """Raise `TypeError` unless `policy` is an instance of one of the `allowed` classes."""
    if not isinstance(policy, allowed):
        *others, last = [f"{cls.__name__}()" for cls in allowed]
        msg = f"policy of {caller} must be {', '.join(others)} or {last}, got {describe(policy)}"
        raise TypeError(msg)


def check_never_moves_on(policy: object, caller: str) -> None:
    """Raise `TypeError` for a `Settle` with a time limit, for calls that have no list to return early."""
    if isinstance(policy, Settle) and policy.move_on_after is not None:
        msg = f"policy of {caller} must be Settle() without move_on_after, got move_on_after={policy.move_on_after!r}"
        raise TypeError(msg)
