"""Reading items from pieces of input."""

import codecs
import itertools
import json
import os
import re
from functools import partial

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from cli_helpers import all_threads_ended
from trio_fanout._cli import _items, _json, _stdio
from trio_fanout._cli._items import Input, Item, Items, Lines
from trio_fanout._cli._json import Json
from trio_fanout._cli._log import History

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


SPLITTERS = {"lines": Lines, "null": lambda: Lines(b"\0"), "json": Json}


def split(kind, data, cuts=()):
    """The items in `data`, which is fed in pieces that end at `cuts`."""
    splitter, items = SPLITTERS[kind](), []
    edges = [0, *sorted(cuts), len(data)]
    for start, end in itertools.pairwise(edges):
        if start < end:
            items += splitter.feed(data[start:end])
    return items + list(splitter.feed(b""))


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


@pytest.mark.parametrize(("kind", "end"), [("lines", b"\n"), ("null", b"\0"), ("json", b"\n")])
def test_what_does_not_end_is_no_item(monkeypatch, kind, end):
    monkeypatch.setattr(_items, "LONGEST", 10)
    assert split(kind, (b"1234567890" + end) * 20 + b"12", range(7, 200, 7)) == ["1234567890"] * 20 + ["12"]
    splitter = SPLITTERS[kind]()
    assert list(splitter.feed(b"12345678901234567890" + end + b"1234567")) == ["12345678901234567890"]
    assert list(splitter.feed(b"890")) == []
    with pytest.raises(ValueError, match="no end of an item in 0 MiB"):
        list(splitter.feed(b"1"))


@pytest.mark.slow
@given(st.lists(st.binary(max_size=4).filter(lambda item: b"\n" not in item)), st.data())
def test_lines_come_out_as_they_went_in_however_they_are_cut(lines, data):
    text = b"".join(line + b"\n" for line in lines)
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=5))
    assert [item.encode("utf-8", "surrogateescape") for item in split("lines", text, cuts)] == lines


@pytest.mark.slow
@given(st.lists(JSON_VALUES, max_size=4), st.sampled_from([None, 1]), st.booleans(), st.data())
def test_json_arrays_however_they_are_cut(values, indent, ensure_ascii, data):
    text = json.dumps(values, indent=indent, ensure_ascii=ensure_ascii).encode("utf-8", "surrogatepass")
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=5))
    assert split("json", text, cuts) == list(map(as_argument, json.loads(text.decode("utf-8", "surrogatepass"))))


@pytest.mark.slow
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
        (b'[1.5e3, -7, true, null, "x\\ny", "\xc3\xa9"]', ["1.5e3", "-7", "true", "null", "x\ny", "é"]),
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
        (b"[1]\n[2]", f"line 2: {_json.LINES_OF_ARRAYS}"),
        (b"[1]\n\n2", f"line 3: {_json.MORE}"),
        (b"[", "line 1: Expecting value"),
        (b"[1,", "line 1: Expecting value"),
    ],
)
def test_json_errors_name_the_line(data, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        split("json", data)


def test_an_array_is_read_whole_and_one_that_is_wrong_has_no_items():
    splitter = Json()
    assert list(splitter.feed(b'["a", {"b": 1}, 12')) == []
    assert list(splitter.feed(b"3]")) == []
    assert list(splitter.feed(b"")) == ["a", '{"b":1}', "123"]
    splitter, items = Json(), []
    with pytest.raises(ValueError, match="line 1: Expecting value"):
        for piece in (b"[1, 2, nonsense, and ", b"more of it", b""):
            items += splitter.feed(piece)
    assert items == []


def test_numbers_stay_as_they_were_written():
    numbers = [b"12345678901234567890.125", b"10.00", b"1E400", b"-0", b"7" * 5000, b"1.50e+07"]
    texts = [number.decode() for number in numbers]
    assert split("json", b"[" + b", ".join(numbers) + b"]") == texts
    assert split("json", b"\n".join(numbers)) == texts
    assert split("json", b'{"a": [1.0, 1E400], "a": 2.50}') == ['{"a":[1.0,1E400],"a":2.50}']


def test_white_space_within_strings_stays():
    assert split("json", b'[{"a b" : "c\\" \td", "e": [ "f\\\\" , "g h" ] }]'.replace(b"\t", b" ")) == [
        '{"a b":"c\\"  d","e":["f\\\\","g h"]}'
    ]


@pytest.mark.parametrize("mark", [codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE])
def test_a_byte_order_mark_is_named(mark):
    with pytest.raises(ValueError, match="begins with a byte order mark"):
        split("json", mark + b"[1]")


# Reading


def read(path, *, splitter=Lines, history=None, name="it"):
    """The items of a file, and what was wrong with it."""
    wrong = []
    return Items(Input(os.open(path, os.O_RDONLY), name, splitter), history, wrong.append), wrong


async def test_reading_never_blocks_other_tasks_and_can_be_given_up():
    fd, write = os.pipe()
    items = Items(Input(fd, "it", Lines), None, None)
    os.write(write, b"a\nb\nc")
    assert await anext(items) == (Item(0, "a"),)
    assert await anext(items) == (Item(1, "b"),)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(anext, items)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    assert scope.cancelled_caught
    os.close(write)  # so that the thread that still reads ends, too
    await all_threads_ended()  # or it might read the next file that is opened
    os.close(fd)


def done(path, *items):
    """A history in which these items have succeeded."""
    path.write_text(
        "".join(json.dumps({"index": 0, "item": item, "failed": False, "program": ["x"]}) + "\n" for item in items)
    )
    history = History()
    history.read(path, [["x"]])
    return history


async def test_items_that_were_done_before_are_passed_over_and_the_others_keep_their_index(tmp_path):
    (tmp_path / "items").write_bytes(b"a\nb\nc\nb\n")
    items, _ = read(tmp_path / "items", history=done(tmp_path / "log", "b"))
    assert [item async for (item,) in items] == [Item(0, "a"), Item(2, "c"), Item(3, "b", 1)]
    assert (items.total, items.skipped) == (3, 1)


async def test_an_item_of_many_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(_stdio, "PIECE", 7)
    (tmp_path / "items").write_bytes(b"x" * 1000 + b"\n" + b"y" * 10)
    items, _ = read(tmp_path / "items")
    assert [item.text async for (item,) in items] == ["x" * 1000, "y" * 10]


@pytest.mark.parametrize(
    ("data", "splitter", "message"),
    [(None, Lines, "cannot read it: Is a directory"), (b'"a"\nb', Json, "it: line 2: Expecting value")],
)
async def test_items_end_where_the_input_is_wrong(tmp_path, data, splitter, message):
    path = tmp_path / "items" if data else tmp_path
    if data:
        path.write_bytes(data)
    items, wrong = read(path, splitter=splitter)
    assert [item.text async for (item,) in items] == (["a"] if data else [])
    assert [item async for item in items] == []
    assert [str(error) for error in wrong] == [message]
    assert items.total is None


# Counting


@pytest.mark.parametrize(
    ("data", "splitter", "count"),
    [
        (b"", Lines, 0),
        (b"a\nb\n", Lines, 2),
        (b"a\nb", Lines, 2),
        (b"\n\n", Lines, 2),
        (b"a\nb\0c\0", partial(Lines, b"\0"), 2),
        (b'1\n\n"b"\n', Json, 2),
        (b'[1, "b"]', Json, 2),
        (b"1\nwrong", Json, None),
    ],
)
async def test_items_of_a_plain_file_are_counted_from_where_it_stands(tmp_path, data, splitter, count, monkeypatch):
    monkeypatch.setattr(_items, "COUNTED", 2)
    (tmp_path / "items").write_bytes(b"before\n" + data)
    fd = os.open(tmp_path / "items", os.O_RDONLY)
    os.lseek(fd, 7, os.SEEK_SET)
    items = Items(Input(fd, "it", splitter), None, None)
    os.lseek(fd, 0, os.SEEK_END)  # others read it
    await items.count()
    assert items.total == count
    assert os.lseek(fd, 0, os.SEEK_CUR) == 7 + len(data)
    os.close(fd)


async def test_what_was_done_before_is_not_counted(tmp_path):
    (tmp_path / "items").write_bytes(b"a\nb\nc\nb\na\n")
    items, _ = read(tmp_path / "items", history=done(tmp_path / "log", "b", "a"))
    assert await items.next() == Item(2, "c")
    await items.count()
    assert items.total == 3
    assert [item.text async for (item,) in items] == ["b", "a"]
    await items.count()
    assert items.total == 3


async def test_counting_does_not_undo_what_the_reader_has_found_meanwhile(tmp_path, monkeypatch):
    (tmp_path / "items").write_bytes(b"a\n")
    items, _ = read(tmp_path / "items")

    async def in_thread(fn, *args):
        if fn == items._count:
            with (tmp_path / "items").open("ab") as file:
                file.write(b"b\n")
            assert len([item async for item in items]) == 2
            return 1
        return fn(*args)

    monkeypatch.setattr(_items, "in_thread", in_thread)
    await items.count()
    assert items.total == 2


async def test_at_the_end_a_pipe_that_has_ended_is_seen_to_have():
    fd, write = os.pipe()
    os.write(write, b"a\nb\nc")
    items = Items(Input(fd, "it", Lines), None, None)
    assert (await items.next()).text == "a"
    await items.settle()  # there is more
    assert items.total is None
    await items.settle()  # nobody knows
    assert items.total is None
    os.close(write)
    await items.settle()
    assert items.total == 3
    await items.settle()
    os.close(fd)
