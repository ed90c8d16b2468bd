"""The checks of this project: `nox` runs those that every change needs, `nox -t full` the others.

`nox -l` lists them, `nox -s NAME` runs one.
"""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path

import nox
from packaging.requirements import Requirement

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "venv"
nox.options.error_on_missing_interpreters = False  # a session whose Python is not installed is skipped, with a warning
nox.options.sessions = ["plan", "lint", "types", "tests"]

os.environ["PIP_NO_COMPILE"] = "1"  # most of what is installed is never imported

PROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PROJECT)  # from the classifiers

TESTS = nox.project.dependency_groups(PROJECT, "tests")
TYPES = nox.project.dependency_groups(PROJECT, "types")
LINT = nox.project.dependency_groups(PROJECT, "lint")
LINT_ASYNC = nox.project.dependency_groups(PROJECT, "lint_async")
BENCH = nox.project.dependency_groups(PROJECT, "bench")
DOCS = nox.project.dependency_groups(PROJECT, "docs")
PICTURES = nox.project.dependency_groups(PROJECT, "pictures")
WHEEL = nox.project.dependency_groups(PROJECT, "wheel")

EXTRAS = "process,cli"  # what the suite needs, apart from the tests marked dask
QUICK = "not dask and not slow"  # the session `slow` runs the others
# A process for each CPU. An idle one takes over tests that wait for another.
PARALLEL = ["-n", "auto", "--dist", "worksteal"]


@nox.session(venv_backend="none")
def plan(session: nox.Session) -> None:
    """Says what a plain `nox` does, and how long it takes."""
    session.log("Style, types, and the quick tests: under three minutes on two idle CPUs.")
    session.log("`nox -t full` runs the other checks.")


@nox.session(venv_backend="none", tags=["full"])
def plan_full(session: nox.Session) -> None:
    """Says what `nox -t full` does, and how long it takes."""
    session.log("The quick tests with coverage, on other Pythons, with the oldest dependencies, and from the wheel;")
    session.log("slow tests, Dask, documentation, benchmarks: about twenty minutes on two CPUs.")


@nox.session
def tests(session: nox.Session) -> None:
    """The quick tests, with the package installed."""
    session.install(f".[{EXTRAS}]", *TESTS)
    session.run("pytest", *PARALLEL, "-m", QUICK, *session.posargs)


# In a full run, `coverage` runs the suite on this Python, `tests_oldest` on the second, and `wheel` on the third.
@nox.session
@nox.parametrize("python", [nox.param(python, tags=["full"] if python in PYTHONS[3:] else []) for python in PYTHONS])
def tests_on(session: nox.Session) -> None:
    """The quick tests, on a Python of your choice."""
    tests(session)


@nox.session(python=PYTHONS[1], tags=["full"])
def tests_oldest(session: nox.Session) -> None:
    """The quick tests, with the oldest version of everything that pyproject.toml sets a floor for."""
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [
        *PROJECT["project"]["dependencies"],
        *TESTS,
        *(need for extra in EXTRAS.split(",") for need in extras[extra]),
    ]
    constraints = Path(session.create_tmp()) / "oldest.txt"
    constraints.write_text("".join(f"{line}\n" for line in map(_floor, wanted) if line))
    session.install(f".[{EXTRAS}]", *TESTS, "--constraint", str(constraints))
    session.run("pytest", *PARALLEL, "-m", QUICK, *session.posargs)


def _floor(requirement: str) -> str | None:
    """The requirement pinned to its floor, or None if it has none."""
    parsed = Requirement(requirement)
    floors = [spec.version for spec in parsed.specifier if spec.operator == ">="]
    return f"{parsed.name}=={floors[0]}" if floors else None


@nox.session(tags=["full"])
def slow(session: nox.Session) -> None:
    """The slow tests, and those that run a Dask cluster."""
    session.install(f".[{EXTRAS},dask]", *TESTS)
    session.run("pytest", *PARALLEL, "-m", f"not ({QUICK})", *session.posargs)


@nox.session(tags=["full"])
def coverage(session: nox.Session) -> None:
    """The quick tests must run every line and branch of the package."""
    # Installed in place, so that subprocesses and the report name the same files.
    session.install("--editable", f".[{EXTRAS}]", *TESTS)
    session.run("coverage", "erase")
    session.run("coverage", "run", "-m", "pytest", *PARALLEL, "-m", QUICK, *session.posargs)
    session.run("coverage", "combine", "--quiet")
    session.run("coverage", "report")


@nox.session(tags=["full"])
def docs(session: nox.Session) -> None:
    """Builds the site in docs/_build without warnings; checks its search, its pictures, the README's first steps."""
    session.install(f".[{EXTRAS}]", *DOCS, *PICTURES, *TESTS)
    shutil.rmtree("docs/_build", ignore_errors=True)
    session.run("sphinx-build", "-W", "--keep-going", "-n", "-b", "html", "docs", "docs/_build", *session.posargs)
    session.run("pytest", "-k", "setting_up or test_site or test_figures or timeline", "tests/docs")
    session.run("python", "docs/pictures.py", "--check")


@nox.session
def pictures(session: nox.Session) -> None:
    """Redraws the pictures of the documentation, from the runs that they show."""
    session.install(".", *PICTURES)
    session.run("python", "docs/pictures.py", "--draw")


@nox.session
def lint(session: nox.Session) -> None:
    """Style: ruff's rules and format."""
    session.install(*LINT)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session(tags=["full"])
def lint_async(session: nox.Session) -> None:
    """Style: the rules of flake8-async, which takes longer than ruff."""
    session.install(*LINT_ASYNC)
    # In the package, even the optional rules, such as no bare async generators. But not 102, because an `__aexit__`
    # awaits its nursery, nor 91x, because only public calls are checkpoints, which tests show.
    session.run("flake8", "--select=ASYNC", "--extend-ignore=ASYNC102,ASYNC91", "trio_fanout")
    # Not the tests: they do on purpose what it warns about.
    session.run("flake8", "--select=ASYNC", "--extend-ignore=ASYNC9,ASYNC124", "benchmarks", "noxfile.py")


@nox.session
def types(session: nox.Session) -> None:
    """Types: mypy and pyright, both strict, over the package and tests/typing; everything public is typed."""
    session.install("--editable", f".[{EXTRAS}]", *TYPES)
    session.run("mypy")
    session.run("pyright")
    session.run("pyright", "--ignoreexternal", "--verifytypes", "trio_fanout")


@nox.session(tags=["full"])
def bench(session: nox.Session) -> None:
    """The benchmarks, just long enough to see that they work, and how the number of instructions has changed."""
    session.install(".[process]", *BENCH)
    session.run("python", "benchmarks/run.py", "--quick", *session.posargs)
    session.run("python", "benchmarks/instructions.py")


@nox.session
def mutants(session: nox.Session) -> None:
    """Changes the package in one place after another: a test should fail. Hours, or `-- --mutate FILE`."""
    session.install("--editable", f".[{EXTRAS}]", *TESTS)
    env = {"PYTHONPATH": "tests/tools", "CI": "1"}
    session.run("pytest", "-p", "mutants", "-p", "no:xdist", "-q", *session.posargs, env=env)


@nox.session
def orders(session: nox.Session) -> None:
    """Random plans over all calls, under many orders of Trio's tasks: a minute; more by `-- --minutes N`.

    `-- --power` does that to about ninety changed engines instead: what is wrong in them should be found.
    """
    session.install("--editable", ".")
    if "--power" in session.posargs:
        session.run("python", "tests/tools/order_mutants.py", *(arg for arg in session.posargs if arg != "--power"))
    else:
        session.run("python", "-m", "orders", *session.posargs, env={"PYTHONPATH": "tests"})


@nox.session(python=PYTHONS[2], tags=["full"])
def wheel(session: nox.Session) -> None:
    """What is published: the wheel by itself, then with the quick tests from the source distribution."""
    tmp = Path(session.create_tmp()).resolve()
    shutil.rmtree(tmp / "dist", ignore_errors=True)
    shutil.rmtree(tmp / "sdist", ignore_errors=True)

    session.install(*WHEEL)
    session.run("python", "-m", "build", "--outdir", str(tmp / "dist"))
    (built,) = (tmp / "dist").glob("*.whl")
    (sdist,) = (tmp / "dist").glob("*.tar.gz")
    session.run("twine", "check", "--strict", str(built), str(sdist))

    # The wheel by itself, away from this directory.
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp / "sdist", filter="data")
    (unpacked,) = (tmp / "sdist").iterdir()
    shutil.rmtree(unpacked / "trio_fanout")
    session.run("python", "-m", "venv", "--clear", str(tmp / "venv"))
    python = shutil.which("python", path=f"{tmp}/venv/bin{os.pathsep}{tmp}/venv/Scripts")
    assert python is not None
    session.chdir(unpacked)
    session.run(python, "-m", "pip", "install", "--quiet", str(built), external=True)
    session.run(python, "tests/check_wheel.py", external=True)

    # The published tests, against the published wheel.
    session.run(python, "-m", "pip", "install", "--quiet", f"{built}[{EXTRAS}]", *TESTS, external=True)
    session.run(python, "-m", "pytest", *PARALLEL, "-m", QUICK, *session.posargs, external=True)
