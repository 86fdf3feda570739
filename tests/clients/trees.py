"""A server that answers with lists of many short values: a parser needs much more memory for them than their text has.

python3 trees.py PORT

The server prints its port. Its paths:

/api                    an API, which /api.json describes
/answers/mcp            tools; after a request of /arm/answers, each result is a long list
/listing/mcp            tools; after a request of /arm/listing, the list of tools contains a long list
/unasked/mcp            tools; after a request of /arm/unasked, the server sends long lists that no client asked for
/asks/mcp               tools; after a request of /arm/asks, the server asks 300 times for the client's roots
/silent/mcp             tools; a call without the argument `answers` gets no answer
/refused/mcp            1,024 tools that a node cannot import; after a request of /arm/refused, they change each second
/wide.json              a document with one mistake, at a path of 1,200,000 characters
/count/api              the number of requests, or of events that the server sent
/count/answers          the number of calls
/count/listing          the number of long lists of tools that the server sent
/count/unasked          the number of long lists that the server sent
/count/unasked-streams  the number of streams that clients opened for the server's own messages
/count/asks-answers     the number of the client's answers
/count/refused          how often clients listed the tools"""

import json
import sys
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# Bytes that the node accepts in one answer, less the text around the list.
API_BYTES = (4 << 20) - 1000
EVENT_BYTES = (1 << 20) - 1000
MCP_BYTES = (16 << 20) - 1000

# Number of times that /asks/mcp asks for the client's roots.
ROOTS = 300

# Characters of the path in /wide.json, and tools at /refused/mcp: as many as the node accepts in one list.
WIDE = 1_200_000
REFUSED = 1024

armed = set()
count = Counter()


def zeros(size):
    return b"[" + b"0," * (size // 2 - 1) + b"0]"


def filled(unit):
    """A list of as many of these texts as an answer may have."""
    return "[" + ",".join([unit] * (API_BYTES // (len(unit) + 1))) + "]"


API = zeros(API_BYTES)
# Units of the lists of /api/shape: values that need most memory for their text.
SHAPES = {
    "few": None,
    "lists": "[0]",
    "deep-lists": "[" * 58 + "]" * 58,
    "objects": '{"":0}',
    "deep-objects": '{"":' * 58 + "0" + "}" * 58,
}
EVENT = zeros(EVENT_BYTES)
MCP = zeros(MCP_BYTES)
# Placeholder for the list in JSON text.
HERE = '"put the list here"'


def described():
    anything = {"200": {"description": "A list.", "content": {"application/json": {}}}}
    events = {"200": {"description": "Lists.", "content": {"text/event-stream": {}}}}
    fields = {"content": {"application/x-www-form-urlencoded": {"schema": {"type": "object"}}}}
    parts = {"content": {"multipart/form-data": {"schema": {"type": "object"}}}}
    of = {"name": "of", "in": "query", "required": True, "schema": {"type": "string"}}
    created = {"name": "created", "in": "query", "style": "deepObject", "explode": True, "schema": {"type": "object"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Trees", "version": "1"},
        "paths": {
            "/list": {"get": {"operationId": "list", "responses": anything}},
            "/events": {"get": {"operationId": "events", "responses": events}},
            "/fields": {"post": {"operationId": "fields", "requestBody": fields, "responses": anything}},
            "/parts": {"post": {"operationId": "parts", "requestBody": parts, "responses": anything}},
            "/shape": {"get": {"operationId": "shape", "parameters": [of], "responses": anything}},
            "/find": {"get": {"operationId": "find", "parameters": [created], "responses": anything}},
        },
    }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def say(self, status, body=b"", headers=()):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def begin_events(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True

    def event(self, text):
        self.wfile.write(b"data: " + text + b"\n\n")
        self.wfile.flush()

    def do_GET(self):
        parts = self.path.split("?")[0].strip("/").split("/")
        match parts:
            case ["arm", what]:
                armed.add(what)
                self.say(200)
            case ["count", what]:
                self.say(200, str(count[what]).encode())
            case ["api.json"]:
                self.say(200, json.dumps(described()).encode())
            case ["wide.json"]:
                wide = {"openapi": "3.1.0", "info": {"title": "Wide", "version": "1"}, "paths": {"/" + "a" * WIDE: 1}}
                self.say(200, json.dumps(wide).encode())
            case ["api", "list"]:
                count["api"] += 1
                self.say(200, API)
            case ["api", "events"]:
                self.begin_events()
                for _ in range(4):
                    self.event(EVENT)
                    count["api"] += 1
            case ["api", "shape"]:
                unit = SHAPES[self.path.partition("?of=")[2]]
                count["api"] += 1
                self.say(200, filled(unit).encode() if unit else b"[1]")
            case ["api", *_]:
                count["api"] += 1
                self.say(200, b"null")
            case [what, "mcp"]:
                self.begin_events()
                self.unasked(what)
            case _:
                self.say(404)

    def unasked(self, what):
        """Serves the stream on which the server sends its own messages."""
        count[what + "-streams"] += 1
        while what not in armed:
            time.sleep(0.1)
        note = {"jsonrpc": "2.0", "method": "notifications/tools/list_changed"}
        if what == "unasked":
            note = {"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": "x"}}
        text = json.dumps(note).encode()
        if what == "asks":
            return self.asks()
        while True:
            if what == "unasked":
                self.event(text.replace(b'"x"', MCP))
                count[what] += 1
            else:
                self.event(text)
                time.sleep(1 if what == "refused" else 3600)

    def asks(self):
        """Sends at most 8 requests at once: a client ends a stream that has too many unanswered ones."""
        for n in range(ROOTS):
            while n - count["asks-answers"] >= 8:
                time.sleep(0.001)
            self.event(json.dumps({"jsonrpc": "2.0", "id": f"roots-{n}", "method": "roots/list"}).encode())
        time.sleep(3600)

    def do_DELETE(self):
        self.say(200)

    def do_POST(self):
        text = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.startswith("/api/"):
            count["api"] += 1
            return self.say(200, b"null")
        what = self.path.split("/")[1]
        message = json.loads(text)
        if "method" not in message:
            count[what + "-answers"] += 1
            return self.say(202)
        if "id" not in message:
            return self.say(202)
        result = self.told(what, message["method"], message.get("params", {}))
        answer = {"error": {"code": -32601, "message": "no such method"}} if result is None else {"result": result}
        body = json.dumps({"jsonrpc": "2.0", "id": message["id"], **answer}).encode()
        self.say(200, body.replace(HERE.encode(), MCP), [("Mcp-Session-Id", "one")])

    def told(self, what, method, params):
        if method == "initialize":
            return {
                "protocolVersion": "2025-06-18",
                "capabilities": {"tools": {"listChanged": True}},
                "serverInfo": {"name": "trees", "version": "1"},
            }
        if method == "tools/list" and what == "refused":
            count[what] += 1
            schema = {"type": "object", "$ref": "#/" + "x" * 1000}
            names = ["\U0001f600" * 190 + str(n) for n in range(REFUSED)]
            return {"tools": [{"name": name, "inputSchema": schema} for name in names]}
        if method == "tools/list":
            schema = {"type": "object"}
            if what == "listing" and what in armed:
                count[what] += 1
                schema["default"] = json.loads(HERE)
            return {"tools": [{"name": "list", "inputSchema": schema}]}
        if method == "tools/call":
            count[what] += 1
            if what == "silent" and not params.get("arguments", {}).get("answers"):
                time.sleep(3600)
            full = what == "answers" and what in armed
            return {"content": [], "structuredContent": json.loads(HERE) if full else {"few": True}}
        return None


server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
