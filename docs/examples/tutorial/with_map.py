"""The same with `map`."""

import trio

import trio_fanout as fanout


async def fetch(url):
    await trio.sleep(0.1)  # stands in for a real request
    return f"<page {url}>"


async def main():
    urls = ["/a", "/b", "/c", "/d", "/e"]
    pages = await fanout.map(fetch, urls, limit=2)
    print(pages)


if __name__ == "__main__":
    trio.run(main)
