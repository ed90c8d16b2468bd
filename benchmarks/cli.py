"""The command line side by side with `xargs -P` and GNU `parallel`: ``python benchmarks/cli.py``.

Three workloads: many programs that do nothing, which shows what starting and waiting costs; some that sleep, which
shows whether the places are kept filled; and the checksums of many small files, 500 to a program. Each contender has a
turn in each round; the table has medians, of seconds and of the CPU time of the command and all that it ran, which a
busy machine disturbs less. `parallel` is a package of its own in most systems (``apt-get install parallel``); a
contender that is not there is left out.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import trio

COMMAND = [sys.executable, "-m", "trio_fanout"]

YARDSTICK = "xargs -P"


class Workload(NamedTuple):
    name: str
    items: list[str]
    contenders: dict[str, list[str]]
    """The commands that do it, each with the items on standard input, the yardstick first."""


class Cost(NamedTuple):
    seconds: float
    cpu: float
    """Seconds of CPU, of the command and of all that it has run."""


def programs(count: int, program: list[str], jobs: int, folder: Path) -> Workload:
    """A program for each item."""
    log = ["--log", str(folder / "log")]
    contenders = {
        YARDSTICK: ["xargs", "-P", str(jobs), "-n", "1", *program],
        "trio-fanout do": [*COMMAND, "do", "-j", str(jobs), *program],
        "trio-fanout do --log": [*COMMAND, "do", "-j", str(jobs), *log, *program],
        "trio-fanout map": [*COMMAND, "map", "-j", str(jobs), *program],
        "trio-fanout map --log": [*COMMAND, "map", "-j", str(jobs), *log, *program],
        "parallel": ["parallel", "-j", str(jobs), *program],
    }
    # An item that `true` takes no notice of, and that adds nothing to a time to sleep.
    return Workload(f"{count} of `{' '.join(program)}`, {jobs} at once", ["0"] * count, contenders)


def checksums(count: int, jobs: int, folder: Path) -> Workload:
    """The checksums of small files, 500 to a program."""
    files = [str(folder / f"file-{number}") for number in range(count)]
    for number, file in enumerate(files):
        Path(file).write_text(f"{number}\n" * 100)
    contenders = {
        YARDSTICK: ["xargs", "-P", str(jobs), "-n", "500", "sha256sum"],
        "trio-fanout do": [*COMMAND, "do", "-j", str(jobs), "-n", "500", "sha256sum"],
        "trio-fanout map": [*COMMAND, "map", "-j", str(jobs), "-n", "500", "--output", "text", "sha256sum"],
        "trio-fanout do --log": [*COMMAND, "do", "-n", "500", "--log", str(folder / "log"), "sha256sum"],
        "parallel": ["parallel", "-j", str(jobs), "-N", "500", "sha256sum"],
    }
    return Workload(f"{count} checksums, 500 to a program, {jobs} at once", files, contenders)


def cost(command: list[str], items: bytes) -> Cost:
    """What a command costs, with its output thrown away."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, input=items, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Cost(seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def compare(workload: Workload, rounds: int) -> None:
    """Print the rows of one workload."""
    commands = {who: command for who, command in workload.contenders.items() if shutil.which(command[0])}
    items = "".join(f"{item}\n" for item in workload.items).encode()
    costs: dict[str, list[Cost]] = {who: [] for who in commands}
    for _ in range(rounds):
        for who, command in commands.items():
            costs[who].append(cost(command, items))
    medians = {who: Cost(*map(statistics.median, zip(*values, strict=True))) for who, values in costs.items()}
    yardstick = medians[YARDSTICK]
    for who, median in medians.items():
        ratios = f"{median.seconds / yardstick.seconds:.2f} | {median.cpu / yardstick.cpu:.2f}"
        print(f"| {workload.name} | {who} | {median.seconds:.2f} | {ratios} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="just long enough to see that it works")
    options = parser.parse_args()
    if shutil.which("xargs") is None:
        sys.exit("there is no xargs here to compare with")
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # What the processes are given, not where this script is: the package beside it, if it is not installed.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    print(f"Python {platform.python_version()}, trio {trio.__version__}, {cpus} CPUs, {platform.system()}\n")
    print("| what | with | seconds | times `xargs -P` | its CPU time |")
    print("|---|---|---:|---:|---:|")
    less = 100 if options.quick else 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for workload in (
            programs(20_000 // less, ["/bin/true"], cpus, folder),
            programs(200 // min(less, 10), ["sleep", "0.05"], 16, folder),
            checksums(50_000 // less, cpus, folder),
        ):
            compare(workload, 1 if options.quick else options.rounds)


if __name__ == "__main__":
    main()
