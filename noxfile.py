"""The checks of this project: `nox` runs those that a change needs first, `nox -t full` all others.

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
nox.options.error_on_missing_interpreters = True  # no session of the short run needs another Python
nox.options.sessions = ["plan", "lint", "types", "coverage"]

os.environ["PIP_NO_COMPILE"] = "1"  # most of what is installed is never imported

PROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PROJECT)  # from the classifiers

TESTS = nox.project.dependency_groups(PROJECT, "tests")
TYPES = nox.project.dependency_groups(PROJECT, "types")
LINT = nox.project.dependency_groups(PROJECT, "lint")
BENCH = nox.project.dependency_groups(PROJECT, "bench")
DOCS = nox.project.dependency_groups(PROJECT, "docs")
WHEEL = nox.project.dependency_groups(PROJECT, "wheel")

EXTRAS = "process,cli"  # what the suite needs, apart from the tests marked dask
QUICK = "not dask and not slow"  # the rest runs once, on the newest Python
PARALLEL = [
    "-n",
    "auto",
    "--dist",
    "worksteal",
]  # a process for each CPU; an idle one takes over what waits for another


@nox.session(venv_backend="none")
def plan(session: nox.Session) -> None:
    """What a plain `nox` does, and how long it takes."""
    session.log("Style, types, then the tests (but the slowest) with coverage: two to three minutes on two idle CPUs.")
    session.log("`nox -t full` runs what is left.")


@nox.session(venv_backend="none", tags=["full"])
def plan_full(session: nox.Session) -> None:
    """What `nox -t full` does, and how long it takes."""
    session.log(f"The tests on Python {', '.join(PYTHONS)}, with the oldest dependencies and from the wheel;")
    session.log("Dask, the documentation, the benchmarks: about 10 minutes on two CPUs.")


# In a full run the first Python has the suite in `tests_oldest`, the second in `wheel`.
@nox.session
@nox.parametrize("python", [nox.param(python, tags=["full"] if python in PYTHONS[2:] else []) for python in PYTHONS])
def tests(session: nox.Session) -> None:
    """The suite, against the installed package; of its slow tests, all on the newest Python."""
    session.install(f".[{EXTRAS}]", *TESTS)
    marked = "not dask" if session.python == PYTHONS[-1] else QUICK
    session.run("pytest", *PARALLEL, "-m", marked, *session.posargs)


@nox.session(python=PYTHONS[0], tags=["full"])
def tests_oldest(session: nox.Session) -> None:
    """The suite with the oldest version of everything that pyproject.toml states a floor for."""
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
    """The requirement pinned to its floor, or None where it states none."""
    parsed = Requirement(requirement)
    floors = [spec.version for spec in parsed.specifier if spec.operator == ">="]
    return f"{parsed.name}=={floors[0]}" if floors else None


@nox.session
def coverage(session: nox.Session) -> None:
    """The suite, with every line and branch of the package counted: all of them must have run."""
    # In place, so that subprocesses and the report speak of the same files.
    session.install("--editable", f".[{EXTRAS}]", *TESTS)
    session.run("coverage", "erase")
    session.run("coverage", "run", "-m", "pytest", *PARALLEL, "-m", QUICK, *session.posargs)
    session.run("coverage", "combine", "--quiet")
    session.run("coverage", "report")


@nox.session(tags=["full"])
def dask(session: nox.Session) -> None:
    """The tests that run a Dask cluster."""
    session.install(f".[{EXTRAS},dask]", *TESTS)
    # 5: there are none.
    session.run("pytest", "-m", "dask", *session.posargs, success_codes=[0, 5])


@nox.session(tags=["full"])
def docs(session: nox.Session) -> None:
    """The site, in docs/_build: no warnings, no dead links within it. And the commands of the README that set it up."""
    session.install(f".[{EXTRAS}]", *DOCS, *TESTS)
    shutil.rmtree("docs/_build", ignore_errors=True)
    session.run("sphinx-build", "-W", "--keep-going", "-n", "-b", "html", "docs", "docs/_build", *session.posargs)
    session.run("pytest", "-k", "setting_up", "tests/docs/test_docs.py")


@nox.session(tags=["full"])
def pictures(session: nox.Session) -> None:
    """The pictures of the documentation show what the runs look like; `-- --draw` draws them anew."""
    session.install(".")
    session.run("python", "docs/pictures.py", *(session.posargs or ["--check"]))


@nox.session
def lint(session: nox.Session) -> None:
    """Style: ruff's rules and format, and flake8-async."""
    session.install(*LINT)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    # For the package also rules that are off unless asked for, such as no bare async generators. Not 102 and 91x: an
    # `__aexit__` awaits its nursery, and that public calls are checkpoints is for tests to show: private ones need not.
    session.run("flake8", "--select=ASYNC", "--extend-ignore=ASYNC102,ASYNC91", "trio_fanout")
    # The tests do on purpose what it warns of.
    session.run("flake8", "--select=ASYNC", "--extend-ignore=ASYNC9,ASYNC124", "benchmarks", "noxfile.py")


@nox.session
def types(session: nox.Session) -> None:
    """Types: mypy and pyright, both strict, over the package and over tests/typing, and nothing public untyped."""
    session.install("--editable", f".[{EXTRAS}]", *TYPES)
    session.run("mypy")
    session.run("pyright")
    session.run("pyright", "--ignoreexternal", "--verifytypes", "trio_fanout")


@nox.session(tags=["full"])
def bench(session: nox.Session) -> None:
    """The benchmarks, each just long enough to see that it works, and by how much instructions have moved."""
    session.install(".[process]", *BENCH)
    session.run("python", "benchmarks/run.py", "--quick", *session.posargs)
    session.run("python", "benchmarks/instructions.py")


@nox.session
def mutants(session: nox.Session) -> None:
    """Small changes to the package, one at a time: a test should fail. An hour; less by `-- --mutate FILE`."""
    session.install("--editable", f".[{EXTRAS}]", *TESTS)
    only = ["-m", "not slow or hypothesis"]  # the models see most, whatever they take
    env = {"PYTHONPATH": "tests/tools", "CI": "1"}
    session.run("pytest", "-p", "mutants", "-p", "no:xdist", "-q", *only, *session.posargs, env=env)


@nox.session(python=PYTHONS[1], tags=["full"])
def wheel(session: nox.Session) -> None:
    """What is published: the wheel by itself, and the suite of the source distribution against it."""
    tmp = Path(session.create_tmp()).resolve()
    shutil.rmtree(tmp / "dist", ignore_errors=True)
    shutil.rmtree(tmp / "sdist", ignore_errors=True)

    session.install(*WHEEL)
    session.run("python", "-m", "build", "--outdir", str(tmp / "dist"))
    (built,) = (tmp / "dist").glob("*.whl")
    (sdist,) = (tmp / "dist").glob("*.tar.gz")
    session.run("twine", "check", "--strict", str(built), str(sdist))

    # Installed by itself, away from this directory.
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

    # The suite that was published, against the wheel that was published.
    session.run(python, "-m", "pip", "install", "--quiet", f"{built}[{EXTRAS}]", *TESTS, external=True)
    session.run(python, "-m", "pytest", *PARALLEL, "-m", QUICK, *session.posargs, external=True)
