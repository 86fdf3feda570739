"""Uses the client that openapi-python-client generated from a node's document. Reads {"url", "token", "wrong": an
operation and an input that its schema refuses} from standard input. The working folder has the generated client.
"""

import json
import sys

from client import AuthenticatedClient, Client
from client.api.node import healthz
from client.api.operations import batch, call, schema, search
from client.models import (
    BatchCall,
    BatchFailure,
    BatchMode,
    BatchRequest,
    BatchSuccess,
    CallRequest,
    CallResponse,
    ErrorResponse,
    OperationSchema,
    OperationType,
    SearchResponse,
)

given = json.load(sys.stdin)
url, wrong = given["url"], given["wrong"]
# The node's certificate is self-signed, so the client cannot verify it.
known = AuthenticatedClient(base_url=url, token=given["token"], verify_ssl=False)
anonymous = Client(base_url=url, verify_ssl=False)


def refused(told, status, code):
    """The error in a response with this status and code; the generated client has parsed it."""
    assert told.status_code == status, told
    assert isinstance(told.parsed, ErrorResponse), told
    error = told.parsed.error
    assert error.code == code and error.message and error.request_id, error
    return error


assert healthz.sync(client=anonymous) == "ok\n"

info = call.sync(client=known, body=CallRequest(operation="/node/info"))
assert isinstance(info, CallResponse) and info.output["problems"] == [], info

bad = CallRequest(operation=wrong["operation"], input_=wrong["input"])
error = refused(call.sync_detailed(client=known, body=bad), 422, "INVALID_INPUT")
assert isinstance(error.details, list) and error.details and not error.retryable, error
missing = CallRequest(operation="/no/such")
refused(call.sync_detailed(client=known, body=missing), 404, "NOT_FOUND")
refused(call.sync_detailed(client=anonymous, body=missing), 401, "UNAUTHENTICATED")
never = CallRequest(operation="/node/info", timeout_ms=0)
error = refused(call.sync_detailed(client=known, body=never), 400, "INVALID_INPUT")
assert error.details["pointer"] == "/timeout_ms", error

found = search.sync(client=known, q="node/info", type_=OperationType.QUERY)
assert isinstance(found, SearchResponse) and found.next_ is None, found
assert [one.operation for one in found.operations] == ["/node/info"], found
described = schema.sync(client=known, operation="/node/info")
assert isinstance(described, OperationSchema) and described.type_ == OperationType.QUERY, described

calls = [BatchCall(id="a", operation="/node/info"), BatchCall(id="b", operation="/no/such")]
results = batch.sync(client=known, body=BatchRequest(calls=calls, mode=BatchMode.SEQUENTIAL)).results
assert isinstance(results[0], BatchSuccess) and results[0].output["problems"] == [], results
assert isinstance(results[1], BatchFailure) and results[1].error.code == "NOT_FOUND", results

print("fine")
