"""The look of the pictures and plots: the colours of the text around them, and fonts that can be read on a phone."""

from __future__ import annotations

import hashlib
import io
import json
import re
from html import escape

import matplotlib as mpl

WIDTH = 4.75  # inches of 72 px: what a phone of 390 px has for text, so that there a font has its size
# Mid-tones that stand out on white and on black, and from each other even for the colour-blind.
BLUE, ORANGE, VIOLET, GREEN, GREY = "#3987d6", "#d9622b", "#8f6fd1", "#3f9a52", "#8c8c8c"
STYLE = """<style>
svg { color: #24292f; font-family: system-ui, sans-serif }
@media (prefers-color-scheme: dark) { svg { color: #d8dee4 } }
</style>
"""  # of the file by itself; in a page, site.css has the colours of the theme

mpl.rcParams |= {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "trio-fanout",  # the same data make the same file
    "font.size": 12,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.handlelength": 1,
    "legend.columnspacing": 1.2,
}


def save(figure, path, title, data):
    """Write the figure as an SVG that is black where its reader's text is, and names the data that it shows."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", file.getvalue(), flags=re.DOTALL)
    svg = re.sub(r' id="[a-z0-9.]+_\d+"| ?font-family: \'DejaVu Sans\'[^;"]*;?', "", svg)
    svg = re.sub(r"font-family: 'DejaVu Sans Mono'[^;\"]*", "font-family: ui-monospace, monospace", svg)
    svg = re.sub(r"(\.\d\d)\d+", r"\1", svg.replace("#000000", "currentColor"))
    head, tag, body = svg[svg.index("<svg") :].partition(">\n")
    head = f'{head} fill="currentColor" role="img"{tag}<!-- {digest(data)} -->\n<title>{escape(title)}</title>\n'
    path.write_text(re.sub(r"\s*\n\s*", "\n", head + STYLE + body))


def shows(path, data):
    """Whether the file has been drawn from these data."""
    return path.exists() and digest(data) in path.read_text()


def digest(data):
    return "drawn from " + hashlib.sha256(json.dumps(data).encode()).hexdigest()[:16]
