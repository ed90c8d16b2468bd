"""The same work in Go and in Node: a goroutine for each item behind a semaphore, and the shape of p-map."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import contenders
from contenders import LIMIT
from items import at_once
from measure import Row, compare

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent / "others"


def measure(quick: bool) -> Iterator[Row]:
    count, rounds = (1_000, 3) if quick else (50_000, 7)
    title = f"other languages: {count:,} items that do nothing, limit={LIMIT}"
    times = compare({"map": contenders.map_}, at_once, range(count), rounds)
    yield Row(title, "map", "µs per item", times.micros("map"))
    yield Row(title, "map", "µs per item, wall time", times.wall_micros("map"))
    arguments = [str(count), str(LIMIT), str(rounds)]
    with tempfile.TemporaryDirectory() as directory:
        programs = {}
        if shutil.which("go"):
            program = Path(directory) / "fan_out"
            subprocess.run(["go", "build", "-o", program, HERE / "fan_out.go"], cwd=directory, check=True)
            programs["Go: goroutines + semaphore"] = [program, *arguments]
        if shutil.which("node"):
            programs["Node: as p-map does it"] = ["node", HERE / "fan_out.mjs", *arguments]
        for name, command in programs.items():
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            walls, cpus = zip(*(map(float, line.split()) for line in done.stdout.splitlines()), strict=True)
            yield Row(title, name, "µs per item", cpus)
            yield Row(title, name, "µs per item, wall time", walls)
