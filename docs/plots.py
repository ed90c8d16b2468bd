"""The plots of the documentation, from benchmarks/results.json; `figures.py` draws them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import floor, log10
from typing import TYPE_CHECKING

import drawing
from drawing import BLUE, GREEN, GREY, ORANGE, VIOLET
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

if TYPE_CHECKING:
    from pathlib import Path

OURS = ("map", "do", "stream", "open_group", "run_graph", "in_")
COLORS = [BLUE, ORANGE, GREEN, VIOLET, GREY, "#b8860b", "black"]


@dataclass
class Plot:
    """What a plot shows: points by the names of their lines, or one figure for each name."""

    title: str
    unit: str
    points: dict[str, list[tuple[float, float]]]
    x: str | None = None  # None for bars, one for each name

    def save(self, path: Path) -> None:
        height = 1 + 0.5 * len(self.points) if self.x is None else 2.8 + 0.25 * len(self.points)
        figure = Figure(figsize=(drawing.WIDTH, height), layout="constrained")
        axes = figure.subplots()
        if self.x is None:
            self.draw_bars(axes)
        else:
            self.draw_lines(figure, axes)
        axes.set_title(self.title)
        drawing.save(figure, path, self.title, asdict(self))

    def draw_bars(self, axes) -> None:
        """A bar for each name, which stands above it, on a scale of powers of ten."""
        for place, (name, [(_, value)]) in enumerate(self.points.items()):
            bar = axes.barh(place, value, 0.4, color=BLUE if name.startswith(OURS) else GREY)
            axes.bar_label(bar, [short(value)], padding=3)
            axes.annotate(name, (0, place), (0, 10), ("axes fraction", "data"), "offset points")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:,g}")
        axes.set_ylim(len(self.points) - 0.5, -0.8)
        axes.margins(x=0.15)
        axes.set_xlim(left=10 ** floor(log10(min(value for [(_, value)] in self.points.values()))))
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(self.unit)

    def draw_lines(self, figure, axes) -> None:
        """A line for each name, on scales of powers of ten."""
        ours_first = sorted(self.points, key=lambda name: not name.startswith("map"))
        for color, name in zip(COLORS, ours_first, strict=False):
            axes.plot(*zip(*self.points[name], strict=True), marker="o", markersize=4, color=color, label=name)
        axes.set_xscale("log")
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 10k, 1M
        axes.yaxis.set_major_formatter("{x:,g}")
        axes.grid(visible=True, axis="y", color="black", alpha=0.15)
        axes.set_xlabel(self.x)
        axes.set_ylabel(self.unit)
        figure.legend(loc="outside lower left")


def short(value: float) -> str:
    """A figure as pages and plots show it, with two digits that count."""
    return f"{float(f'{value:.2g}'):,g}"


def plots(results) -> dict[str, Plot]:
    """All plots, by the names of their files."""
    cost = "50,000 items that do nothing"
    checkpoint = {"one checkpoint": results.points(cost, "µs per item")["one checkpoint"]}
    return {
        "cost_by_contender": Plot(
            "50,000 items that do nothing, limit=16",
            "µs of CPU time per item, above a plain loop",
            checkpoint | results.points(cost, "µs above a plain loop"),
        ),
        "cost_by_items": Plot(
            "Items that do nothing: each pays its share of the call",
            "µs of CPU time per item",
            results.points("by number of items", "µs per item"),
            "items in a call",
        ),
        "cost_by_limit": Plot(
            "20,000 items that do one checkpoint",
            "µs of CPU time per item",
            results.points("by limit", "µs per item"),
            "limit",
        ),
        "memory_by_items": Plot(
            "Peak of memory; less than 0.01 MiB is drawn as that",
            "more resident memory, MiB",
            {
                name: [(items, max(grown, 0.01)) for items, grown in points]
                for name, points in results.points("more resident memory", "MiB").items()
            },
            "items",
        ),
        "elsewhere": Plot(
            "Calls that do nothing, in a thread, a process, on a cluster",
            "µs per call, wall time, in the quickest of five rounds",
            results.points("3,000 calls that do nothing elsewhere", "µs per call, wall time", "lowest"),
        ),
    }
