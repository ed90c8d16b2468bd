"""Tests of service.py, with pytest-trio: on virtual time, with a supplier that plays a script."""

import pytest
import trio
from service import Prices

import trio_fanout as fanout

pytestmark = pytest.mark.trio


class Supplier:
    """Takes one second per price, unless the script names another time, or an exception to raise."""

    def __init__(self, **script):
        self.script = script

    async def ask(self, product):
        part = self.script.get(product, 1)
        if isinstance(part, Exception):
            raise part
        await trio.sleep(part)
        return len(product)


async def test_prices_come_by_product(autojump_clock):
    assert await Prices(Supplier().ask).get(["fig", "plum"]) == {"fig": 3, "plum": 4}


async def test_supplier_has_three_requests_at_once_from_all_callers(autojump_clock):
    meter = fanout.Meter()
    prices = Prices(meter.wrap(Supplier().ask))
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(prices.get, "abcdef")
    assert meter.statistics().peak_running == 3
    assert trio.current_time() == 4  # twelve requests of one second each, three at a time


async def test_failure_costs_one_price(autojump_clock):
    supplier = Supplier(plum=OSError("closed"))
    assert await Prices(supplier.ask).get(["fig", "plum", "quince"]) == {"fig": 3, "quince": 6}


async def test_slow_product_costs_its_price_and_five_seconds(autojump_clock):
    assert await Prices(Supplier(plum=60).ask).get(["fig", "plum"]) == {"fig": 3}
    assert trio.current_time() == 5


async def test_caller_that_gives_up_leaves_no_request_behind(autojump_clock):
    meter = fanout.Meter()
    prices = Prices(meter.wrap(Supplier().ask))
    with trio.move_on_after(1.5):
        await prices.get("abcdef")
    assert prices.limiter.borrowed_tokens == 0
    assert meter.statistics().cancelled == 3
