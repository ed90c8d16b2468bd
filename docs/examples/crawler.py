"""A polite crawler: `python crawler.py URL [URL ...]` visits what links lead to, on the hosts of these URLs.

Ctrl-C starts no further page, and lets those in progress finish; a second one gives up.
"""

import re
import signal
import sys
import time
from email.utils import parsedate_to_datetime
from urllib.parse import urldefrag, urljoin, urlsplit

import httpx
import stamina
import trio

import trio_fanout as fanout


def host_of(url):
    return urlsplit(url).netloc


def busy(exc):
    """Return whether the server is overloaded, or the seconds after which it may be asked again."""
    if not isinstance(exc, httpx.HTTPStatusError) or exc.response.status_code not in {429, 503}:
        return isinstance(exc, httpx.TransportError)
    after = exc.response.headers.get("Retry-After", "")
    try:  # seconds, or a date
        return float(after) if after.isdecimal() else max(0.0, parsedate_to_datetime(after).timestamp() - time.time())
    except ValueError:
        return True


async def main(urls):
    hosts, pages = set(map(host_of, urls)), {}

    async def get(url):
        page = await client.get(url)
        return page if page.has_redirect_location else page.raise_for_status()

    in_turn = fanout.cap(fanout.cap(get, 4), 2, key=host_of, overloaded=busy)  # 4 at once, of which 2 to a host
    fetch = stamina.retry(on=busy, attempts=6, timeout=None)(in_turn)

    async def visit(url):
        page = await fetch(url)
        for link in page.headers.get_list("Location") + re.findall('href="([^"]+)"', page.text):
            follow(urldefrag(urljoin(url, link)).url)
        return page.status_code

    def follow(url):
        if host_of(url) in hosts and url not in pages:
            pages[url] = group.start_soon(visit, url)

    async def stop_on_ctrl_c():
        with trio.open_signal_receiver(signal.SIGINT) as signals:
            await anext(signals)
        group.stop()

    async with trio.open_nursery() as nursery, httpx.AsyncClient() as client:
        async with fanout.open_group(limit=100, policy=fanout.Settle()) as group:
            nursery.start_soon(stop_on_ctrl_c)
            for url in urls:
                follow(url)
        nursery.cancel_scope.cancel()
    for url, page in pages.items():
        print(url, page.outcome)  # Value(200), Error(...), or None if it was not visited


if __name__ == "__main__":
    trio.run(main, sys.argv[1:])
