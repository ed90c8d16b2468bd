"""What pages say in words, where no example shows it."""

import math
import re
import tomllib
from pathlib import Path

import pytest
import trio

import trio_fanout as fanout
from helpers import double_at_once, workers

PROJECT = Path(__file__).parents[2]
DOCS = PROJECT / "docs"
PAGES = sorted(DOCS.glob("*.md"))


@pytest.mark.parametrize(("source", "started"), [(list, 3), (iter, 4)])
async def test_a_large_limit_starts_workers_for_the_items_there_are(source, started, autojump_clock):
    """limits.md: `limit=10_000` with a list of three items starts three, four if the source has no length."""
    seen = []

    async def look(item):
        await trio.sleep(1)
        seen.append(workers())

    await fanout.do(look, source(range(3)), limit=10_000)
    assert max(seen, default=0) <= started


def titles_of(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [title.replace("`", "") for title in re.findall(r"^#+ (.*)", text, re.MULTILINE)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_link_is_called_what_its_page_or_section_is_called(page):
    """If it begins with a capital letter, as a title does: no link to "Threads, processes and clusters"."""
    for text, target in re.findall(r"\[([A-Z][^]]+)\]\(([\w-]+\.md)[^)]*\)", page.read_text()):
        if page.name == "index.md" or target not in {page.name for page in PAGES}:
            continue
        titles = titles_of(DOCS / target)
        assert any(title.startswith(text) for title in titles), f"{text!r} is none of {titles}"


def test_no_page_tests_a_limit_by_less_or_equal_alone():
    """testing.md: `<=` would pass even if everything ran one by one."""
    for page in [PROJECT / "README.md", *PAGES]:
        assert re.findall(r"assert .*peak_running <=(?! limit\n)", page.read_text()) == [], page.name


@pytest.mark.skipif(not (PROJECT / "trio_fanout").exists(), reason="its source is not here")
def test_the_page_on_design_has_each_private_name_of_trio_that_is_used():
    page = (DOCS / "design.md").read_text()
    for path in (PROJECT / "trio_fanout").rglob("*.py"):
        for name in re.findall(r"\b(?:trio|task)\.((?:\w+\.)*_[a-z]\w*(?:\.\w+)*)", path.read_text()):
            assert f"`{name}`" in page, f"{path.name} uses {name} of Trio"


async def test_an_ordered_stream_over_retries_holds_back_results_that_are_ready(autojump_clock):
    """streams.md: "up to 1,920" of them at `limit=1_000`, if the first item is the unlucky one; unordered, none."""
    ready = []

    async def fetch(number):
        await trio.sleep(100 if number == 0 else 1)
        return number

    for ordered in (True, False):
        async with fanout.stream(fetch, range(5_000), limit=1_000, ordered=ordered) as results:
            await trio.sleep(50)
            first = None
            with trio.move_on_after(1):
                first = await results.receive()
            ready.append((first is None, results.statistics().outstanding))
            results.stop()
    (held_back, outstanding), (handed_over, _) = ready
    assert held_back
    assert 1_920 <= outstanding <= 2_000
    assert not handed_over


@pytest.mark.parametrize("limit", [0, -1])
async def test_limits_of_pools_that_mean_no_limit_elsewhere_are_errors(limit):
    """comparison.md: a limit of 0 or below is an error; no limit is `math.inf`."""
    with pytest.raises(ValueError, match="limit"):
        await fanout.map(double_at_once, [1], limit=limit)
    assert await fanout.map(double_at_once, [1], limit=math.inf) == [2]


@pytest.mark.skipif(not (PROJECT / "pyproject.toml").exists(), reason="not part of what is published")
def test_installation_names_the_pythons_and_the_extras_of_the_project():
    page = (DOCS / "installation.md").read_text()
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    pythons = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    assert f"CPython {', '.join(pythons)} |" in page
    for extra, needs in project["optional-dependencies"].items():
        assert f"`.[{extra}]`" in page
        for name, oldest in re.findall(r"^([\w-]+)>=([\d.]+)", "\n".join(needs), re.MULTILINE):
            assert f"`{name}` {oldest}+" in page


@pytest.mark.skipif(not (PROJECT / "trio_fanout").exists(), reason="its source is not here")
def test_the_page_on_design_has_all_rooms_and_no_other():
    rooms = re.search(r"^```text\ntrio_fanout/\n(.*?)^```", (DOCS / "design.md").read_text(), re.DOTALL | re.MULTILINE)
    files = {path.name for path in (PROJECT / "trio_fanout").rglob("*.py")} - {"__init__.py", "__main__.py"}
    assert set(re.findall(r"\w+\.py", rooms[1])) == files
