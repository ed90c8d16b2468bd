"""Parts of the command line that are hard to see from outside."""

import math
import os
import select
import signal
import sys
import threading
from functools import partial

import pytest
import trio

from trio_fanout._cli import _output, _programs, _shutdown, _spool, _stdio
from trio_fanout._cli._items import Item
from trio_fanout._cli._output import REDRAW, Output
from trio_fanout._cli._progress import PlainDisplay, RichDisplay, Tally, count_items, position_in, terminal_width
from trio_fanout._cli._results import Result
from trio_fanout._cli._shutdown import Cause, Running, Shutdown
from trio_fanout._cli._spool import BLOCK, Spool
from trio_fanout._cli._stdio import read_some, write_all

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the command needs POSIX")


class Idle:
    """A program that only has a number."""

    pid = 5

    def __init__(self):
        self.signals = []

    def signal(self, number):
        self.signals.append(number)


def running(deadline=math.inf):
    return Running((Item(0, "a"),), Idle(), trio.CancelScope(deadline=deadline))


async def test_whose_time_was_up_is_not_taken_for_ended(autojump_clock):
    shutdown = Shutdown()
    late, early, endless = running(1), running(3), running()
    shutdown.running.update([late, early, endless])
    with late.scope:
        await trio.sleep_forever()
    shutdown.end()
    assert (late.cause, early.cause, endless.cause) == (Cause.TIMEOUT, Cause.SHUTDOWN, Cause.SHUTDOWN)
    assert early.scope.cancel_called
    assert endless.scope.cancel_called


async def test_what_waits_after_the_stop_does_not_begin():
    shutdown = Shutdown()
    shutdown.stop()
    with shutdown.waiting() as scope:
        await trio.sleep_forever()
    assert scope.cancelled_caught


def test_results_that_come_after_the_stop_are_stopped_too():
    stopped = []

    class Results:
        def stop(self):
            stopped.append(self)

    shutdown, results = Shutdown(), Results()
    shutdown.stop()
    shutdown.wind_down(results)
    assert stopped == [results]


async def test_only_who_wants_the_terminal_is_ended_for_being_stopped(autojump_clock, monkeypatch):
    shutdown, ours = Shutdown(), running()
    shutdown.running.add(ours)
    others, by_hand, wants = (4, signal.SIGTTIN), (5, signal.SIGSTOP), (5, signal.SIGTTOU)
    looks = iter([[others, by_hand], [wants], [wants]])
    monkeypatch.setattr(_shutdown, "stopped_children", lambda: next(looks))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shutdown.watch_for_stopped)
        await trio.sleep(1.5 * _shutdown.LOOK_FOR_STOPPED)
        assert not ours.scope.cancel_called
        await trio.sleep(2 * _shutdown.LOOK_FOR_STOPPED)
        assert (ours.scope.cancel_called, ours.cause) == (True, Cause.TERMINAL)
        nursery.cancel_scope.cancel()


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

    def take(self):
        log, self.log = self.log, []
        return log


def printed(text):
    spool = Spool()
    outputs = [spool.open(), spool.open()]
    outputs[0].write(text)
    return Result((Item(0, "a"),), ["x"], 0, outputs, 0.0, 0.0, None)


@pytest.fixture
def on_a_terminal(monkeypatch):
    monkeypatch.setattr(os, "isatty", lambda fd: fd in (1, 2))


async def test_progress_is_hidden_for_output_and_keeps_off_a_line_that_has_not_ended(
    capfd, mock_clock, on_a_terminal, monkeypatch
):
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    display = Draws()
    output = Output("text", display)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(output.keep_drawing, Tally(lambda: None))
        await trio.testing.wait_all_tasks_blocked()
        assert display.take() == ["draw"]
        await output.show(printed(b"half"))
        mock_clock.jump(REDRAW)
        await trio.testing.wait_all_tasks_blocked()
        assert display.take() == ["hide"]
        await output.show(printed(b" and whole\n"))
        assert display.take() == ["hide"]  # it was drawn just now
        now += 1
        await output.say("well")
        assert display.take() == ["hide", "draw"]
        mock_clock.jump(REDRAW)
        await trio.testing.wait_all_tasks_blocked()
        assert display.take() == ["draw"]
        nursery.cancel_scope.cancel()
    assert display.take() == ["close"]
    assert capfd.readouterr() == ("half and whole\n", "trio-fanout: well\n")


@pytest.mark.parametrize("form", ["json", "text"])
async def test_progress_stays_in_sight_where_results_go_elsewhere(capfd, mock_clock, monkeypatch, form):
    monkeypatch.setattr(os, "isatty", lambda fd: fd == 2)
    display = Draws()
    output = Output(form, display)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(output.keep_drawing, Tally(lambda: None))
        await trio.testing.wait_all_tasks_blocked()
        await output.show(printed(b"no newline"))
        mock_clock.jump(REDRAW)
        await trio.testing.wait_all_tasks_blocked()
        assert display.take() == ["draw", "draw"]
        nursery.cancel_scope.cancel()


def test_the_tally_knows_the_first_failure_and_the_time_left(monkeypatch):
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    total = None
    tally = Tally(lambda: total, began=now)
    assert tally.text() == "0 done, 0 failed"
    tally.done = 4
    for index, error in [(3, "x"), (1, "y"), (4, "z")]:
        tally.add_failure((Item(index, "item"),), error)
    now += 2
    assert tally.first_failure == ((Item(1, "item"),), "y")
    assert tally.text() == "4 done, 3 failed, 2/s"
    total = 200
    assert tally.text() == "4 of 200 done, 3 failed, 2/s, 1:38 left"


@pytest.mark.parametrize(
    ("width", "text"),
    [
        (40, "4 of 200 done, 3 failed, 2/s, 1:38 left"),
        (38, "4 of 200 done, 2/s, 1:38 left"),
        (28, "4 of 200 done, 1:38 left"),
        (23, "1:38 left"),
        (4, "1:38"),
    ],
)
def test_on_a_narrow_screen_the_time_left_stays(monkeypatch, width, text):
    monkeypatch.setattr("time.monotonic", lambda: 102.0)
    tally = Tally(lambda: 200, done=4, failed=3, began=100.0)
    assert tally.text(width) == text


def test_without_a_total_the_rate_stays(monkeypatch):
    monkeypatch.setattr("time.monotonic", lambda: 102.0)
    tally = Tally(lambda: None, began=100.0)
    assert [tally.text(width) for width in (99, 10)] == ["0 done, 0 failed", "0 done"]
    tally.done = 4
    assert [tally.text(width) for width in (99, 11, 7)] == ["4 done, 0 failed, 2/s", "4 done, 2/s", "4 done"]


def test_a_display_that_was_never_drawn_needs_no_hiding(capfd):
    pytest.importorskip("rich")
    for display in (RichDisplay(), PlainDisplay(dumb=True)):
        display.hide()
        display.close()
    assert capfd.readouterr() == ("", "")


def test_the_plain_line_fits_the_terminal_of_standard_error(capfd, monkeypatch):
    monkeypatch.setattr(os, "get_terminal_size", {2: os.terminal_size((9, 24))}.__getitem__)
    PlainDisplay(dumb=False).draw(Tally(lambda: None))
    assert capfd.readouterr().err == "\r\x1b[K0 done"


@pytest.mark.parametrize("columns", [0, None])
def test_a_terminal_that_does_not_tell_its_width_has_the_usual_one(monkeypatch, columns):
    def size(fd):
        if columns is None:
            raise OSError
        return os.terminal_size((columns, 0))

    monkeypatch.setattr(os, "get_terminal_size", size)
    assert terminal_width() == 80


def test_a_dumb_terminal_gets_no_escape_codes(capfd):
    display = PlainDisplay(dumb=True)
    display.draw(Tally(lambda: None))
    display.draw(Tally(lambda: None))
    display.close()
    blank = "\r" + " " * 16 + "\r"
    assert capfd.readouterr().err == f"\r\r0 done, 0 failed{blank}0 done, 0 failed{blank}"


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


# What is kept until it is printed


def content(kept):
    return b"".join(kept.pieces())


def test_outputs_share_the_memory_and_the_file(monkeypatch):
    monkeypatch.setattr(_spool, "MEMORY", 3 * BLOCK)
    spool = Spool()
    first, second = spool.open(), spool.open()
    for number in range(10):
        first.write(b"%d" % number * BLOCK)
        second.write(b"x" * 100)
    assert content(first) == b"".join(b"%d" % number * BLOCK for number in range(10))
    assert (content(second), second.size) == (b"x" * 1000, 1000)
    assert spool.in_memory <= 4 * BLOCK
    first.close()
    second.close()
    assert spool.in_memory == 0
    spool.close()


def test_the_blocks_of_what_was_printed_are_used_again(monkeypatch):
    monkeypatch.setattr(_spool, "MEMORY", 0)
    spool = Spool()
    kept = [spool.open() for _ in range(3)]
    for output in kept:
        output.write(b"a" * 4 * BLOCK)
    kept[0].close()
    again = spool.open()
    again.write(b"b" * 4 * BLOCK)
    size = os.fstat(spool._file.fileno()).st_size
    assert size == 12 * BLOCK
    assert [content(output) for output in (*kept[1:], again)] == [letter * 4 * BLOCK for letter in (b"a", b"a", b"b")]
    for output in (*kept[1:], again):
        output.close()
    assert os.fstat(spool._file.fileno()).st_size == 0
    spool.close()


def test_a_disk_that_takes_a_part_at_a_time(monkeypatch):
    monkeypatch.setattr(_spool, "MEMORY", 0)
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:1000], at))
    spool = Spool()
    kept = spool.open()
    kept.write(bytes(range(256)) * (BLOCK // 256))
    assert content(kept) == bytes(range(256)) * (BLOCK // 256)
    spool.close()


@pytest.mark.parametrize("ready", [True, False])
async def test_a_message_waits_for_a_reader_that_takes_its_time_or_is_dropped(ready, monkeypatch):
    """Where the caller can wait, it does, in a thread; where it cannot, the message is not worth it."""
    said = []
    main = threading.get_ident()
    monkeypatch.setattr(_output, "is_ready", lambda fd: ready)
    monkeypatch.setattr(_output, "say", lambda message: said.append((message, threading.get_ident() == main)))
    output = Output("json", None)
    await output.say("waits")
    output.say_if_ready("does not")
    assert said == ([("waits", True), ("does not", True)] if ready else [("waits", False)])
