"""Run the quick tests on the supported Pythons that this machine lacks, taken from Debian unstable.

``python .ci/newer_pythons.py [ARGUMENTS OF PYTEST]``, as root. debootstrap sets up a Debian unstable in a folder of the
user's cache, where it stays for the next time: a minute, and then two to three for each Python. Without root,
debootstrap or a network, nothing is tested, and the last line says so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
ROOT = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trio-fanout" / "debian-unstable"
EXTRAS = ["process", "cli"]
# As noxfile.py runs them. The test of setting up installs from an index, and there is no network inside.
PYTEST = ["-q", "-p", "no:cacheprovider", "-n", "auto", "--dist", "worksteal"]
QUICK = ["-m", "not dask and not slow", "-k", "not setting_up"]
# The mounts are visible to the command only, and disappear with it.
ENTER = 'mount --rbind /proc "$0/proc"; mount --rbind /dev "$0/dev"; exec chroot "$0" "$@"'
ENVIRONMENT = ["PATH=/usr/bin:/bin", "HOME=/root", "LANG=C.UTF-8", f"CI={os.environ.get('CI', '')}"]


def main(options: list[str]) -> None:
    settings = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    versions = [version for version in supported(settings) if not is_here(version)]
    if not versions:
        skip("this machine has every supported Python")
    if reason := obstacle():
        skip(f"no tests on Python {' and '.join(versions)}: {reason}")
    set_up(versions)
    copy_sources()
    failed = [version for version in versions if not passes(version, requirements(settings), options)]
    if failed:
        sys.exit(f"newer_pythons: the tests fail on Python {' and '.join(failed)}")


def skip(reason: str) -> None:
    print(f"newer_pythons: SKIPPED, {reason}")
    sys.exit()


def supported(settings: dict[str, Any]) -> list[str]:
    """The Pythons that the classifiers name."""
    last = (classifier.rpartition(" :: ")[2] for classifier in settings["project"]["classifiers"])
    return [version for version in last if version.startswith("3.")]


def is_here(version: str) -> bool:
    """Whether nox finds this Python; pyenv may have a command for one that is not in use."""
    command = shutil.which(f"python{version}")
    return command is not None and succeeds(command, "--version")


def succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def obstacle() -> str | None:
    """Why Debian unstable cannot be set up here, or None."""
    if not hasattr(os, "geteuid") or os.geteuid():
        return "chroot needs root"
    if not shutil.which("debootstrap"):
        return "debootstrap is not installed"
    if not succeeds("unshare", "--mount", "true"):
        return "mounting is not allowed"
    return None


def set_up(versions: list[str]) -> None:
    """Debian unstable with these Pythons, in `ROOT`."""
    complete = ROOT / "complete"  # written last; names the Pythons
    if complete.exists() and complete.read_text() == " ".join(versions):
        return
    shutil.rmtree(ROOT, ignore_errors=True)
    ROOT.mkdir(parents=True)
    packages = ",".join(f"python{version}-venv" for version in versions)
    print(f"newer_pythons: setting up Debian unstable in {ROOT}", flush=True)
    command = ["debootstrap", "--variant=minbase", f"--include={packages}", "sid", ROOT]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:  # most likely there is no network
        print(done.stdout[-2000:])
        skip("debootstrap cannot set up Debian unstable")
    complete.write_text(" ".join(versions))


def copy_sources() -> None:
    """What git knows or would add, as it is now."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    sources = ROOT / "src"
    shutil.rmtree(sources, ignore_errors=True)
    for name in listed.split("\0")[:-1]:
        if (PROJECT / name).exists():  # not deleted since
            (sources / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / name, sources / name)


def requirements(settings: dict[str, Any]) -> list[str]:
    """What the suite needs, and what building the package needs."""
    extras = settings["project"]["optional-dependencies"]
    return [
        *settings["build-system"]["requires"],
        *settings["project"]["dependencies"],
        *(need for extra in EXTRAS for need in extras[extra]),
        *settings["dependency-groups"]["tests"],
    ]


def passes(version: str, needs: list[str], options: list[str]) -> bool:
    """Whether the suite passes on this Python."""
    # Downloaded outside, where certificates, proxies and mirrors are configured; installed inside, without any of them.
    wheels, venv = f"wheels-{version}", f"/venv-{version}"
    pip_download = [sys.executable, "-m", "pip", "download", "-qq", "--dest", f"{ROOT}/{wheels}"]
    subprocess.run([*pip_download, "--python-version", version, "--only-binary=:all:", *needs], check=True)
    pip_install = [f"{venv}/bin/pip", "install", "-qq", "--no-index", "--find-links", f"/{wheels}"]
    inside(f"python{version}", "-m", "venv", "--clear", venv).check_returncode()
    inside(*pip_install, *needs).check_returncode()
    inside(*pip_install, "--no-build-isolation", "--no-deps", "/src").check_returncode()
    inside(f"{venv}/bin/python", "--version").check_returncode()
    return inside(f"{venv}/bin/pytest", *PYTEST, *QUICK, *options).returncode == 0


def inside(*command: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command in that Debian, in the folder of the sources."""
    enter = ["unshare", "--mount", "sh", "-euc", ENTER, ROOT]
    return subprocess.run([*enter, "env", "-i", "-C", "/src", *ENVIRONMENT, *command], check=False)


if __name__ == "__main__":
    main(sys.argv[1:])
