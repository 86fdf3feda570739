"""Uses a node with the Python SDK of the Model Context Protocol.

python3 mcp_node.py [OPERATION INPUT OUTPUT]

The input is a JSON object with the node's `url` and a `token`. The token is not an argument, because every user of the
host can read arguments. The client calls OPERATION by the tool `call` and by the operation's own tool, with INPUT
(JSON). The result must be OUTPUT (JSON). Without arguments the operation is `/node/info`."""

import asyncio
import json
import sys

import httpx2
from mcp import ClientSession
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client

facts, asked = json.load(sys.stdin), sys.argv[1:]
url, token = facts["url"], facts["token"]
operation, given, expected = "/node/info", {}, None
if asked:
    operation, given, expected = asked[0], json.loads(asked[1]), json.loads(asked[2])


def http():
    # The node's certificate is self-signed, so the client cannot verify it.
    headers = {"authorization": f"Bearer {token}"}
    return httpx2.AsyncClient(headers=headers, verify=False)


def output(result):
    content = getattr(result, "structured_content", None)
    if content is None:
        content = getattr(result, "structuredContent", None)
    # Older versions of the protocol carry a result that is no JSON object only as text.
    return json.loads(result.content[0].text) if content is None else content


async def use(session):
    own = operation.strip("/").replace("/", "_")
    names = {tool.name for tool in (await session.list_tools()).tools}
    assert {"search", "schema", "call", "batch", own} <= names, names
    for tool, arguments in [("call", {"operation": operation, "input": given}), (own, given)]:
        found = output(await session.call_tool(tool, arguments))
        if expected is None:
            assert found["problems"] == [], found
        else:
            assert found == expected, found


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
