"""How many instructions it takes: figures without noise, compared with those of earlier commits.

``python benchmarks/instructions.py`` counts them under Valgrind's cachegrind, and says by how much each has moved since
the last entry of `instructions.json` that the same versions of Python and Trio gave. ``--record`` adds an entry.

A machine or a moment makes no difference, but for the run's slices of time, which are made endless: a slice is some
milliseconds, and under Valgrind few instructions fit into that. What the end of a slice costs is not in these figures.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import contenders
import items
import machine
import trio
import trio._core._run

SERIES = Path(__file__).with_suffix(".json")
FIGURES = {
    # what is run, on which items, and how often
    "map, an item that does nothing": (contenders.map_, items.at_once, 10_000, 1),
    "map, an item that does one checkpoint": (contenders.map_, items.checkpoint, 4_000, 1),
    "map, a call with 3 items that do one checkpoint": (contenders.map_, items.checkpoint, 3, 200),
}
NOTHING = "nothing"


def run(name: str) -> None:
    """Run one figure, or nothing, after what is done once has been done for all of them."""
    from trio_fanout._core import slices

    slices.SLICE = float("inf")
    trio._core._run._ALLOW_DETERMINISTIC_SCHEDULING = True
    trio._core._run._r = random.Random(0)

    async def call(work: contenders.Work, times: int) -> None:
        for _ in range(times):
            await work()

    for contender, fn, _, _ in FIGURES.values():
        trio.run(call, contenders.work_of(contender, fn, range(20)), 10)
    contender, fn, count, times = FIGURES.get(name, (contenders.map_, items.at_once, 0, 0))
    trio.run(call, contenders.work_of(contender, fn, range(count)), times)


def count() -> dict[str, int]:
    """Instructions an item, or a call: what a figure takes above a program that does all but that."""
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        totals = dict(zip([NOTHING, *FIGURES], pool.map(instructions, [NOTHING, *FIGURES]), strict=True))
    return {
        name: round((totals[name] - totals[NOTHING]) / (count if times == 1 else times))
        for name, (_, _, count, times) in FIGURES.items()
    }


def instructions(name: str) -> int:
    """The instructions of a whole program."""
    valgrind = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]
    command = [*valgrind, sys.executable, __file__, "--run", name]
    if shutil.which("setarch"):
        command = ["setarch", "-R", *command]  # addresses decide in which order some sets are walked
    # The package beside this script, if it is not installed.
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    found = re.search(r"I\s+refs:\s+([\d,]+)", done.stderr)
    if done.returncode or found is None:
        raise SystemExit(done.stderr)
    return int(found[1].replace(",", ""))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--record", action="store_true", help="add the figures to the series")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        run(args.run)
        return
    if shutil.which("valgrind") is None:
        print("no instructions are counted: valgrind is not installed")
        return
    series = json.loads(SERIES.read_text())
    entry = {"python": platform.python_version(), "trio": trio.__version__, "machine": platform.machine()}
    earlier = [known for known in series if entry.items() <= known.items()]
    figures = count()
    print(f"instructions, CPython {entry['python']}, trio {entry['trio']}, {entry['machine']}")
    for name, now in figures.items():
        moved = "nothing to compare with"
        if earlier:
            before = earlier[-1]["figures"][name]
            moved = f"{100 * (now - before) / before:+.1f} % since {earlier[-1]['commit']}"
        print(f"  {name}: {now:,} ({moved})")
    if args.record:
        entry |= {"commit": machine.commit(), "figures": figures}
        SERIES.write_text(json.dumps([*series, entry], indent=1) + "\n")


if __name__ == "__main__":
    main()
