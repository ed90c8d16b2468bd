"""The code under test: it fetches pages from one server, and reports what it could not fetch."""

import outcome

import trio_fanout as fanout


async def download(get, urls, server):
    """Return the pages by URL, and the errors by URL. `server` is a limiter; a request may take ten seconds."""
    results = await fanout.map(get, urls, limit=server, item_timeout=10, policy=fanout.Settle())
    pages, errors = {}, {}
    for url, result in zip(urls, results, strict=True):
        match result:
            case outcome.Value(page):
                pages[url] = page
            case outcome.Error(error):
                errors[url] = error
    return pages, errors
