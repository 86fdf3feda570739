"""A server of the Python kit of 2026."""

import asyncio
import socket
from typing import TypedDict

import uvicorn
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ToolAnnotations
from pydantic import BaseModel

server = MCPServer("tools")


class Sum(TypedDict):
    sum: int


class Answer(BaseModel):
    text: str


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
def add(a: int, b: int) -> Sum:
    """Adds."""
    return {"sum": a + b}


@server.tool(name="files.list", structured_output=False)
def files() -> str:
    return '{"looks": "like JSON"}'


@server.tool(structured_output=False)
def fail() -> str:
    raise ToolError("no such luck")


@server.tool(structured_output=False)
async def ask(ctx: Context) -> str:
    return str(await ctx.elicit("What now?", Answer))


async def main():
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    print(listener.getsockname()[1], flush=True)
    config = uvicorn.Config(server.streamable_http_app(), log_level="error")
    await uvicorn.Server(config).serve(sockets=[listener])


asyncio.run(main())
