"""What the loop costs, side by side with doing the same by hand and with its peers.

``python benchmarks/run.py`` measures everything and prints it, in some minutes. ``--publish`` also writes the figures,
with the machine, the versions and the commit, to `results.json`, from there into the tables and sentences of README.md
and the pages, and draws the plots; that needs a quiet machine with everything installed. ``--quick`` takes some
seconds, and its figures only show that it works. `aiometer`, `anyio`, Go, Node, trio-parallel and Dask take part if
they are installed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import growth
import items
import languages
import machine
import memory
from measure import print_rows

import adapters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from measure import Row

HERE = Path(__file__).parent
MEASURES: dict[str, Callable[[bool], Iterator[Row]]] = {
    "items": items.measure,
    "languages": languages.measure,
    "growth": growth.measure,
    "adapters": adapters.measure,
    "memory": memory.measure,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="some seconds, to see that it works")
    parser.add_argument("--only", choices=MEASURES, help="a part of it")
    parser.add_argument("--publish", action="store_true", help="write results.json, the pages' figures, and the plots")
    args = parser.parse_args()
    if args.publish and (args.quick or args.only):
        parser.error("only a full run is published")
    about = machine.about()
    print(machine.described(about))
    rows: list[Row] = []
    for name, measure in MEASURES.items():
        if args.only in {None, name}:
            new = list(measure(args.quick))
            print_rows(new)
            rows += new
    if args.publish:
        results = {**about, "rows": [row.as_json() for row in rows]}
        (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        subprocess.run([sys.executable, HERE.parent / "docs" / "figures.py"], check=True)


if __name__ == "__main__":
    main()
