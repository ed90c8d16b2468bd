"""Keeping what programs print until it is printed: some of it in memory, the rest in one temporary file."""

from __future__ import annotations

import os
import tempfile
from typing import IO, TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

MEMORY: Final = 1 << 24
"""Bytes of all outputs together that are kept in memory."""

BLOCK: Final = 1 << 16
"""Bytes that the file takes and gives at once."""


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
