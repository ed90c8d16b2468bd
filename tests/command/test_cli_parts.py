"""Parts of the command line that are hard to see from outside."""

import io
import math
import os
import select
import signal
import sys
import tempfile
import threading
from contextlib import asynccontextmanager, contextmanager
from functools import partial

import pytest
import trio

from cli_helpers import PATIENCE
from trio_fanout._cli import _end, _options, _output, _results, _stdio, _system
from trio_fanout._cli._end import End, Running, Tally
from trio_fanout._cli._items import Item, Items
from trio_fanout._cli._output import REDRAW, Display, Output, progress_text, terminal_width
from trio_fanout._cli._results import BLOCK, Result, Spool
from trio_fanout._cli._stdio import PIECE, read_some, write_all

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the command needs POSIX")


class Idle:
    """A program that only has a number."""

    pid = 5

    def __init__(self):
        self.signals = []

    def signal(self, number):
        self.signals.append(number)


def running(deadline=math.inf):
    return Running((Item(0, "a"),), Idle(), trio.CancelScope(deadline=deadline), 0.0, "took too long")


def an_end():
    return End(_options.parse(["map", "true"]), Output("json", None))


@asynccontextmanager
async def an_end_that_watches_its_reader():
    """It was asked to terminate programs."""
    end = an_end()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(end.watch_reader)
        end.note_signal(signal.SIGTERM)
        yield end
        nursery.cancel_scope.cancel()


async def test_whose_time_was_up_is_not_taken_for_ended(autojump_clock):
    end = an_end()
    late, early, endless = running(1), running(3), running()
    end.running.update([late, early, endless])
    with late.scope:
        await trio.sleep_forever()
    end.note_signal(signal.SIGTERM)
    assert (late.error, early.error, endless.error) == ("took too long", None, None)
    assert early.scope.cancel_called
    assert endless.scope.cancel_called


async def test_what_waits_after_the_stop_does_not_begin():
    end = an_end()
    end.note_signal(signal.SIGINT)
    with end.starting.scope() as scope:
        await trio.sleep_forever()
    assert scope.cancelled_caught


async def test_results_that_come_after_the_stop_are_stopped_too():
    stopped = []

    class Results:
        def stop(self):
            stopped.append(self)

    end, results = an_end(), Results()
    end.note_signal(signal.SIGINT)
    end.wind_down(results)
    assert stopped == [results]


@pytest.mark.parametrize(
    ("signals", "patience"),
    [
        ([signal.SIGINT], math.inf),
        ([signal.SIGTERM], _end.KILL_AFTER + 1),
        ([signal.SIGINT, signal.SIGINT], 4 + _end.MOMENT),
        ([signal.SIGTERM, signal.SIGINT], 4 + _end.MOMENT),
        ([signal.SIGTERM, signal.SIGINT, signal.SIGTERM], 4 + _end.MOMENT),
    ],
)
async def test_who_asks_twice_waits_for_programs_and_no_reader(mock_clock, signals, patience):
    end, ours = an_end(), running()
    with end.printing.scope() as printing:
        with end.watched(ours):
            for number in signals:
                end.note_signal(number)
            mock_clock.jump(4)
        assert printing.deadline == patience
        mock_clock.jump(0.5)
        end._hurry()
        assert printing.deadline == patience


async def test_a_second_signal_when_nothing_runs_waits_a_moment(mock_clock):
    end = an_end()
    with end.printing.scope() as printing:
        end.note_signal(signal.SIGINT)
        end.note_signal(signal.SIGINT)
        assert printing.deadline == _end.MOMENT


async def test_a_reader_is_waited_for_as_long_as_it_reads(autojump_clock):
    async with an_end_that_watches_its_reader() as end:
        with end.printing.scope() as printing:
            for _ in range(100):
                await trio.sleep(_end.KILL_AFTER)
                end._output.written += 1
            last = trio.current_time()
            await trio.sleep_forever()
        assert printing.cancelled_caught
        assert 0 <= trio.current_time() - last - (_end.KILL_AFTER + 1) <= _end.LOOK_AT_READER


async def test_who_asks_twice_does_not_wait_for_a_reader_that_reads(autojump_clock):
    async with an_end_that_watches_its_reader() as end:
        await trio.testing.wait_all_tasks_blocked()
        end._output.written += 1
        end.note_signal(signal.SIGTERM)
        with end.printing.scope():
            await trio.sleep_forever()
        assert trio.current_time() == _end.MOMENT


async def test_what_is_written_is_counted_a_little_at_a_time(capfd):
    output = Output("text", None)
    await output.show(printed(b"x" * 3 * PIECE + b"y"))
    assert output.written == 4
    assert len(capfd.readouterr().out) == 3 * PIECE + 1


async def test_only_who_wants_the_terminal_is_ended_for_being_stopped(autojump_clock, monkeypatch):
    end, ours = an_end(), running()
    end.running.add(ours)
    monkeypatch.setattr(_end, "reap_orphans", lambda ours: None)
    others, by_hand, wants = (4, signal.SIGTTIN), (5, signal.SIGSTOP), (5, signal.SIGTTOU)
    looks = iter([[others, by_hand], [wants], [wants]])
    monkeypatch.setattr(_end, "stopped_children", lambda: next(looks))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(end.watch_children)
        await trio.sleep(1.5 * _end.LOOK_AT_CHILDREN)
        assert not ours.scope.cancel_called
        await trio.sleep(2 * _end.LOOK_AT_CHILDREN)
        assert (ours.scope.cancel_called, ours.error) == (True, "it wants to use the terminal, which stops it")
        nursery.cancel_scope.cancel()


class Draws:
    """A display that only remembers."""

    def __init__(self):
        self.log = []

    def draw(self, tally):
        self.log.append("draw")

    def hide(self):
        self.log.append("hide")

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
        nursery.start_soon(output.keep_drawing, Tally())
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
    assert display.take() == ["hide"]
    assert capfd.readouterr() == ("half and whole\n", "trio-fanout: well\n")


@pytest.mark.parametrize("form", ["json", "text"])
async def test_progress_stays_in_sight_where_results_go_elsewhere(capfd, mock_clock, monkeypatch, form):
    monkeypatch.setattr(os, "isatty", lambda fd: fd == 2)
    display = Draws()
    output = Output(form, display)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(output.keep_drawing, Tally())
        await trio.testing.wait_all_tasks_blocked()
        await output.show(printed(b"no newline"))
        mock_clock.jump(REDRAW)
        await trio.testing.wait_all_tasks_blocked()
        assert display.take() == ["draw", "draw"]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("ready", "foreground", "drawn"), [(True, True, ["draw", "hide"]), (False, True, []), (True, False, [])]
)
async def test_progress_leaves_the_terminal_to_others(monkeypatch, ready, foreground, drawn):
    monkeypatch.setattr(_output, "is_ready", lambda fd: ready)
    monkeypatch.setattr(os, "tcgetpgrp", lambda fd: {2: os.getpgrp() + (not foreground)}[fd])
    display = Draws()
    output = Output("json", display)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(output.keep_drawing, Tally())
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert display.log == drawn


def of(total, **fields):
    """A tally of that many items."""
    return Tally(items=Items(map(str, range(total)), None, None), began=100.0, **fields)


def test_the_tally_knows_the_first_failure_and_the_time_left(monkeypatch):
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    tally = Tally(began=now)
    assert progress_text(tally, 80) == "0 done, 0 failed"
    for index, error in [(3, "x"), (1, "y"), (4, "z"), (0, None)]:
        tally.finish((Item(index, "item"),), error)
    now += 2
    assert tally.first_failure == ((Item(1, "item"),), "y")
    assert progress_text(tally, 80) == "4 done, 3 failed, 2/s"
    assert tally.account("left") == "1 done, 3 failed"
    tally.items = of(200).items
    assert progress_text(tally, 80) == "4 of 200 done, 3 failed, 2/s, 1:38 left"
    assert tally.account("left") == "1 done, 3 failed, 196 left"


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
    assert progress_text(of(200, finished=4, failed=3), width) == text


def test_without_a_total_the_rate_stays(monkeypatch):
    monkeypatch.setattr("time.monotonic", lambda: 102.0)
    tally = Tally(began=100.0)
    assert [progress_text(tally, width) for width in (99, 10)] == ["0 done, 0 failed", "0 done"]
    tally.finished = 4
    assert [progress_text(tally, width) for width in (99, 11, 7)] == ["4 done, 0 failed, 2/s", "4 done, 2/s", "4 done"]


@contextmanager
def terminal_size(columns):
    """Have that of standard error be this, and only here: pytest asks for the size, too, as it reports a test."""

    def size(fd):
        if columns is None:
            raise OSError
        return {2: os.terminal_size((columns, 24))}[fd]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "get_terminal_size", size)
        yield


def test_a_display_that_was_never_drawn_needs_no_hiding(capfd):
    Display(dumb=False).hide()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("rich", [True, False])
def test_the_line_fits_the_terminal_of_standard_error(capfd, monkeypatch, rich):
    if rich:
        pytest.importorskip("rich")
    else:
        monkeypatch.setitem(sys.modules, "rich", None)
    with terminal_size(9):
        Display(dumb=False).draw(Tally())
    assert capfd.readouterr().err == "\r\x1b[K0 done"


@pytest.mark.parametrize(("columns", "length"), [(100, 30), (40, 22), (28, 10), (27, 0)])
def test_the_bar_has_the_room_that_the_words_leave(capfd, columns, length):
    pytest.importorskip("rich")
    with terminal_size(columns):
        Display(dumb=False).draw(Tally())
    shown = capfd.readouterr().err
    assert shown.endswith("0 done, 0 failed")
    assert shown.count("\u2501") + shown.count("-") == length


def test_a_bar_needs_no_standard_error(capfd, monkeypatch):
    pytest.importorskip("rich")

    class Gone(io.StringIO):
        encoding = "utf-8"

        def write(self, text):
            raise OSError

    with terminal_size(100), monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", Gone())
        Display(dumb=False).draw(Tally())
    assert capfd.readouterr().err.count("\u2501") == 30


@pytest.mark.parametrize("columns", [0, None])
def test_a_terminal_that_does_not_tell_its_width_has_the_usual_one(columns):
    with terminal_size(columns):
        assert terminal_width() == 80


def test_a_dumb_terminal_gets_no_escape_codes(capfd):
    display = Display(dumb=True)
    display.draw(Tally())
    display.draw(Tally())
    display.hide()
    blank = "\r" + " " * 16 + "\r"
    assert capfd.readouterr().err == f"\r\r0 done, 0 failed{blank}0 done, 0 failed{blank}"


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


def test_a_message_that_cannot_be_written_is_no_reason_to_fail(monkeypatch):
    def fail(fd, data):
        raise BrokenPipeError

    monkeypatch.setattr(os, "write", fail)
    _stdio.say("anything")


def test_a_message_names_the_folder_of_temporary_files_if_there_is_one(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert _stdio.temporary_place() == str(tmp_path)

    def no_folder():
        raise FileNotFoundError

    monkeypatch.setattr(tempfile, "gettempdir", no_folder)
    assert _stdio.temporary_place() == "a temporary file"


def test_a_process_that_goes_while_it_is_looked_at_is_gone(tmp_path, monkeypatch):
    (tmp_path / "123").mkdir()
    (tmp_path / "456").mkdir()
    (tmp_path / "456" / "stat").write_text("456 (a) b) S 1 789 0")
    (tmp_path / "self").mkdir()
    monkeypatch.setattr(_system, "_PROC", tmp_path)
    assert _system._lives(789)
    assert not _system._lives(456)


# What is kept until it is printed


def content(kept):
    return b"".join(kept.pieces())


def test_outputs_share_the_memory_and_the_file(monkeypatch):
    monkeypatch.setattr(_results, "MEMORY", 3 * BLOCK)
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
    monkeypatch.setattr(_results, "MEMORY", 0)
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
    monkeypatch.setattr(_results, "MEMORY", 0)
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
    long = "long" * _output.SHORT
    await output.say(long)  # it may be more than is taken now
    assert said == ([("waits", True), ("does not", True)] if ready else [("waits", False)]) + [(long, False)]


async def test_messages_that_wait_leave_threads_to_results(monkeypatch):
    go, said = threading.Event(), []

    def say(message):
        assert go.wait(PATIENCE)
        said.append(message)

    monkeypatch.setattr(_output, "is_ready", lambda fd: False)
    monkeypatch.setattr(_output, "say", say)
    output = Output("json", None)
    async with trio.open_nursery() as nursery:
        for number in range(100):
            nursery.start_soon(output.say, str(number))
        await trio.testing.wait_all_tasks_blocked()
        await trio.to_thread.run_sync(go.set)
    assert len(said) == 100


async def test_a_message_for_which_there_is_no_thread_is_no_reason_to_fail(monkeypatch):
    async def fail(*args, **kwargs):
        raise RuntimeError

    monkeypatch.setattr(trio.to_thread, "run_sync", fail)
    monkeypatch.setattr(_output, "is_ready", lambda fd: False)
    await Output("json", None).say("anything")
