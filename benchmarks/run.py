"""What the loop costs, side by side with doing the same by hand and with its peers.

``python benchmarks/run.py`` measures everything and prints it, in some minutes. ``--json FILE`` writes it down, too,
with the machine, the versions and the commit; `plots.py` draws from that file. ``--quick`` takes some seconds, and its
figures are only good for seeing that it works. `aiometer`, `anyio`, Go, Node, trio-parallel and Dask take part where
they are installed.
"""

from __future__ import annotations

import argparse
import json
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
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file, too")
    parser.add_argument("--only", choices=MEASURES, help="a part of it")
    args = parser.parse_args()
    about = machine.about()
    print(machine.described(about))
    rows: list[Row] = []
    for name, measure in MEASURES.items():
        if args.only in {None, name}:
            new = list(measure(args.quick))
            print_rows(new)
            rows += new
    if args.json:
        args.json.write_text(json.dumps({**about, "rows": [row.as_json() for row in rows]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
