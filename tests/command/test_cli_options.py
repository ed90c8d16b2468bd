"""Options: their other names, what is said to those who come from xargs, and the help."""

import os
import re
import sys
from pathlib import Path

import pytest

from cli_helpers import Cli
from trio_fanout._cli._options import parse

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the command needs POSIX")


@pytest.fixture(autouse=True)
def _in_a_directory_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def cli(capfdbinary):
    return Cli(capfdbinary)


@pytest.mark.parametrize("name", ["-j", "--parallel", "-P", "--jobs", "--max-procs"])
@pytest.mark.parametrize("command", ["map", "do", "fan-out"])
def test_names_of_how_many_run_at_once(command, name):
    assert parse([command, name, "7", "true"]).parallel == 7
    assert parse([command, f"{name}7" if len(name) == 2 else f"{name}=7", "true"]).parallel == 7


@pytest.mark.parametrize("name", ["--items", "-a", "--arg-file"])
def test_names_of_the_file_with_the_items(cli, name, tmp_path):
    (tmp_path / "list").write_text("a\nb\n")
    assert cli("map", name, "list", "true", stdin="c\n").column("item") == ["a", "b"]
    assert cli("map", name, "-", "true", stdin="c\n").column("item") == ["c"]


def test_the_defaults():
    options = parse(["map", "true"])
    assert (options.max_failures, options.output, options.ordered, options.progress) == (1, "json", True, True)
    assert (options.items, options.format, options.batch, options.retries) == (None, "lines", None, None)
    assert parse(["do", "true"]).output == "none"
    assert parse(["map", "-k", "true"]).max_failures == float("inf")
    assert parse(["map", "--max-failures", "3", "true"]).max_failures == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-I{}", "echo", "{}"], "there is no -I here: {} in an argument"),
        (["-I", "{}", "echo", "{}"], "there is no -I here: {} in an argument"),
        (["-L", "1", "echo"], "there is no -L here: an item is a line, and -n N"),
        (["-l5", "echo"], "there is no -l here: an item is a line, and -n N"),
        (["-d", ",", "echo"], "there is no -d here: items end with a newline"),
        (["-d,", "--", "echo"], "there is no -d here: items end with a newline"),
        (["echo", ":::", "a", "b"], "there is no ::: here: items are the lines of standard input, or of a file"),
        (["-k", "--max-failures", "2", "echo"], "--max-failures N ends the run after N failures, and -k never does"),
        (["--max-failures", "0", "echo"], "argument --max-failures: must be a whole number, 1 or more, got '0'"),
    ],
)
@pytest.mark.parametrize("command", ["map", "do"])
def test_what_others_have_is_explained(cli, command, arguments, message):
    ran = cli(command, *arguments, stdin="a\n")
    assert (ran.code, ran.out) == (2, b"")
    assert f"trio-fanout {command}: error: {message}" in ran.err


@pytest.mark.parametrize("arguments", [["--", "echo", ":::", "a"], ["echo", "--", ":::", "a"]])
def test_colons_after_two_dashes_are_words(cli, arguments):
    assert cli("map", *arguments, stdin="b\n").column("stdout")[0].endswith("::: a b\n")


@pytest.mark.parametrize("words", [["wc", "-l"], ["--", "wc", "-l"], ["wc", ":::", "x"]])
def test_commands_of_fan_out_that_are_not_quoted_are_seen(cli, words):
    ran = cli("fan-out", *words, stdin="a\n")
    assert (ran.code, ran.out) == (2, b"")
    assert f"error: '{words[-1] if words[1] != ':::' else ':::'}' is not a command line: quote each one" in ran.err


def test_unordered_is_for_map_only(cli):
    for command in ("do", "fan-out"):
        ran = cli(command, "--unordered", "true")
        assert ran.code == 2
        assert "unrecognized arguments: --unordered" in ran.err


@pytest.mark.parametrize("columns", [None, "40", "300"])
@pytest.mark.parametrize("command", ["map", "do", "fan-out", None])
def test_help_fits_eighty_columns_and_has_only_options_that_there_are(cli, command, columns, monkeypatch):
    if columns is not None:
        monkeypatch.setitem(os.environ, "COLUMNS", columns)
    ran = cli(*([command] if command else []), "--help")
    out = ran.out.decode()
    assert ran.code == 0
    assert max(map(len, out.splitlines())) <= 80
    for name in set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", out)) - {"--help", "--version"}:
        assert "unrecognized" not in cli(command, name, "1", "true").err
    missing = {"map": [], "do": ["--output", "--unordered"], "fan-out": ["--items", "-n", "-0", "--unordered"]}
    for name in missing.get(command, []):
        assert not re.search(rf"(?<![\w-]){name}\b", out)


def test_help_says_how_an_array_is_read(cli):
    assert "JSON array, which is read whole" in " ".join(cli("map", "--help").out.decode().split())


def test_the_page_lists_each_option_with_an_anchor(cli):
    page = (Path(__file__).parents[2] / "docs/command.md").read_text().partition("## All options")[2]
    for command in ("map", "do", "fan-out"):
        for line in cli(command, "--help").out.decode().splitlines():
            if re.match(r"  -", line):
                for name in re.findall(r"(?<![\w-])--?[\w-]+", line.partition("   ")[0]):
                    assert re.search(rf"^- <a id=.*`{name}\b.*:", page, re.MULTILINE), name
