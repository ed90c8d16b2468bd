"""Draw the figures: ``python benchmarks/plots.py`` makes `docs/plots/*.svg` from `results.json`, beside this script."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RESULTS = Path(__file__).with_name("results.json")
PLOTS = Path(__file__).parents[1] / "docs" / "plots"
OURS, OTHERS, BASE = "#0b6e99", "#b0a99f", "#dcd6cc"
LINES = [OURS, "#c4572e", "#5b8c3a", "#8a5fa8", "#b8860b", "#777777", "#111111"]
BASES = {"plain loop", "one checkpoint", "barest worker loop"}
THEIRS = (
    "nursery + limiter",
    "asyncio",
    "anyio",
    "aiometer",
    "trio.to_thread",
    "trio_parallel",
    "Dask's",
    "Go",
    "Node",
)

mpl.rcParams |= {
    "svg.hashsalt": "trio-fanout",  # the same figures make the same file
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


class Results:
    def __init__(self, path: Path) -> None:
        self.about = json.loads(path.read_text())
        self.rows = self.about["rows"]

    def of(self, measure: str, unit: str) -> list[dict]:
        """The rows of one unit of the measures whose title begins so."""
        return [row for row in self.rows if row["measure"].startswith(measure) and row["unit"] == unit]

    def title(self, measure: str) -> str:
        return next(row["measure"] for row in self.rows if row["measure"].startswith(measure))


def bars(ax: Axes, rows: list[dict], which: str = "median") -> None:
    """A bar for each contender, with its figure, on a scale of powers of ten."""
    rows.reverse()  # the first is to be at the top
    colours = [BASE if row["name"] in BASES else OTHERS if row["name"].startswith(THEIRS) else OURS for row in rows]
    drawn = ax.barh([row["name"] for row in rows], [row[which] for row in rows], color=colours)
    ax.bar_label(drawn, [f"{row[which]:,.0f}" if row[which] >= 10 else f"{row[which]:.2f}" for row in rows], padding=3)
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter("{x:,g}")
    ax.margins(x=0.2)
    ax.tick_params(left=False)
    ax.spines["left"].set_visible(False)


def lines(ax: Axes, rows: list[dict]) -> None:
    """A line for each contender, named at the side, on scales of powers of ten."""
    names = list(dict.fromkeys(row["name"] for row in rows))
    names.sort(key=lambda name: not name.startswith("map"))
    for name, colour in zip(names, LINES, strict=False):
        points = [(row["at"], row["median"]) for row in rows if row["name"] == name]
        ax.plot(*zip(*points, strict=True), marker="o", markersize=4, color=colour, label=name)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.xaxis.set_major_formatter("{x:,g}")
    ax.yaxis.set_major_formatter("{x:,g}")
    ax.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    ax.yaxis.set_minor_formatter("{x:,g}")
    ax.grid(visible=True, axis="y", color="#eeeeee")
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))


def cost_by_contender(results: Results, ax: Axes) -> None:
    bars(ax, results.of("50,000 items that do nothing", "µs per item"))
    ax.set_xlabel("µs of CPU time an item")
    ax.set_title(results.title("50,000 items that do nothing"))


def cost_by_items(results: Results, ax: Axes) -> None:
    lines(ax, results.of("by number of items", "µs per item"))
    ax.set_xlabel("items in a call")
    ax.set_ylabel("µs of CPU time an item")
    ax.set_title("Items that do nothing: the call is paid by its items")


def cost_by_limit(results: Results, ax: Axes) -> None:
    lines(ax, results.of("by limit", "µs per item"))
    ax.set_xlabel("limit")
    ax.set_ylabel("µs of CPU time an item")
    ax.set_title("20,000 items that do one checkpoint")


def memory_by_items(results: Results, ax: Axes) -> None:
    rows = [{**row, "median": max(row["median"], 0.01)} for row in results.of("more resident memory", "MiB")]
    lines(ax, rows)
    ax.set_xlabel("items")
    ax.set_ylabel("more resident memory, MiB")
    ax.set_title("Peak of memory; less than 0.01 MiB is drawn as that")


def elsewhere(results: Results, ax: Axes) -> None:
    rows = [row for row in results.rows if row["unit"] == "µs per call, wall time"]
    bars(ax, rows, "lowest")
    ax.set_xlabel("µs per call, wall time, in the quickest of five rounds")
    ax.set_title("Calls that do nothing, in a thread, a process, on a cluster")


DRAWN = [cost_by_contender, cost_by_items, cost_by_limit, memory_by_items, elsewhere]


def main() -> None:
    results = Results(RESULTS)
    PLOTS.mkdir(exist_ok=True)
    for draw in DRAWN:
        figure, ax = plt.subplots(figsize=(8, 4))
        draw(results, ax)
        path = PLOTS / f"{draw.__name__}.svg"
        figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
        plt.close(figure)


if __name__ == "__main__":
    main()
