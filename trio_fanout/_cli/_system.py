"""What the system knows of processes: their groups, orphans, those that are stopped, and the CPUs they may use."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

_PROC: Final = Path("/proc")
_CGROUPS: Final = Path("/sys/fs/cgroup")


def signal_group(group: int, number: int) -> bool:
    """Send a signal to those processes of a group that this one may signal. False if there is no such group."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # all of them are those of another user
    return True


async def wait_for_group(group: int) -> None:
    """Wait until no process is left in a group, whose leader has been reaped."""
    pause = 0.005
    while signal_group(group, 0) and _lives(group):
        # Nothing reports the end of a process that is not a child. The number of the group may be given to another one
        # then, but not before the system has used all others.
        await trio.sleep(pause)
        pause = min(2 * pause, 0.2)


def _lives(group: int) -> bool:
    """Whether any process of the group does more than wait for its parent to notice that it has exited.

    Where the first process of a container does not reap the orphans that it inherits, that takes forever.
    """
    if not _PROC.is_dir():
        return True
    for process in _PROC.iterdir():
        if process.name.isdigit():
            try:
                # See proc_pid_stat(5). The name of the program, in parentheses, can hold anything.
                state, _, of, *_ = (process / "stat").read_bytes().rpartition(b")")[2].split()
            except OSError:
                continue  # it has just gone
            if of == b"%d" % group and state not in (b"Z", b"X"):
                return True
    return False


def stopped_children() -> Iterator[tuple[int, int]]:
    """The children that have been stopped since this was last asked: their number, and that of the signal."""
    try:
        while (status := os.waitid(os.P_ALL, 0, os.WSTOPPED | os.WNOHANG)) is not None:
            yield status.si_pid, status.si_status
    except ChildProcessError:
        pass  # there is none


def reap_orphans(ours: Container[int]) -> None:
    """Reap what the system has given to this process, which is the first of a container, say.

    Args:
        ours: the children that somebody waits for. One of these that has exited may hide an orphan, until it is reaped.
    """
    exited = os.WEXITED | os.WNOHANG
    try:
        while (status := os.waitid(os.P_ALL, 0, exited | os.WNOWAIT)) is not None and status.si_pid not in ours:
            os.waitid(os.P_PID, status.si_pid, exited)
    except ChildProcessError:
        pass  # there is none


def usable_cpus() -> int:
    """How many CPUs this process may use: by its affinity, and by the quotas of its cgroups, rounded up."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([count, *map(math.ceil, _quotas())])


def _quotas() -> Iterator[float]:
    """The CPUs' worth of time that each cgroup allows that this process is in."""
    try:
        groups = (_PROC / "self/cgroup").read_text().splitlines()
    except OSError:  # there are none here
        return
    for group in groups:
        _, controllers, path = group.split(":", 2)
        if not controllers:  # version 2, alone or beside version 1
            roots, names = ("", "unified"), ["cpu.max"]
        elif "cpu" in controllers.split(","):
            roots, names = (controllers, "cpu"), ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
        else:
            continue
        for folder in (_CGROUPS / root / path.lstrip("/") for root in roots):
            # In a container, the path may be that of the host, of which only the beginning is here.
            for place in (folder, *folder.parents):
                try:
                    quota, period = map(int, " ".join((place / name).read_text() for name in names).split())
                except (OSError, ValueError):  # "max" is no limit
                    continue
                if quota > 0:  # -1 is no limit
                    yield quota / period
