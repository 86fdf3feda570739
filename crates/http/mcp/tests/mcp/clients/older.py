"""The Python kit of May 2025, which speaks 2025-03-26."""

import asyncio
import sys

from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client

from shared import try_all

url, token = sys.argv[1:]


async def main():
    headers = {"authorization": f"Bearer {token}"}
    async with streamablehttp_client(url, headers=headers) as (read, write, _):
        async with ClientSession(read, write) as session:
            greeting = await session.initialize()
            assert greeting.protocolVersion == "2025-03-26", greeting
            await try_all(session)
    print("fine")


asyncio.run(main())
