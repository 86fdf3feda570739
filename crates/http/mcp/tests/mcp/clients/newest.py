"""The Python kit of 2026: a session as of 2025-11-25, and a client as of 2026-07-28."""

import asyncio
import sys

import httpx2
from mcp import ClientSession
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client

from shared import try_all

url, token = sys.argv[1:]


def http(token):
    headers = {"authorization": f"Bearer {token}"} if token else {}
    return httpx2.AsyncClient(headers=headers)


async def main():
    async with http(token) as client, streamable_http_client(url, http_client=client) as streams:
        async with ClientSession(streams[0], streams[1]) as session:
            greeting = await session.initialize()
            version = getattr(greeting, "protocol_version", None) or greeting.protocolVersion
            assert version == "2025-11-25", version
            await try_all(session)
    async with http(token) as client:
        async with Client(streamable_http_client(url, http_client=client)) as session:
            assert session.protocol_version == "2026-07-28", session.protocol_version
            await try_all(session)
    async with http(None) as client:
        assert (await client.post(url, json={})).status_code == 401
    print("fine")


asyncio.run(main())
