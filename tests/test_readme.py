"""The examples of the README run, and print what it says they print.

A fenced block of Python may `await`, as in an async function; `PRELUDE` is what it can count on. A block of shell runs
in an empty directory. What a block needs beyond that, and a reader does not, stands before it in a comment, ``<!--
setup: ... -->``. Time is virtual, except with ``<!-- setup, network: ... -->``, where it runs fast. A block with ``<!--
not run: ... -->`` says why. A block of ``text`` is the output of the block before it.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import os
import re
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import outcome
import pytest
import trio
from trio.testing import MockClock

import trio_fanout as fanout
from trio_fanout import Step

PROJECT = Path(__file__).parent.parent
README = (PROJECT / "README.md").read_text()

COMMENT = r"(?:<!-- (?P<what>setup|setup, network|not run):\s(?P<comment>(?:(?!-->).)*)-->\n\n?)?"
FENCE = r"^```(?P<language>\w*)\n(?P<code>.*?)^```$"
OUTPUT = r"(?:\n\n```text\n(?P<output>.*?)^```$)?"

EXTRAS = {"distributed", "httpx", "rich", "stamina", "tenacity", "tqdm", "trio_parallel"}
"""What a block may do without: it is skipped where that is not installed."""

TOOLS = {"convert", "curl", "jq", "sha256sum"}
"""The same for programs."""


@dataclass
class Block:
    what: str | None
    comment: str | None
    language: str
    code: str
    output: str | None
    line: int

    @property
    def setup(self) -> str:
        return self.comment if self.comment and self.what != "not run" else ""


def blocks():
    for match in re.finditer(COMMENT + FENCE + OUTPUT, README, re.DOTALL | re.MULTILINE):
        yield Block(**match.groupdict(), line=README.count("\n", 0, match.start("code")) + 1)


BLOCKS = list(blocks())
RUN = [block for block in BLOCKS if block.what != "not run"]


def parameters(language):
    return [
        pytest.param(block, id=f"line {block.line}", marks=[pytest.mark.dask] if "distributed" in block.code else [])
        for block in RUN
        if block.language == language and ".venv" not in block.code
    ]


# What the examples talk to


async def fetch(url):
    await trio.sleep(0.1)
    if "broken" in url:
        raise ConnectionError(f"no route to {url}")
    return f"<page {url}>"


async def save(page):
    await trio.sleep(0.1)


class Busy(BaseHTTPRequestHandler):
    """Answers with the path, at the second attempt."""

    protocol_version = "HTTP/1.1"
    seen: set[str]

    def do_GET(self):
        status, headers = (200, {}) if self.path in self.seen else (429, {"Retry-After": "2"})
        self.seen.add(self.path)
        self.send_response(status)
        for name, value in {"Content-Length": str(len(self.path)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(self.path.encode())

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def busy_server():
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Busy,), {"seen": set()})) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.01))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


PRELUDE = {
    "__name__": "readme",
    "trio": trio,
    "outcome": outcome,
    "fanout": fanout,
    "Step": Step,
    "fetch": fetch,
    "save": save,
    "urls": [f"https://example.org/{n}" for n in range(100)],
    "busy_server": busy_server,
}


# The tests


def test_every_block_runs_or_says_why_not():
    assert {block.language for block in BLOCKS} == {"python", "sh"}
    assert README.count("\n```") == sum(2 + 2 * (block.output is not None) for block in BLOCKS)
    assert len(list(re.finditer(r"<!-- (setup|not run)", README))) == sum(block.what is not None for block in BLOCKS)


@pytest.mark.parametrize("block", parameters("python"))
def test_python(block, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("http_proxy", "https_proxy", "all_proxy"):  # what is asked for is on loopback
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    setup = compile_like_a_repl(block.setup, "README.md, setup")
    code = compile_like_a_repl("\n" * (block.line - 1) + block.code, "README.md")  # a traceback shows the right line

    async def main():
        await run(setup, names)
        await run(code, names)

    with contextlib.ExitStack() as cleanup:
        names = PRELUDE | {"cleanup": cleanup}
        try:
            if code.co_flags & inspect.CO_COROUTINE:
                clock = MockClock(rate=50) if block.what == "setup, network" else MockClock(autojump_threshold=0)
                trio.run(main, clock=clock)
            else:
                exec(setup, names)
                exec(code, names)
        except ImportError as exc:
            if exc.name not in EXTRAS:
                raise
            pytest.skip(f"needs {exc.name}")
    if block.output is not None:
        assert capsys.readouterr().out == block.output


def compile_like_a_repl(source, name):
    return compile(source, name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)


async def run(code, names):
    running = eval(code, names)
    if code.co_flags & inspect.CO_COROUTINE:
        await running


@pytest.mark.skipif(sys.platform == "win32", reason="for a POSIX shell")
@pytest.mark.parametrize("block", parameters("sh"))
def test_shell(block, tmp_path):
    programs = Path(sys.executable).parent
    if not shutil.which("trio-fanout", path=programs):
        pytest.skip("the command is not installed")
    for tool in TOOLS & set(re.findall(r"[\w-]+", block.setup + block.code)):
        if not shutil.which(tool) or subprocess.run([tool, "--version"], capture_output=True, check=False).returncode:
            pytest.skip(f"needs {tool}")
    out = shell(block.setup + block.code, tmp_path, programs)
    if block.output is not None:
        assert out == block.output


def shell(script, directory, programs):
    """The output of a script, which must succeed."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=directory,
        env=os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(os.environ.get("NOX_CURRENT_SESSION", "readme") != "readme", reason="the session readme does it")
@pytest.mark.skipif(not (PROJECT / "trio_fanout").exists(), reason="there is nothing to install here")
@pytest.mark.skipif(sys.platform == "win32", reason="for a POSIX shell")
def test_setting_up_and_first_job(tmp_path):
    """From a copy of the project to the first checksums, by the commands that the README gives."""
    (setting_up,) = [block for block in RUN if ".venv/bin/pip" in block.code]
    ignored = shutil.ignore_patterns(".*", "__pycache__", "tests", "benchmarks")
    shutil.copytree(PROJECT, tmp_path / "project", ignore=ignored)
    programs = tmp_path / "python"
    programs.mkdir()
    (programs / "python").symlink_to(Path(sys.base_prefix) / "bin" / Path(sys.executable).resolve().name)
    out = shell(setting_up.code, tmp_path / "project", programs)
    assert '"failed": false' in out


@pytest.mark.skipif(not (PROJECT / ".ci/run").exists(), reason="not part of what is published")
def test_only_what_is_run_by_ci_is_not_run_here():
    (block,) = [block for block in BLOCKS if block.what == "not run"]
    assert block.code.strip() in (PROJECT / ".ci/run").read_text().replace("python3 -m", "python -m")
