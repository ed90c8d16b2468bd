"""The four programs in docs/examples, each run as a reader would run it: with real servers, files and processes."""

from __future__ import annotations

import csv
import email.utils
import gzip
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
PATIENCE = 120  # seconds, for a slow machine
pytestmark = pytest.mark.slow


@contextmanager
def started(directory, name, *arguments, changes=()):
    """Start a program in a directory of its own, with some changes to its text."""
    source = (EXAMPLES / name).read_text()
    for old, new in changes:
        assert source.count(old) == 1
        source = source.replace(old, new)
    (directory / name).write_text(source)
    with subprocess.Popen(
        [sys.executable, "-W", "error", name, *map(str, arguments)],
        cwd=directory,
        env={key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def run(directory, name, *arguments, status=0, changes=()):
    """Run a program to its end; what it printed, and what it told on standard error."""
    with started(directory, name, *arguments, changes=changes) as process:
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == status, err
    return out, err


@dataclass(eq=False)
class Call:
    path: str
    body: Any
    key: str | None
    began: float


class Load:
    """How many calls there are now, and were at most."""

    def __init__(self):
        self.changed = threading.Condition()
        self.now = self.peak = 0
        self.waited = False

    def add(self, count):
        with self.changed:
            self.now += count
            self.peak = max(self.peak, self.now)
            self.changed.notify_all()

    def wait_for_peak(self, peak):
        """Wait until there are so many at once; and the first time a little longer, for one too many."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.peak >= peak, PATIENCE)
            self.waited = self.waited or not self.changed.wait_for(lambda: self.waited or self.peak > peak, 0.5)
            self.changed.notify_all()


class Server(ThreadingHTTPServer):
    """Asks `reply(call)` for the status, the headers and the body; for None, it says nothing until the client goes."""

    def __init__(self, reply, *loads):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.reply = reply
        self.load = Load()
        self.loads = [self.load, *loads]
        self.calls = []

    def __enter__(self):
        self.thread = threading.Thread(target=partial(self.serve_forever, poll_interval=0.01))
        self.thread.start()
        return self

    def __exit__(self, *exc):
        self.shutdown()
        self.thread.join()
        self.server_close()

    def paths(self):
        return Counter(call.path for call in self.calls)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self):
        self.take()

    def do_POST(self):
        self.take()

    def take(self):
        began = time.monotonic()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        call = Call(self.path, json.loads(body or "null"), self.headers.get("Idempotency-Key"), began)
        self.server.calls.append(call)
        for load in self.server.loads:
            load.add(1)
        try:
            answer = self.server.reply(call)
        finally:
            for load in self.server.loads:
                load.add(-1)  # before the client has its answer, and can ask for more
        if answer is None:
            self.rfile.read(1)
            self.close_connection = True
            return
        status, headers, content = answer
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


def page(*links):
    return 200, {}, "".join(f'<a href="{link}">' for link in links).encode()


def answer_of(value):
    return 200, {}, json.dumps(value).encode()


# A polite crawler


class Site:
    """A home page with links, and pages that wait until the crawler is as busy as it ever may be."""

    def __init__(self, total, pages=(), **special):
        self.total = total
        self.pages = pages
        self.special = special
        self.server = Server(self.reply, total)

    def reply(self, call):
        name = call.path.strip("/")
        if not name:
            return page(*self.links)
        if name in self.special:
            return self.special[name](self.server)
        if name not in self.pages:
            return 404, {}, b""
        self.total.wait_for_peak(4)
        return page("/", f"/{name}#here")


def test_crawler_visits_each_page_once_and_asks_no_host_for_more_than_it_takes(tmp_path):
    total = Load()
    refused = {}

    def busy(server):
        """At first, when the other request to this host is there as well: leave me alone for two seconds."""
        if "busy" in refused:
            return page()
        server.load.wait_for_peak(2)
        refused["busy"] = time.monotonic()
        alone.set()
        return 429, {"Retry-After": "2"}, b""

    def meanwhile(server):
        """The other request: it ends when the crawler must know."""
        assert alone.wait(PATIENCE)
        time.sleep(1)
        return page()

    def later(server):
        if "later" in refused:
            assert time.time() > refused["later"] - 0.01
            return page()
        refused["later"] = int(time.time()) + 2
        return 503, {"Retry-After": email.utils.formatdate(refused["later"], usegmt=True)}, b""

    alone = threading.Event()
    names = [f"page{n}" for n in range(10)]
    first = Site(total, names, busy=busy, meanwhile=meanwhile)
    third = Site(total, [*names, "hidden"])
    second = Site(total, names, later=later, moved=lambda _: (301, {"Location": f"{third.server.url}/hidden"}, b""))
    foreign = Site(total)
    first.links = ["/busy", "/meanwhile", *names, foreign.server.url]
    second.links = [*names, "later", "moved", "gone"]
    third.links = [*names, second.server.url + "/page3"]
    sites = [first, second, third]
    with ExitStack() as stack:
        for site in [*sites, foreign]:
            stack.enter_context(site.server)
        out, _ = run(tmp_path, "crawler.py", *(site.server.url + "/" for site in sites))

    ends = dict(line.split(" ", 1) for line in out.splitlines() if line.startswith("http"))
    second_url = second.server.url
    assert ends.pop(f"{second_url}/moved") == "Value(301)"
    assert "404" in ends.pop(f"{second_url}/gone")
    assert set(ends.values()) == {"Value(200)"}
    assert first.server.paths() == {"/": 1, "/busy": 2, "/meanwhile": 1, **{f"/{name}": 1 for name in names}}
    assert second.server.paths() == {"/": 1, "/later": 2, "/moved": 1, "/gone": 1, **{f"/{name}": 1 for name in names}}
    assert third.server.paths() == {"/": 1, "/hidden": 1, **{f"/{name}": 1 for name in names}}
    assert foreign.server.calls == []

    assert total.peak == 4
    assert max(site.server.load.peak for site in sites) == 2
    assert min(call.began for call in first.server.calls if call.began > refused["busy"]) >= refused["busy"] + 2
    assert sum(call.began > refused["busy"] for call in first.server.calls) == 11  # ten pages, and the one again


@pytest.mark.skipif(sys.platform == "win32", reason="for POSIX signals")
def test_crawler_finishes_what_is_in_progress_after_ctrl_c(tmp_path):
    interrupted = threading.Event()

    def reply(call):
        if call.path != "/":
            assert interrupted.wait(PATIENCE)
            return page()
        return page(*(f"/{n}" for n in range(300)))

    with Server(reply) as server, started(tmp_path, "crawler.py", server.url + "/") as process:
        server.load.wait_for_peak(2)
        time.sleep(1)  # until as many pages are in progress as may be
        process.send_signal(signal.SIGINT)
        time.sleep(1)  # until the crawler knows
        interrupted.set()
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (0, "")
    ends = Counter(line.split(" ", 1)[1] for line in out.splitlines())
    assert ends == {"Value(200)": 101, "None": 200}


# A batch of prompts


class Provider:
    """Answers prompts, and charges once for each key. What a prompt begins with says how it goes."""

    def __init__(self, lost_after=None):
        self.charged = Counter()
        self.tries = Counter()
        self.lock = threading.Lock()
        self.lost_after = lost_after
        self.server = Server(self.reply)

    def reply(self, call):
        prompt = call.body["messages"][0]["content"]
        kind = prompt.split()[0]
        with self.lock:
            self.tries[prompt] += 1
            first = self.tries[prompt] == 1
            if kind == "refused":
                return 400, {}, b""
            if kind == "busy" and first:
                return 429, {"Retry-After": "1"}, b""
            if call.key not in self.charged:
                self.charged[call.key] += 1
            lost = self.lost_after is not None and len(self.charged) > self.lost_after
        if kind == "odd":
            return answer_of({})
        if lost or (kind == "stalls" and first):
            return None
        if self.lost_after is None:
            self.server.load.wait_for_peak(8)
        return answer_of({"choices": [{"message": {"content": prompt.upper()}}]})


def saved(path):
    with closing(sqlite3.connect(path)) as db:
        return dict(db.execute("SELECT prompt, answer FROM answers"))


def test_prompts_keep_to_the_rate_and_tell_what_failed(tmp_path):
    provider = Provider()
    good = [f"prompt {n}" for n in range(30)] + ["busy 1", "stalls 1"]
    prompts = [*good[:20], "refused 1", "odd 1", "refused 2", *good[20:], "prompt 7"]  # one comes twice
    (tmp_path / "prompts.txt").write_text("\n".join(prompts))
    changes = [
        ("STALLED = 60 ", "STALLED = 4 "),
        ("(post, 60)", "(post, 10)"),
    ]  # as a slow machine may not reach the rate
    with provider.server as server:
        out, err = run(tmp_path, "prompts.py", "prompts.txt", "answers.db", server.url, status=1, changes=changes)
    assert saved(tmp_path / "answers.db") == {prompt: prompt.upper() for prompt in good}

    refused, odd = out.splitlines()
    assert re.match(r"2 failed: HTTPStatusError\(.*400 Bad Request.* for 'refused [12]'", refused)
    assert odd == "1 failed: KeyError('choices') for 'odd 1'"
    assert re.search(r"100%.* 35/35 ", err)
    assert all(re.match(r" *\d+%\|", line) for line in err.split("\n") if line)  # nothing but the bar

    assert provider.tries == {prompt: 1 + (prompt in ("busy 1", "stalls 1")) for prompt in prompts}
    assert len(provider.charged) == len(good) + 1  # that for which there was no answer in the answer
    assert set(provider.charged.values()) == {1}
    assert server.load.peak == 8
    began = sorted(call.began for call in server.calls)
    assert began[30] - began[0] > 2.5  # three seconds, but the first may have been long on the way


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="for POSIX signals")
def test_prompts_go_on_after_a_kill_and_pay_nothing_twice(tmp_path):
    prompts = [f"prompt {n}" for n in range(60)]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts))
    arguments = ["prompts.py", "prompts.txt", "answers.db"]
    provider = Provider(lost_after=20)
    with provider.server as server:
        with started(tmp_path, *arguments, server.url) as process:
            end = time.monotonic() + PATIENCE
            while len(provider.charged) < 28 or len(saved(tmp_path / "answers.db")) < 20:
                assert process.poll() is None
                assert time.monotonic() < end
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            process.wait(PATIENCE)
        assert process.returncode == -signal.SIGKILL
        before = saved(tmp_path / "answers.db")
        assert len(before) == 20
        asked = {prompt for prompt, tries in provider.tries.items() if tries}
        assert len(asked) == 28  # eight were paid for, and their answers lost

        provider.lost_after = 60
        _, err = run(tmp_path, *arguments, server.url)
    assert re.match(r"\s*33%.* 20/60 ", err)
    assert re.search(r"100%.* 60/60 ", err)
    assert saved(tmp_path / "answers.db") == {prompt: prompt.upper() for prompt in prompts}
    assert provider.tries == {prompt: 1 + (prompt in asked - set(before)) for prompt in prompts}
    assert len(provider.charged) == 60
    assert set(provider.charged.values()) == {1}


def test_prompts_give_up_on_a_provider_that_refuses_everything(tmp_path):
    (tmp_path / "prompts.txt").write_text("\n".join(f"refused {n}" for n in range(500)))
    provider = Provider()
    with provider.server as server:
        out, _ = run(tmp_path, "prompts.py", "prompts.txt", "answers.db", server.url, status=1)
    assert re.match(r"10\d failed: HTTPStatusError", out)
    assert 100 <= len(server.calls) <= 108
    assert provider.charged == {}


# An agent


class Tools:
    """The model and the four tools of an agent. Some say nothing, or fail."""

    def __init__(self, *, silent=(), broken=()):
        self.silent, self.broken = silent, broken
        self.server = Server(self.reply)

    def reply(self, call):
        name, _, query = call.path.strip("/").partition("?q=")
        if name in ("web", "wiki", "code", "mail"):
            self.server.load.wait_for_peak(4)  # all four at once
        if name in self.broken:
            return 500, {}, b""
        if name in self.silent:
            return None
        if name == "plan":
            return answer_of({tool: f"{tool}-query" for tool in ("web", "wiki", "code", "mail")})
        if name == "rank":
            return answer_of(sorted(call.body[1], reverse=True))
        if name == "answer":
            return answer_of(f"{call.body[0]} is in {', '.join(call.body[1])}")
        assert query == f"{name}-query"
        return answer_of([f"{name}1", f"{name}2"])


def ask_agent(directory, tools, seconds="4, 60"):
    with tools.server as server:
        return run(directory, "agent.py", server.url, "it", changes=[("2, 10", seconds)])


def test_agent_answers_from_what_four_tools_found(tmp_path):
    assert ask_agent(tmp_path, Tools(), "60, 60") == ("it is in wiki2, wiki1, web2\n", "")


def test_agent_answers_without_a_tool_that_is_dead(tmp_path):
    out, err = ask_agent(tmp_path, Tools(silent=["wiki"]))
    assert out == "it is in web2, web1, mail2\n"
    assert re.fullmatch(r"wiki: TooSlowError\(.*\)\n", err)


def test_agent_answers_without_a_tool_that_fails(tmp_path):
    out, err = ask_agent(tmp_path, Tools(broken=["web"]), "60, 60")
    assert out == "it is in wiki2, wiki1, mail2\n"
    assert re.match("web: HTTPStatusError.*500", err)


def test_agent_gives_what_there_is_by_its_deadline(tmp_path):
    out, err = ask_agent(tmp_path, Tools(silent=["answer"]), "60, 6")
    assert out == "['wiki2', 'wiki1', 'web2', 'web1', 'mail2', 'mail1', 'code2', 'code1']\n"
    assert err == "answer: Unfinished('answer', True)\n"


def test_agent_without_a_plan_has_nothing(tmp_path):
    tools = Tools(broken=["plan"])
    out, err = ask_agent(tmp_path, tools, "60, 60")
    assert out == "nothing\n"
    assert [line.split("(")[0] for line in err.splitlines() if re.match(r"\w+: ", line)] == [
        "plan: HTTPStatusError",
        *(f"{tool}: DependencyFailed" for tool in ("web", "wiki", "code", "mail")),
        "rank: LookupError",
        "answer: DependencyFailed",
    ]
    assert tools.server.paths() == {"/plan": 1}


# Rows from a compressed file


def write_trips(path, count, bad=None):
    with gzip.open(path, "wt", compresslevel=1, newline="") as file:
        out = csv.writer(file)
        for number in range(count):
            out.writerow([number, "here" if number == bad else 52.52, 13.4, 48.86, 2.35 + number % 100 / 1000])


def trips(path):
    with closing(sqlite3.connect(path)) as db:
        return db.execute("SELECT count(*), min(id), max(id), min(km), max(km) FROM trips").fetchone()


PEAK = [("trio.run(main, *sys.argv[1:])", "trio.run(main, *sys.argv[1:])\n    print(open('/proc/self/status').read())")]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="for Linux")
def test_rows_arrive_in_flat_memory(tmp_path):
    peaks = []
    for count in (50_000, 250_000):
        write_trips(tmp_path / "trips.csv.gz", count)
        out, _ = run(tmp_path, "rows.py", "trips.csv.gz", "trips.db", changes=PEAK)
        rows, first, last, shortest, longest = trips(tmp_path / "trips.db")
        assert (rows, first, last) == (count, 0, count - 1)
        assert 870 < shortest < longest < 880  # Berlin to Paris, and to its suburbs
        peaks.append(int(re.search(r"VmHWM:\s+(\d+) kB", out)[1]))
    # The rows that the second has more are 7 MB of text, and over 20 MB of lines and tuples. 2 MB are SQLite's cache.
    assert peaks[1] - peaks[0] < 5_000


def test_rows_before_a_bad_one_are_saved(tmp_path):
    write_trips(tmp_path / "trips.csv.gz", 10_000, bad=7_000)
    # One batch at a time: of those that run beside the bad one, some may be lost.
    _, err = run(tmp_path, "rows.py", "trips.csv.gz", "trips.db", status=1, changes=[("os.cpu_count()", "1")])
    assert err.splitlines()[-2:] == ["ValueError: could not convert string to float: 'here'", "item 3"]
    assert trips(tmp_path / "trips.db")[:3] == (6_000, 0, 5_999)
