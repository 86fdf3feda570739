#!/usr/bin/env python3
"""call_quic.py ed25519:<64 hex>@HOST:PORT OPERATION [JSON] [--follow] [--cert FILE]
Calls over QUIC with aioquic. Prints the answer as a line of JSON or, with --follow, each event of a
subscription. FILE is a self-signed certificate of your Ed25519 key with the key, both PEM; without
it the node knows no identity. Whatever fails exits with 1."""
import asyncio, getopt, itertools, json, re, ssl, sys
from contextlib import asynccontextmanager
from aioquic.asyncio import QuicConnectionProtocol, connect
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import StreamDataReceived

@asynccontextmanager
async def reach(target, cert=None):
    _, pin, host, port, _ = re.split(r"^ed25519:([0-9a-f]{64})@\[?(.+?)\]?:(\d+)$", target)
    about = QuicConfiguration(alpn_protocols=["alknet/call"], verify_mode=ssl.CERT_NONE)
    if cert: about.load_cert_chain(cert)
    async with connect(host, int(port), configuration=about, create_protocol=Node) as node:
        shown = node._quic.tls._peer_certificate.public_key()  # no authority signed it: the pin counts
        if getattr(shown, "public_bytes_raw", bytes)() != bytes.fromhex(pin):
            raise ConnectionError("the node does not hold the pinned key")
        yield node

class Node(QuicConnectionProtocol):
    """A connection to a node. Both sides call over it: the node may call `operations`, by name."""
    def __init__(self, *args, **more):
        super().__init__(*args, **more)
        self.ids, self.waiting, self.received, self.operations = itertools.count(1), {}, {}, {}
    def send(self, stream, kind, id, payload):
        body = json.dumps({"type": kind, "id": id, "payload": payload}).encode()
        self._quic.send_stream_data(stream, len(body).to_bytes(4, "big") + body)
        self.transmit()
    def quic_event_received(self, quic):
        if isinstance(quic, StreamDataReceived):
            data = self.received.get(quic.stream_id, b"") + quic.data
            while len(data) >= (end := 4 + int.from_bytes(data[:4], "big")):
                event, data = json.loads(data[4:end]), data[end:]
                if event["type"] == "call.requested":
                    self.answer(quic.stream_id, event["id"], event["payload"])
                elif event["id"] in self.waiting:
                    self.waiting[event["id"]].put_nowait(event)
            self.received[quic.stream_id] = data
        elif hasattr(quic, "error_code") and getattr(quic, "stream_id", 0) == 0:  # an end
            lost = {"code": "UNAVAILABLE", "message": f"code {quic.error_code}", "retryable": True}
            for events in self.waiting.values():
                events.put_nowait({"type": "call.error", "payload": lost})
    def answer(self, on, id, request):
        if operation := self.operations.get(request["operationId"].lstrip("/")):
            return self.send(on, "call.responded", id, {"output": operation(request.get("input"))})
        self.send(on, "call.error", id, {"code": "NOT_FOUND", "message": "?", "retryable": False})
    async def events(self, operation, input=None, **more):  # one; with a `window`, all
        id, events, over = str(next(self.ids)), asyncio.Queue(), False
        self.waiting[id], request = events, {"operationId": "/" + operation, "input": input, **more}
        self.send(0, "call.requested", id, request)  # stream 0 carries all we ask
        try:
            while not over:
                event = await events.get()
                over = "window" not in more or event["type"] != "call.responded"
                if event["type"] == "call.responded":
                    yield event["payload"]["output"]
                elif event["type"] != "call.completed":
                    raise RuntimeError(json.dumps(event["payload"]))
                if not over:
                    self.send(0, "call.credit", id, {"n": 1})
        finally:
            del self.waiting[id]
            if not over:
                self.send(0, "call.aborted", id, {})

async def main(target, operation, input="null", **options):
    more = {"window": 64} if "--follow" in options else {}
    async with reach(target, options.get("--cert")) as node:
        async for output in node.events(operation, json.loads(input), **more):
            print(json.dumps(output), flush=True)
if __name__ == "__main__":
    try:
        options, words = getopt.gnu_getopt(sys.argv[1:], "", ["follow", "cert="])
        asyncio.run(main(*words, **dict(options)))
    except (OSError, RuntimeError, getopt.GetoptError, TypeError, ValueError) as error:
        sys.exit(str(error) or repr(error) if isinstance(error, OSError | RuntimeError) else __doc__)
