"""The command line side by side with `xargs -P` and GNU `parallel`: ``python benchmarks/cli.py``.

Many programs that do nothing, which shows what starting and waiting costs, and some that sleep, which shows whether
the places are kept filled. Each contender has a turn in each round; the table has medians. `parallel` is a package of
its own in most systems (``apt-get install parallel``); a contender that is not there is left out.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import trio

COMMAND = [sys.executable, "-m", "trio_fanout"]
WORKLOADS = {"/bin/true": (2000, ["/bin/true"]), "sleep 0.05": (200, ["sleep", "0.05"])}


def contenders(jobs: int, program: list[str]) -> dict[str, list[str]]:
    """The commands that run `program` for each line of standard input, the yardstick first."""
    return {
        "xargs -P": ["xargs", "-P", str(jobs), "-n", "1", *program],
        "trio-fanout do": [*COMMAND, "do", "-j", str(jobs), *program],
        "trio-fanout map": [*COMMAND, "map", "-j", str(jobs), *program],
        "parallel": ["parallel", "-j", str(jobs), *program],
    }


def seconds(command: list[str], items: bytes) -> float:
    """How long a command takes, with its output thrown away."""
    began = time.perf_counter()
    subprocess.run(command, input=items, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def compare(name: str, count: int, program: list[str], jobs: int, rounds: int) -> None:
    """Print the rows of one workload."""
    commands = {who: command for who, command in contenders(jobs, program).items() if shutil.which(command[0])}
    # An item that `true` takes no notice of, and that adds nothing to a time to sleep.
    items = b"0\n" * count
    times: dict[str, list[float]] = {who: [] for who in commands}
    for _ in range(rounds):
        for who, command in commands.items():
            times[who].append(seconds(command, items))
    medians = {who: statistics.median(values) for who, values in times.items()}
    for who, median in medians.items():
        ratio = median / medians["xargs -P"]
        print(f"| {count} of `{name}`, {jobs} at once | {who} | {median:.2f} | {ratio:.2f} |", flush=True)


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
    print("| what | with | seconds | times `xargs -P` |")
    print("|---|---|---:|---:|")
    for name, (count, program) in WORKLOADS.items():
        jobs = cpus if name == "/bin/true" else 16
        if options.quick:
            compare(name, count // 20, program, jobs, 1)
        else:
            compare(name, count, program, jobs, options.rounds)


if __name__ == "__main__":
    main()
