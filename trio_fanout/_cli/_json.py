"""Items in JSON: the members of an array, or JSON Lines.

A string is used as it is. Of anything else the white space between its parts goes, and its numbers and the order of its
members, also of equal names, stay as they were written.
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

    from ._items import Splitter

LONGEST_TOKEN: Final = 16
"""Characters of JSON, other than those of a string, that the end of a piece may cut in two: an escaped surrogate pair
has twelve, ``-Infinity`` nine."""

BYTE_ORDER_MARK: Final = (
    "it begins with a byte order mark, which JSON does not have: `iconv` or `tail -c +4` takes it off"
)
MORE: Final = "there is more after the end of the array"
LINES_OF_ARRAYS: Final = f"{MORE}; if these are JSON Lines of arrays, `jq -s .` makes one array of them"

_BLANKS: Final = " \t\r\n"  # what JSON takes for white space


class Json:
    """The members of an array, if the input begins with ``[``; JSON Lines otherwise."""

    def __init__(self) -> None:
        self._beginning = b""
        self._chosen: Splitter | None = None

    def feed(self, piece: bytes) -> Iterator[str]:
        """The items that `piece` completes."""
        if self._chosen is None:
            piece = self._beginning = self._beginning + piece
            if piece.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise ValueError(BYTE_ORDER_MARK)
            first = piece.lstrip(_BLANKS.encode())[:1]
            if not first:
                return
            self._chosen = _Array() if first == b"[" else _JsonLines()
        yield from self._chosen.feed(piece)

    def finish(self) -> Iterator[str]:
        """The last item, if its end is missing."""
        if self._chosen is not None:
            yield from self._chosen.finish()


class _JsonLines:
    """JSON Lines: a value on each line that is not blank."""

    def __init__(self) -> None:
        self._lines = Lines()
        self._line = 0

    def feed(self, piece: bytes) -> Iterator[str]:
        for line in self._lines.feed(piece):
            yield from self._value(line)

    def finish(self) -> Iterator[str]:
        for line in self._lines.finish():
            yield from self._value(line)

    def _value(self, line: str) -> Iterator[str]:
        self._line += 1
        if text := line.strip(_BLANKS):
            try:
                end = _end_of_value(text, 0)
                if end != len(text):
                    msg = f"a second value in one line: {text[end:].lstrip(_BLANKS)[:20]!r}"
                    raise ValueError(msg)
            except ValueError as exc:
                _raise_at(self._line, exc)
            yield _as_argument(text)


class _Array:
    """A JSON array, of which each member is an item as soon as it is there.

    The members of a piece that closes the array are kept back until it is known whether anything follows: JSON Lines of
    arrays begin like an array, and are refused before anything has run.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._text = ""
        self._at = 0  # all before it is done with
        self._line = 1
        self._expected = "["  # or "value or ]", "value", ", or ]", "end"
        self._kept: list[str] = []
        self._begun: _Begun | None = None  # a value that had not ended at the end of `_text`

    def feed(self, piece: bytes) -> Iterator[str]:
        return self._take(self._decoder.decode(piece), final=False)

    def finish(self) -> Iterator[str]:
        yield from self._take(self._decoder.decode(b"", final=True), final=True)
        if self._expected != "end":
            _raise_at(self._line, "the array is not closed")
        yield from self._kept

    def _take(self, text: str, *, final: bool) -> Iterator[str]:
        if self._begun is not None:
            if not (self._begun.may_be_whole_with(text) or final):
                return
            text = self._begun.text()
            self._begun = None
        else:
            text = self._text[self._at :] + text
        self._text = text
        self._at = 0
        error = None
        try:
            self._kept.extend(self._members(final=final))
        except ValueError as exc:
            error = exc
        if self._expected != "end":
            yield from self._kept
            self._kept.clear()
        if error is not None:
            raise error

    def _members(self, *, final: bool) -> Iterator[str]:
        while char := self._next_char():
            if "value" in self._expected and not (char == "]" and "]" in self._expected):
                try:
                    found = self._value(final=final)
                except ValueError as exc:
                    _raise_at(self._line, exc)
                if found is None:
                    self._begun = _Begun(self._text[self._at :])
                    return
                self._expected = ", or ]"
                yield found
            elif char in self._expected and self._expected != "end":
                self._at += 1
                self._expected = {"[": "value or ]", ",": "value", "]": "end"}[char]
            elif self._expected == "end":
                _raise_at(self._line, LINES_OF_ARRAYS if char == "[" else MORE)
            else:
                _raise_at(self._line, f"expected {self._expected}, got {char!r}")

    def _next_char(self) -> str:
        """The next character that is not blank; an empty string where there is none."""
        while self._at < len(self._text) and self._text[self._at] in _BLANKS:
            self._line += self._text[self._at] == "\n"
            self._at += 1
        return self._text[self._at : self._at + 1]

    def _value(self, *, final: bool) -> str | None:
        """The value that begins here as an item, or None if the end of it is not there yet."""
        start = self._at
        try:
            end = _end_of_value(self._text, start)
        except json.JSONDecodeError as exc:
            near_end = exc.pos > len(self._text) - LONGEST_TOKEN
            if not final and (near_end or exc.msg.startswith("Unterminated string")):
                return None
            self._line += self._text.count("\n", start, exc.pos)
            raise
        if not final and end == len(self._text.rstrip(".eE+-")) and self._text[start] not in '"[{':
            return None  # a number may go on
        self._line += self._text.count("\n", start, end)
        self._at = end
        return _as_argument(self._text[start:end])


class _Begun:
    """A value of which the end is not there yet.

    To read a long value anew with each piece would take time that grows with its square. So it is only read when it may
    be whole, by its brackets and quotes, or is twice as long as it was: a mistake in it is told of before the end of
    the input.
    """

    def __init__(self, text: str) -> None:
        self._parts = [text]
        self._size = len(text)
        self._enough = 2 * len(text)
        self._depth = 0
        self._in_string = False
        self._escaping = False  # the last character was a backslash
        self._scan(text)

    def text(self) -> str:
        """All of it that is there."""
        return "".join(self._parts)

    def may_be_whole_with(self, text: str) -> bool:
        """Take what follows; says whether the value is worth reading."""
        self._parts.append(text)
        self._size += len(text)
        return self._scan(text) or self._size >= self._enough

    def _scan(self, text: str) -> bool:
        at = int(self._escaping)
        self._escaping = False
        while found := (_QUOTE if self._in_string else _BRACKET_OR_QUOTE).search(text, at):
            at = found.end()
            if found[0] == '"':
                self._in_string = not self._in_string
            elif found[0] == "\\":
                self._escaping = at == len(text)
                at += 1
            else:
                self._depth += 1 if found[0] in "[{" else -1
            if self._depth <= 0 and not self._in_string:
                return True
        return self._depth <= 0 and not self._in_string  # neither string, array nor object, and so a short one


_QUOTE: Final = re.compile(r'["\\]')
_BRACKET_OR_QUOTE: Final = re.compile(r'["\[\]{}]')
_STRING_OR_BLANKS: Final = re.compile(r'"(?:[^"\\]++|\\.)*+"|[ \t\r\n]+')


def _no_constant(name: str) -> NoReturn:
    msg = f"{name} is not JSON"
    raise ValueError(msg)


# Numbers are not read, so that none is too long or too large.
_JSON: Final = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=_no_constant)


def _end_of_value(text: str, start: int) -> int:
    """Where the JSON value ends that begins at `start`."""
    try:
        return _JSON.raw_decode(text, start)[1]
    except RecursionError:
        msg = "nested too deeply"
        raise ValueError(msg) from None


def _as_argument(value: str) -> str:
    """What a JSON value, as it was written, is as an item."""
    if value[0] == '"':
        text: str = json.loads(value)
        return text
    return _STRING_OR_BLANKS.sub(_compact, value)


def _compact(found: re.Match[str]) -> str:
    part = found[0]
    if part[0] != '"':
        return ""
    return encode_basestring(json.loads(part)) if "\\" in part else part


def _raise_at(line: int, error: ValueError | str) -> NoReturn:
    what = error.msg if isinstance(error, json.JSONDecodeError) else error
    msg = f"line {line}: {what}"
    raise ValueError(msg) from None
