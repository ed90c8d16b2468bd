"""Reading items from pieces of input."""

from __future__ import annotations

import itertools
import json
import os
import re

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from cli_helpers import all_threads_ended
from trio_fanout._cli import _stdio
from trio_fanout._cli._items import Items, Job, splitter_for
from trio_fanout._cli._stdio import UsageError

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


def split(kind, data, cuts=()):
    """The items in `data`, which is fed in pieces that end at `cuts`."""
    splitter, items = splitter_for(kind), []
    edges = [0, *sorted(cuts), len(data)]
    for start, end in itertools.pairwise(edges):
        items += splitter.feed(data[start:end])
    return items + list(splitter.finish())


def as_argument(value):
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


@pytest.mark.parametrize(
    ("data", "items"),
    [
        (b"", []),
        (b"a\nb\n", ["a", "b"]),
        (b"a\nb", ["a", "b"]),
        (b"a\n\nb\n", ["a", "", "b"]),
        (b"\n", [""]),
        (b"a\r\n", ["a\r"]),
        (b" a b \n", [" a b "]),
        (b"a\0b\n", ["a\0b"]),
        (b"\xff\xc3\xa9\n", ["\udcffé"]),
    ],
)
def test_lines_end_with_a_newline_and_nothing_else(data, items):
    assert split("lines", data) == items


def test_null_items_may_hold_newlines():
    assert split("null", b"a\nb\0c\0d") == ["a\nb", "c", "d"]


@given(st.lists(st.binary(max_size=4).filter(lambda item: b"\n" not in item)), st.data())
def test_lines_come_out_as_they_went_in_however_they_are_cut(lines, data):
    text = b"".join(line + b"\n" for line in lines)
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=5))
    assert [item.encode("utf-8", "surrogateescape") for item in split("lines", text, cuts)] == lines


@given(st.lists(JSON_VALUES, max_size=4), st.sampled_from([None, 1]), st.booleans(), st.data())
def test_json_arrays_however_they_are_cut(values, indent, ensure_ascii, data):
    text = json.dumps(values, indent=indent, ensure_ascii=ensure_ascii).encode("utf-8", "surrogatepass")
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=5))
    assert split("json", text, cuts) == list(map(as_argument, json.loads(text.decode("utf-8", "surrogatepass"))))


@given(st.lists(JSON_VALUES.filter(lambda value: not isinstance(value, list)), max_size=4), st.data())
def test_json_lines_however_they_are_cut(values, data):
    text = "".join(json.dumps(value) + "\n" for value in values).encode()
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=5))
    assert split("json", text, cuts) == list(map(as_argument, values))


@pytest.mark.parametrize(
    ("data", "items"),
    [
        (b"", []),
        (b" \n\t", []),
        (b"\n [ ] \n", []),
        (b'"a b"\n\n{"k": [1, 2]}\r\n7', ["a b", '{"k":[1,2]}', "7"]),
        (b'[1.5e3, -7, true, null, "x\\ny", "\xc3\xa9"]', ["1500.0", "-7", "true", "null", "x\ny", "é"]),
        (b'["\xff"]', ["\udcff"]),
        (b'"\\udcff"', ["\udcff"]),
    ],
)
def test_json_items(data, items):
    assert split("json", data) == items
    assert split("json", data, range(len(data))) == items


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'"a"\n{bad\n', "line 2: Expecting property name enclosed in double quotes"),
        (b'"a"\n{"b": 1\n"c"\n', "line 2: Expecting ',' delimiter"),
        (b'"a"\n\n"b" "c"\n', "line 3: a second value in one line: '\"c\"'"),
        (b"1\nNaN\n", "line 2: NaN is not JSON"),
        (b"1\n1e999\n", "line 2: Out of range float values are not JSON compliant"),
        (b"7" * 5000, "line 1: Exceeds the limit"),
        (b'{"a":' * 200_000, "line 1: nested too deeply"),
        (b"[" * 200_000, "line 1: nested too deeply"),
        (b"[1,\n2,\n bad]", "line 3: Expecting value"),
        (b"[1,\n2,\n" + b"bad" * 20, "line 3: Expecting value"),
        (b'[1,\n{"a":\n\n x}]', "line 4: Expecting value"),
        (b'["a\nb"]', "line 1: Invalid control character at"),
        (b"[1,\n-Infinity]", "line 2: -Infinity is not JSON"),
        (b"[1\n2]", "line 2: expected , or ], got '2'"),
        (b"[1,]", "line 1: Expecting value"),
        (b"[,]", "line 1: Expecting value"),
        (b"[1,\n2", "line 2: the array is not closed"),
        (b'[1,\n"2', "line 2: Unterminated string starting at"),
        (b"[1]\n[2]", "line 2: there is more after the end of the array"),
    ],
)
def test_json_errors_name_the_line(data, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        split("json", data)


def test_invalid_json_is_noticed_before_the_input_ends():
    splitter = splitter_for("json")
    with pytest.raises(ValueError, match="line 1: Expecting value"):
        list(splitter.feed(b"[1, nonsense without end, and more of it"))


def test_members_of_an_array_come_as_soon_as_they_are_there():
    splitter = splitter_for("json")
    assert list(splitter.feed(b'["a", ')) == ["a"]
    assert list(splitter.feed(b'{"b": 1}')) == ['{"b":1}']
    assert list(splitter.feed(b", 12")) == []  # maybe it is 123
    assert list(splitter.feed(b"3 ")) == ["123"]


async def test_reading_never_blocks_other_tasks_and_can_be_given_up():
    read, write = os.pipe()
    items = Items(read, "it", splitter_for("lines"), lambda job: True)
    os.write(write, b"a\nb\nc")
    assert await anext(items) == Job(0, "a")
    assert await anext(items) == Job(1, "b")
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(anext, items)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    assert scope.cancelled_caught
    os.close(write)  # so that the thread that still reads ends, too
    await all_threads_ended()  # or it might read the next file that is opened
    os.close(read)


async def test_items_that_are_not_wanted_keep_their_index(tmp_path):
    (tmp_path / "items").write_bytes(b"a\nb\nc\n")
    fd = os.open(tmp_path / "items", os.O_RDONLY)
    items = Items(fd, "it", splitter_for("lines"), lambda job: job.item != "b")
    assert [job async for job in items] == [Job(0, "a"), Job(2, "c")]
    assert (items.count, items.skipped, items.ended) == (3, 1, True)
    os.close(fd)


async def test_an_item_of_many_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(_stdio, "PIECE", 7)
    (tmp_path / "items").write_bytes(b"x" * 1000 + b"\n" + b"y" * 10)
    fd = os.open(tmp_path / "items", os.O_RDONLY)
    items = Items(fd, "it", splitter_for("lines"), lambda job: True)
    assert [job.item async for job in items] == ["x" * 1000, "y" * 10]
    os.close(fd)


async def test_what_cannot_be_read_is_wrong_use(tmp_path):
    fd = os.open(tmp_path, os.O_RDONLY)
    items = Items(fd, "the directory", splitter_for("lines"), lambda job: True)
    with pytest.raises(UsageError, match=r"^cannot read the directory: Is a directory$"):
        await anext(items)
    os.close(fd)
