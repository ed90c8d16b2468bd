"""The programs of the tutorial run, and print what the page says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
PROGRAMS = DOCS / "examples" / "tutorial"

INCLUDED = r"^```\{literalinclude\} examples/tutorial/(\w+\.py)\n[^`]*^```$\n\n```text\n(.*?)^```$"
OUTPUT = dict(re.findall(INCLUDED, (DOCS / "tutorial.md").read_text(), re.DOTALL | re.MULTILINE))


def test_each_program_is_on_the_page_with_its_output():
    assert set(OUTPUT) == {path.name for path in PROGRAMS.glob("*.py")}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(OUTPUT))
def test_program_prints_what_the_page_says(name, tmp_path):
    command = [sys.executable, "-W", "error", str(PROGRAMS / name)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == OUTPUT[name]
