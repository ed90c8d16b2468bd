"""What a failure does, and what a call gives back.

A policy is frozen, and may serve any number of runs. Each run starts a ledger by it (`_ledgers`).
"""

from __future__ import annotations

from typing import final

import attrs

from ._arguments import check_count, check_seconds, describe


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
            pages = await fanout.map(fetch, error.items.values())  # once more, for those that failed
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


FAIL_FAST = FailFast()
"""The policy where none is given."""


def check_policy(policy: object, allowed: tuple[type, ...], caller: str) -> None:
    """Raise `TypeError` unless `policy` is an instance of one of the `allowed` classes."""
    if not isinstance(policy, allowed):
        *others, last = [f"{cls.__name__}()" for cls in allowed]
        msg = f"policy of {caller} must be {', '.join(others)} or {last}, got {describe(policy)}"
        raise TypeError(msg)


def check_never_moves_on(policy: object, caller: str) -> None:
    """Raise `TypeError` for a `Settle` with a time limit, for calls that have no list to give back early."""
    if isinstance(policy, Settle) and policy.move_on_after is not None:
        msg = f"policy of {caller} must be Settle() without move_on_after, got move_on_after={policy.move_on_after!r}"
        raise TypeError(msg)
