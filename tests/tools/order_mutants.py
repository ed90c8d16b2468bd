"""The power of the campaign in tests/orders: it should find the changes to the engine in order_mutants.toml.

    python tests/tools/order_mutants.py [--minutes 2] [PART ...]

Each change is made to a copy of the package, and the campaign is run on that, for up to two minutes of CPU time. Most
are found in a few seconds. If there are PARTs, only changes are tried that contain one of them, in the name of the file
or in the text.
"""

import argparse
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
PACKAGE = HERE.parents[1] / "trio_fanout"
SPINS = 20  # seconds of CPU time, above those of the campaign, until a run that never ends is ended

CAMPAIGN = """
import sys
sys.path[:0] = {path}
import trio_fanout
assert trio_fanout.__file__.startswith(sys.path[0]), trio_fanout.__file__
from orders import main
sys.argv[1:] = ["--minutes", "{minutes}", "--seed", "0"]
main()
"""


def change(folder, mutant):
    """Copy the package into `folder`, with the change."""
    shutil.copytree(PACKAGE, folder / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    file = folder / PACKAGE.name / mutant["file"]
    text = file.read_text()
    for old, new in [(mutant["old"], mutant["new"]), *([mutant["also"]] if "also" in mutant else [])]:
        if text.count(old) != 1:
            sys.exit(f"{mutant['file']} should have this once, and has it {text.count(old)} times:\n{old}")
        text = text.replace(old, new)
    file.write_text(text)


def find(folder, minutes):
    """Run the campaign on the package in `folder`. Returns what it has found, or None."""

    def limit_time():
        seconds = int(60 * minutes + SPINS)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))

    program = CAMPAIGN.format(path=[str(folder), str(HERE.parent)], minutes=minutes)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, preexec_fn=limit_time, cwd=folder, check=False
    )
    if done.returncode == 0:
        return None
    if done.returncode == -signal.SIGXCPU:
        return "it never ends"
    wrong = [line for line in done.stderr.splitlines() if "Wrong: " in line]
    return wrong[-1].partition("]: ")[2] if wrong else sys.exit(f"exit code {done.returncode}\n{done.stderr}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=2, help="of CPU time for each change (default: 2)")
    parser.add_argument("parts", nargs="*", metavar="PART")
    args = parser.parse_args()
    mutants = tomllib.loads((HERE / "order_mutants.toml").read_text())["mutant"]
    chosen = [one for one in mutants if not args.parts or any(part in str(one) for part in args.parts)]
    missed = 0
    for number, mutant in enumerate(chosen, 1):
        with tempfile.TemporaryDirectory() as folder:
            change(Path(folder), mutant)
            before = os.times().children_user
            found = find(Path(folder), args.minutes)
            took = os.times().children_user - before
        print(f"{number:3} {took:5.1f} s  {mutant['file']}: {found or 'MISSED'}", flush=True)
        if found is None:
            missed += 1
            print(mutant["old"].strip("\n"), "    --->", mutant["new"].strip("\n"), sep="\n", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} found")
    sys.exit(missed > 0)


if __name__ == "__main__":
    main()
