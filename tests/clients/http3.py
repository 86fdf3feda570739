"""Sends requests over HTTP/3 with aioquic. Reads a JSON list of requests from standard input, and prints a line for
each response: {"status", "headers", "body" (base64)}.

A request: {"method", "path", "authority"?, "headers"?: {...}, "body"?: text, "times"?: how often the body is repeated,
"events"?: the number of data frames after which the client cancels the request}
"""

import asyncio
import base64
import json
import os
import ssl
import sys

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration

# Deadline in seconds. Emulated guests are slow, and may need long to read a large body. A busy machine extends the
# deadline.
WAIT = 240 * float(os.environ.get("ALKNET_TEST_SLOWDOWN", 1))


class Client(QuicConnectionProtocol):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.http = H3Connection(self._quic)
        self.waiting = {}

    def quic_event_received(self, event):
        for heard in self.http.handle_event(event):
            if isinstance(heard, (HeadersReceived, DataReceived)):
                queue = self.waiting.get(heard.stream_id)
                if queue is not None:
                    queue.put_nowait(heard)

    async def ask(self, authority, request):
        stream = self._quic.get_next_available_stream_id()
        queue = self.waiting[stream] = asyncio.Queue()
        headers = [
            (b":method", request["method"].encode()),
            (b":scheme", b"https"),
            (b":authority", request.get("authority", authority).encode()),
            (b":path", request["path"].encode()),
        ]
        headers += [(k.lower().encode(), v.encode()) for k, v in request.get("headers", {}).items()]
        body = request.get("body", "").encode() * request.get("times", 1)
        self.http.send_headers(stream, headers, end_stream=not body)
        if body:
            self.http.send_data(stream, body, end_stream=True)
        self.transmit()
        told = {"status": 0, "headers": {}, "body": b""}
        events = 0
        while True:
            heard = await asyncio.wait_for(queue.get(), WAIT)
            if isinstance(heard, HeadersReceived):
                for name, value in heard.headers:
                    if name == b":status":
                        told["status"] = int(value)
                    else:
                        told["headers"][name.decode()] = value.decode()
            else:
                told["body"] += heard.data
                events += 1 if heard.data else 0
                if events == request.get("events"):
                    self._quic.stop_stream(stream, 0x10C)
                    self.transmit()
                    break
            if heard.stream_ended:
                break
        del self.waiting[stream]
        told["body"] = base64.b64encode(told["body"]).decode()
        return told


async def main(host, port):
    settings = QuicConfiguration(is_client=True, alpn_protocols=H3_ALPN)
    settings.verify_mode = ssl.CERT_NONE
    authority = f"{host}:{port}"
    async with connect(host, int(port), configuration=settings, create_protocol=Client) as client:
        for request in json.load(sys.stdin):
            print(json.dumps(await client.ask(authority, request)), flush=True)


asyncio.run(main(*sys.argv[1:3]))
