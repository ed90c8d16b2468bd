"""An agent with a deadline: `python agent.py URL QUESTION` plans, asks four tools, ranks what they found, answers."""

import sys

import httpx
import trio
from outcome import Value

import trio_fanout as fanout
from trio_fanout import Step

TOOLS = ["web", "wiki", "code", "mail"]
PATIENCE, DEADLINE = 2, 10  # seconds: for one tool, and for all


async def think(client, task, *args):
    return (await client.post(f"/{task}", json=args)).raise_for_status().json()


def steps(client, question):
    async def plan():
        return await think(client, "plan", question)

    def tool(name):
        async def search(queries):
            with trio.fail_after(PATIENCE):
                return (await client.get(f"/{name}", params={"q": queries[name]})).raise_for_status().json()

        return Step(search, needs=["plan"])

    async def rank(*outcomes):
        found = [page for tried in outcomes if isinstance(tried, Value) for page in tried.value]
        if not found:
            raise LookupError(question)
        return await think(client, "rank", question, found)

    async def answer(pages):
        return await think(client, "answer", question, pages[:3])

    return {
        "plan": Step(plan),
        **{name: tool(name) for name in TOOLS},
        "rank": Step(rank, needs=TOOLS, settled=True),  # when all tools have ended, however they did
        "answer": Step(answer, needs=["rank"]),
    }


async def main(url, question):
    async with httpx.AsyncClient(base_url=url, timeout=None) as client:
        ends = await fanout.run_graph(steps(client, question), policy=fanout.Settle(move_on_after=DEADLINE))
    for name, end in ends.items():
        if not isinstance(end, Value):
            print(f"{name}: {end.error!r}", file=sys.stderr)
    best = [ends[name].value for name in ("answer", "rank", *TOOLS) if isinstance(ends[name], Value)]
    print(best[0] if best else "nothing")


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
