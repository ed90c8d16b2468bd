"""`--log` and `--resume`."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from cli_helpers import COMMAND, PATIENCE, Cli, Ran, run, started, wait_for, wait_until_it_handles
from trio_fanout._cli._log import History, Log
from trio_fanout._cli._stdio import UsageError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the command needs POSIX")

FAILS_ONCE = ["sh", "-c", "echo $0 >>ran; test -e again || test $0 != b"]


@pytest.fixture(autouse=True)
def _in_a_directory_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def cli(capfdbinary):
    return Cli(capfdbinary)


def records(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def succeeded(path):
    """The items that a log says have succeeded, in which a line may be torn."""
    found = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            record = json.loads(line.strip(b"\0"))
        except ValueError:
            continue
        if not record["failed"]:
            found += record.get("items") or [record["item"]]
    return found


def test_the_log_holds_what_map_prints(cli, tmp_path):
    ran = cli("map", "--log", "log", "--no-fail-fast", "sh", "-c", "echo $0; test $0 != b", stdin=b"a\nb\n\xff\n")
    assert ran.code == 1
    logged = records(tmp_path / "log")
    assert sorted(logged, key=lambda record: record["index"]) == ran.records
    assert logged[-1]["stdout"] or logged[0]["stdout"]


def test_results_are_logged_as_they_finish(cli, tmp_path):
    script = "test $0 = b || while ! grep -q b log; do sleep 0.01; done"
    cli("map", "-j2", "--log", "log", "sh", "-c", script, stdin="a\nb\n")
    assert [record["item"] for record in records(tmp_path / "log")] == ["b", "a"]


def test_do_logs_without_output(cli, tmp_path):
    cli("do", "--log", "log", "echo", stdin="a\n")
    (record,) = records(tmp_path / "log")
    assert record.keys() == {"index", "item", "failed", "exit_code", "started", "seconds", "program"}


@pytest.mark.parametrize("command", ["map", "do"])
def test_resume_skips_what_has_succeeded(cli, tmp_path, command):
    arguments = [command, "-j1", "--log", "log", "--resume", "--no-fail-fast", *FAILS_ONCE]
    assert cli(*arguments, stdin="a\nb\nc\n").code == 1
    (tmp_path / "again").touch()
    ran = cli(*arguments, stdin="a\nb\nc\nd\n")
    assert ran.code == 0
    assert (tmp_path / "ran").read_text().split() == ["a", "b", "c", "b", "d"]
    if command == "map":
        assert ran.column("index") == [1, 3]
    assert cli(*arguments, stdin="a\nb\nc\nd\n").out == b""


def test_resume_knows_an_item_by_itself_and_not_by_its_place(cli):
    arguments = ["map", "-j1", "--log", "log", "--resume", "echo"]
    cli(*arguments, stdin="a\nb\nc\n")
    ran = cli(*arguments, stdin="c\nnew\na\n")  # filtered, sorted and inserted into
    assert [(record["index"], record["item"]) for record in ran.records] == [(1, "new")]


def test_equal_items_are_told_apart_by_how_many_came_before(cli, tmp_path):
    script = 'echo "$1"; ! grep -qx "$1" bad'
    arguments = ["map", "-j1", "--log", "log", "--resume", "-k", "sh", "-c", script, "{}", "{#}"]
    (tmp_path / "bad").write_text("1\n")
    cli(*arguments, stdin="a\na\na\nb\n")  # the second has failed
    (tmp_path / "bad").write_text("")
    ran = cli(*arguments, stdin="new\nb\na\na\na\na\n")
    assert [(record["index"], record["item"]) for record in ran.records] == [(0, "new"), (3, "a"), (5, "a")]
    assert [record.get("occurrence", 0) for record in ran.records] == [0, 1, 3]
    assert cli(*arguments, stdin="a\na\na\na\nb\nnew\n").out == b""


def test_the_last_result_of_an_item_counts(cli, tmp_path):
    arguments = ["do", "-j1", "--log", "log", "sh", "-c", "echo $0 >>ran; test -e good"]
    (tmp_path / "good").touch()
    assert cli(*arguments, stdin="a\n").code == 0
    (tmp_path / "good").unlink()
    assert cli(*arguments, stdin="a\n").code == 1
    assert cli("do", "--resume", *arguments[1:], stdin="a\n").code == 1
    (tmp_path / "good").touch()
    assert cli("do", "--resume", *arguments[1:], stdin="a\n").code == 0
    assert cli("do", "--resume", *arguments[1:], stdin="a\n").code == 0
    assert (tmp_path / "ran").read_text().split() == ["a"] * 4


def test_a_log_of_the_first_edition_can_be_resumed_from(cli, tmp_path):
    outcomes = [(0, "a", False), (3, "a", True), (1, "b", True), (5, "a", False), (1, "b", False), (7, "c", True)]
    (tmp_path / "log").write_text(
        "".join(
            json.dumps({"index": index, "item": item, "failed": failed, "exit_code": 0, "seconds": 0.1}) + "\n"
            for index, item, failed in outcomes
        )
    )
    arguments = ["map", "-j1", "--log", "log", "--resume", "echo"]
    ran = cli(*arguments, stdin="b\na\na\na\na\nc\n")
    assert [(record["index"], record["item"]) for record in ran.records] == [(2, "a"), (4, "a"), (5, "c")]
    assert cli(*arguments, stdin="b\na\na\na\na\nc\n").out == b""


def test_a_log_of_another_program_is_wrong_use(cli):
    cli("do", "--log", "log", "true", stdin="a\n")
    ran = cli("do", "--log", "log", "--resume", "sh", "-c", "touch ran", stdin="a\n")
    assert ran == Ran(2, b"", "trio-fanout: cannot resume from 'log': it is the log of another program, 'true'\n")
    assert cli("do", "--log", "log", "--resume", "true", "{}", stdin="a\n").code == 0  # the same one


def test_of_a_log_of_several_programs_what_the_same_one_did_counts(cli):
    cli("do", "-j1", "--log", "log", "true", stdin="a\nb\n")
    cli("do", "-j1", "--log", "log", "echo", stdin="b\nc\n")
    assert cli("map", "-j1", "--log", "log", "--resume", "echo", stdin="a\nb\nc\n").column("item") == ["a"]


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("map", "skipped what the log says has succeeded (2); only the results of the others are printed"),
        ("do", "skipped what the log says has succeeded (2)"),
    ],
)
def test_resume_tells_how_many_items_it_skipped(cli, command, told):
    arguments = [command, "--log", "log", "--resume", "true"]
    assert cli(*arguments, stdin="a\nb\n").err == ""
    assert cli(*arguments, stdin="a\nb\nc\n").err == f"trio-fanout: {told}\n"


def test_without_resume_all_is_done_again_and_the_log_grows(cli, tmp_path):
    for _ in range(2):
        cli("do", "-j1", "--log", "log", *FAILS_ONCE, stdin="a\n")
    assert (tmp_path / "ran").read_text().split() == ["a", "a"]
    assert len(records(tmp_path / "log")) == 2


def test_resume_of_fan_out(cli, tmp_path):
    arguments = ["fan-out", "--log", "log", "--resume", "--no-fail-fast", "cat", "sh -c 'cat; test -e again'"]
    assert cli(*arguments, stdin="x").code == 1
    (tmp_path / "again").touch()
    ran = cli(*arguments, stdin="x")
    assert (ran.code, ran.column("index"), ran.column("stdout")) == (0, [1], ["x"])


def test_odd_items_are_known_again(cli):
    for _ in range(2):
        ran = cli("map", "--null", "--log", "log", "--resume", "true", stdin=b"\xff\n\0\xc3\xa9\0\0" + b"x" * 10_000)
    assert ran.out == b""


def done(path, *items):
    """Which of these items a log says are done."""
    history = History()
    history.read(path, [["x"]])
    return [history.meet(item)[1] for item in items]


def record(index, item):
    return b'{"index": %d, "item": "%s", "failed": false, "program": ["x"]}\n' % (index, item)


@pytest.mark.parametrize("zeros", [b"", b"\0" * 300])
async def test_a_line_torn_anywhere_is_passed_over_and_ended(tmp_path, zeros):
    torn = record(1, b"b")
    path = tmp_path / "log"
    for length in range(len(torn) + 1):
        path.write_bytes(record(0, b"a") + torn[:length] + zeros)
        # What lacks only the newline is whole.
        assert done(path, "a", "b") == [True, length >= len(torn) - 1]
        log = Log(path)
        await log.append(record(2, b"c"))
        log.close()
        assert done(path, "a", "c") == [True, True]


def test_zeros_before_a_line_are_passed_over(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(record(0, b"a") + b"\0" * 300 + record(1, b"b") + b"\0" * 4096 + b"\n" + record(2, b"c"))
    assert done(path, "a", "b", "c") == [True, True, True]


OTHER_RECORDS = [
    '"failed": false',
    '"index": 0, "item": "a"',
    '"index": 0, "failed": false, "item": 5',
    '"index": 0, "failed": false, "items": null',
    '"index": 0, "failed": false, "items": ["a", 5]',
    '"index": true, "failed": false, "item": "a"',
    '"index": [], "failed": false, "item": "a"',
    '"index": "0", "failed": false, "item": "a"',
    '"index": 0, "failed": false, "item": "a", "program": 7',
    '"index": 0, "failed": false, "item": "a", "program": ["echo", 7]',
    '"index": 0, "failed": false, "item": "a", "program": ["echo"], "occurrence": "b"',
    '"index": 0, "failed": false, "items": ["a"], "program": ["echo"], "occurrences": ["b"]',
]


@pytest.mark.parametrize(
    "content",
    [
        b"my diary\n",
        b'{"index": 0, "item": "a", "failed": false}\n[1]\n',
        b"[" * 100_000,
        b'{"index": {"_index": "test"}}\n' * 2,
        b'{"index": 0}',
        *(f"{{{members}}}\n".encode() for members in OTHER_RECORDS),
    ],
)
def test_resume_refuses_a_file_that_is_no_log(cli, tmp_path, content):
    (tmp_path / "log").write_bytes(content)
    ran = cli("map", "--log", "log", "--resume", "echo", stdin="a\n")
    assert ran.code == 2
    assert ran.err.startswith("trio-fanout: cannot resume from 'log': line ")
    assert (tmp_path / "log").read_bytes() == content


def test_a_log_that_cannot_be_written_is_wrong_use(tmp_path):
    (tmp_path / "log").mkdir()
    with pytest.raises(UsageError, match="cannot open the log"):
        Log(tmp_path / "log")


def test_a_log_that_cannot_be_read_is_wrong_use(tmp_path, monkeypatch):
    def deny(*args):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    (tmp_path / "log").touch()
    monkeypatch.setattr(type(tmp_path), "open", deny)
    with pytest.raises(UsageError, match=r"cannot open the log '.*': Permission denied"):
        History().read(tmp_path / "log", [])


def test_a_log_that_cannot_be_looked_up_is_wrong_use(cli):
    name = "x" * 300
    ran = cli("do", "--log", name, "--resume", "true", stdin="a\n")
    assert ran == Ran(2, b"", f"trio-fanout: cannot open the log '{name}': File name too long\n")


async def test_a_line_is_one_write_where_the_system_takes_it(tmp_path, monkeypatch):
    log = Log(tmp_path / "log")
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, bytes(data)[:3]))
    await log.append(b"as much as it takes\n")
    log.close()
    assert (tmp_path / "log").read_bytes() == b"as much as it takes\n"


# Logs that are no files


def test_a_pipe_as_a_log_whose_reader_has_seen_enough_ends_all_with_a_message(tmp_path):
    os.mkfifo(tmp_path / "p")
    with (
        subprocess.Popen(["head", "-n", "3", "p"], stdout=subprocess.PIPE) as reader,
        started("do", "--log", "p", "true") as process,
    ):
        process.stdin.write(b"".join(b"%d\n" % number for number in range(3000)))
        process.stdin.close()
        assert process.wait(PATIENCE) == 1
        assert process.stderr.readline() == b"trio-fanout: cannot write the log 'p': Broken pipe\n"
        assert b" done, 0 failed; the rest of the input was not run\n" in process.stderr.read()
        assert len(reader.stdout.read().splitlines()) == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_pipe_as_a_log_that_is_not_opened_holds_up_no_interrupt(tmp_path, number):
    os.mkfifo(tmp_path / "p")
    with started("do", "--log", "p", "--resume", "true") as process:
        wait_until_it_handles(process.pid, signal.SIGUSR1)
        process.send_signal(number)
        assert process.wait(PATIENCE) == 128 + number
        assert process.stderr.read() == b""


def test_a_log_that_is_not_read_holds_up_results_and_nothing_else(tmp_path):
    os.mkfifo(tmp_path / "p")
    reader = os.open(tmp_path / "p", os.O_RDONLY | os.O_NONBLOCK)
    script = "yes | head -c 200000; touch begun-$0; while ! [ -e begun-0 ] || ! [ -e begun-1 ]; do sleep 0.01; done"
    arguments = ["map", "-j2", "--log", "p", "sh", "-c", script]
    with started(*arguments, stdout=subprocess.DEVNULL) as process:
        process.stdin.write(b"0\n1\n")
        process.stdin.close()
        wait_for((tmp_path / "begun-1").exists)
        process.send_signal(signal.SIGUSR1)  # it is not deaf
        assert b" done, 0 failed" in process.stderr.readline()
        os.set_blocking(reader, True)
        with os.fdopen(reader, "rb") as lines:
            assert len(list(lines)) == 2
        assert process.wait(PATIENCE) == 0


@pytest.mark.slow
@pytest.mark.parametrize("batch", [[], ["-n3"]])
def test_killed_fifty_times_and_resumed_in_another_order_each_item_succeeds_and_none_again_once_logged(tmp_path, batch):
    dice = random.Random(50)
    items = [f"item {number}" for number in range(120)]
    items += dice.choices(items, k=60)  # these are there more than once
    arguments = [*batch, "--log", "log", "--resume", "--items", "items", "sh", "-c", 'printf "%s\\n" "$@" >>ran', "-"]
    log, ran = tmp_path / "log", tmp_path / "ran"

    def look():
        runs = Counter(ran.read_text().splitlines()) if ran.exists() else Counter()
        for item, times in Counter(succeeded(log)).items():
            assert times <= runs[item]

    for _ in range(50):
        dice.shuffle(items)
        (tmp_path / "items").write_text("".join(f"{item}\n" for item in items))
        # Killed after a few more lines, or rather somewhere in the next one.
        size = log.stat().st_size if log.exists() else 0
        enough, give_up = size + dice.randrange(800), time.monotonic() + PATIENCE
        with subprocess.Popen([*COMMAND, "do", "-j2", *arguments], stderr=subprocess.DEVNULL) as process:
            while process.poll() is None and not (log.exists() and log.stat().st_size > enough):
                assert time.monotonic() < give_up
                time.sleep(dice.random() * 0.002)
            process.kill()
        assert process.returncode in (0, -9)
        look()
        if dice.random() < 0.2:  # the machine has crashed, too
            with log.open("ab") as file:
                file.write(b"\0" * dice.randrange(1, 5000))
    assert run("do", *arguments).code == 0
    look()
    assert sorted(succeeded(log)) == sorted(items)  # once each
