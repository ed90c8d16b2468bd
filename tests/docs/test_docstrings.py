"""The examples in docstrings run, with stand-ins for what they talk to."""

import ast
import inspect
import logging
import re
import textwrap
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import outcome
import pytest
import trio

import trio_fanout as fanout

NOT_RUN = {
    "FanOutError.kinds": "it begins with `except`",
    "in_executor": "processes import the function",
    "in_process": "processes import the function",
}


def examples():
    """Each literal block in a public docstring, and where it is."""
    for name in fanout.__all__:
        thing = getattr(fanout, name)
        yield from examples_in(name, thing)
        for member, value in vars(thing).items() if isinstance(thing, type) else ():
            if not member.startswith("_"):
                yield from examples_in(f"{name}.{member}", value)


def examples_in(name, thing):
    if callable(thing):
        blocks = re.findall(r"::\n\n((?: +.*\n|\n)+)", f"{inspect.getdoc(thing) or ''}\n")
        for number, block in enumerate(blocks, start=1):
            marks = [pytest.mark.skip(reason=NOT_RUN[name])] if name in NOT_RUN else []
            yield pytest.param(textwrap.dedent(block), id=f"{name}-{number}", marks=marks)


async def work(*args):
    await trio.sleep(0.1)
    return args[0] if args else None


async def links_of(url):
    return []


@pytest.fixture
def names(tmp_path):
    """What the examples use without a word."""
    httpx = pytest.importorskip("httpx")

    async def get(url):
        return httpx.Response(200, request=httpx.Request("GET", url))

    async_functions = "complete fetch find_exact find_semantic judge make_plan ping save search_flights search_hotels"
    return {
        **dict.fromkeys(async_functions.split(), work),
        "client": SimpleNamespace(get=get),
        "fanout": fanout,
        "host_of": lambda url: urlsplit(url).hostname,
        "hosts": ["near.example", "far.example"],
        "httpx": httpx,
        "links_of": links_of,
        "logger": logging.getLogger(),
        "meter": fanout.Meter(),
        "mirrors": ["https://a.example", "https://b.example"],
        "outcome": outcome,
        "pages": ["a", "b"],
        "paths": [tmp_path, Path(__file__)],
        "question": "which?",
        "resize": lambda path: path,
        "seen": set(),
        "stamina": pytest.importorskip("stamina"),
        "Step": fanout.Step,
        "tqdm": pytest.importorskip("tqdm").tqdm,
        "trio": trio,
        "urls": [f"https://example.org/{n}" for n in range(30)],
        "urlsplit": urlsplit,
    }


@pytest.mark.parametrize("code", list(examples()))
async def test_example_of_a_docstring_runs(code, names, autojump_clock):
    # Some define a function, and await nothing.
    compiled = compile(code, "docstring", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    running = eval(compiled, names)
    if inspect.isawaitable(running):
        await running
