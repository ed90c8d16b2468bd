"""Reading items from pieces of input."""

import codecs
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
from trio_fanout._cli import _json, _stdio
from trio_fanout._cli._history import History
from trio_fanout._cli._items import Item, Items, Lines
from trio_fanout._cli._json import Json
from trio_fanout._cli._stdio import UsageError

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
        (b"[1]\n[2]", "line 2: there is more after the end of the array"),
    ],
)
def test_json_errors_name_the_line(data, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        split("json", data)


def test_invalid_json_is_noticed_before_the_input_ends():
    splitter = Json()
    with pytest.raises(ValueError, match="line 1: Expecting value"):
        list(splitter.feed(b"[1, nonsense without end, and more of it"))


def test_members_of_an_array_come_as_soon_as_they_are_there():
    splitter = Json()
    assert list(splitter.feed(b'["a", ')) == ["a"]
    assert list(splitter.feed(b'{"b": 1}')) == ['{"b":1}']
    assert list(splitter.feed(b", 12")) == []  # maybe it is 123
    assert list(splitter.feed(b"3 ")) == ["123"]


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


@pytest.mark.slow
@pytest.mark.parametrize(
    "member", [b'"' + b"x" * 1_000_000 + b'"', b"[" + b'"y\\"]", ' * 100_000 + b"0]", b"9" * 1_000_000], ids=len
)
def test_a_large_member_is_read_a_few_times_only(member, monkeypatch):
    read = 0

    def count(text, start, end_of_value=_json._end_of_value):
        nonlocal read
        read += len(text) - start
        return end_of_value(text, start)

    monkeypatch.setattr(_json, "_end_of_value", count)
    piece = 5000 if member[:1] != b"9" else 200_000  # a number is never whole before something follows
    assert len(split("json", b"[1, " + member + b", 2]", range(0, len(member), piece))) == 3
    assert read < 5 * len(member)


def test_a_mistake_in_a_member_without_end_is_noticed():
    splitter = Json()
    with pytest.raises(ValueError, match="line 1: Expecting ':' delimiter"):
        for _ in itertools.count():
            list(splitter.feed(b'[{"a": 1, "b}, ' if splitter._chosen is None else b'{"c": 2}, '))


@pytest.mark.parametrize("mark", [codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE])
def test_a_byte_order_mark_is_named(mark):
    with pytest.raises(ValueError, match="begins with a byte order mark"):
        split("json", mark + b"[1]")


@pytest.mark.parametrize("cuts", [(), (4,), range(8)])
def test_json_lines_of_arrays_are_refused_before_the_first_item(cuts):
    splitter, items = Json(), []
    data = b"[1]\n[2]\n"
    edges = [0, *cuts, len(data)]
    with pytest.raises(ValueError, match=r"line 2: there is more after the end of the array; .* `jq -s \.`"):
        for start, end in itertools.pairwise(edges):
            for item in splitter.feed(data[start:end]):
                items.append(item)  # noqa: PERF402
    assert items == []


def test_the_members_before_a_mistake_are_items():
    splitter, items = Json(), []
    with pytest.raises(ValueError, match="line 1: Expecting value"):
        for item in splitter.feed(b"[1, 2, nonsense, and more of it"):
            items.append(item)  # noqa: PERF402
    assert items == ["1", "2"]


async def test_reading_never_blocks_other_tasks_and_can_be_given_up():
    read, write = os.pipe()
    items = Items(read, "it", Lines(), None)
    os.write(write, b"a\nb\nc")
    assert await anext(items) == Item(0, "a")
    assert await anext(items) == Item(1, "b")
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(anext, items)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    assert scope.cancelled_caught
    os.close(write)  # so that the thread that still reads ends, too
    await all_threads_ended()  # or it might read the next file that is opened
    os.close(read)


async def test_items_that_were_done_before_are_passed_over_and_the_others_keep_their_index(tmp_path):
    (tmp_path / "log").write_text('{"index": 1, "item": "b", "failed": false, "program": ["x"]}\n')
    history = History()
    history.read(tmp_path / "log", [["x"]])
    (tmp_path / "items").write_bytes(b"a\nb\nc\nb\n")
    fd = os.open(tmp_path / "items", os.O_RDONLY)
    items = Items(fd, "it", Lines(), history)
    assert [item async for item in items] == [Item(0, "a"), Item(2, "c"), Item(3, "b", 1)]
    assert (items.count, items.skipped, items.ended) == (4, 1, True)
    os.close(fd)


async def test_an_item_of_many_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(_stdio, "PIECE", 7)
    (tmp_path / "items").write_bytes(b"x" * 1000 + b"\n" + b"y" * 10)
    fd = os.open(tmp_path / "items", os.O_RDONLY)
    items = Items(fd, "it", Lines(), None)
    assert [item.text async for item in items] == ["x" * 1000, "y" * 10]
    os.close(fd)


async def test_what_cannot_be_read_is_wrong_use(tmp_path):
    fd = os.open(tmp_path, os.O_RDONLY)
    items = Items(fd, "the directory", Lines(), None)
    with pytest.raises(UsageError, match=r"^cannot read the directory: Is a directory$"):
        await anext(items)
    os.close(fd)
