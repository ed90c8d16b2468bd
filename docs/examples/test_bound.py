"""A test of a limit, with pytest-trio: three requests to a server at once, and never more."""

import pytest
import trio

import trio_fanout as fanout


class Client:
    """The code under test: it should ask its server for no more than three pages at once."""

    def __init__(self, get):
        self.get = get

    async def pages(self, urls):
        return await fanout.map(self.get, urls, limit=3)


@pytest.mark.trio
async def test_client_makes_three_requests_at_once_and_no_more(autojump_clock):
    async def get(url):
        await trio.sleep(1)
        return f"<page {url}>"

    meter = fanout.Meter()
    assert len(await Client(meter.wrap(get)).pages("abcdefgh")) == 8
    assert meter.statistics().peak_running == 3
