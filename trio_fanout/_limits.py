"""How many items may run at once."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import trio

from ._arguments import got

if TYPE_CHECKING:
    from trio.lowlevel import Task

DEFAULT_LIMIT: Final = 40
"""The limit where none is given: 40, as Trio has it for threads."""


def check_limit(limit: object) -> None:
    """Raise unless `limit` is an int of 1 or more, `math.inf` or a limiter."""
    if isinstance(limit, int) and not isinstance(limit, bool):
        if limit >= 1:
            return
        wrong: type[Exception] = ValueError
    elif isinstance(limit, trio.CapacityLimiter) or (isinstance(limit, float) and limit == math.inf):
        return
    else:
        wrong = TypeError
    msg = f"limit must be an int of 1 or more, math.inf or a trio.CapacityLimiter, got {got(limit)}"
    raise wrong(msg)


def check_not_held(limit: float | trio.CapacityLimiter) -> None:
    """Raise `RuntimeError` if `limit` is a limiter of which the calling task, or one above it, holds a token.

    It would hold that token while it waits for items that wait for a token: with enough such callers, for ever.
    """
    if not isinstance(limit, trio.CapacityLimiter):
        return
    borrowers = set(limit.statistics().borrowers)
    task: Task | None = trio.lowlevel.current_task()
    while task is not None:
        if task in borrowers:
            msg = (
                f"limit={limit!r} can deadlock here: {task!r} holds one of its tokens and would wait for items that "
                "need one; give this call a limit of its own, or make it where no token is held"
            )
            raise RuntimeError(msg)
        task = task.parent_nursery.parent_task if task.parent_nursery is not None else None
