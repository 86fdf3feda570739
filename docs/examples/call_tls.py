#!/usr/bin/env python3
"""call_tls.py ed25519:<64 hex>@HOST:PORT OPERATION [JSON] [--follow] [--cert FILE]
Calls over TLS on TCP with Python's standard library alone. Prints the answer as a line of JSON or,
with --follow, each event of a subscription. FILE is a self-signed certificate of your Ed25519 key
with the key, both PEM; without it the node knows no identity. Whatever fails exits with 1."""
import asyncio, getopt, itertools, json, re, ssl, sys

def public_key(der):
    for inside in [True] * 2 + [False] * 6:  # SubjectPublicKeyInfo: RFC 5280 section 4.1
        if der[1] == 0x80: raise ConnectionError("the certificate is not DER")
        start = 2 + (der[1] & 0x7F if der[1] & 0x80 else 0)
        end = start + int.from_bytes(der[2:start] or der[1:2], "big")
        der = der[start:end] if inside else der[end:]
    return der

class Node:
    """A connection to a node. Both sides call over it: the node may call `operations`, by name."""
    async def connect(self, target, cert=None):
        _, pin, host, port, _ = re.split(r"^ed25519:([0-9a-f]{64})@\[?(.+?)\]?:(\d+)$", target)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # the pin counts, below
        context.set_alpn_protocols(["alknet/call"])
        if cert: context.load_cert_chain(cert)
        self.reader, self.writer = await asyncio.open_connection(host, int(port), ssl=context)
        shown = public_key(self.writer.get_extra_info("ssl_object").getpeercert(binary_form=True))
        if not shown.startswith(bytes.fromhex("302a300506032b6570032100" + pin)):  # RFC 8410
            raise ConnectionError("the node does not hold the pinned key")
        self.ids, self.waiting, self.operations = itertools.count(1), {}, {}
        self.task = asyncio.create_task(self.receive())
        return self
    def send(self, kind, id, payload):
        body = json.dumps({"type": kind, "id": id, "payload": payload}).encode()
        self.writer.write(len(body).to_bytes(4, "big") + body)
    async def receive(self):
        try:
            while size := int.from_bytes(await self.reader.readexactly(4), "big"):
                event = json.loads(await self.reader.readexactly(size))
                if event["type"] == "call.requested":
                    self.answer(event["id"], event["payload"])
                elif event["id"] in self.waiting:
                    self.waiting[event["id"]].put_nowait(event)
        except (EOFError, OSError) as error:
            lost = {"code": "UNAVAILABLE", "message": str(error), "retryable": True}
            for events in self.waiting.values():
                events.put_nowait({"type": "call.error", "payload": lost})
    def answer(self, id, request):
        if operation := self.operations.get(request["operationId"].lstrip("/")):
            return self.send("call.responded", id, {"output": operation(request.get("input"))})
        self.send("call.error", id, {"code": "NOT_FOUND", "message": "unknown", "retryable": False})
    async def events(self, operation, input=None, **more):  # one; with a `window`, all
        id, events, over = str(next(self.ids)), asyncio.Queue(), False
        self.waiting[id] = events
        self.send("call.requested", id, {"operationId": "/" + operation, "input": input, **more})
        try:
            while not over:
                event = await events.get()
                over = "window" not in more or event["type"] != "call.responded"
                if event["type"] == "call.responded":
                    yield event["payload"]["output"]
                elif event["type"] != "call.completed":
                    raise RuntimeError(json.dumps(event["payload"]))
                if not over:
                    self.send("call.credit", id, {"n": 1})
        finally:
            del self.waiting[id]
            if not over:
                self.send("call.aborted", id, {})

async def main(target, operation, input="null", **options):
    node, more = await Node().connect(target, options.get("--cert")), {"window": 64}
    more = more if "--follow" in options else {}
    async for output in node.events(operation, json.loads(input), **more):
        print(json.dumps(output), flush=True)
if __name__ == "__main__":
    try:
        options, words = getopt.gnu_getopt(sys.argv[1:], "", ["follow", "cert="])
        asyncio.run(main(*words, **dict(options)))
    except (OSError, RuntimeError, getopt.GetoptError, TypeError, ValueError) as error:
        sys.exit(str(error) or repr(error) if isinstance(error, OSError | RuntimeError) else __doc__)
