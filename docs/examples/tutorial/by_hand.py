"""A nursery by hand: five pages, two at a time, results in order."""

import trio


async def fetch(url):
    await trio.sleep(0.1)  # stands in for a real request
    return f"<page {url}>"


async def main():
    urls = ["/a", "/b", "/c", "/d", "/e"]
    limiter = trio.CapacityLimiter(2)
    pages = [None] * len(urls)

    async def fetch_one(index, url):
        async with limiter:
            pages[index] = await fetch(url)

    async with trio.open_nursery() as nursery:
        for index, url in enumerate(urls):
            nursery.start_soon(fetch_one, index, url)

    print(pages)


if __name__ == "__main__":
    trio.run(main)
