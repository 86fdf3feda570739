"""A server of the Python kit of May 2025."""

import asyncio
import socket

import uvicorn
from mcp.server.fastmcp import FastMCP

server = FastMCP("tools")


@server.tool()
def add(a: int, b: int) -> int:
    """Adds."""
    return a + b


@server.tool()
def fail() -> str:
    raise ValueError("no such luck")


app = server.streamable_http_app()


async def without_redirects(scope, receive, send):
    """This kit would redirect a client that asks for /mcp to /mcp/, which no message follows."""
    if scope.get("path") == "/mcp":
        scope = {**scope, "path": "/mcp/", "raw_path": b"/mcp/"}
    await app(scope, receive, send)


async def main():
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    print(listener.getsockname()[1], flush=True)
    config = uvicorn.Config(without_redirects, log_level="error")
    await uvicorn.Server(config).serve(sockets=[listener])


asyncio.run(main())
