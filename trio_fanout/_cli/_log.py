"""The log: each result as it finishes, and what it says has been done, so that a later run need not do it again.

An item is known by itself and by how many equal ones came before, its *occurrence*, and not by its place: the input may
have been sorted, or be longer than it was. Logs of version 0.1 have places only: there, equal items are told apart by
the order of theirs.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from itertools import repeat
from typing import TYPE_CHECKING, Any, TypeGuard, cast

import trio

from ._stdio import FatalError, UsageError, in_thread, reason, shown, write_all

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from ._words import Words


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


_BEGINNING = b'{"index": '  # of every line


class History:
    """The items of this run, and those that have succeeded in an earlier one."""

    def __init__(self, succeeded: set[bytes] | None = None) -> None:
        self._met: dict[bytes, int] = {}
        self._succeeded: set[bytes] = set() if succeeded is None else succeeded

    def meet(self, text: str) -> tuple[int, bool]:
        """The occurrence of an item of this run, and whether that has succeeded before."""
        digest = _digest(text)
        occurrence = self._met.get(digest, 0)
        self._met[digest] = occurrence + 1
        return occurrence, _key(digest, occurrence) in self._succeeded

    def anew(self) -> History:
        """The same, without the items of this run."""
        return History(self._succeeded)

    def read(self, path: Path, programs: Iterable[Words]) -> None:
        """Take over from a log what any of these programs has done.

        Raises:
            UsageError: the file cannot be read, is not a log, or is one of other programs.
        """
        try:
            if path.is_file():
                self._read(path, programs)
        except OSError as exc:
            msg = f"cannot open the log {str(path)!r}: {reason(exc)}"
            raise UsageError(msg) from None

    def _read(self, path: Path, programs: Iterable[Words]) -> None:
        ours = list(map(_with_place, programs))
        outcomes: dict[bytes, bool] = {}  # by item and occurrence; the last one counts
        unnumbered: dict[bytes, dict[int, bool]] = {}  # of version 0.1: by item and index
        other: Words | None = None
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                record = _parsed(line)
                if record is None and _is_torn(line):
                    continue
                if not _is_record(record):
                    msg = f"cannot resume from {str(path)!r}: line {number} is not a log record"
                    raise UsageError(msg)
                if "program" not in record:
                    for text, _ in _items(record):
                        unnumbered.setdefault(_digest(text), {})[record["index"]] = not record["failed"]
                elif _with_place(record["program"]) not in ours:
                    other = record["program"]
                else:
                    for text, occurrence in _items(record):
                        outcomes[_key(_digest(text), occurrence)] = not record["failed"]
        if other is not None and not outcomes and not unnumbered:
            msg = f"cannot resume from {str(path)!r}: it is the log of another program, {shown(' '.join(other))}"
            raise UsageError(msg)
        for digest, by_index in unnumbered.items():
            for occurrence, index in enumerate(sorted(by_index)):
                outcomes.setdefault(_key(digest, occurrence), by_index[index])
        self._succeeded.update(key for key, succeeded in outcomes.items() if succeeded)


def _parsed(line: bytes) -> object:
    """What a line holds; None if it is not whole."""
    try:
        # Zeros: a file system may have made room for a line, crashed, and the next line follows them.
        return json.loads(line.strip(b"\0"))
    except (ValueError, RecursionError):
        return None


def _is_record(value: object) -> TypeGuard[dict[str, Any]]:
    """Whether this is a result, as far as it is used here."""
    if not isinstance(value, dict):
        return False
    record = cast("dict[str, Any]", value)
    return (
        "failed" in record
        and _are(int, [record.get("index")])
        and _are(str, record["items"] if "items" in record else [record.get("item")])
        and _are(int, record.get("occurrences", [record.get("occurrence", 0)]))
        and _are(str, record.get("program", []))
    )


def _are(kind: type, values: object) -> bool:
    """Whether this is a list of such values. True is an int, and no index."""
    return isinstance(values, list) and all(type(value) is kind for value in cast("list[object]", values))


def _items(record: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """The items of a record, with their occurrences."""
    if "items" in record:
        return zip(record["items"], record.get("occurrences") or repeat(0), strict=False)
    return iter([(record["item"], record.get("occurrence", 0))])


def _is_torn(line: bytes) -> bool:
    """Whether a crash may have left this of a line of a log: a beginning, or zeros, or both."""
    start = line.strip(b"\0\n")
    return start.startswith(_BEGINNING) or _BEGINNING.startswith(start.rstrip(b"\0"))


def _with_place(program: Words) -> Words:
    """The words of a program, so that `cat` and `cat {}` are the same."""
    return program if any("{}" in word for word in program) else [*program, "{}"]


def _digest(text: str) -> bytes:
    # An item can be huge.
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _key(digest: bytes, occurrence: int) -> bytes:
    return digest + b"%d" % occurrence if occurrence else digest
