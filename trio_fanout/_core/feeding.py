"""Running all items of a source; reading an async one. The one place that knows both the run and its source."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any, TypeVar, cast

import trio

from .exceptions import raise_unchanged, split_group
from .sources import FedQueue

if TYPE_CHECKING:
    from .run import Run
    from .sources import Source

T = TypeVar("T")


@trio.lowlevel.enable_ki_protection  # Ctrl-C between the block and its exit would leave the nursery open
async def run_all(run: Run[T, Any], source: Source[T]) -> None:
    """Run all items of `source`, and raise what the run raises."""
    async with run:
        if isinstance(source, FedQueue):
            await feed(run, source)


@trio.lowlevel.disable_ki_protection
async def feed(run: Run[T, Any], source: FedQueue[T]) -> None:
    """Read the items, one for each worker that is free to run it, in the calling task."""
    iterator = aiter(source.items)
    with trio.CancelScope() as scope:
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            while await run.wait_for_room(source):
                source.reading = scope
                try:
                    source.put(await anext(iterator))  # with no name for it here, an idle run keeps no item alive
                except StopAsyncIteration:
                    source.ended = True
                    if not source.ready():
                        run.source_ended()
                    break
                finally:
                    source.reading = None
                run.start_workers()
        finally:
            if isinstance(iterator, AsyncGenerator):
                await _close(cast("AsyncGenerator[T, Any]", iterator))


async def _close(generator: AsyncGenerator[Any, Any]) -> None:
    """Close an async generator in the task that it ran in: it may hold a scope or a nursery across its yields."""
    try:
        # Not shielded: if this is cancelled, too, the generator gets a Cancelled, as anywhere in Trio.
        await generator.aclose()
    except BaseExceptionGroup as group:
        # A nursery in the generator wraps the GeneratorExit by which `aclose` closes it. Then Python does not know it
        # again, and raises it.
        _, rest = split_group(group, GeneratorExit)
    else:
        return
    if rest is not None:
        raise_unchanged(rest)
