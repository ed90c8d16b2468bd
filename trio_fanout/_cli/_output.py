"""What goes to standard output and to standard error: results, messages, and the progress beside them.

Progress is a bar by rich, or a line of text without it.
"""

from __future__ import annotations

import io
import os
import select
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio

from ._stdio import PIECE, FatalError, in_thread, is_ready, reason, say, tell, write_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ._end import Tally
    from ._results import Result

REDRAW: Final = 0.2  # seconds between two states of the progress display
REDRAW_SOON: Final = 0.05  # seconds after which one is drawn anew where a result or a message has hidden it
SHORT: Final = select.PIPE_BUF // 4  # characters that a pipe takes whole if it takes any, whatever they are


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
        self.display: Final = display
        self._tally: Tally | None = None
        self._drawn = -REDRAW_SOON
        self.written = 0
        """How often the readers of results have taken a few bytes: it grows as long as they read."""
        self._terminals = [fd for fd in (1, 2) if os.isatty(fd)]
        self._within_line = False  # on a terminal
        self._one_message = trio.CapacityLimiter(1)  # many may wait, and results need the other threads

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
            try:
                for start in range(0, len(piece), PIECE):  # a slow reader takes a little at a time
                    write_all(fd, piece[start : start + PIECE])
                    self.written += 1
            except OSError:
                if fd == 1:  # trouble with standard error is no reason to fail
                    raise
            if fd in self._terminals:
                self._within_line = not piece.endswith(b"\n")

    async def say(self, message: str) -> None:
        """Print a message. A reader of standard error that takes its time holds up the caller only."""
        if is_ready(2) and len(message) <= SHORT:
            self.say_if_ready(message)
        else:
            self._hide()
            with suppress(FatalError):  # without a thread there is no message
                await in_thread(say, message, limiter=self._one_message)
            self._draw_soon()

    def say_if_ready(self, message: str) -> None:
        """Print a short message that is not worth waiting for."""
        if is_ready(2):
            self._hide()
            say(message)
            self._draw_soon()

    async def keep_drawing(self, tally: Tally) -> None:
        """Show how far things are, until cancelled."""
        assert self.display is not None
        self._tally = tally
        try:
            while True:
                self._draw()
                await trio.sleep(REDRAW)
        finally:
            self._tally = None
            self._hide()

    def _draw(self) -> None:
        if self.display is not None and self._tally is not None and not self._within_line and _is_ours():
            self.display.draw(self._tally)
            self._drawn = time.monotonic()

    def _draw_soon(self) -> None:
        # A bar takes its time: not after each of a thousand results per second.
        if time.monotonic() - self._drawn > REDRAW_SOON:
            self._draw()

    def _hide(self) -> None:
        if self.display is not None and _is_ours():
            self.display.hide()


def _is_ours() -> bool:
    """Whether the terminal may be drawn on now.

    Not when it has been told to stop, by Ctrl-S: that would stop all else, too. Nor in the background, where it is the
    shell's.
    """
    try:
        return is_ready(2) and os.tcgetpgrp(2) == os.getpgrp()
    except OSError:  # it is no terminal that a shell would share with this process
        return True


class Display:
    """A line on a terminal that shows how far things are: in words, and with a bar if rich is installed.

    Args:
        dumb: whether the terminal knows no escape codes.
    """

    def __init__(self, *, dumb: bool) -> None:
        self._dumb = dumb
        self._bar = None if dumb else _bar_of_rich()
        self._shown = 0  # characters

    def draw(self, tally: Tally) -> None:
        """Show the line as it is now."""
        width = terminal_width() - 1
        text = progress_text(tally, width)
        # The bar takes what the text leaves of a narrow screen.
        room = min(_LONGEST_BAR, width - 1 - len(text))
        bar = "" if self._bar is None or room < _SHORTEST_BAR else f"{self._bar(tally, room)} "
        tell(f"{self._clear()}{bar}{text}")
        self._shown = len(text)

    def hide(self) -> None:
        """Take the line away until it is drawn again."""
        if self._shown:
            tell(self._clear())
            self._shown = 0

    def _clear(self) -> str:
        return f"\r{' ' * self._shown}\r" if self._dumb else "\r\x1b[K"


_LONGEST_BAR: Final = 30
_SHORTEST_BAR: Final = 10


def _bar_of_rich() -> Callable[[Tally, int], str] | None:
    try:
        from rich.console import Console  # noqa: PLC0415
        from rich.progress_bar import ProgressBar  # noqa: PLC0415
    except ImportError:
        return None
    # Not standard error itself, to which it may write even while its output is captured: the terminal may have gone.
    file = io.TextIOWrapper(io.BytesIO(), sys.stderr.encoding)
    console = Console(file=file, force_terminal=True, width=_LONGEST_BAR, height=1)

    def bar(tally: Tally, width: int) -> str:
        with console.capture() as captured:
            console.print(ProgressBar(tally.total(), tally.finished, width), end="")
        return captured.get()

    return bar


def terminal_width() -> int:
    """How many columns the terminal has that progress is shown on."""
    usual = 80
    try:
        return os.get_terminal_size(2).columns or usual
    except OSError:  # it has just gone
        return usual


def open_display(*, wanted: bool) -> Display | None:
    """A display, if it is wanted and there is a terminal for it."""
    if not wanted or not os.isatty(2):
        return None
    return Display(dumb=os.environ.get("TERM", "dumb") in ("", "dumb", "unknown"))


def progress_text(tally: Tally, width: int) -> str:
    """How far things are, in words; on a narrow screen, what matters least is left out."""
    total = tally.total()
    done = f"{tally.finished} done" if total is None else f"{tally.finished} of {total} done"
    failed, rate = f"{tally.failed} failed", ""
    parts = [done, failed]
    if tally.finished:
        per_second = tally.finished / max(time.monotonic() - tally.began, 1e-9)
        parts.append(rate := f"{per_second:.3g}/s")
        if total is not None:
            minutes, seconds = divmod(round(max(total - tally.finished, 0) / per_second), 60)
            parts.append(f"{minutes}:{seconds:02} left")
    for part in (failed, rate, done):
        if len(", ".join(parts)) > width and len(parts) > 1:
            parts.remove(part)
    return ", ".join(parts)[:width]
