"""`--retries`."""

import json
import signal
import subprocess
import sys

import pytest

from cli_helpers import PATIENCE, Cli, wait_for
from trio_fanout._cli import _run

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the command needs POSIX")

FAILS_TWICE = ["sh", "-c", "echo $0 >>ran-$0; n=$(wc -l <ran-$0); echo try $n; test $n -gt 2"]


@pytest.fixture(autouse=True)
def _in_a_directory_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def cli(capfdbinary):
    return Cli(capfdbinary)


@pytest.fixture
def pauses(monkeypatch):
    """The attempts that were followed by a pause, none of which takes long."""
    asked = []

    def pause_after(attempts):
        asked.append(attempts)
        return 0.02

    monkeypatch.setattr(_run, "_pause_after", pause_after)
    return asked


def test_what_failed_is_started_again(cli, pauses):
    ran = cli("map", "-j1", "--retries", "5", *FAILS_TWICE, stdin="a\n")
    assert (ran.code, ran.err) == (0, "")
    (record,) = ran.records
    assert (record["failed"], record["attempts"], record["stdout"]) == (False, 3, "try 3\n")
    assert pauses == [1, 2]


@pytest.mark.parametrize(("retries", "attempts"), [(0, 1), (1, 2)])
def test_it_has_failed_when_its_last_attempt_has(cli, pauses, retries, attempts):
    ran = cli("map", "-k", "-j1", "--retries", str(retries), *FAILS_TWICE, stdin="a\nb\n")
    assert ran.code == 1
    assert ran.column("attempts") == [attempts, attempts]
    assert ran.column("stdout") == [f"try {attempts}\n"] * 2
    assert ran.err == "trio-fanout: 2 of 2 items failed; first: item 0 ('a'): exit code 1\n"


def test_without_retries_no_attempts_are_told(cli):
    assert "attempts" not in cli("map", "true", stdin="a\n").records[0]


def test_the_place_of_one_that_waits_is_anothers(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(_run, "_pause_after", lambda attempts: 0.5)
    script = "echo $0 >>ran; test $0 != a || test $(grep -c a ran) = 2"
    assert cli("do", "-j1", "--retries", "1", "sh", "-c", script, stdin="a\nb\nc\n").code == 0
    assert (tmp_path / "ran").read_text().split() == ["a", "b", "c", "a"]


def test_no_more_run_at_once_than_without_retries(cli, tmp_path, pauses):
    script = "touch in-$0; ls | grep -c in- >>most; sleep 0.01; rm in-$0; test -e bad-$0 || { touch bad-$0; false; }"
    items = "".join(f"{number}\n" for number in range(20))
    ran = cli("map", "-j2", "--retries", "1", "sh", "-c", script, stdin=items)
    assert ran.column("index") == list(range(20))
    assert ran.column("attempts") == [2] * 20
    assert set(map(int, (tmp_path / "most").read_text().split())) <= {1, 2}


def test_a_time_out_is_a_failure_like_others(cli, pauses):
    script = "test -e again || { touch again; exec sleep 1000; }"
    (record,) = cli("map", "--retries", "1", "--timeout", "0.5", "sh", "-c", script, stdin="a\n").records
    assert (record["failed"], record["attempts"]) == (False, 2)


@pytest.mark.parametrize("program", ["nothing", "/"])
def test_a_program_that_is_not_there_is_not_looked_for_again(cli, pauses, program):
    (record,) = cli("map", "--retries", "3", program, stdin="a\n").records
    assert (record["failed"], record["attempts"], pauses) == (True, 1, [])


def test_an_item_that_can_be_no_argument_is_not_tried_again(cli, pauses):
    (record,) = cli("map", "--retries", "3", "echo", stdin=b"a\0b\n").records
    assert (record["failed"], record["attempts"], pauses) == (True, 1, [])


def test_batches_are_tried_again_as_a_whole(cli, tmp_path, pauses):
    (record,) = cli("map", "-n9", "--retries", "3", "--log", "log", *FAILS_TWICE, stdin="a\nb\n").records
    assert (record["items"], record["attempts"]) == (["a", "b"], 3)
    assert json.loads((tmp_path / "log").read_text()) == record


def test_where_another_has_failed_for_good_one_that_waits_has_not(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(_run, "_pause_after", lambda attempts: 1000)
    # The second begins when the first waits: its place was the first's. It cannot be started, however often.
    ran = cli("map", "-j1", "--retries", "1", "--json", "{}", stdin='["false", "./nothing"]')
    assert (ran.code, ran.column("item")) == (1, ["./nothing"])
    assert ran.err.splitlines() == [
        "trio-fanout: item 1 ('./nothing') failed: cannot start './nothing': No such file or directory",
        "trio-fanout: 0 done, 1 failed, 1 not run (-k goes on after a failure)",
    ]


def test_an_interrupt_ends_the_wait_for_the_next_attempt(tmp_path):
    patient = "from trio_fanout._cli import _run, main; _run._pause_after = lambda attempts: 1000; "
    script = "echo $0; echo $0 >>ran; exit 3"
    command = [sys.executable, "-c", f"{patient} import sys; sys.exit(main())", "map", "--retries", "20", "-j3"]
    with subprocess.Popen(
        [*command, "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdin.write(b"a\nb\n")
        process.stdin.flush()
        wait_for(lambda: (tmp_path / "ran").exists() and len((tmp_path / "ran").read_text()) == 4)
        said = b""
        while said != b"trio-fanout: 0 running; 0 done, 0 failed\n":
            process.send_signal(signal.SIGUSR1)
            said = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        records = [json.loads(line) for line in process.stdout.read().splitlines()]
        assert [(record["item"], record["exit_code"], record["attempts"]) for record in records] == [
            ("a", 3, 1),
            ("b", 3, 1),
        ]
        assert process.wait(PATIENCE) == 130


def test_pauses_grow_up_to_a_minute_and_are_not_the_same_for_all():
    for attempts, seconds in [(1, 1), (2, 2), (3, 4), (6, 32), (7, 60), (8, 60), (5000, 60)]:
        pauses = {_run._pause_after(attempts) for _ in range(20)}
        assert all(0.75 * seconds <= pause <= 1.25 * seconds for pause in pauses)
        assert len(pauses) > 1


@pytest.mark.parametrize("number", ["-1", "x"])
def test_retries_are_a_whole_number(cli, number):
    ran = cli("do", "--retries", number, "true")
    assert ran.code == 2
    assert f"argument --retries: must be a whole number, 0 or more, got '{number}'" in ran.err
