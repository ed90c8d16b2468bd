"""A page hangs: give each item two tenths of a second, and all of them together half a second."""

import outcome
import trio

import trio_fanout as fanout


async def fetch(url):
    if url == "/c":
        await trio.sleep_forever()  # a server that never answers
    await trio.sleep(0.1)
    return f"<page {url}>"


async def main():
    urls = ["/a", "/b", "/c", "/d", "/e"]
    with trio.fail_after(0.5):
        results = await fanout.map(fetch, urls, limit=2, policy=fanout.Settle(), item_timeout=0.2)
    for url, result in zip(urls, results, strict=True):
        match result:
            case outcome.Value(page):
                print(url, page)
            case outcome.Error(error):
                print(url, "failed:", error)


if __name__ == "__main__":
    trio.run(main)
