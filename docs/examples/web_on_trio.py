"""A handler of a web application on Trio: `hypercorn --worker-class trio web_on_trio:app`."""

import trio
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

import trio_fanout as fanout


async def ask(supplier):
    await trio.sleep(0.1)  # stands in for a real request
    return f"price of {supplier}"


ask = fanout.cap(ask, 20)  # for all requests to this application together


async def prices(request):
    return JSONResponse(await fanout.map(ask, ["near", "far"], limit=100))


app = Starlette(routes=[Route("/prices", prices)])
