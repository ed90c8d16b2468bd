"""Two stages: eight requests at a time, and two parsers behind them."""

import trio

import trio_fanout as fanout


async def fetch(url):
    await trio.sleep(0.1)  # stands in for a real request
    return f"<page {url}>"


def count_letters(completed):
    return len(completed.value)  # stands in for a slow, blocking parser


async def main():
    urls = ["/a", "/bc", "/def", "/ghij"]
    parse = fanout.in_thread(count_letters)
    async with (
        fanout.stream(fetch, urls, limit=8) as pages,
        fanout.stream(parse, pages, limit=2) as sizes,
    ):
        async for _, (_, url, _), size in sizes:
            print(url, size)


if __name__ == "__main__":
    trio.run(main)
