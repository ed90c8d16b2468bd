"""The log: what has finished, so that a later run need not do it again."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from typing import TYPE_CHECKING, Any, Final, cast

from ._stdio import FatalError, UsageError, reason

if TYPE_CHECKING:
    from pathlib import Path

    from ._items import Job

_BEGINNING = b'{"index": '  # of every line


class Log:
    """A file that each result is appended to, a JSON object a line, as soon as it is there.

    Args:
        path: the file, which need not exist.
        resume: whether to skip what it says has succeeded.

    Raises:
        UsageError: the file cannot be read and written, or is no log.
    """

    def __init__(self, path: Path, *, resume: bool) -> None:
        self._done: Final[set[bytes]] = set()
        try:
            if resume and path.is_file():
                self._read(path)
            self._fd: Final = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        except OSError as exc:
            msg = f"cannot open the log {str(path)!r}: {reason(exc)}"
            raise UsageError(msg) from None
        self._name: Final = str(path)
        self._at_line_start = _ends_with_newline(self._fd)

    def wants(self, job: Job) -> bool:
        """Whether a job is still to be done."""
        return not self._done or _key(*job) not in self._done

    def append(self, line: bytes) -> None:
        """Write a line.

        It goes to the system at once, in one piece, so that a killed process has written it, or has not, or at worst
        a part of it: the next one to append to the log then ends that line first.

        Raises:
            FatalError: there is no room, say.
        """
        rest = line if self._at_line_start else b"\n" + line
        try:
            while rest:
                self._at_line_start = False
                rest = rest[os.write(self._fd, rest) :]
        except OSError as exc:
            msg = f"cannot write the log {self._name!r}: {reason(exc)}"
            raise FatalError(msg) from None
        self._at_line_start = True

    def close(self) -> None:
        os.close(self._fd)

    def _read(self, path: Path) -> None:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                # A line may be torn, the last one or, after a run that was resumed, another: its item is done again.
                record = _parsed(line)
                if record is not None:
                    if not record["failed"]:
                        self._done.add(_key(record["index"], record["item"]))
                elif not (line.startswith(_BEGINNING) or _BEGINNING.startswith(line.rstrip(b"\n"))):
                    msg = f"cannot resume from {str(path)!r}: line {number} is none of a log"
                    raise UsageError(msg)


def _parsed(line: bytes) -> dict[str, Any] | None:
    """What a line holds; None if it is not whole."""
    try:
        record: Any = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if isinstance(record, dict) and {"index", "item", "failed"} <= record.keys():
        return cast("dict[str, Any]", record)
    return None


def _key(index: int, item: str) -> bytes:
    # An item can be huge.
    return hashlib.blake2b(f"{index} {item}".encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _ends_with_newline(fd: int) -> bool:
    """Whether what is appended to the file begins a line."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_size == 0:
        return True
    return os.pread(fd, 1, status.st_size - 1) == b"\n"
