"""Reading and writing files of any kind, which other processes may have made non-blocking; errors and messages."""

from __future__ import annotations

import os
import select
import stat
import tempfile
from typing import TYPE_CHECKING, Final, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

R = TypeVar("R")

PIECE: Final = 1 << 16  # bytes read at once: what a pipe holds
SHOWN_ITEM: Final = 60  # characters of an item that a message shows
STANDARD_INPUT: Final = "standard input"


class UsageError(Exception):
    """Wrong use that comes to light while running: input that cannot be read or understood."""


class FatalError(Exception):
    """Something that makes it impossible to go on: no room for results, say."""


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


def is_ready(fd: int, event: int = select.POLLOUT) -> bool:
    """Whether writing a little to a file (or reading it, with ``POLLIN``) would not wait for its other end."""
    poll = select.poll()
    poll.register(fd, event)
    return bool(poll.poll(0))


async def read_piece(fd: int, name: str) -> bytes:
    """Read what there is of a file, `name` for short; nothing at its end.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        return await in_thread(read_some, fd)
    except OSError as exc:
        msg = f"cannot read {name}: {reason(exc)}"
        raise UsageError(msg) from None


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


def check_apart(one: tuple[str, int | Path], other: tuple[str, int | Path]) -> None:
    """Raise a `UsageError` if these are the same plain file: what is written would be read, or mixed.

    Args:
        one: what messages call it, and its file descriptor or its path, which need not exist.
        other: the same of the other.
    """
    try:
        statuses = os.stat(one[1]), os.stat(other[1])  # noqa: PTH116  # one may be a file descriptor
    except OSError:
        return
    if os.path.samestat(*statuses) and stat.S_ISREG(statuses[0].st_mode):
        msg = f"{one[0]} and {other[0]} are the same file"
        raise UsageError(msg)


def say(message: str) -> None:
    """Print a message."""
    tell(f"trio-fanout: {message}\n")


def tell(text: str) -> None:
    """Write to standard error. If this cannot be done, that is no reason to fail: the exit code remains."""
    try:
        write_all(2, text.encode("utf-8", "backslashreplace"))
    except OSError:
        pass


def reason(exc: Exception) -> str:
    """What went wrong, in the words of the system where it was the system."""
    return exc.strerror or str(exc) if isinstance(exc, OSError) else str(exc)


def temporary_place() -> str:
    """Where temporary files are, as messages name it."""
    try:
        return tempfile.gettempdir()
    except OSError:  # none of the folders can be written to
        return "a temporary file"


def shown(item: str) -> str:
    """An item as messages show it: in one line, cut if it is long."""
    return repr(item if len(item) <= SHOWN_ITEM else item[: SHOWN_ITEM - 3] + "...")
