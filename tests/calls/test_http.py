"""A client as in real life: pages fetched with `httpx` from a server on loopback, which is not always in the mood."""

import email.utils
import threading
import time
from collections import Counter
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import trio
from trio.testing import MockClock

import trio_fanout as fanout
from helpers import PATIENCE
from trio_fanout import cap, throttle

httpx = pytest.importorskip("httpx")
stamina = pytest.importorskip("stamina")

LONG = 50.0 * PATIENCE
"""`PATIENCE` on the clock of these tests."""


FAIL_FAST = fanout.FailFast()


# The recipe


def retry_after(exc):
    """Whether to try again, or after how many seconds, where the server says so."""
    if isinstance(exc, httpx.TransportError):
        return True
    if not isinstance(exc, httpx.HTTPStatusError) or exc.response.status_code not in (429, 503):
        return False
    said = exc.response.headers.get("Retry-After", "")
    if said.isdecimal():
        return float(said)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(said).timestamp() - time.time())
    except ValueError:
        return True


async def fetch_all(client, urls, *, limit=8, rate=100.0, policy=FAIL_FAST):
    """Fetch `urls`: `limit` at once, `rate` requests a second, and again what the server was too busy for."""
    get = throttle(client.get, rate)  # each attempt takes its turn

    @stamina.retry(on=retry_after, attempts=5, wait_initial=0.1, timeout=None)
    async def fetch(url):
        with trio.fail_after(LONG):
            response = await get(url)
        return response.raise_for_status().text

    return await fanout.map(fetch, urls, limit=limit, policy=policy)


# The server


class Server(ThreadingHTTPServer):
    """Answers with the path. A path ``/503/...`` is answered with that status the first time, and so on."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        # Nothing of a proxy that the environment may name.
        self.client_options = {"base_url": f"http://127.0.0.1:{self.server_port}", "timeout": None, "trust_env": False}
        self.lock = threading.Lock()
        self.requests = Counter()
        self.now = self.peak = 0
        self.hanging, self.closing = threading.Event(), threading.Event()
        self.rendezvous = None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server = self.server
        with server.lock:
            server.requests[self.path] += 1
            first = server.requests[self.path] == 1
            server.now += 1
            server.peak = max(server.peak, server.now)
        if server.rendezvous:
            server.rendezvous.wait()
        kind = self.path.split("/")[1]
        if kind == "hang":
            server.hanging.set()
            server.closing.wait(PATIENCE)
        with server.lock:
            server.now -= 1  # before the client has its answer, and can ask for more
        if kind in ("429", "503") and first:
            self.answer(int(kind), "busy", {"Retry-After": self.path.split("/")[2]})
        else:
            self.answer(404 if kind == "404" else 200, self.path, {})

    def answer(self, status, text, headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(text)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.01))
        thread.start()
        yield server
        server.closing.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def clock():
    """Fifty seconds in one: the network is real, and so time has to go on, but not at its own pace."""
    return MockClock(rate=50)


async def test_pages_come_in_order(server, clock):
    async with httpx.AsyncClient(**server.client_options) as client:
        assert await fetch_all(client, [f"/{n}" for n in range(40)]) == [f"/{n}" for n in range(40)]
    assert server.requests.total() == 40


async def test_limit_is_kept_and_reached(server, clock):
    server.rendezvous = threading.Barrier(4, timeout=PATIENCE)  # each waits for three others
    async with httpx.AsyncClient(**server.client_options) as client:
        await fetch_all(client, [f"/{n}" for n in range(20)], limit=4, rate=1e9)
    assert server.peak == 4


async def test_rate_is_kept(server, clock):
    begin = trio.current_time()
    starts = []

    class Client(httpx.AsyncClient):
        async def get(self, *args, **kwargs):
            starts.append(trio.current_time())
            return await super().get(*args, **kwargs)

    async with Client(**server.client_options) as client:
        await fetch_all(client, [f"/{n}" for n in range(10)], rate=2)
    assert len(starts) == 10
    # Counted from the beginning: time goes on by itself here, and each start may be a little late.
    assert all(start >= begin + number / 2 - 1e-9 for number, start in enumerate(starts))


@pytest.mark.parametrize("status", [429, 503])
async def test_busy_server_is_asked_again_after_the_time_it_named(server, clock, status):
    starts = {}

    class Client(httpx.AsyncClient):
        async def get(self, url, **kwargs):
            try:
                return await super().get(url, **kwargs)
            finally:
                starts.setdefault(url, []).append(trio.current_time())

    urls = ["/1", f"/{status}/7", "/2"]
    async with Client(**server.client_options) as client:
        assert await fetch_all(client, urls) == urls
    assert server.requests == {"/1": 1, f"/{status}/7": 2, "/2": 1}
    first, second = starts[f"/{status}/7"]
    assert second - first >= 7


async def test_cap_is_kept_and_reached_with_more_items_in_progress(server, clock):
    server.rendezvous = threading.Barrier(4, timeout=PATIENCE)  # each waits for three others
    async with httpx.AsyncClient(**server.client_options) as client:
        pages = await fanout.map(cap(client.get, 4), [f"/{n}" for n in range(20)], limit=20)
    assert [page.text for page in pages] == [f"/{n}" for n in range(20)]
    assert server.peak == 4


async def test_cap_for_each_host_keeps_to_it(server, clock):
    """Two names of the same server, which are two hosts to the client."""
    now, peaks = Counter(), Counter()

    class Client(httpx.AsyncClient):
        async def get(self, url, **kwargs):
            host = httpx.URL(url).host
            now[host] += 1
            peaks[host] = max(peaks[host], now[host])
            try:
                return await super().get(url, **kwargs)
            finally:
                now[host] -= 1

    server.rendezvous = threading.Barrier(4, timeout=PATIENCE)  # so that two of each host meet
    urls = [f"http://{host}:{server.server_port}/{n}" for n in range(10) for host in ("127.0.0.1", "localhost")]
    async with Client(**server.client_options) as client:
        get = cap(cap(client.get, 4), 2, key=lambda url: httpx.URL(url).host)
        pages = await fanout.map(get, urls, limit=20)
    assert [page.text for page in pages] == [httpx.URL(url).path for url in urls]
    assert peaks == {"127.0.0.1": 2, "localhost": 2}


async def test_busy_server_is_left_alone_by_all_items_for_the_time_it_named(server, clock):
    calls = []

    class Client(httpx.AsyncClient):
        async def get(self, url, **kwargs):
            start = trio.current_time()
            try:
                return await super().get(url, **kwargs)
            finally:
                calls.append((url, start, trio.current_time()))

    urls = ["/429/30", *(f"/{n}" for n in range(10))]
    async with Client(**server.client_options) as client:

        async def get(url):
            return (await client.get(url)).raise_for_status()

        fetch = stamina.retry(on=httpx.HTTPStatusError, attempts=3, wait_initial=0.1, timeout=None)(
            cap(get, 1, overloaded=retry_after)
        )
        pages = await fanout.map(fetch, urls, limit=20)
    assert [page.text for page in pages] == urls
    refused = min(end for url, _, end in calls if url == "/429/30")
    assert all(start >= refused + 30 for _, start, _ in calls if start > refused)
    assert len([start for _, start, _ in calls if start > refused]) >= 1
    assert server.requests["/429/30"] == 2


async def test_attempt_that_takes_too_long_fails(server, clock):
    async def let_time_pass():
        await trio.to_thread.run_sync(server.hanging.wait, PATIENCE)
        clock.jump(LONG)

    async with httpx.AsyncClient(**server.client_options) as client, trio.open_nursery() as nursery:
        nursery.start_soon(let_time_pass)
        with pytest.raises(fanout.FanOutError) as caught:
            await fetch_all(client, ["/1", "/hang"], limit=1, policy=fanout.Collect())
    assert caught.value.indices == (1,)
    assert isinstance(caught.value.failures[1], trio.TooSlowError)
    assert caught.value.results == {0: "/1"}


async def test_page_that_is_not_there_fails_at_once(server, clock):
    async with httpx.AsyncClient(**server.client_options) as client:
        with pytest.raises(httpx.HTTPStatusError, match="404"):
            await fetch_all(client, ["/404"])
    assert server.requests == {"/404": 1}


def busy(status, said):
    response = httpx.Response(status, headers={"Retry-After": said} if said else {})
    return httpx.HTTPStatusError("busy", request=httpx.Request("GET", "http://127.0.0.1"), response=response)


@pytest.mark.parametrize(
    ("exc", "expected"),
    [
        (busy(429, "30"), 30.0),
        (busy(503, "0"), 0.0),
        (busy(503, "Wed, 21 Oct 2015 07:28:00 GMT"), 0.0),
        (busy(503, "later"), True),
        (busy(503, ""), True),
        (busy(500, "30"), False),
        (httpx.ConnectError("refused"), True),
        (ValueError(), False),
    ],
)
def test_what_the_server_says_of_when_to_come_back(exc, expected):
    assert retry_after(exc) is expected or retry_after(exc) == expected


def test_date_to_come_back_at_is_turned_into_seconds(monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1_000_000_000.0)
    assert retry_after(busy(503, email.utils.formatdate(1_000_000_060, usegmt=True))) == 60
