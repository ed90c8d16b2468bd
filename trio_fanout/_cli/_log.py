"""The log: each result, as soon as it is there."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import trio

from ._stdio import FatalError, UsageError, in_thread, reason, write_all

if TYPE_CHECKING:
    from pathlib import Path


class Log:
    """A file that results are appended to, a JSON object a line.

    Opening one can take any time: a named pipe waits for its reader.

    Args:
        path: the file, which need not exist.

    Raises:
        UsageError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._name = str(path)
        try:
            # Write-only: opened for reading too, a named pipe would have this process as its reader, and never break.
            self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            self._is_file = stat.S_ISREG(os.fstat(self._fd).st_mode)
            self._at_line_start = not self._is_file or _ends_with_newline(path)
        except OSError as exc:
            msg = f"cannot open the log {self._name!r}: {reason(exc)}"
            raise UsageError(msg) from None
        self._turn = trio.Lock()  # lines must not mix

    async def append(self, line: bytes) -> None:
        """Write a line.

        It goes to the system at once, in one piece, so that a killed process has written it, or has not, or at worst
        a part of it: the next one to append to the log then ends that line first.

        Raises:
            FatalError: there is no room, say.
        """
        if self._is_file:
            self._write(line)
        else:
            # The reader of a pipe may be slow. That must delay this result, and nothing else.
            async with self._turn:
                await in_thread(self._write, line)

    def _write(self, line: bytes) -> None:
        begun = b"" if self._at_line_start else b"\n"
        self._at_line_start = False
        try:
            write_all(self._fd, begun + line)
        except OSError as exc:
            msg = f"cannot write the log {self._name!r}: {reason(exc)}"
            raise FatalError(msg) from None
        self._at_line_start = True

    def close(self) -> None:
        os.close(self._fd)


def _ends_with_newline(path: Path) -> bool:
    """Whether what is appended to the file begins a line."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        return file.read(1) in (b"", b"\n")
