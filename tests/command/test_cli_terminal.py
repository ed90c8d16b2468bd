"""Signals, and the command on a terminal of its own, as a person uses it."""

import array
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cli_helpers import COMMAND, PATIENCE, is_gone, number_in, shell_item, started, wait_for

try:
    import fcntl
    import termios
except ImportError:  # on Windows
    fcntl = termios = None

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the command needs POSIX")

WITHOUT_RICH = [
    sys.executable,
    "-c",
    "import sys; sys.modules['rich'] = None; from trio_fanout._cli import main; sys.exit(main())",
]


IMPATIENT = [
    sys.executable,
    "-c",
    "from trio_fanout._cli import _end, main; _end.KILL_AFTER = -0.9; import sys; sys.exit(main())",
]


LOOKS_AT_PROCESSES = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at the states of processes")


@pytest.fixture(autouse=True)
def _in_a_directory_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def wait_until_begun(directory):
    """Returns what the item said when it began."""
    return (directory / "begun").read_text()


def release(directory, word):
    (directory / "release").write_text(f"{word}\n")


def items_in(out):
    return [json.loads(line)["item"] for line in out.splitlines()]


def test_one_interrupt_lets_what_runs_finish_and_starts_nothing_more(tmp_path):
    with started("map", "-j1", *shell_item(tmp_path)) as process:
        # The input stays open: reading it must not hold up the end.
        process.stdin.write(b"0\n1\n2\n")
        process.stdin.flush()
        wait_until_begun(tmp_path)
        process.send_signal(signal.SIGINT)
        waiting = b"trio-fanout: waiting for 1 running program; press Ctrl-C again to terminate it\n"
        assert process.stderr.readline() == waiting
        release(tmp_path, "finished")
        (record,) = map(json.loads, process.stdout.read().splitlines())
        assert (record["item"], record["stdout"], record["failed"]) == ("0", "finished\n", False)
        assert process.stderr.read() == b"trio-fanout: 1 done, 0 failed; the rest of the input was not run\n"
        assert process.wait(PATIENCE) == 130


@pytest.mark.parametrize(
    "signals",
    [
        [signal.SIGINT, signal.SIGINT],
        [signal.SIGTERM],
        [signal.SIGHUP],
        [signal.SIGQUIT],
        [signal.SIGUSR2],
        [signal.SIGINT, signal.SIGTERM],
    ],
)
def test_a_second_interrupt_or_another_signal_ends_what_runs(tmp_path, signals):
    with started("map", "-j2", *shell_item(tmp_path)) as process:
        process.stdin.write(b"0\n")
        process.stdin.flush()
        wait_until_begun(tmp_path)
        for number in signals[:-1]:
            process.send_signal(number)
            process.stderr.readline()  # it has seen it: two that come together are one
        process.send_signal(signals[-1])
        assert process.stdout.read() == b""  # it did not finish
        assert process.wait(PATIENCE) == 128 + signals[0]
    assert is_gone(number_in(tmp_path / "child-0"))


def test_an_interrupt_while_there_is_nothing_to_do(tmp_path):
    with started("map", "--log", "log", "echo") as process:
        process.stdin.write(b"a\n")
        process.stdin.flush()
        assert items_in(process.stdout.readline()) == ["a"]
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
        assert process.stderr.read() == b"trio-fanout: 1 done, 0 failed; the rest of the input was not run\n"


def test_an_interrupt_while_fan_out_reads_its_input(tmp_path):
    with started("fan-out", "cat", "sh -c 'touch ran'") as process:
        process.stdin.write(b"x" * 200_000)  # more than a pipe takes: it reads
        process.stdin.flush()
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
        assert process.stdout.read() == b""
    assert not (tmp_path / "ran").exists()


def test_an_interrupt_ends_the_wait_for_the_next_start(tmp_path):
    with started("map", "--rate", "0.001", "-j3", "echo") as process:
        process.stdin.write(b"a\nb\nc\n")
        process.stdin.flush()
        assert items_in(process.stdout.readline()) == ["a"]
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == b""
        assert process.wait(PATIENCE) == 130


def test_a_reader_who_has_stopped_does_not_hold_up_the_end(tmp_path):
    command = [
        *IMPATIENT,
        "map",
        "--output",
        "text",
        "sh",
        "-c",
        "yes | head -c 1000000; echo x >begun",
    ]
    os.mkfifo(tmp_path / "begun")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdin.write(b"a\n")
        process.stdin.flush()
        wait_until_begun(tmp_path)
        assert process.stdout.read(10)  # it writes, and the pipe is full then
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 143


def test_a_signal_asks_what_runs(tmp_path):
    script = "touch begun-$0; while ! [ -e go ]; do sleep 0.01; done"
    with started("do", "-j2", "-n2", "sh", "-c", script) as process:
        process.stdin.write(b"0\n1\n2\n3\n")
        process.stdin.flush()
        wait_for((tmp_path / "begun-0").exists)
        wait_for((tmp_path / "begun-2").exists)
        process.send_signal(signal.SIGUSR1)
        assert process.stderr.readline() == b"trio-fanout: 2 running; 0 done, 0 failed\n"
        for index in (0, 2):
            line = process.stderr.readline().decode()
            assert re.fullmatch(rf"  item {index} \('{index}'\) and 1 more has run for \d+\.\d s, process \d+\n", line)
        process.stdin.close()
        (tmp_path / "go").touch()
        assert process.wait(PATIENCE) == 0


@pytest.mark.parametrize("ignored", ["INT", "HUP", "INT TERM HUP QUIT TSTP USR1 USR2"])
def test_signals_that_are_ignored_stay_so(tmp_path, ignored):
    command = ["sh", "-c", f'trap "" {ignored}; exec "$@"', "-", *COMMAND, "map", *shell_item(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdin.write(b"0\n")
        process.stdin.close()
        wait_until_begun(tmp_path)
        for name in ignored.split():
            process.send_signal(getattr(signal, f"SIG{name}"))
        release(tmp_path, "finished")
        assert items_in(process.stdout.read()) == ["0"]
        assert process.wait(PATIENCE) == 0


def unread(pipe):
    """How many bytes a pipe holds."""
    count = array.array("i", [0])
    fcntl.ioctl(pipe, termios.FIONREAD, count)
    return count[0]


@pytest.mark.slow
def test_a_reader_of_messages_who_has_stopped_holds_up_no_signal():
    command = [*IMPATIENT, "do", "-k", "-j2", "false"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdin.write(b"a\n" * 5000)  # more messages than a pipe holds
        process.stdin.close()
        wait_for(lambda: unread(process.stderr) > 61_000)
        process.send_signal(signal.SIGUSR1)  # this is no reason to wait either
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 143


@pytest.mark.skipif(not hasattr(fcntl, "F_SETPIPE_SZ"), reason="needs a pipe that holds little")
def test_a_long_report_that_nobody_reads_holds_up_no_signal(tmp_path):
    command = [*IMPATIENT, "do", "-j8", "sh", "-c", "touch begun-$0; exec sleep 1000", "{#}", "{}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        fcntl.fcntl(process.stderr, fcntl.F_SETPIPE_SZ, 4096)
        item = "\U000e0001" * 60  # ten times as long when it is shown
        process.stdin.write(f"{item}\n".encode() * 8)
        process.stdin.flush()
        wait_for(lambda: all((tmp_path / f"begun-{index}").exists() for index in range(8)))
        process.send_signal(signal.SIGUSR1)
        wait_for(lambda: unread(process.stderr) == 4096)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 143


# On a terminal


@pytest.fixture
def spawn():
    pexpect = pytest.importorskip("pexpect")
    children = []

    def start(*command, columns=100):
        child = pexpect.spawn(
            command[0], list(command[1:]), encoding="utf-8", timeout=PATIENCE, dimensions=(24, columns)
        )
        children.append(child)
        return child

    yield start
    for child in children:
        child.close(force=True)


def plain(text):
    """What is left of a terminal's input without its control sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


@pytest.mark.cli
@pytest.mark.parametrize("command", [COMMAND, WITHOUT_RICH])
def test_progress_is_seen(spawn, tmp_path, command):
    (tmp_path / "items").write_text("0\n1\n")
    child = spawn(*command, "map", "-j1", "--items", "items", *shell_item(tmp_path))
    wait_until_begun(tmp_path)
    child.expect("0 of 2 done, 0 failed")
    release(tmp_path, "one")
    child.expect('"index": 0')
    wait_until_begun(tmp_path)
    child.expect(r"1 of 2 done, 0 failed, [\d.e-]+/s, \d+:\d\d left")
    release(tmp_path, "two")
    child.expect('"index": 1')
    child.expect(r"\r\n")
    child.read()
    child.close()
    assert child.exitstatus == 0


@pytest.mark.cli
def test_progress_of_fan_out(spawn):
    child = spawn(*WITHOUT_RICH, "fan-out", "cat", "wc -l")
    child.sendline("a")
    child.sendeof()
    child.expect("of 2 done, 0 failed")
    assert '"stdout": "1\\n"' in child.read()


@pytest.mark.cli
def test_progress_of_json_items_knows_no_total_at_first(spawn):
    child = spawn(*WITHOUT_RICH, "map", "--json", "echo")
    child.expect("0 done, 0 failed")
    child.sendline("7")
    child.sendeof()
    assert '"item": "7"' in child.read()


@pytest.mark.cli
@pytest.mark.parametrize("command", [COMMAND, WITHOUT_RICH])
def test_progress_is_seen_in_the_foreground_only(spawn, tmp_path, command):
    (tmp_path / "items").write_text("0\n")
    shell = ["sh", "-m", "-c", '"$@" >out & read line; fg >/dev/null', "-"]  # with job control
    child = spawn(*shell, *command, "map", "--items", "items", *shell_item(tmp_path))
    wait_until_begun(tmp_path)
    child.sendline("now")
    child.expect_exact("now\r\n")
    assert child.before == ""
    child.expect("0 of 1 done")
    release(tmp_path, "finished")
    child.read()
    assert items_in((tmp_path / "out").read_text()) == ["0"]


@pytest.mark.cli
@pytest.mark.parametrize("command", [COMMAND, WITHOUT_RICH])
def test_no_progress_is_seen(spawn, tmp_path, command):
    child = spawn(*command, "map", "--no-progress", "--items", "/dev/stdin", "echo")
    child.sendline("a")
    child.sendeof()
    text = child.read()
    assert "done" not in text
    assert "\x1b" not in text
    assert '"stdout": "a\\n"' in text


def test_no_progress_without_a_terminal():
    with started("map", "--no-fail-fast", "false") as process:
        out, err = process.communicate(b"a\nb\n", PATIENCE)
    assert len(out.splitlines()) == 2
    assert err == b"trio-fanout: 2 of 2 items failed; first: item 0 ('a'): exit code 1\n"


@pytest.mark.cli
def test_progress_keeps_off_a_line_that_has_not_ended(spawn, tmp_path):
    child = spawn(
        *WITHOUT_RICH,
        "map",
        "-j1",
        "--output",
        "text",
        "sh",
        "-c",
        "printf half-$0; test $0 = a || cat begun >/dev/null",
    )
    os.mkfifo(tmp_path / "begun")
    child.expect("0 done, 0 failed")
    child.sendline("a")
    child.expect("half-a")
    child.sendline("b")
    (tmp_path / "begun").write_text("")
    child.expect("half-b")
    between = plain(child.before)
    assert "done" not in between
    child.sendeof()
    child.read()


RESULTS_GO_ELSEWHERE = ["sh", "-c", '"$@" >out', "-"]


@pytest.mark.cli
@pytest.mark.parametrize("command", [COMMAND, WITHOUT_RICH])
@pytest.mark.parametrize("form", ["json", "text"])
def test_progress_stays_in_sight_while_results_go_to_a_file(spawn, tmp_path, command, form):
    os.mkfifo(tmp_path / "begun")
    program = ["sh", "-c", "printf $0; test $0 != 1 || cat begun"]
    (tmp_path / "items").write_text("0\n1\n")
    child = spawn(*RESULTS_GO_ELSEWHERE, *command, "map", "-j1", "--output", form, "--items", "items", *program)
    child.expect("1 of 2 done, 0 failed")
    child.expect("1 of 2 done, 0 failed")  # it was not taken away by the result that came before
    assert "\x1b[K" not in child.after + child.before.partition("done")[2]
    (tmp_path / "begun").write_text("")
    child.read()
    child.close()
    assert child.exitstatus == 0


@pytest.mark.cli
@pytest.mark.parametrize("command", [COMMAND, WITHOUT_RICH])
def test_programs_that_print_to_the_terminal_have_it_for_themselves(spawn, tmp_path, command):
    (tmp_path / "items").write_text("0\n1\n")
    child = spawn(*command, "do", "-j1", "--items", "items", "printf", "%s-half ")
    assert child.read() == "0-half 1-half "


@pytest.mark.cli
def test_progress_of_do_is_seen_while_programs_print_to_a_file(spawn, tmp_path):
    (tmp_path / "items").write_text("0\n")
    child = spawn(*RESULTS_GO_ELSEWHERE, *WITHOUT_RICH, "do", "--items", "items", *shell_item(tmp_path))
    wait_until_begun(tmp_path)
    child.expect("0 of 1 done, 0 failed")
    release(tmp_path, "finished")
    child.read()
    assert (tmp_path / "out").read_text() == "finished\n"


@pytest.mark.slow
@pytest.mark.cli
@pytest.mark.parametrize("command", [COMMAND, WITHOUT_RICH])
def test_progress_is_no_wider_than_the_terminal_of_standard_error(spawn, tmp_path, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "items").write_text("0\n" * 1000)
    script = "test -e go || touch go; sleep 0.3"
    child = spawn(*RESULTS_GO_ELSEWHERE, *command, "map", "-j100", "--items", "items", "sh", "-c", script, columns=40)
    child.expect(" left")
    child.sendintr()
    lines = re.split(r"[\r\n]+", plain(child.before + child.after + child.read()))
    assert max(map(len, lines)) <= max(
        40, len("trio-fanout: waiting for 100 running programs; press Ctrl-C again to terminate them")
    )
    assert all(len(line) <= 40 for line in lines if "done" in line and "not run" not in line)


@pytest.mark.cli
@pytest.mark.parametrize("terminal", ["dumb", None])
def test_a_dumb_terminal_gets_no_escape_codes(spawn, terminal, monkeypatch):
    if terminal is None:
        monkeypatch.delenv("TERM")
    else:
        monkeypatch.setenv("TERM", terminal)
    child = spawn(*COMMAND, "map", "-k", "-j1", "sh", "-c", "sleep 0.3; test $0 = a")
    child.sendline("a")
    child.sendline("b")
    child.sendeof()
    text = child.read()
    assert re.search(r"\r1 (of 2 )?done", text)
    assert '"item": "b"' in text
    assert "\x1b" not in text


def wait_for_text(terminal, text):
    seen = b""
    while text not in seen:
        assert select.select([terminal], [], [], PATIENCE)[0]
        seen += os.read(terminal, 1000)


def test_a_terminal_that_stands_still_holds_up_no_signal(tmp_path):
    ours, theirs = os.openpty()
    (tmp_path / "items").write_text("0\n")
    impatient = [*IMPATIENT[:2], f"from trio_fanout._cli import _output; _output.REDRAW = 1000; {IMPATIENT[2]}"]
    command = [*impatient, "map", "--items", "items", *shell_item(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs) as process:
        try:
            wait_for_text(ours, b"done")
            wait_until_begun(tmp_path)
            termios.tcflow(theirs, termios.TCOOFF)  # as Ctrl-S does
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 143
        finally:
            process.kill()
            os.close(ours)
            os.close(theirs)


@pytest.mark.cli
@pytest.mark.parametrize("wants", ["read x </dev/tty", "stty -echo </dev/tty"])
def test_a_program_that_wants_the_terminal_is_told_of_and_fails(spawn, wants):
    child = spawn(*WITHOUT_RICH, "do", "-k", "-j2", "sh", "-c", f"test $0 = a || {{ {wants}; }}")
    child.sendline("a")
    child.sendline("b")
    child.expect(r"trio-fanout: item 1 \('b'\) failed: it wants to use the terminal, which stops it\r\n")
    child.sendline("a")
    child.sendeof()
    child.expect(r"trio-fanout: 1 of 3 items failed\r\n")
    child.read()
    child.close()
    assert child.exitstatus == 1


def state(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def wait_for_state(pid, wanted):
    give_up = time.monotonic() + PATIENCE
    while state(pid) not in wanted:
        assert time.monotonic() < give_up
        time.sleep(0.005)


@pytest.mark.cli
@LOOKS_AT_PROCESSES
def test_ctrl_z_stops_what_runs_until_it_is_continued(spawn, tmp_path):
    (tmp_path / "items").write_text("0\n")
    shell = ["sh", "-m", "-c", '"$@"; echo stopped: $?; read line; fg', "-"]  # with job control
    child = spawn(*shell, *COMMAND, "map", "--items", "items", "--timeout", "1000", *shell_item(tmp_path))
    wait_until_begun(tmp_path)
    program = number_in(tmp_path / "child-0")
    child.sendcontrol("z")
    child.expect(f"stopped: {128 + signal.SIGTSTP}")
    wait_for_state(program, "T")
    child.sendline("continue")
    wait_for_state(program, "S")
    release(tmp_path, "finished")
    child.expect(r'"stdout": "finished\\n"')
    child.read()
    child.close()
    assert child.exitstatus == 0


@pytest.mark.cli
@LOOKS_AT_PROCESSES
def test_ctrl_z_stops_nothing_where_nobody_could_continue_it(spawn, tmp_path):
    (tmp_path / "items").write_text("0\n")
    child = spawn(*COMMAND, "map", "--items", "items", *shell_item(tmp_path))
    wait_until_begun(tmp_path)
    child.sendcontrol("z")
    os.kill(child.pid, signal.SIGUSR1)
    child.expect("1 running; 0 done, 0 failed, 1 left")
    wait_for_state(number_in(tmp_path / "child-0"), "S")
    release(tmp_path, "finished")
    child.expect(r'"stdout": "finished\\n"')
    child.read()
    child.close()
    assert child.exitstatus == 0


@pytest.mark.cli
@pytest.mark.parametrize("command", [COMMAND, WITHOUT_RICH])
def test_ctrl_c_once(spawn, tmp_path, command):
    child = spawn(*command, "map", "-j1", *shell_item(tmp_path))
    child.sendline("0")
    child.sendline("1")
    wait_until_begun(tmp_path)
    child.sendintr()
    child.expect(r"trio-fanout: waiting for 1 running program; press Ctrl-C again to terminate it\r\n")
    release(tmp_path, "finished")
    child.expect(r'"stdout": "finished\\n"')
    child.read()
    child.close()
    assert child.exitstatus == 130
    assert not (tmp_path / "child-1").exists()


@pytest.mark.cli
@pytest.mark.parametrize("command", [COMMAND, WITHOUT_RICH])
def test_ctrl_c_twice(spawn, tmp_path, command):
    child = spawn(*command, "do", "-j1", *shell_item(tmp_path))
    child.sendline("0")
    wait_until_begun(tmp_path)
    child.sendintr()
    child.expect("Ctrl-C again to terminate it")
    child.sendintr()
    child.read()
    child.close()
    assert child.exitstatus == 130
    assert is_gone(number_in(tmp_path / "child-0"))
