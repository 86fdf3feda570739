"""A server made with the Python SDK of the Model Context Protocol. A node imports its tools.

python3 mcp_server.py PORT [--token-file FILE]

The server prints its port. When a client calls the tool `grow`, the server adds another tool. With --token-file
the server refuses each request that does not have the token in the file."""

import asyncio
import socket
import sys
from pathlib import Path
from typing import TypedDict

import uvicorn
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.transport_security import TransportSecuritySettings
from mcp.types import ToolAnnotations

port, *options = sys.argv[1:]
token = None
if "--token-file" in options:
    token = Path(options[options.index("--token-file") + 1]).read_text().strip()

server = MCPServer("tools")


class Sum(TypedDict):
    sum: int


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


def late() -> str:
    return "better late"


@server.tool(structured_output=False)
async def grow(ctx: Context) -> str:
    server.add_tool(late, structured_output=False)
    await ctx.notify_tools_changed()
    return "grown"


# This server does not test host names: a machine calls this host by an address of the machine's network.
anywhere = TransportSecuritySettings(enable_dns_rebinding_protection=False)
app = server.streamable_http_app(transport_security=anywhere)


async def guarded(scope, receive, send):
    if scope["type"] == "http" and token is not None:
        if dict(scope["headers"]).get(b"authorization") != f"Bearer {token}".encode():
            await send({"type": "http.response.start", "status": 401, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return
    await app(scope, receive, send)


async def main():
    listener = socket.socket()
    # The server reuses its port while the kernel still remembers connections of the server before it.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", int(port)))
    listener.listen()
    print(listener.getsockname()[1], flush=True)
    config = uvicorn.Config(guarded, log_level="error")
    await uvicorn.Server(config).serve(sockets=[listener])


asyncio.run(main())
