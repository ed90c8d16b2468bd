"""Where the figures come from: the machine, the versions, the commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path

PACKAGES = ("trio", "anyio", "aiometer", "trio-parallel", "distributed")
PROGRAMS = {"go": ["go", "version"], "node": ["node", "--version"]}


def about() -> dict[str, object]:
    versions = {platform.python_implementation(): platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    for name, command in PROGRAMS.items():
        versions[name] = output(command) if shutil.which(name) else "not installed"
    return {
        "cpu": cpu(),
        "cpus": os.cpu_count(),
        "system": platform.system(),
        "commit": commit(),
        "versions": versions,
    }


def described(about: dict[str, object]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return f"{versions}\n{about['cpus']} CPUs, {about['cpu']}, commit {about['commit']}; medians (lowest to highest)"


def commit() -> str:
    return output(["git", "describe", "--always", "--dirty"])


def cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip().removeprefix("go version ").removeprefix("v")
