"""Parts of the command line that are hard to see from outside."""

from __future__ import annotations

import io
import math
import os
import select
import sys
import threading
from functools import partial

import pytest
import trio

from trio_fanout._cli import _programs, _stdio
from trio_fanout._cli._output import REDRAW, Output
from trio_fanout._cli._progress import PlainDisplay, RichDisplay, Tally, count_items, position_in
from trio_fanout._cli._results import Result
from trio_fanout._cli._shutdown import Shutdown
from trio_fanout._cli._stdio import read_some, write_all

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the command needs POSIX")


async def test_whose_time_was_up_is_not_taken_for_ended(autojump_clock):
    shutdown = Shutdown()
    with shutdown.running(1) as late, shutdown.running(3) as early, shutdown.running(None) as endless:
        with late:
            await trio.sleep_forever()
        shutdown.end()
        assert (late.deadline, early.deadline, endless.deadline) == (1, math.inf, math.inf)
        assert early.cancel_called
        assert endless.cancel_called


class Draws:
    """A display that only remembers."""

    def __init__(self):
        self.log = []

    def draw(self, tally):
        self.log.append("draw")

    def hide(self):
        self.log.append("hide")

    def close(self):
        self.log.append("close")


def printed(text):
    return Result(0, "a", 0, [io.BytesIO(text), io.BytesIO()], 0.0, None)


async def test_progress_is_hidden_for_output_and_keeps_off_a_line_that_has_not_ended(capfd, mock_clock):
    display = Draws()
    output = Output("text", display)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(output.keep_drawing, Tally(lambda: None))
        await trio.testing.wait_all_tasks_blocked()
        assert display.log == ["draw"]
        await output.show(printed(b"half"))
        mock_clock.jump(REDRAW)
        await trio.testing.wait_all_tasks_blocked()
        assert display.log == ["draw", "hide"]
        await output.show(printed(b" and whole\n"))
        output.say("well")
        mock_clock.jump(REDRAW)
        await trio.testing.wait_all_tasks_blocked()
        assert display.log == ["draw", "hide", "hide", "hide", "draw"]
        nursery.cancel_scope.cancel()
    assert display.log[-1] == "close"
    assert capfd.readouterr() == ("half and whole\n", "trio-fanout: well\n")


def test_the_tally_knows_the_first_failure_and_the_time_left(monkeypatch):
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    total = None
    tally = Tally(lambda: total, began=now)
    assert tally.text() == "0 done, 0 failed"
    for index, error in [(2, None), (3, "x"), (1, "y"), (4, "z")]:
        tally.add(index, "item", error)
    now += 2
    assert tally.first_failure == (1, "item", "y")
    assert tally.text() == "4 done, 3 failed, 2/s"
    total = 200
    assert tally.text() == "4 of 200 done, 3 failed, 2/s, 1:38 left"


def test_a_display_that_was_never_drawn_needs_no_hiding(capfd):
    pytest.importorskip("rich")
    display = RichDisplay()
    display.hide()
    display.close()
    assert capfd.readouterr() == ("", "")


def test_the_plain_line_fits_the_terminal(capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "9")
    PlainDisplay().draw(Tally(lambda: None))
    assert capfd.readouterr().err == "\r\x1b[K0 done, "


@pytest.mark.parametrize(("data", "count"), [(b"", 0), (b"a\nb\n", 2), (b"a\nb", 2), (b"\n\n", 2)])
def test_items_of_a_file_are_counted_from_where_it_stands(tmp_path, data, count):
    (tmp_path / "items").write_bytes(b"before\n" + data)
    fd = os.open(tmp_path / "items", os.O_RDONLY)
    os.lseek(fd, 7, os.SEEK_SET)
    position = position_in(fd)
    os.lseek(fd, 0, os.SEEK_END)  # others read it
    assert count_items(fd, position, b"\n") == count
    os.close(fd)


def test_a_pipe_that_is_full_and_does_not_block_is_waited_for(monkeypatch):
    read, write = os.pipe()
    os.set_blocking(write, False)
    data, got = b"0123456789" * 100_000, []
    reader = threading.Thread(target=lambda: got.extend(iter(partial(os.read, read, 1 << 16), b"")))

    def wait(*files, select=select.select):
        if reader.ident is None:
            reader.start()
        return select(*files)

    monkeypatch.setattr(select, "select", wait)
    write_all(write, data)
    os.close(write)
    reader.join()
    os.close(read)
    assert b"".join(got) == data


def test_a_pipe_that_is_empty_and_does_not_block_is_waited_for(monkeypatch):
    read, write = os.pipe()
    os.set_blocking(read, False)

    def wait(*files, select=select.select):
        os.write(write, b"here")
        return select(*files)

    monkeypatch.setattr(select, "select", wait)
    assert read_some(read) == b"here"
    os.close(read)
    os.close(write)


def test_items_of_a_pipe_are_not_counted():
    read, write = os.pipe()
    assert position_in(read) is None
    os.close(read)
    os.close(write)


def test_a_message_that_cannot_be_written_is_no_reason_to_fail(monkeypatch):
    def fail(fd, data):
        raise BrokenPipeError

    monkeypatch.setattr(os, "write", fail)
    _stdio.say("anything")


def test_a_process_that_goes_while_it_is_looked_at_is_gone(tmp_path, monkeypatch):
    (tmp_path / "123").mkdir()
    (tmp_path / "456").mkdir()
    (tmp_path / "456" / "stat").write_text("456 (a) b) S 1 789 0")
    (tmp_path / "self").mkdir()
    monkeypatch.setattr(_programs, "_PROC", tmp_path)
    assert _programs._lives(789)
    assert not _programs._lives(456)
