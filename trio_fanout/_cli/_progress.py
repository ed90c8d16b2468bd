"""The progress display: a bar by rich, or a plain line without it."""

from __future__ import annotations

import os
import shutil
import stat
import time
from typing import TYPE_CHECKING, Protocol

import attrs

from ._stdio import tell

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.progress import TaskID

PIECE = 1 << 20
"""Bytes read at once to count items."""


@attrs.define
class Tally:
    """How far things are.

    Attributes:
        done: how many items have finished; `failed` of them have failed.
        first_failure: of those, the one with the lowest index: that, its item, and what went wrong.
        total: how many items there are to do, or None if nobody knows yet.
    """

    total: Callable[[], int | None]
    done: int = 0
    failed: int = 0
    first_failure: tuple[int, str, str] | None = None
    began: float = attrs.field(factory=time.monotonic)

    def add(self, index: int, item: str, error: str | None) -> None:
        """Count an item that has finished."""
        self.done += 1
        if error is not None:
            self.failed += 1
            if self.first_failure is None or index < self.first_failure[0]:
                self.first_failure = index, item, error

    def rate(self) -> float:
        """Items a second."""
        return self.done / max(time.monotonic() - self.began, 1e-9)

    def text(self) -> str:
        """All of it, in words."""
        total = self.total()
        parts = [f"{self.done} done" if total is None else f"{self.done} of {total} done", f"{self.failed} failed"]
        if self.done:
            parts.append(f"{self.rate():.3g}/s")
            if total is not None:
                minutes, seconds = divmod(round(max(total - self.done, 0) / self.rate()), 60)
                parts.append(f"{minutes}:{seconds:02} left")
        return ", ".join(parts)


class Display(Protocol):
    """A line on a terminal that tells how far things are."""

    def draw(self, tally: Tally, /) -> None: ...
    def hide(self) -> None: ...
    def close(self) -> None: ...


class PlainDisplay:
    """A line of text."""

    def draw(self, tally: Tally, /) -> None:
        """Show the line as it is now."""
        width = shutil.get_terminal_size().columns - 1
        tell(f"{_CLEAR}{tally.text()[:width]}")

    def hide(self) -> None:
        """Take the line away until it is drawn again."""
        tell(_CLEAR)

    def close(self) -> None:
        """Take the line away."""
        self.hide()


class RichDisplay:
    """A bar and a line of text."""

    def __init__(self) -> None:
        from rich.console import Console  # noqa: PLC0415
        from rich.progress import BarColumn, Progress, TextColumn  # noqa: PLC0415
        from rich.table import Column  # noqa: PLC0415

        self._progress = Progress(
            BarColumn(bar_width=30),
            # In one line, whatever the width of the terminal: the line can then be taken away without rich.
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
            console=Console(stderr=True),
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._bar: TaskID | None = None

    def draw(self, tally: Tally, /) -> None:
        """Show the line as it is now."""
        if self._bar is None:
            self._progress.start()
            self._bar = self._progress.add_task("", total=None)
        self._progress.update(self._bar, description=tally.text(), completed=tally.done, total=tally.total())
        self._progress.refresh()

    def hide(self) -> None:
        """Take the line away until it is drawn again."""
        if self._bar is not None:
            tell(_CLEAR)

    def close(self) -> None:
        """Take the line away."""
        if self._bar is not None:
            self._progress.stop()


_CLEAR = "\r\x1b[K"


def open_display(*, wanted: bool) -> Display | None:
    """A display, if it is wanted and there is a terminal for it."""
    if not wanted or not os.isatty(2):
        return None
    try:
        return RichDisplay()
    except ImportError:
        return PlainDisplay()


def position_in(fd: int) -> int | None:
    """Where reading a plain file goes on; None for any other kind."""
    return os.lseek(fd, 0, os.SEEK_CUR) if stat.S_ISREG(os.fstat(fd).st_mode) else None


def count_items(fd: int, position: int, end: bytes) -> int:
    """How many items there are in a plain file, from `position` on, without disturbing who reads it.

    Args:
        fd: the file.
        position: where the first item begins.
        end: the byte that ends an item.
    """
    count, last = 0, end
    while piece := os.pread(fd, PIECE, position):
        count += piece.count(end)
        position += len(piece)
        last = piece[-1:]
    return count + (last != end)
