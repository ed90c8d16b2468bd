"""Every example of README.md and docs/*.md runs, and prints what the page says it prints.

What a page can count on:

- Its blocks run in order, in one namespace, which begins empty, and in one empty directory.
- ``python`` is pasted at the prompt of ``python -m trio``, so it may `await`. Blank lines end what they end there. All
  of a page is one run of Trio, in virtual time, and takes a few seconds of it: a reader's clock is real. A page that
  talks to threads, processes or servers has a line ``<!-- clock: real -->``.
- ``python`` with a line ``if __name__ == "__main__":`` is a program of its own, and is run as one.
- ``python`` after a line ``<!-- examples/NAME.py -->`` is that file or a part of it, word for word. It is not run here:
  other tests run the files.
- ``pycon`` is typed at the prompt of ``python -m trio``, which answers as the block says, tracebacks included.
- ``sh`` is run by bash, and fails as soon as one of its commands does. What installs something is only read.
- ``text`` right after one of those is what it prints on standard output, and ``...`` in it stands for anything. What
  prints without one is an error: a reader would want to know.

A page that needs a package or a program that is not installed is skipped there.
"""

from __future__ import annotations

import ast
import codeop
import difflib
import inspect
import os
import re
import shutil
import subprocess
import sys
import traceback
from dataclasses import dataclass
from doctest import ELLIPSIS, OutputChecker
from pathlib import Path
from types import ModuleType

import pytest
import trio
from trio.testing import MockClock

PROJECT = Path(__file__).parents[2]
README = PROJECT / "README.md"
PAGES = [README, *sorted((PROJECT / "docs").glob("*.md"))]
LONG = {"beyond", "command", "from-elsewhere", "servers"}  # pages whose blocks take seconds

FENCE = re.compile(r"(?P<indent> *)(?P<ticks>`{3,}|~{3,})(?P<language>[^`\s]*)")
PROMPT = re.compile(r"^(>>>|\.\.\.)( .*)?\n", re.MULTILINE)
MAIN = re.compile(r'^if __name__ == "__main__":$', re.MULTILINE)
INSTALLS = re.compile(r"\b(nox|pip)\b")
READ = {"", "console", "ini", "json", "text", "toml"}
"""Languages of blocks that are only read, but for the `text` after a block that runs."""

PACKAGES = {"distributed", "httpx", "rich", "stamina", "tenacity", "tqdm", "trio_parallel"}
PROGRAMS = {"curl", "jq"}
PATIENCE = 180  # seconds, for a slow machine
LONGEST = 5  # seconds that a reader who pastes a page waits for all of it together

CLOCK = "<!-- clock: real -->\n"
FILE = re.compile(r"<!-- (examples/[\w/]+\.py) -->\n")


@dataclass
class Block:
    page: Path
    line: int  # of its first line of code
    language: str
    code: str
    output: str | None = None  # what the page says it prints
    file: str | None = None  # of which it is a part

    @property
    def place(self):
        return f"{self.page.relative_to(PROJECT)}:{self.line}"

    @property
    def is_program(self):
        return self.language == "python" and MAIN.search(self.code) is not None

    @property
    def runs(self):
        return self.file is None and self.is_run_by_readers

    @property
    def is_run_by_readers(self):
        return self.language in {"python", "pycon"} or (self.language == "sh" and not INSTALLS.search(self.code))


def blocks_of(page):
    """The blocks of a page, and whether they need the real clock."""
    lines = page.read_text().splitlines(keepends=True)
    found = []
    opened = None  # the fence of the block that we are in
    follows = False  # whether nothing stands between here and the block before
    for number, line in enumerate(lines, start=1):
        if opened is None:
            opened = FENCE.match(line)
            if opened is None:
                follows = follows and not line.strip()
            else:
                file = FILE.fullmatch(lines[number - 2]) if number > 1 else None
                found.append(Block(page, number + 1, opened["language"], "", file=file and file[1]))
        elif line.strip() == opened["ticks"]:
            block = found[-1]
            if opened["indent"] and block.language == "python":
                pytest.fail(f"{block.place}: an indented block cannot be run", pytrace=False)
            if follows and block.language == "text" and found[-2].is_run_by_readers:
                found[-2].output = block.code
            opened, follows = None, True
        else:
            found[-1].code += line
    assert opened is None, f"{found[-1].place}: this block has no end"
    return found, CLOCK in lines


def marks(page):
    if re.search(r"^(from|import) distributed", page.read_text(), re.MULTILINE):
        return [pytest.mark.dask]
    return [pytest.mark.slow] if page.stem in LONG else []


@pytest.mark.parametrize("page", [pytest.param(page, id=page.stem, marks=marks(page)) for page in PAGES])
def test_blocks_of_the_page_run_and_print_what_it_says(page, tmp_path, monkeypatch, capsys):
    blocks, is_real = blocks_of(page)
    for block in blocks:
        if block.language not in READ | {"python", "pycon", "sh"} and not block.language.startswith("{"):
            pytest.fail(f"{block.place}: blocks of {block.language!r} are not run here", pytrace=False)
        if re.match(r"\{(code|code-block|sourcecode)\}", block.language):
            pytest.fail(f"{block.place}: this directive would not be run: use a plain fence", pytrace=False)
    blocks = [block for block in blocks if block.runs]
    scripts = " ".join(block.code for block in blocks if block.language == "sh")
    if scripts and sys.platform == "win32":
        pytest.skip("for a POSIX shell")
    for program in PROGRAMS & set(re.findall(r"\w+", scripts)):
        if not shutil.which(program):
            pytest.skip(f"needs {program}")

    monkeypatch.chdir(tmp_path)
    for name in ("http_proxy", "https_proxy", "all_proxy"):  # servers of these pages are on loopback
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)  # where classes look for their annotations

    async def run_page():
        started = trio.current_time()
        for block in blocks:
            if block.language == "python" and not block.is_program:
                await paste(block, module.__dict__)
                out = capsys.readouterr().out
            else:
                out = run_outside(block, tmp_path)
            compare(block, out)
        assert is_real or trio.current_time() - started <= LONGEST, "too long for readers, whose time is not virtual"

    clock = None if is_real else MockClock(autojump_threshold=0)
    try:
        trio.run(run_page, clock=clock)
    except ImportError as exc:
        if exc.name not in PACKAGES:
            raise
        pytest.skip(f"needs {exc.name}")


def statements(block):
    """What the prompt of ``python -m trio`` makes of a block that is pasted there: code objects, one by one."""
    compile_ = codeop.CommandCompiler()
    compile_.compiler.flags |= ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    typed, began = [], block.line
    for number, line in enumerate([*block.code.splitlines(), ""], start=block.line):
        typed.append(line)
        source = "\n".join(typed)
        try:
            complete = compile_(source, block.page.name)
        except SyntaxError as exc:
            place = f"{block.page.relative_to(PROJECT)}:{number}"
            why = "no blank line within a statement, and one after each that has a body"
            pytest.fail(f"{place}: cannot be pasted at a prompt ({why}): {exc}", pytrace=False)
        if all(not line or line.startswith("#") for line in typed):
            typed, began = [], number + 1
        elif complete is not None:
            # Tracebacks name the page and its line.
            flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
            yield compile("\n" * (began - 1) + source + "\n", str(block.page), "single", flags, dont_inherit=True)
            typed, began = [], number + 1
    assert not typed, f"{block.place}: the last statement has no end"


async def paste(block, names):
    for code in statements(block):
        try:
            running = eval(code, names)
            if code.co_flags & inspect.CO_COROUTINE:
                await running
        except ImportError:
            raise
        except Exception as exc:  # noqa: BLE001  # whatever it is
            exc.__traceback__ = exc.__traceback__.tb_next  # without this function
            why = "".join(traceback.format_exception(exc))
        else:
            continue
        pytest.fail(f"{block.place}: the block fails\n{why}", pytrace=False)


def run_outside(block, directory):
    """The output of a program, of a session or of a script, which must succeed."""
    typed, stderr = "", subprocess.PIPE
    if block.is_program:
        (directory / "program.py").write_text(block.code)
        command = [sys.executable, "-W", "error", "program.py"]
    elif block.language == "pycon":
        command, stderr = [sys.executable, "-m", "trio"], subprocess.STDOUT  # tracebacks are part of the session
        typed = "".join(line[4:] or "\n" for line in block.code.splitlines(keepends=True) if PROMPT.match(line))
        block.output = PROMPT.sub("", block.code)
    else:
        command = ["bash", "-euo", "pipefail", "-c", block.code]
    done = run_command(command, directory, Path(sys.executable).parent, typed, stderr)
    if done.returncode:
        missing = re.search(r"ModuleNotFoundError: No module named '(\w+)'", done.stderr)
        if missing and missing[1] in PACKAGES:
            pytest.skip(f"needs {missing[1]}")
        pytest.fail(f"{block.place}: exit code {done.returncode}\n{done.stdout}{done.stderr}", pytrace=False)
    return answers(done.stdout) if typed else done.stdout


def answers(session):
    """What the prompt said between its greeting and the end."""
    _, _, out = session.partition(">>> import trio\n")
    out, _, _ = out.partition("\nnow exiting")
    return re.sub(r"^((>>>|\.\.\.) )+", "", out, flags=re.MULTILINE)


def run_command(command, directory, programs, typed="", stderr=subprocess.PIPE):
    return subprocess.run(
        command,
        cwd=directory,
        env=os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "PYTHONUNBUFFERED": "1"},
        input=typed,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def compare(block, out):
    want = block.output or ""
    if not OutputChecker().check_output(want, out, ELLIPSIS):
        lines = difflib.unified_diff(
            want.splitlines(), out.splitlines(), f"what {block.place} says", "what it prints", lineterm="", n=100
        )
        pytest.fail("\n".join([f"{block.place}: the page says that it prints something else", *lines]), pytrace=False)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_blocks_from_files_are_what_the_files_say(page):
    for block in blocks_of(page)[0]:
        if block.file:
            assert f"\n{block.code}" in f"\n{(PROJECT / 'docs' / block.file).read_text()}", (
                f"{block.place}: {block.file}"
            )


def test_each_example_is_on_a_page():
    """In plain sight: a directive that includes a file is an empty box where the sources are read."""
    shown = {block.file for page in PAGES for block in blocks_of(page)[0]}
    named = " ".join(page.read_text() for page in PAGES)
    for path in (PROJECT / "docs/examples").rglob("*.py"):
        name = path.relative_to(PROJECT / "docs").as_posix()
        assert name in shown or f"docs/{name}" in named, name
    assert "literalinclude" not in named


def virtual_pages():
    for page in PAGES:
        blocks, is_real = blocks_of(page)
        if not is_real and any("current_time" in block.code for block in blocks if block.runs):
            yield page


@pytest.mark.parametrize("page", list(virtual_pages()), ids=lambda page: page.stem)
def test_page_with_times_says_that_they_are_virtual(page):
    assert "virtual time" in page.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("page", [pytest.param(page, id=page.stem, marks=marks(page)) for page in PAGES])
def test_page_can_be_pasted_at_the_prompt(page, tmp_path):
    """All of its blocks, into a real ``python -m trio``, without a failure. What they print may depend on the clock."""
    blocks = [
        block for block in blocks_of(page)[0] if block.runs and block.language == "python" and not block.is_program
    ]
    typed = "".join(f"{block.code}\n" for block in blocks)
    done = run_command([sys.executable, "-m", "trio"], tmp_path, Path(sys.executable).parent, typed)
    missing = re.search(r"ModuleNotFoundError: No module named '(\w+)'", done.stderr)
    if missing and missing[1] in PACKAGES:
        pytest.skip(f"needs {missing[1]}")
    assert "Error" not in done.stderr, done.stderr


# README.md and CONTRIBUTING.md, of which Sphinx knows nothing


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_links_lead_to_files(name):
    text = (PROJECT / name).read_text()
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (PROJECT / link).exists(), link
    for path in re.findall(r"`((?:docs|tests|benchmarks|trio_fanout)/[\w./]*)`", text):
        made_by_nox = path.startswith(("trio_fanout", "docs/_build/"))
        assert made_by_nox or (PROJECT / path).exists(), path


@pytest.mark.skipif(os.environ.get("NOX_CURRENT_SESSION", "docs") != "docs", reason="the session docs does it")
@pytest.mark.skipif(not (PROJECT / "trio_fanout").exists(), reason="there is nothing to install here")
@pytest.mark.skipif(sys.platform == "win32", reason="for a POSIX shell")
def test_setting_up_and_first_job(tmp_path):
    """From a copy of the project to the first checksums, by the commands that the README gives."""
    (setting_up,) = [block for block in blocks_of(README)[0] if ".venv/bin/trio-fanout" in block.code]
    ignored = shutil.ignore_patterns(".*", "__pycache__", "tests", "benchmarks", "docs")
    shutil.copytree(PROJECT, tmp_path / "project", ignore=ignored)
    programs = tmp_path / "python"
    programs.mkdir()
    (programs / "python").symlink_to(Path(sys.base_prefix) / "bin" / Path(sys.executable).resolve().name)
    done = run_command(["bash", "-euo", "pipefail", "-c", setting_up.code], tmp_path / "project", programs)
    assert done.returncode == 0, done.stderr
    assert '"failed": false' in done.stdout


@pytest.mark.skipif(not (PROJECT / ".ci/run").exists(), reason="not part of what is published")
def test_ci_passes_the_tests_by_the_command_of_the_readme():
    (block,) = [block for block in blocks_of(README)[0] if ".venv/bin/nox" in block.code]
    assert block.code.strip() in (PROJECT / ".ci/run").read_text().replace("python3 -m", "python -m")
