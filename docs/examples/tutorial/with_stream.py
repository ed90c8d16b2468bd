"""More pages than fit in memory: use results as they arrive, and stop when there are enough."""

import itertools

import trio

import trio_fanout as fanout


async def fetch(url):
    await trio.sleep(0.01)  # stands in for a real request
    return f"<page {url}>"


async def save(url, page):
    await trio.sleep(0.02)  # slower than the fetching


async def main():
    numbers = itertools.count()  # no end
    urls = (f"/{n}" for n in numbers)
    async with fanout.stream(fetch, urls, limit=8) as results:
        async for index, url, page in results:
            await save(url, page)
            if index == 9:
                break
    print("saved ten; the last was", url)
    print("next in the source:", next(numbers))


if __name__ == "__main__":
    trio.run(main)
