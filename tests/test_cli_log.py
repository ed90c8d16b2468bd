"""`--log` and `--resume`."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter

import pytest

from cli_helpers import COMMAND, PATIENCE, Cli, run
from trio_fanout._cli._items import Job
from trio_fanout._cli._log import Log
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
            record = json.loads(line)
        except ValueError:
            continue
        if not record["failed"]:
            found.append(record["item"])
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
    assert record.keys() == {"index", "item", "failed", "exit_code", "seconds"}


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


def test_resume_asks_for_the_same_index_and_the_same_item(cli, tmp_path):
    cli("do", "-j1", "--log", "log", "true", stdin="a\nb\n")
    ran = cli("map", "-j1", "--log", "log", "--resume", "echo", stdin="b\nb\na\n")
    assert [(record["index"], record["item"]) for record in ran.records] == [(0, "b"), (2, "a")]


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


def test_a_line_torn_anywhere_is_passed_over_and_ended(tmp_path):
    whole = b'{"index": 0, "item": "a", "failed": false}\n'
    torn = b'{"index": 1, "item": "b", "failed": false}\n'
    path = tmp_path / "log"
    for length in range(len(torn) + 1):
        path.write_bytes(whole + torn[:length])
        log = Log(path, resume=True)
        assert not log.wants(Job(0, "a"))
        # What lacks only the newline is whole.
        assert log.wants(Job(1, "b")) == (length < len(torn) - 1)
        log.append(b'{"index": 2, "item": "c", "failed": false}\n')
        log.close()
        resumed = Log(path, resume=True)
        assert [resumed.wants(Job(*job)) for job in [(0, "a"), (2, "c")]] == [False, False]
        resumed.close()


@pytest.mark.parametrize(
    "content", [b"my diary\n", b'{"index": 0, "item": "a", "failed": false}\n[1]\n', b"[" * 100_000]
)
def test_resume_refuses_a_file_that_is_no_log(cli, tmp_path, content):
    (tmp_path / "log").write_bytes(content)
    ran = cli("map", "--log", "log", "--resume", "echo", stdin="a\n")
    assert ran.code == 2
    assert ran.err.startswith("trio-fanout: cannot resume from 'log': line ")
    assert (tmp_path / "log").read_bytes() == content


def test_a_log_that_cannot_be_read_is_wrong_use(tmp_path):
    (tmp_path / "log").mkdir()
    with pytest.raises(UsageError, match="cannot open the log"):
        Log(tmp_path / "log", resume=True)


def test_a_line_is_one_write_where_the_system_takes_it(tmp_path, monkeypatch):
    log = Log(tmp_path / "log", resume=False)
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, bytes(data)[:3]))
    log.append(b"as much as it takes\n")
    log.close()
    assert (tmp_path / "log").read_bytes() == b"as much as it takes\n"


@pytest.mark.slow
def test_killed_fifty_times_each_item_succeeds_and_none_again_once_logged(tmp_path):
    items = [f"item {number}" for number in range(150)]
    (tmp_path / "items").write_text("".join(f"{item}\n" for item in items))
    arguments = ["do", "-j2", "--log", "log", "--resume", "--items", "items", "sh", "-c", 'echo "$0" >>ran']
    log, ran = tmp_path / "log", tmp_path / "ran"
    dice = random.Random(50)
    settled: dict[str, int] = {}  # how often each item had run when its success was first seen in the log

    def look():
        runs = Counter(ran.read_text().splitlines()) if ran.exists() else Counter()
        for item in succeeded(log):
            assert settled.setdefault(item, runs[item]) == runs[item]

    for _ in range(50):
        # Killed after a few more lines, or rather somewhere in the next one.
        size = log.stat().st_size if log.exists() else 0
        enough, give_up = size + dice.randrange(400), time.monotonic() + PATIENCE
        with subprocess.Popen([*COMMAND, *arguments]) as process:
            while process.poll() is None and not (log.exists() and log.stat().st_size > enough):
                assert time.monotonic() < give_up
                time.sleep(dice.random() * 0.002)
            process.kill()
        assert process.returncode in (0, -9)
        look()
    assert run(*arguments).code == 0
    look()
    assert sorted(settled) == sorted(items)
    assert sorted(succeeded(log)) == sorted(items)  # once each
