"""Ask a model each prompt of a file: `python prompts.py PROMPTS ANSWERS URL`. Started again, it goes on."""

import hashlib
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import httpx
import stamina
import trio
from tqdm import tqdm

import trio_fanout as fanout

STALLED = 60  # seconds for one attempt


def try_again(exc):
    if not isinstance(exc, httpx.HTTPStatusError):
        return isinstance(exc, (httpx.TransportError, trio.TooSlowError))
    after = exc.response.headers.get("Retry-After", "")
    return exc.response.status_code in {429, 500, 502, 503} and (float(after) if after.isdecimal() else True)


async def main(prompts, db, url):
    async def post(prompt):
        key = hashlib.sha256(prompt.encode()).hexdigest()  # by it, the provider knows what has been paid for
        body = {"messages": [{"role": "user", "content": prompt}]}
        with trio.fail_after(STALLED):
            answer = await client.post("/chat", json=body, headers={"Idempotency-Key": key})
        return answer.raise_for_status().json()["choices"][0]["message"]["content"]

    in_turn = fanout.cap(fanout.throttle(post, 60), 8)  # 60 per second, 8 at once
    ask = stamina.retry(on=try_again, attempts=5, timeout=None)(in_turn)

    async def save(prompt):
        db.execute("INSERT INTO answers VALUES (?, ?)", (prompt, await ask(prompt)))

    db.execute("CREATE TABLE IF NOT EXISTS answers (prompt PRIMARY KEY, answer)")
    done = {prompt for (prompt,) in db.execute("SELECT prompt FROM answers")}
    left = [prompt for prompt in prompts if prompt not in done]
    with tqdm(total=len(prompts), initial=len(prompts) - len(left)) as bar:
        meter = fanout.Meter(on_end=lambda _: bar.update())
        async with httpx.AsyncClient(base_url=url, timeout=None) as client:
            await fanout.do(meter.wrap(save), left, limit=100, policy=fanout.Collect(max_failures=100))


if __name__ == "__main__":
    stamina.instrumentation.set_on_retry_hooks([])  # no log across the bar
    prompts = dict.fromkeys(Path(sys.argv[1]).read_text().splitlines())  # each once
    with closing(sqlite3.connect(sys.argv[2], isolation_level=None)) as db:  # each answer is committed immediately
        try:
            trio.run(main, prompts, db, sys.argv[3])
        except fanout.FanOutError as error:
            for kind in error.kinds():
                prompt, failure = next(iter(kind.items.values())), kind.exceptions[0]
                print(f"{len(kind.exceptions)} failed: {failure!r} for {prompt!r}")
            sys.exit(1)
