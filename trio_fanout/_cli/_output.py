"""What goes to standard output and to standard error: results, messages, and the progress beside them.

Progress is a bar by rich, or a line of text without it.
"""

from __future__ import annotations

import math
import os
import select
import time
from typing import TYPE_CHECKING, Any, Final, Protocol

import trio

from ._stdio import FatalError, in_thread, is_ready, reason, say, tell, write_all

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._end import Tally
    from ._results import Result

REDRAW: Final = 0.2
"""Seconds between two states of the progress display."""

REDRAW_SOON: Final = 0.05
"""Seconds after which a state is drawn anew where a result or a message has hidden it."""


class Output:
    """Prints results and messages, and keeps the progress display out of their way.

    Args:
        form: that of results, ``json`` or ``text``.
        display: shows progress.
        logs: whether there is a log of the results.
    """

    def __init__(self, form: str, display: Display | None, *, logs: bool = False) -> None:
        self._form = form
        self._logs = logs
        self._display = display
        self._tally: Tally | None = None
        self._drawn = -REDRAW_SOON
        self._terminals = [fd for fd in (1, 2) if os.isatty(fd)]
        self._within_line = False  # on a terminal

    @property
    def shows_progress(self) -> bool:
        """Whether there is a progress display."""
        return self._display is not None

    async def show(self, result: Result) -> None:
        """Print a result.

        Raises:
            BrokenPipeError: standard output is a pipe without a reader.
            FatalError: it cannot be written.
        """
        if self._form == "json":
            await self.print_line(result.json_line())
            return
        pieces = result.text()
        if self._logs and result.error is not None:
            # The program will run again with `--resume`, and print this again. Until then it is in the log.
            pieces = (piece for piece in pieces if piece[0] != 1)
        await self._print(pieces, hides_progress=1 in self._terminals or result.outputs[1].size > 0)

    async def print_line(self, line: bytes) -> None:
        """Print a line; raises what `show` does."""
        on_terminal = 1 in self._terminals
        at_once = not on_terminal and len(line) <= select.PIPE_BUF and is_ready(1)
        await self._print(iter([(1, line)]), at_once=at_once, hides_progress=on_terminal)

    async def _print(self, pieces: Iterator[tuple[int, bytes]], *, at_once: bool = False, hides_progress: bool) -> None:
        if hides_progress:
            self._hide()
        try:
            if at_once:
                self._write(pieces)
            else:
                # In a thread: the reader may pause, and so may a terminal (Ctrl-S). Signals must not wait for that.
                await in_thread(self._write, pieces)
        except BrokenPipeError:
            raise
        except OSError as exc:
            msg = f"cannot write to standard output: {reason(exc)}"
            raise FatalError(msg) from None
        if hides_progress:
            self._draw_soon()

    def _write(self, pieces: Iterator[tuple[int, bytes]]) -> None:
        for fd, piece in pieces:
            if fd in self._terminals:
                self._within_line = True  # even while it is written
            write_all(fd, piece)
            if fd in self._terminals:
                self._within_line = not piece.endswith(b"\n")

    async def say(self, message: str) -> None:
        """Print a message. A reader of standard error that takes its time holds up the caller only."""
        if is_ready(2):
            self.say_if_ready(message)
        else:
            await in_thread(say, message)

    def say_if_ready(self, message: str) -> None:
        """Print a message that is not worth waiting for."""
        if is_ready(2):
            self._hide()
            say(message)
            self._draw_soon()

    async def keep_drawing(self, tally: Tally) -> None:
        """Show how far things are, until cancelled."""
        assert self._display is not None
        self._tally = tally
        try:
            while True:
                self._draw()
                await trio.sleep(REDRAW)
        finally:
            self._tally = None
            self._display.close()

    def _draw(self) -> None:
        # Not on a terminal that has been told to stop, by Ctrl-S: that would stop all else, too.
        if self._display is not None and self._tally is not None and not self._within_line and is_ready(2):
            self._display.draw(self._tally)
            self._drawn = time.monotonic()

    def _draw_soon(self) -> None:
        # A bar takes its time: not after each of a thousand results per second.
        if time.monotonic() - self._drawn > REDRAW_SOON:
            self._draw()

    def _hide(self) -> None:
        if self._display is not None and is_ready(2):
            self._display.hide()


class Display(Protocol):
    """A line on a terminal that shows how far things are."""

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
        text = progress_text(tally, terminal_width() - 1)
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
        text = progress_text(tally, width - 1)
        # The bar takes what the text leaves of a narrow screen.
        self._bar.bar_width = min(_BAR, width - 2 - len(text))
        self._progress.columns = (self._bar, self._text) if self._bar.bar_width >= _SHORTEST_BAR else (self._text,)
        self._console.width = width
        self._progress.update(self._task, description=text, completed=tally.finished, total=tally.total())
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


def progress_text(tally: Tally, width: float = math.inf) -> str:
    """How far things are, in words; on a narrow screen, what matters least is left out."""
    total = tally.total()
    done = f"{tally.finished} done" if total is None else f"{tally.finished} of {total} done"
    failed = f"{tally.failed} failed"
    if not tally.finished:
        return _first_that_fits([[done, failed], [done]], width)
    per_second = tally.finished / max(time.monotonic() - tally.began, 1e-9)
    rate = f"{per_second:.3g}/s"
    if total is None:
        return _first_that_fits([[done, failed, rate], [done, rate], [done]], width)
    minutes, seconds = divmod(round(max(total - tally.finished, 0) / per_second), 60)
    left = f"{minutes}:{seconds:02} left"
    return _first_that_fits([[done, failed, rate, left], [done, rate, left], [done, left], [left]], width)


def _first_that_fits(choices: list[list[str]], width: float) -> str:
    texts = [", ".join(parts) for parts in choices]
    return next((text for text in texts if len(text) <= width), texts[-1][: int(min(width, len(texts[-1])))])
