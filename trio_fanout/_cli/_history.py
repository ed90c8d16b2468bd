"""What a log says has been done, so that a later run need not do it again.

An item is known by itself and by how many equal ones came before, its *occurrence*, and not by its place: the input may
have been sorted, or be longer than it was. Logs of version 0.1 have places only: there, equal items are told apart by
the order of theirs.
"""

from __future__ import annotations

import hashlib
import json
from itertools import repeat
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from ._stdio import UsageError, reason, shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

Words: TypeAlias = list[str]

_BEGINNING = b'{"index": '  # of every line


class History:
    """The items of this run, and those that have succeeded in an earlier one."""

    def __init__(self) -> None:
        self._met: dict[bytes, int] = {}
        self._succeeded: set[bytes] = set()

    def meet(self, text: str) -> tuple[int, bool]:
        """The occurrence of an item of this run, and whether that has succeeded before."""
        digest = _digest(text)
        occurrence = self._met.get(digest, 0)
        self._met[digest] = occurrence + 1
        return occurrence, _key(digest, occurrence) in self._succeeded

    def read(self, path: Path, programs: Iterable[Words]) -> None:
        """Take over from a log what any of these programs has done.

        Raises:
            UsageError: the file cannot be read, is no log, or one of other programs.
        """
        if not path.is_file():
            return
        try:
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
                if record is None:
                    if not _is_torn(line):
                        msg = f"cannot resume from {str(path)!r}: line {number} is none of a log"
                        raise UsageError(msg)
                elif "program" not in record:
                    by_index = unnumbered.setdefault(_digest(record["item"]), {})
                    by_index[record["index"]] = not record["failed"]
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


def _parsed(line: bytes) -> dict[str, Any] | None:
    """What a line holds; None if it is not whole."""
    try:
        # Zeros: a file system may have made room for a line, crashed, and the next line follows them.
        record: Any = json.loads(line.strip(b"\0"))
    except (ValueError, RecursionError):
        return None
    if isinstance(record, dict) and {"index", "failed"} <= record.keys() and ("item" in record or "items" in record):
        return cast("dict[str, Any]", record)
    return None


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
