"""The programs in docs/examples, each run as a reader would run it."""

import json
import os
import re
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

PROJECT = Path(__file__).parents[2]
EXAMPLES = PROJECT / "docs" / "examples"
pytestmark = pytest.mark.slow

PATIENCE = 60  # seconds, for a slow machine
TESTED_IN = ("test_examples.py", "test_programs.py")

FINISHING = "finishing what is running; Ctrl-C again to give up\n"


def arguments(name, directory):
    """What `subprocess` needs to run an example in a directory of its own."""
    return {"args": [sys.executable, "-W", "error", str(EXAMPLES / name)], "cwd": directory, "text": True}


def run(name, directory):
    done = subprocess.run(**arguments(name, directory), capture_output=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_example_is_short_and_has_a_test(path):
    assert len(path.read_text().splitlines()) < 75
    assert any(path.name in (Path(__file__).parent / name).read_text() for name in TESTED_IN)


def test_progress_bars_of_tqdm_and_rich_reach_the_end(tmp_path):
    done = run("progress_bars.py", tmp_path)
    assert re.search(r"tqdm: 100%.*60/60", done.stderr)
    assert re.search(r"rich .*100%", done.stdout)


@pytest.mark.cli
@pytest.mark.skipif(sys.platform == "win32", reason="for a terminal")
def test_progress_bars_move_on_a_terminal(tmp_path):
    import pexpect  # noqa: PLC0415  # it needs POSIX

    program, *options = arguments("progress_bars.py", tmp_path)["args"]
    child = pexpect.spawn(program, options, cwd=tmp_path, timeout=PATIENCE)
    out = child.read().decode()
    child.close()
    assert child.exitstatus == 0
    for name in ("tqdm", "rich"):
        seen = [int(percent) for percent in re.findall(rf"{name}\b.*?(\d+)%", out)]
        assert seen == sorted(seen)
        assert seen[-1] == 100
        assert len(set(seen)) > 3


@pytest.fixture(scope="module")
def timeline(tmp_path_factory):
    """The directory in which timeline.py was run, and the events that it wrote."""
    pytest.importorskip("matplotlib")
    directory = tmp_path_factory.mktemp("timeline")
    run("timeline.py", directory)
    return directory, json.loads((directory / "timeline.json").read_text())["traceEvents"]


def test_timeline_shows_each_item_and_how_it_ended(timeline):
    directory, events = timeline
    ends = [event["cat"] for event in events]
    assert set(ends) == {"succeeded", "failed", "cancelled"}

    # The picture has a bar for each, and one in the legend.
    picture = ET.parse(directory / "timeline.svg").getroot()
    assert picture.tag.endswith("svg")
    styles = [path.get("style", "") for path in picture.iter("{http://www.w3.org/2000/svg}path")]
    for how, color in {"succeeded": "#2ca02c", "failed": "#d62728", "cancelled": "#7f7f7f"}.items():
        assert sum(f"fill: {color}" in style for style in styles) == ends.count(how) + 1


def test_timeline_shows_the_limit_and_the_time_waiting_for_a_token(timeline):
    """In the form that Perfetto opens: complete events, with times in microseconds."""
    _, events = timeline
    for event in events:
        assert (event["ph"], event["pid"]) == ("X", 1)
        assert isinstance(event["tid"], int)
        assert isinstance(event["ts"], float)
        assert event["dur"] >= 0

    def end(event):
        return event["ts"] + event["dur"]

    gaps = []
    for row in {event["tid"] for event in events}:
        bars = sorted((event for event in events if event["tid"] == row), key=lambda event: event["ts"])
        gaps += [after["ts"] - end(before) for before, after in pairwise(bars)]
    assert min(gaps) > -1  # rounding: a worker runs one item at a time
    assert max(gaps) > 50_000  # twice as many workers as tokens: each waits

    moments = sorted([(event["ts"], 1) for event in events] + [(end(event) - 1, -1) for event in events])
    at_once = [sum(step for _, step in moments[: k + 1]) for k in range(len(moments))]
    assert max(at_once) == 4


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="for POSIX signals")
def test_signal_tells_what_runs_how_long_and_where(tmp_path):
    how = arguments("dump_on_signal.py", tmp_path)
    with subprocess.Popen(**how, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == f"kill -USR1 {process.pid}\n"
            ages = []
            for _ in range(2):
                process.send_signal(signal.SIGUSR1)
                age, url = process.stderr.readline().split(" s  ")
                assert re.fullmatch(r"https://(fast|slow)\.example/\d\n", url)
                ages.append(float(age))
                line = process.stderr.readline()
                assert re.fullmatch(r"    read_page, line \d+: await trio\.sleep\(60 if .*\)\n", line)
            assert ages == sorted(ages)
        finally:
            process.kill()


async def test_web_application_on_trio_answers(monkeypatch):
    httpx = pytest.importorskip("httpx")
    pytest.importorskip("starlette")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import web_on_trio  # noqa: PLC0415  # web_on_trio.py needs starlette

    transport = httpx.ASGITransport(app=web_on_trio.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://example.org") as client:
        response = await client.get("/prices")
    assert response.json() == ["price of near", "price of far"]


@pytest.mark.skipif(sys.platform == "win32", reason="for POSIX signals")
def test_first_ctrl_c_lets_what_runs_finish(tmp_path):
    with subprocess.Popen(**arguments("wind_down.py", tmp_path), stdout=subprocess.PIPE) as process:
        try:
            first = process.stdout.readline()
            process.send_signal(signal.SIGINT)
            *saved, last = [first, *(line for line in process.stdout if line != FINISHING)]
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
    assert last == f"{len(saved)} pages are saved\n"
    # Each that was started is there, and no other.
    assert sorted(int(line.removeprefix("saved ")) for line in saved) == list(range(len(saved)))


@pytest.mark.skipif(sys.platform == "win32", reason="for POSIX signals")
def test_second_ctrl_c_ends_the_program_as_a_shell_expects_even_if_an_item_hangs(tmp_path):
    how = arguments("wind_down.py", tmp_path)
    with subprocess.Popen(**how, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            while process.stdout.readline() != "saved 15\n":  # 13 was started before it
                pass
            process.send_signal(signal.SIGINT)
            while process.stdout.readline() != FINISHING:
                pass
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    assert (process.returncode, err) == (130, "")
    assert "pages are saved" in out


def run_tests(directory, name, **files):
    """Run the tests in an example, given the files they need; the names of those that failed."""
    for path, text in {name: (EXAMPLES / name).read_text(), **files}.items():
        (directory / path).write_text(text)
    how = arguments(name, directory)
    how["args"] = [sys.executable, "-m", "pytest", "-q", "-rf", "-W", "error", "-p", "no:cacheprovider", name]
    how["env"] = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}  # a change within the second would not be seen
    done = subprocess.run(**how, capture_output=True, timeout=PATIENCE, check=False)
    failed = re.findall(r"^FAILED \S+::(\w+)", done.stdout, re.MULTILINE)
    assert done.returncode == bool(failed), done.stdout + done.stderr
    return failed


def test_bound_is_tested(tmp_path):
    """The test passes, and fails where the bound is another."""
    source = (EXAMPLES / "test_bound.py").read_text()
    assert run_tests(tmp_path, "test_bound.py") == []
    wrong = source.replace("limit=3", "limit=4")
    assert run_tests(tmp_path, "test_bound.py", **{"test_bound.py": wrong})


@pytest.mark.parametrize(
    ("right", "wrong", "failed"),
    [
        ("", "", []),
        ("answer.value for", "product for", ["prices_come_by_product"]),
        ("CapacityLimiter(3)", "CapacityLimiter(4)", ["supplier_has_three_requests_at_once_from_all_callers"]),
        ("limit=self.limiter", "limit=3", ["supplier_has_three_requests_at_once_from_all_callers"]),
        ("fanout.Settle()", "fanout.FailFast()", ["failure_costs_one_price"]),
        ("item_timeout=5", "item_timeout=6", ["slow_product_costs_its_price_and_five_seconds"]),
        (
            "        outcomes =",
            "        self.limiter.acquire_on_behalf_of_nowait(object())\n        outcomes =",
            ["caller_that_gives_up_leaves_no_request_behind"],
        ),
    ],
)
def test_service_is_tested(tmp_path, right, wrong, failed):
    """The tests pass, and each fails where the service is wrong in its way."""
    service = (EXAMPLES / "service.py").read_text()
    assert right in service
    found = run_tests(tmp_path, "test_service.py", **{"service.py": service.replace(right, wrong, bool(right))})
    assert {f"test_{name}" for name in failed} <= set(found)
    assert bool(found) == bool(failed)
