"""Reading and writing files of any kind, which other processes may have made non-blocking; and messages."""

from __future__ import annotations

import os
import select
from typing import TYPE_CHECKING, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

R = TypeVar("R")

PIECE = 1 << 16
"""Bytes read at once: what a pipe holds."""

SHOWN_ITEM = 60
"""How many characters of an item a message shows."""


class UsageError(Exception):
    """Wrong use that comes to light while running: input that cannot be read or understood."""


class FatalError(Exception):
    """What makes it impossible to go on: no room for results, say."""


def read_some(fd: int) -> bytes:
    """Read what there is, waiting for it; nothing at the end of the file."""
    while True:
        try:
            return os.read(fd, PIECE)
        except BlockingIOError:
            select.select([fd], [], [])


def write_all(fd: int, data: bytes) -> None:
    """Write all of `data`, in as many pieces as it takes."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(fd, rest) :]
        except BlockingIOError:
            select.select([], [fd], [])


def is_ready(fd: int) -> bool:
    """Whether writing a little to a file would not wait for its reader."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(0))


async def in_thread(fn: Callable[..., R], *args: object, limiter: trio.CapacityLimiter | None = None) -> R:
    """Call a function that may block for any time: nothing else reads and writes any kind of file.

    When it is cancelled, the thread is left to its wait.

    Raises:
        FatalError: the system allows no more threads.
    """
    try:
        return await trio.to_thread.run_sync(fn, *args, abandon_on_cancel=True, limiter=limiter)
    except RuntimeError as exc:  # no function that is called here raises it
        msg = f"cannot start a thread: {exc}"
        raise FatalError(msg) from None


def say(message: str) -> None:
    """Print a message."""
    tell(f"trio-fanout: {message}\n")


def tell(text: str) -> None:
    """Write to standard error. That this cannot be done is no reason to fail: the exit code tells, too."""
    try:
        write_all(2, text.encode("utf-8", "backslashreplace"))
    except OSError:
        pass


def reason(exc: Exception) -> str:
    """What went wrong, in the words of the system where it was the system."""
    return exc.strerror or str(exc) if isinstance(exc, OSError) else str(exc)


def shown(item: str) -> str:
    """An item as messages show it: in one line, cut if it is long."""
    return repr(item if len(item) <= SHOWN_ITEM else item[: SHOWN_ITEM - 3] + "...")
