"""Items in JSON: the elements of an array, or JSON Lines.

A string is used as it is. Of anything else the white space between its parts goes, and its numbers and the order of its
members, even of equal names, stay as they were written. An array is read whole before its first element is an item, so
one that is wrong runs nothing.
"""

from __future__ import annotations

import codecs
import json
import re
from json.encoder import encode_basestring
from typing import TYPE_CHECKING, Final, NoReturn

from ._items import Lines

if TYPE_CHECKING:
    from collections.abc import Iterator

BYTE_ORDER_MARK: Final = (
    "it begins with a byte order mark, which JSON does not have; `tail -c +4` removes that of UTF-8"
)
MORE: Final = "there is more after the end of the array"
LINES_OF_ARRAYS: Final = f"{MORE}; if these are JSON Lines of arrays, `jq -s .` makes one array of them"

_BLANKS: Final = " \t\r\n"  # what JSON takes for white space


class Json:
    """The elements of an array, if the input begins with ``[``; the values of JSON Lines otherwise."""

    def __init__(self) -> None:
        self._begun = b""  # what there is of the input while it is blank
        self._array: list[bytes] | None = None  # what there is of an array
        self._lines: Lines | None = None
        self._number = 0  # of the last line

    def feed(self, piece: bytes) -> Iterator[str]:
        """The items that `piece` completes; an empty one is the end of the input."""
        if self._array is None and self._lines is None:
            piece = self._begun = self._begun + piece
            self._choose(piece)
        try:
            if self._array is not None:
                self._array.append(piece)
                if not piece:
                    yield from _elements(b"".join(self._array).decode("utf-8", "surrogateescape"))
            elif self._lines is not None:
                for line in self._lines.feed(piece):
                    self._number += 1
                    if text := line.strip(_BLANKS):
                        yield _value(text)
        except json.JSONDecodeError as exc:
            msg = f"line {self._number or exc.lineno}: {exc.msg}"
            raise ValueError(msg) from None

    def _choose(self, beginning: bytes) -> None:
        if beginning.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise ValueError(BYTE_ORDER_MARK)
        first = beginning.lstrip(_BLANKS.encode())[:1]
        if first == b"[":
            self._array = []
        elif first:
            self._lines = Lines()


def _value(text: str) -> str:
    """The item that a line holds."""
    end = _end_of_value(text, 0)
    if end != len(text):
        msg = f"a second value in one line: {text[end:].lstrip(_BLANKS)[:20]!r}"
        raise json.JSONDecodeError(msg, text, end)
    return _as_argument(text)


def _elements(text: str) -> list[str]:
    """The items that an array holds."""
    elements: list[str] = []
    at = _after_blanks(text, text.index("[") + 1)
    more = text[at : at + 1] != "]"
    while more:
        end = _end_of_value(text, at)
        elements.append(_as_argument(text[at:end]))
        at = _after_blanks(text, end)
        if text[at : at + 1] not in (",", "]"):  # or there is nothing more
            msg = f"expected , or ], got {text[at]!r}" if at < len(text) else "the array is not closed"
            raise json.JSONDecodeError(msg, text, at)
        more = text[at] == ","
        at = _after_blanks(text, at + more)
    at = _after_blanks(text, at + 1)
    if at < len(text):
        raise json.JSONDecodeError(LINES_OF_ARRAYS if text[at] == "[" else MORE, text, at)
    return elements


def _after_blanks(text: str, at: int) -> int:
    found = _NO_BLANK.search(text, at)
    return len(text) if found is None else found.start()


_NO_BLANK: Final = re.compile(r"[^ \t\r\n]")
_STRING_OR_BLANKS: Final = re.compile(r'"(?:[^"\\]++|\\.)*+"|[ \t\r\n]+')


def _no_constant(name: str) -> NoReturn:
    msg = f"{name} is not JSON"
    raise ValueError(msg)


# Numbers are not read, so none is too long or too large.
_JSON: Final = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=_no_constant)


def _end_of_value(text: str, start: int) -> int:
    """Where the JSON value ends that begins at `start`."""
    try:
        return _JSON.raw_decode(text, start)[1]
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError) as exc:
        msg = str(exc) if isinstance(exc, ValueError) else "nested too deeply"
        raise json.JSONDecodeError(msg, text, start) from None


def _as_argument(value: str) -> str:
    """The item that a JSON value is, as it was written."""
    if value[0] == '"':
        text: str = json.loads(value)
        return text
    return _STRING_OR_BLANKS.sub(_compact, value)


def _compact(found: re.Match[str]) -> str:
    part = found[0]
    if part[0] != '"':
        return ""
    return encode_basestring(json.loads(part)) if "\\" in part else part
