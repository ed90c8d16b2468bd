"""The pages and plots show the figures of benchmarks/results.json; if not, `python docs/figures.py` renews them."""

from dataclasses import asdict
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def figures(monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(PROJECT / "docs")
    import figures  # noqa: PLC0415  # as it needs matplotlib

    return figures


def test_pages_show_the_figures_that_were_measured(figures):
    results = figures.Results()
    for page in figures.SENTENCES:
        text = (PROJECT / page).read_text()
        assert figures.written(page, text, results) == text, page


def test_plots_show_the_figures_that_were_measured(figures):
    plots = figures.plots.plots(figures.Results())
    files = {path.stem: path for path in (PROJECT / "docs" / "plots").glob("*.svg")}
    assert set(files) == set(plots)
    for name, plot in plots.items():
        assert figures.plots.drawing.shows(files[name], asdict(plot)), name
