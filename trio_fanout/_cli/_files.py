"""Reading and writing files of any kind, which other processes may have made non-blocking."""

from __future__ import annotations

import os
import select

PIECE = 1 << 16
"""Bytes read at once: what a pipe holds."""


def read_some(fd: int) -> bytes:
    """Read what there is, waiting for it; nothing at the end of the file."""
    while True:
        try:
            return os.read(fd, PIECE)
        except BlockingIOError:
            select.select([fd], [], [])


def write_all(fd: int, data: bytes) -> None:
    """Write all of `data`, in as many pieces as it takes."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(fd, rest) :]
        except BlockingIOError:
            select.select([], [fd], [])
