"""What came of a program: its result, the two forms in which that is written down, and what the program printed.

Outputs are kept until they are printed: some in memory, the rest in one temporary file.
"""

from __future__ import annotations

import json
import os
import tempfile
from typing import IO, TYPE_CHECKING, Any, Final, final

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ._items import Job
    from ._words import Words

MEMORY: Final = 1 << 24  # bytes of all outputs together that are kept in memory
BLOCK: Final = 1 << 16  # bytes that are written to the file at once, and read

_ENCODE: Final = json.JSONEncoder(ensure_ascii=False).encode


@final
@attrs.frozen(eq=False)
class Result:
    """What came of a program that was started."""

    job: Job
    program: Words  # with places for items
    exit_code: int | None  # None if it did not end by itself, -N if signal N killed it
    outputs: Sequence[Kept]  # if they were kept: standard output, then standard error
    started: float  # seconds since the epoch
    seconds: float  # how long it ran
    error: str | None  # why it failed; None if it succeeded
    attempts: int | None = None  # how many times it was started; None if it was not to be retried
    batch: bool = False  # the record lists the items
    found: bool = True  # there is such a program
    hopeless: bool = False  # another attempt would fail as well

    def json_line(self) -> bytes:
        r"""The result as a line of JSON.

        A byte that is not UTF-8 stands in it as an escaped lone surrogate, ``\udc80`` to ``\udcff``: what Python's
        `surrogateescape` makes of it and, encoding, makes it of again.
        """
        first = self.job[0]
        record: dict[str, Any] = {"index": first.index}
        if self.batch:
            record["items"] = [item.text for item in self.job]
            if any(item.occurrence for item in self.job):
                record["occurrences"] = [item.occurrence for item in self.job]
        else:
            record["item"] = first.text
            if first.occurrence:
                record["occurrence"] = first.occurrence
        record["failed"] = self.error is not None
        record["exit_code"] = self.exit_code
        for name, output in zip(("stdout", "stderr"), self.outputs, strict=False):
            record[name] = b"".join(output.pieces()).decode("utf-8", "surrogateescape")
        record["started"] = round(self.started, 6)
        record["seconds"] = round(self.seconds, 6)
        if self.attempts is not None:
            record["attempts"] = self.attempts
        if self.error is not None:
            record["error"] = self.error
        record["program"] = self.program
        # Other surrogates come from JSON items. `backslashreplace` writes them all as JSON does.
        return _ENCODE(record).encode("utf-8", "backslashreplace") + b"\n"

    def text(self) -> Iterator[tuple[int, bytes]]:
        """What the program printed, in pieces, each with the file descriptor that it printed it to."""
        for fd, output in enumerate(self.outputs, start=1):
            for piece in output.pieces():
                yield fd, piece

    def close(self) -> None:
        """Forget what the program printed."""
        for output in self.outputs:
            output.close()


class Spool:
    """The outputs of all programs.

    Hundreds of results may wait for their turn. A file for each would use up the open files, and a share of memory for
    each would be a lot together. So they share both: in one file, the blocks of an output that was printed are used
    again, and when none is left, the file is emptied.
    """

    def __init__(self) -> None:
        self.in_memory = 0
        self._file: IO[bytes] | None = None
        self._free: list[int] = []
        self._blocks = 0  # how many the file has

    def open(self) -> Kept:
        """A new output."""
        return Kept(self)

    def put(self, data: bytes) -> int:
        """Write a block, and return its number."""
        if self._file is None:
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  # `close` does
        if not self._free:
            self._free.append(self._blocks)
            self._blocks += 1
        position = self._free[-1] * BLOCK
        while data:  # a disk that is almost full takes a part
            written = os.pwrite(self._file.fileno(), data, position)
            position += written
            data = data[written:]
        return self._free.pop()

    def get(self, block: int) -> bytes:
        """Read a block."""
        assert self._file is not None
        return os.pread(self._file.fileno(), BLOCK, block * BLOCK)

    def forget(self, blocks: list[int]) -> None:
        """Have these blocks used again."""
        self._free.extend(blocks)
        if self._file is not None and len(self._free) == self._blocks:
            self._free.clear()
            self._blocks = 0
            self._file.truncate(0)

    def close(self) -> None:
        """Close the file, if there is one."""
        if self._file is not None:
            self._file.close()


class Kept:
    """What one program has printed to one of its standard files."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._blocks: list[bytes | int] = []  # in memory, or their number in the file
        self._rest = bytearray()  # what follows them
        self.size = 0

    def write(self, data: bytes) -> None:
        """Add to it."""
        self._rest.extend(data)
        self._spool.in_memory += len(data)
        self.size += len(data)
        while len(self._rest) >= BLOCK:
            block = bytes(self._rest[:BLOCK])
            if self._spool.in_memory > MEMORY:
                self._blocks.append(self._spool.put(block))
                self._spool.in_memory -= BLOCK
            else:
                self._blocks.append(block)
            del self._rest[:BLOCK]

    def pieces(self) -> Iterator[bytes]:
        """All of it, piece by piece."""
        for block in self._blocks:
            yield self._spool.get(block) if isinstance(block, int) else block
        if self._rest:
            yield bytes(self._rest)

    def close(self) -> None:
        """Forget it."""
        in_file = [block for block in self._blocks if isinstance(block, int)]
        self._spool.in_memory -= self.size - BLOCK * len(in_file)
        self._spool.forget(in_file)
        self._blocks.clear()
        self._rest.clear()
        self.size = 0
