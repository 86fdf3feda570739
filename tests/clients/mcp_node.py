"""The Python kit of the Model Context Protocol with a node: python3 mcp_node.py URL TOKEN."""

import asyncio
import sys

import httpx2
from mcp import ClientSession
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client

url, token = sys.argv[1:]


def http():
    # The node's certificate is of its own making.
    headers = {"authorization": f"Bearer {token}"}
    return httpx2.AsyncClient(headers=headers, verify=False)


async def use(session):
    names = {tool.name for tool in (await session.list_tools()).tools}
    assert {"search", "schema", "call", "batch", "node_info"} <= names, names
    for tool, arguments in [("call", {"operation": "/node/info"}), ("node_info", {})]:
        result = await session.call_tool(tool, arguments)
        content = getattr(result, "structured_content", None) or result.structuredContent
        assert content["problems"] == [], content


async def main():
    async with http() as client, streamable_http_client(url, http_client=client) as streams:
        async with ClientSession(streams[0], streams[1]) as session:
            await session.initialize()
            await use(session)
    async with http() as client:
        async with Client(streamable_http_client(url, http_client=client)) as session:
            assert session.protocol_version == "2026-07-28", session.protocol_version
            await use(session)
    print("fine")


asyncio.run(main())
