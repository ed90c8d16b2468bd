"""The words of a program, and where in them its items go."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ._items import Item, Job

_PLACE: Final = re.compile(rb"(\{\{#?\}\}|\{#?\})")

FOR_A_SHELL: Final = frozenset("|&;<>$`\n")
"""Characters that mean something to a shell, and are in the names of few programs."""


class Template:
    """The words that a program is started with: ``{}`` becomes the item, ``{#}`` its index, ``{{}}`` a plain ``{}``.

    A word with ``{}`` in it is there once for each item; with no such word, the items come last.

    Args:
        words: as they were given.
    """

    def __init__(self, words: list[str]) -> None:
        self._words = [_Word(os.fsencode(word)) for word in words]
        self.has_fixed_program: Final = not self._words[0].takes_item or not FOR_A_SHELL.isdisjoint(words[0])
        """Whether each job runs the same program. What was meant for a shell is none, whatever its items are."""
        if not any(word.takes_item for word in self._words):
            self._words.append(_Word(b"{}"))
        takes_item = [word for word in self._words if word.takes_item]
        self._places = sum(word.places for word in takes_item)
        self._size_beside_item = sum(word.size() for word in takes_item)

    def words(self, job: Job) -> list[bytes]:
        """The program and its arguments for a job."""
        words: list[bytes] = []
        for word in self._words:
            words += [word.filled(item) for item in (job if word.takes_item else job[:1])]
        return words

    def fixed_size(self) -> int:
        """Bytes that the words take, apart from those that hold items, when the program is started."""
        return sum(word.size() for word in self._words if not word.takes_item)

    def size_of(self, item: Item) -> int:
        """Bytes that the words take that hold an item."""
        return self._size_beside_item + self._places * len(item.text.encode("utf-8", "surrogateescape"))


class _Word:
    """A word in parts, of which every other one, if there are several, is ``{}`` or the like."""

    def __init__(self, word: bytes) -> None:
        self._parts = _PLACE.split(word)
        self.places: Final = self._parts.count(b"{}")
        self.takes_item: Final = self.places > 0

    def size(self) -> int:
        """Bytes that it takes apart from items: with a zero at its end, a pointer to it, and all digits of an index."""
        return len(b"".join(self._parts)) + 9 + 20 * self._parts.count(b"{#}")

    def filled(self, item: Item) -> bytes:
        """The word with an item in its place."""
        if len(self._parts) == 1:
            return self._parts[0]
        text = item.text.encode("utf-8", "surrogateescape")
        if self._parts == _JUST_ITEM:
            return text
        # In one go, as an item may hold braces, too.
        values = {b"{}": text, b"{#}": b"%d" % item.index, b"{{}}": b"{}", b"{{#}}": b"{#}"}
        parts = list(self._parts)
        parts[1::2] = [values[place] for place in parts[1::2]]
        return b"".join(parts)


_JUST_ITEM: Final = [b"", b"{}", b""]
