"""What goes to standard output, and the progress beside it."""

from __future__ import annotations

import os
import select
from typing import TYPE_CHECKING, Final

import trio

from ._stdio import FatalError, reason, say, write_all

if TYPE_CHECKING:
    from ._progress import Display, Tally
    from ._results import Result

LONGEST_ESCAPE: Final = 6
"""Characters that JSON may have for one byte of output or one character of an item: ``\\u0000``, say."""

BESIDE: Final = 512
"""No result has more characters than this beside its item and what was printed."""

REDRAW: Final = 0.2
"""Seconds between two states of the progress display."""


class Output:
    """Prints results and messages, and keeps the progress display out of their way."""

    def __init__(self, form: str, display: Display | None) -> None:
        self._form: Final = form
        self._display: Final = display
        self._to_terminal: Final = os.isatty(1)
        self._within_line = False

    @property
    def shows_progress(self) -> bool:
        """Whether anybody sees how far things are."""
        return self._display is not None

    async def show(self, result: Result) -> None:
        """Print a result.

        Raises:
            BrokenPipeError: nobody reads it.
            FatalError: it cannot be written.
        """
        self._hide()
        try:
            if self._has_room_for(result):
                self._write(result)
            else:
                # In a thread: who reads this may pause, and signals and time-outs must not wait for that.
                await trio.to_thread.run_sync(self._write, result, abandon_on_cancel=True)
        except BrokenPipeError:
            raise
        except OSError as exc:
            msg = f"cannot write to standard output: {reason(exc)}"
            raise FatalError(msg) from None

    def say(self, message: str) -> None:
        """Print a message."""
        self._hide()
        say(message)

    async def keep_drawing(self, tally: Tally) -> None:
        """Show how far things are, until cancelled."""
        assert self._display is not None
        try:
            while True:
                if not self._within_line:
                    self._display.draw(tally)
                await trio.sleep(REDRAW)
        finally:
            self._display.close()

    def _hide(self) -> None:
        if self._display is not None:
            self._display.hide()

    def _has_room_for(self, result: Result) -> bool:
        """Whether a result is so short, and its reader so ready, that writing it cannot wait: a thread takes longer."""
        if self._form != "json" or self._to_terminal:  # where the one at the keyboard may hold it up in the middle
            return False
        characters = len(result.item) + sum(output.tell() for output in result.outputs)
        if characters * LONGEST_ESCAPE + BESIDE > select.PIPE_BUF:
            return False
        poll = select.poll()
        poll.register(1, select.POLLOUT)
        return bool(poll.poll(0))

    def _write(self, result: Result) -> None:
        if self._form == "json":
            write_all(1, result.json_line())
            return
        for fd, piece in result.text():
            self._within_line = True  # also while it is written, in a thread
            write_all(fd, piece)
            self._within_line = not piece.endswith(b"\n")
