"""What is published, and what importing it brings along."""

import subprocess
import sys
from importlib.metadata import entry_points, metadata, requires, version
from importlib.resources import files
from inspect import ismodule

import pytest

import trio_fanout

PUBLIC = [name for name in trio_fanout.__all__ if name != "DEFAULT_LIMIT"]
RUNTIME = {"trio", "attrs", "outcome"}


def test_version_is_that_of_the_installed_distribution():
    assert trio_fanout.__version__ == version("trio-fanout")


def test_typed_marker_is_shipped():
    assert (files(trio_fanout) / "py.typed").is_file()


def test_all_is_complete():
    """Every public name is in `__all__`, once, and nothing else. (ruff checks that it is sorted.)"""
    public = {name for name, value in vars(trio_fanout).items() if not (name.startswith("_") or ismodule(value))}
    assert sorted(trio_fanout.__all__) == sorted(public - {"annotations", "TYPE_CHECKING"})


@pytest.mark.parametrize("name", PUBLIC)
def test_public_object_is_named_after_the_package(name):
    """So that tracebacks, documentation and pickles speak of `trio_fanout`, not of private modules."""
    obj = getattr(trio_fanout, name)
    assert (obj.__module__, obj.__qualname__) == ("trio_fanout", name)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_object_is_documented(name):
    assert len(getattr(trio_fanout, name).__doc__.splitlines()) > 1


def test_wheel_needs_trio_attrs_and_outcome_alone():
    needed = {need.split(">=")[0] for need in requires("trio-fanout") or () if "extra ==" not in need}
    assert needed == RUNTIME


def test_extras_are_those_documented():
    assert set(metadata("trio-fanout").get_all("Provides-Extra") or ()) == {"all", "cli", "dask", "process"}


def test_command_is_installed():
    """The console script names a function that is there."""
    (script,) = (entry for entry in entry_points(group="console_scripts") if entry.name == "trio-fanout")
    assert callable(script.load())


def imported_by(statement):
    """The modules that `statement` imports in a fresh interpreter, once Trio, attrs and outcome are there."""
    code = f"import sys, trio, attrs, outcome; known = set(sys.modules); {statement}; print(*set(sys.modules) - known)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_brings_nothing_but_the_runtime_dependencies():
    """No extra, and nothing that only the command line needs."""
    tops = {module.partition(".")[0] for module in imported_by("import trio_fanout")}
    assert tops - {"trio_fanout", "trio", "attr", "attrs", "outcome"} <= sys.stdlib_module_names - {"argparse"}


def test_import_leaves_the_command_line_alone():
    assert not {module for module in imported_by("import trio_fanout") if module.startswith("trio_fanout._cli")}
