"""What the system knows: orphans, and the CPUs that a process may use."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cli_helpers import COMMAND, PATIENCE, wait_for
from trio_fanout._cli import _options, _system

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="about Linux")

SUBREAPER = """
import ctypes, os, sys
assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0
os.execv(sys.argv[1], sys.argv[1:])
"""


def children(pid):
    """The states of the children of a process."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                state, parent, *_ = (process / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(parent) == pid:
                found.append(state)
    return found


def test_a_process_that_inherits_orphans_reaps_them(tmp_path):
    # Of each program, a child of its child outlives it, and has left its group.
    script = "test $0 = last && { touch there; while ! [ -e go ]; do sleep 0.01; done; }; "
    script += "setsid sh -c 'sleep 0.1' >/dev/null 2>&1 & exit 0"
    command = [sys.executable, "-c", SUBREAPER, *COMMAND, "do", "-j4", "sh", "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, cwd=tmp_path) as process:
        process.stdin.write(b"a\n" * 20 + b"last\n")
        process.stdin.close()
        wait_for((tmp_path / "there").exists)
        wait_for(lambda: len(children(process.pid)) == 1)  # the last one
        (tmp_path / "go").touch()
        assert process.wait(PATIENCE) == 0


@pytest.mark.skipif(not hasattr(os, "unshare") and os.geteuid() != 0, reason="needs a namespace of its own")
def test_the_first_process_of_a_container_reaps_orphans(tmp_path):
    script = "test $0 = last && { touch there; while ! [ -e go ]; do sleep 0.01; done; }; (setsid sleep 0.1 &) ; exit 0"
    command = ["unshare", "--pid", "--fork", *COMMAND, "do", "-j4", "sh", "-c", script]
    try:
        subprocess.run([*command[:3], "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no namespaces here")
    with subprocess.Popen(command, stdin=subprocess.PIPE, cwd=tmp_path) as process:
        (task,) = Path(f"/proc/{process.pid}/task").iterdir()
        process.stdin.write(b"a\n" * 20 + b"last\n")
        process.stdin.close()
        wait_for((tmp_path / "there").exists)
        first = int((task / "children").read_text().split()[0])
        wait_for(lambda: len(children(first)) == 1)
        (tmp_path / "go").touch()
        assert process.wait(PATIENCE) == 0


def test_children_that_somebody_waits_for_are_not_reaped():
    child = os.posix_spawn("/bin/true", ["true"], {})
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    _system.reap_orphans({child})
    assert os.waitpid(child, 0)[0] == child
    orphan = os.posix_spawn("/bin/true", ["true"], {})
    os.waitid(os.P_PID, orphan, os.WEXITED | os.WNOWAIT)
    _system.reap_orphans(set())
    with pytest.raises(ChildProcessError):
        os.waitpid(orphan, 0)


# CPUs


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with eight CPUs whose cgroups are files to be written."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(_system, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(_system, "_CGROUPS", tmp_path / "cgroup")

    def write(name, text):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    return write


def test_without_cgroups_the_affinity_counts(machine, monkeypatch):
    assert _options.parse(["map", "true"]).parallel == 8
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert _system.usable_cpus() == 1


@pytest.mark.parametrize(
    ("quota", "cpus"),
    [
        ("max 100000", 8),
        ("100000 100000", 1),
        ("150000 100000", 2),
        ("1000 100000", 1),
        ("5000000 100000", 8),
        ("", 8),
        ("50000 20000", 3),
    ],
)
def test_the_quota_of_version_2_is_rounded_up(machine, quota, cpus):
    machine("proc/self/cgroup", "0::/a/b\n")
    machine("cgroup/a/b/cpu.max", f"{quota}\n")
    assert _system.usable_cpus() == cpus
    assert _options.parse(["map", "true"]).parallel == cpus
    assert _options.parse(["map", "-j5", "true"]).parallel == 5


@pytest.mark.parametrize("place", ["cgroup", "cgroup/a", "cgroup/unified/a/b"])
def test_the_quota_of_any_group_above_counts(machine, place):
    machine("proc/self/cgroup", "0::/a/b\n")
    machine("cgroup/a/b/cpu.max", "700000 100000\n")
    machine(f"{place}/cpu.max", "300000 100000\n")
    assert _system.usable_cpus() == 3


@pytest.mark.parametrize(
    ("controllers", "folder"), [("cpu,cpuacct", "cpu,cpuacct"), ("cpuacct,cpu", "cpu"), ("cpu", "cpu")]
)
@pytest.mark.parametrize(("quota", "cpus"), [(-1, 8), (150_000, 2), (0, 8)])
def test_the_quota_of_version_1(machine, controllers, folder, quota, cpus):
    machine("proc/self/cgroup", f"12:memory:/x\n7:{controllers}:/docker/0123\n2:cpuset:/y\n0::/\n")
    # In a container, what is at the root is its own group.
    machine(f"cgroup/{folder}/cpu.cfs_quota_us", f"{quota}\n")
    machine(f"cgroup/{folder}/cpu.cfs_period_us", "100000\n")
    assert _system.usable_cpus() == cpus


def test_a_real_quota_counts():
    group = Path("/sys/fs/cgroup/cpu/trio-fanout-test")
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("there is only one CPU")
    try:
        group.mkdir()
        (group / "cpu.cfs_quota_us").write_text("50000")
    except OSError:
        pytest.skip("no cgroup can be made here")
    try:
        ask = "import os, sys; open(sys.argv[1], 'w').write(str(os.getpid())); "
        ask += "from trio_fanout._cli._system import usable_cpus; print(usable_cpus())"
        done = subprocess.run(
            [sys.executable, "-c", ask, str(group / "cgroup.procs")], capture_output=True, check=True, timeout=PATIENCE
        )
        assert done.stdout == b"1\n"
    finally:
        wait_for(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


def test_a_group_that_has_gone_cannot_be_signalled():
    child = os.posix_spawn("/bin/true", ["true"], {}, setpgroup=0)
    os.waitpid(child, 0)
    assert not _system.signal_group(child, signal.SIGTERM)


def test_a_group_of_another_user_is_there(monkeypatch):
    def deny(group, number):
        raise PermissionError

    monkeypatch.setattr(os, "killpg", deny)
    assert _system.signal_group(5, signal.SIGTERM)
