"""A small service: the prices of products, from a supplier that takes three requests at once."""

import outcome
import trio

import trio_fanout as fanout


class Prices:
    def __init__(self, ask_supplier):
        self.ask_supplier = ask_supplier
        self.limiter = trio.CapacityLimiter(3)  # for all callers together

    async def get(self, products):
        """Return a dict of the prices that the supplier names within 5 seconds each."""
        outcomes = await fanout.map(
            self.ask_supplier, products, limit=self.limiter, policy=fanout.Settle(), item_timeout=5
        )
        answers = zip(products, outcomes, strict=True)
        return {product: answer.value for product, answer in answers if isinstance(answer, outcome.Value)}
