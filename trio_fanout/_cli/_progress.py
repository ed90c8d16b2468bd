"""The progress display: a bar by rich, or a plain line without it."""

from __future__ import annotations

import os
import stat
import time
from typing import TYPE_CHECKING, Any, Final, Protocol

import attrs

from ._stdio import tell

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._items import Job

PIECE = 1 << 20
"""Bytes read at once to count items."""


@attrs.define
class Tally:
    """How far things are.

    Attributes:
        done: how many items have finished; `failed` of them have failed.
        failures: how many programs have failed for these; fewer where one is started for several items.
        first_failure: of those, the one with the lowest index, and what went wrong.
        total: how many items there are to do, or None while that is unknown.
    """

    total: Callable[[], int | None]
    done: int = 0
    failed: int = 0
    failures: int = 0
    first_failure: tuple[Job, str] | None = None
    began: float = attrs.field(factory=time.monotonic)

    def add_failure(self, job: Job, error: str) -> None:
        """Count the items of a program that has failed."""
        self.failed += len(job)
        self.failures += 1
        if self.first_failure is None or job[0].index < self.first_failure[0][0].index:
            self.first_failure = job, error

    def rate(self) -> float:
        """Items a second."""
        return self.done / max(time.monotonic() - self.began, 1e-9)

    def text(self, width: float = float("inf")) -> str:
        """All of it, in words; on a narrow screen, what matters least is left out."""
        total = self.total()
        done = f"{self.done} done" if total is None else f"{self.done} of {total} done"
        failed = f"{self.failed} failed"
        if not self.done:
            return _first_that_fits([[done, failed], [done]], width)
        rate = f"{self.rate():.3g}/s"
        if total is None:
            return _first_that_fits([[done, failed, rate], [done, rate], [done]], width)
        minutes, seconds = divmod(round(max(total - self.done, 0) / self.rate()), 60)
        left = f"{minutes}:{seconds:02} left"
        return _first_that_fits([[done, failed, rate, left], [done, rate, left], [done, left], [left]], width)


def _first_that_fits(choices: list[list[str]], width: float) -> str:
    texts = [", ".join(parts) for parts in choices]
    return next((text for text in texts if len(text) <= width), texts[-1][: int(min(width, len(texts[-1])))])


class Display(Protocol):
    """A line on a terminal that tells how far things are."""

    def draw(self, tally: Tally, /) -> None: ...
    def hide(self) -> None: ...
    def close(self) -> None: ...


class PlainDisplay:
    """A line of text.

    Args:
        dumb: whether the terminal knows no escape codes.
    """

    def __init__(self, *, dumb: bool) -> None:
        self._dumb = dumb
        self._shown = 0  # characters

    def draw(self, tally: Tally, /) -> None:
        """Show the line as it is now."""
        text = tally.text(terminal_width() - 1)
        tell(f"{self._clear()}{text}")
        self._shown = len(text)

    def hide(self) -> None:
        """Take the line away until it is drawn again."""
        if self._shown:
            tell(self._clear())
            self._shown = 0

    def close(self) -> None:
        """Take the line away."""
        self.hide()

    def _clear(self) -> str:
        return f"\r{' ' * self._shown}\r" if self._dumb else _CLEAR


class RichDisplay:
    """A bar and a line of text."""

    def __init__(self) -> None:
        from rich.console import Console  # noqa: PLC0415
        from rich.progress import BarColumn, Progress, TextColumn  # noqa: PLC0415
        from rich.table import Column  # noqa: PLC0415

        self._console = Console(stderr=True)
        self._bar = BarColumn(bar_width=_BAR)
        # In one line, whatever the width of the terminal: the line can then be taken away without rich.
        self._text = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True))
        self._progress = Progress(
            self._bar,
            self._text,
            console=self._console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task: Any = None
        self._shown = False

    def draw(self, tally: Tally, /) -> None:
        """Show the line as it is now."""
        if self._task is None:
            self._progress.start()
            self._task = self._progress.add_task("", total=None)
        width = terminal_width()
        text = tally.text(width - 1)
        # The bar takes what the text leaves of a narrow screen.
        self._bar.bar_width = min(_BAR, width - 2 - len(text))
        self._progress.columns = (self._bar, self._text) if self._bar.bar_width >= _SHORTEST_BAR else (self._text,)
        self._console.width = width
        self._progress.update(self._task, description=text, completed=tally.done, total=tally.total())
        self._progress.refresh()
        self._shown = True

    def hide(self) -> None:
        """Take the line away until it is drawn again."""
        if self._shown:
            tell(_CLEAR)
            self._shown = False

    def close(self) -> None:
        """Take the line away."""
        if self._task is not None:
            self._progress.stop()


_CLEAR: Final = "\r\x1b[K"
_BAR: Final = 30
_SHORTEST_BAR: Final = 10


def terminal_width() -> int:
    """How many columns the terminal has that progress is shown on."""
    try:
        return os.get_terminal_size(2).columns or _USUAL_WIDTH
    except OSError:  # it has just gone
        return _USUAL_WIDTH


_USUAL_WIDTH: Final = 80


def open_display(*, wanted: bool) -> Display | None:
    """A display, if it is wanted and there is a terminal for it."""
    if not wanted or not os.isatty(2):
        return None
    if os.environ.get("TERM", "dumb") in ("", "dumb", "unknown"):
        return PlainDisplay(dumb=True)
    try:
        return RichDisplay()
    except ImportError:
        return PlainDisplay(dumb=False)


def position_in(fd: int) -> int | None:
    """Where reading a plain file goes on; None for any other kind."""
    return os.lseek(fd, 0, os.SEEK_CUR) if stat.S_ISREG(os.fstat(fd).st_mode) else None


def count_items(fd: int, position: int, end: bytes) -> int:
    """How many items there are in a plain file, from `position` on, without moving the position of its reader.

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
