"""A server whose operations have schemas that a validator cannot compile, or cannot check a value against, in a
reasonable time.

python3 bombs.py PORT

The server prints its port. It has an API at /api, which /chain.json, /deep.json, /numbers.json and /wide.json
describe, and tools at /mcp. It answers every call at once. /asked answers with the number of calls."""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

asked = 0


def chain(prefix):
    """Forty schemas, each of which refers to the next one twice."""
    schemas = {"d40": {"type": "string"}}
    for at in range(40):
        one = {"$ref": f"{prefix}d{at + 1}"}
        schemas[f"d{at}"] = {"allOf": [one, one]}
    return schemas


# A schema with 2000 numbers, which a validator checks for each item of a list.
NUMBERS = {"type": "array", "items": {"enum": [n + 0.5 for n in range(2000)]}}
# The same with more numbers than a schema may have.
WIDE = {"type": "array", "items": {"enum": [n + 0.5 for n in range(100000)]}}
# The same in a text so short that an importer of tools reads all of it.
WIDE_AND_SHORT = {"type": "array", "items": {"enum": list(range(30000))}}
# At each level a validator checks all deeper levels again.
DEEP = {"type": "number"}
for _ in range(30):
    DEEP = {"unevaluatedProperties": DEEP}
# The validator's library writes the name in front of each of the 9000 schemas below it.
LONG_NAME = {"type": "object", "properties": {"x" * 20000: {"anyOf": [{}] * 9000}}}
TOOLS = {
    "fine": {"type": "object"},
    "chain": {"type": "object", "properties": {"v": {"$ref": "#/$defs/d0"}}, "allOf": [{"$ref": "#/$defs/d0"}],
              "$defs": chain("#/$defs/")},
    "deep": {"type": "object", "properties": {"v": DEEP}},
    "name": LONG_NAME,
    "numbers": {"type": "object", "properties": {"v": NUMBERS}},
    "wide": {"type": "object", "properties": {"v": WIDE}},
    "wide-and-short": {"type": "object", "properties": {"v": WIDE_AND_SHORT}},
}


def document(schema, schemas):
    body = {"required": True, "content": {"application/json": {"schema": schema}}}
    operation = {"operationId": "do", "requestBody": body, "responses": {"200": {"description": "Done."}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Bombs", "version": "1"},
        "paths": {"/do": {"post": operation}},
        "components": {"schemas": schemas},
    }


CHAIN = "#/components/schemas/"
DOCUMENTS = {
    "/chain.json": document({"$ref": CHAIN + "d0"}, chain(CHAIN)),
    "/deep.json": document(DEEP, {}),
    "/numbers.json": document(NUMBERS, {}),
    "/wide.json": document(WIDE, {}),
}


def told(method, params):
    """The result of a tool server's method; None if the server does not have the method."""
    if method == "initialize":
        return {
            "protocolVersion": params["protocolVersion"],
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "bombs", "version": "1"},
        }
    if method == "tools/list":
        return {"tools": [{"name": name, "inputSchema": schema} for name, schema in TOOLS.items()]}
    if method == "tools/call":
        return {"content": [{"type": "text", "text": "done"}]}
    return None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def say(self, status, body):
        text = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self):
        if self.path == "/asked":
            return self.say(200, asked)
        found = DOCUMENTS.get(self.path)
        self.say(200 if found else 405, found)

    def do_DELETE(self):
        self.say(200, None)

    def do_POST(self):
        global asked
        text = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path != "/mcp":
            asked += 1
            return self.say(200, None)
        message = json.loads(text)
        if "id" not in message:
            return self.say(202, None)
        asked += message["method"] == "tools/call"
        result = told(message["method"], message.get("params", {}))
        answer = {"error": {"code": -32601, "message": "no such method"}} if result is None else {"result": result}
        self.say(200, {"jsonrpc": "2.0", "id": message["id"], **answer})

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("", int(sys.argv[1])), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
