"""A page is missing: stop, or carry on and retry."""

import trio

import trio_fanout as fanout


async def fetch(url, host="example.org"):
    await trio.sleep(0.1)  # stands in for a real request
    if (host, url) == ("example.org", "/c"):
        raise ConnectionError(url)
    return f"<page {host}{url}>"


async def fetch_from_mirror(url):
    return await fetch(url, "mirror.example")


async def main():
    urls = ["/a", "/b", "/c", "/d", "/e"]

    try:
        await fanout.map(fetch, urls, limit=2)
    except ConnectionError as exc:
        print("stopped:", repr(exc), exc.__notes__)

    try:
        pages = await fanout.map(fetch, urls, limit=2, policy=fanout.Collect())
    except fanout.FanOutError as error:
        print(error.message)
        again = await fanout.map(fetch_from_mirror, error.items.values())
        both = {**error.results, **dict(zip(error.indices, again, strict=True))}
        pages = [both[index] for index in sorted(both)]

    for page in pages:
        print(page)


if __name__ == "__main__":
    trio.run(main)
