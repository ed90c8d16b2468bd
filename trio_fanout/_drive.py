"""One run from its start to its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import trio

from ._nursery import BareNursery
from ._sources import FedQueue

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._run import Run
    from ._sources import Source

T = TypeVar("T")


async def drive(
    run: Run[T, Any],
    source: Source[T],
    conclude: Callable[[BaseException | None], BaseException | None],
    move_on_after: float | None = None,
) -> None:
    """Run all items of `source`, for at most `move_on_after` seconds; what is raised is for `conclude` to say."""
    async with BareNursery(conclude) as nursery:
        if move_on_after is not None:
            nursery.cancel_scope.deadline = trio.current_time() + move_on_after
        run.start(nursery)
        if isinstance(source, FedQueue):
            try:
                await source.feed(run)
            except BaseException as exc:
                run.note_stray(exc)
                run.cancel()
                raise
