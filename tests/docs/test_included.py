"""The programs that pages include run, and print what the page says."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLES = DOCS / "examples"
TUTORIAL = EXAMPLES / "tutorial"

INCLUDED = r"^<!-- examples/tutorial/(\w+\.py) -->\n```python\n.*?^```$\n\n```text\n(.*?)^```$"
OUTPUT = dict(re.findall(INCLUDED, (DOCS / "tutorial.md").read_text(), re.DOTALL | re.MULTILINE))


IN_VIRTUAL_TIME = """
import runpy, sys, trio
from trio.testing import MockClock

run = trio.run
trio.run = lambda fn, *args: run(fn, *args, clock=MockClock(autojump_threshold=0))
runpy.run_path(sys.argv[1], run_name="__main__")
"""
"""Runs a program with the clock of a test, so that what it prints does not depend on how busy the machine is."""


def run(directory, *command):
    command = [sys.executable, "-W", "error", *command]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=60, check=False)


def test_each_program_of_the_tutorial_is_on_the_page_with_its_output():
    assert set(OUTPUT) == {path.name for path in TUTORIAL.glob("*.py")}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(OUTPUT))
def test_program_of_the_tutorial_prints_what_the_page_says(name, tmp_path):
    done = run(tmp_path, "-c", IN_VIRTUAL_TIME, str(TUTORIAL / name))
    assert done.returncode == 0, done.stderr
    assert done.stdout == OUTPUT[name]


@pytest.fixture
def suite(tmp_path):
    """A copy of the example of a test suite."""
    return shutil.copytree(EXAMPLES / "testing", tmp_path / "testing", ignore=shutil.ignore_patterns("__pycache__"))


def run_suite(suite):
    return run(suite, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "-c", os.devnull, str(suite))


@pytest.mark.slow
def test_the_tests_of_the_page_on_testing_pass(suite):
    done = run_suite(suite)
    assert done.returncode == 0, done.stdout
    tests = set(re.findall(r"^(?:async )?def (test_\w+)", (suite / "test_download.py").read_text(), re.MULTILINE))
    assert f"{len(tests)} passed" in done.stdout
    # And all of them are on the page.
    assert tests <= set(re.findall(r"^(?:async )?def (test_\w+)", (DOCS / "testing.md").read_text(), re.MULTILINE))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("right", "wrong", "failed"),
    [
        ("limit=server", "limit=len(urls) or 1", "no_more_requests_at_once"),
        ("limit=server", "limit=1", "no_token_idles"),
        ("item_timeout=10, ", "", "hangs"),
        ("urls, results, strict=True", "urls, reversed(results), strict=True", "come_by_url"),
    ],
)
def test_the_tests_of_the_page_on_testing_find_a_mistake(suite, right, wrong, failed):
    module = suite / "download.py"
    source = module.read_text()
    assert right in source
    module.write_text(source.replace(right, wrong))
    done = run_suite(suite)
    assert done.returncode == 1, done.stdout
    assert any(failed in line for line in done.stdout.splitlines() if line.startswith("FAILED"))
