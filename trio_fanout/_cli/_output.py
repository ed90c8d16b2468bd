"""What goes to standard output, and the progress beside it."""

from __future__ import annotations

import os
import select
import time
from typing import TYPE_CHECKING, Final

import trio

from ._stdio import FatalError, in_thread, is_ready, reason, say, write_all

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._progress import Display, Tally
    from ._results import Result

REDRAW: Final = 0.2
"""Seconds between two states of the progress display."""

REDRAW_SOON: Final = 0.05
"""Seconds after which a state is drawn anew where a result or a message has hidden it."""


class Output:
    """Prints results and messages, and keeps the progress display out of their way."""

    def __init__(self, form: str, display: Display | None) -> None:
        self._form = form
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
        if self._form == "text":
            await self._print(result.text(), hides_progress=1 in self._terminals or result.outputs[1].size > 0)
        else:
            await self.print_line(result.json_line())

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
                # In a thread: the reader may pause, and so may a terminal (Ctrl-S). Signals and time-outs must not wait
                # for that.
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
                self._within_line = True  # also while it is written
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
        # A bar takes its time: not after each of a thousand results a second.
        if time.monotonic() - self._drawn > REDRAW_SOON:
            self._draw()

    def _hide(self) -> None:
        if self._display is not None and is_ready(2):
            self._display.hide()
