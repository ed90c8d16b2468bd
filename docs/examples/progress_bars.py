"""Progress bars around `map`: the bar of tqdm, and that of rich. Both count items as they end, in whatever order."""

import trio
from rich.progress import Progress
from tqdm import tqdm

import trio_fanout as fanout


async def fetch(url):
    await trio.sleep(len(url) % 7 / 100)
    return f"<page {url}>"


async def main():
    urls = [f"https://example.org/{'x' * n}" for n in range(60)]

    with tqdm(total=len(urls), desc="tqdm") as bar:
        meter = fanout.Meter(on_end=lambda ended: bar.update())
        await fanout.map(meter.wrap(fetch), urls, limit=8)

    with Progress() as progress:
        task = progress.add_task("rich", total=len(urls))
        meter = fanout.Meter(on_end=lambda ended: progress.advance(task))
        await fanout.map(meter.wrap(fetch), urls, limit=8)


if __name__ == "__main__":
    trio.run(main)
