"""Tests of the Python clients in the documentation, with a node.

    suite.py CLIENT NAME...

CLIENT is the file with the client. The input is a JSON object about the node. The program prints `ok NAME` for each
test that passed, and ends at the first test that fails.
"""
import asyncio, contextlib, importlib.util, json, os, sys, types

# Largest frame of an unknown peer in bytes: docs/protocol.md.
UNKNOWN_PEER_FRAME_BYTES = 64 << 10
# Longest wait for one step in seconds. Emulated guests are slow, and the machine may be busy.
HUNG = 120 * float(os.environ.get("ALKNET_TEST_SLOWDOWN", 1))


def load(path):
    spec = importlib.util.spec_from_file_location("client", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextlib.asynccontextmanager
async def dialled(cert=None):
    """A connection to the node, which is closed at the end of the block."""
    if hasattr(client, "reach"):
        async with client.reach(facts["target"], cert) as node:
            yield node
        return
    node = await client.Node().connect(facts["target"], cert)
    try:
        yield node
    finally:
        node.writer.close()
        with contextlib.suppress(OSError):
            await node.writer.wait_closed()


def known():
    return dialled(facts["cert"])


def is_quic(node):
    return hasattr(node, "_quic")


def write(node, data):
    """Sends any bytes on the stream that carries the requests."""
    if is_quic(node):
        node._quic.send_stream_data(0, data)
        node.transmit()
    else:
        node.writer.write(data)


async def call(node, operation, input=None, **more):
    async with contextlib.aclosing(node.events(operation, input, **more)) as events:
        async for output in events:
            return output


async def refused(node, operation, input=None, **more):
    """The error with which the call ends."""
    try:
        output = await call(node, operation, input, **more)
    except RuntimeError as error:
        return json.loads(str(error))
    raise AssertionError(f"{operation} answered {output}")


async def until(node, true, operation="demo/state"):
    """Asks the node for its state until `true(state)` holds, and returns the state."""
    while not true(state := await call(node, operation)):
        await asyncio.sleep(0.01)
    return state


# Tests that run with every node.

async def listed(node, **more):
    """The names of all operations, however many pages they take."""
    names, cursor = [], None
    while True:
        page = await call(node, "services/list", {**more, "cursor": cursor})
        names += [operation["name"] for operation in page["operations"]]
        if not (cursor := page.get("next")):
            return names


async def lists_and_describes():
    async with known() as node:
        whole, names = await call(node, "services/list"), await listed(node)
        assert names == sorted(names) and "services/list" in names, whole
        protocol = whole["protocol"]
        assert protocol["version"] == 1, whole
        assert set(protocol["features"]) >= {"bin1", "credit1", "goaway1"}, whole
        assert protocol["max_frame"] == 1 << 20 and protocol["max_inflight"] == 256, whole
        paged = await listed(node, limit=2)
        assert paged == names, (paged, names)
        spec = await call(node, "services/schema", {"name": facts["query"]})
        assert spec["op_type"] == "query" and spec["input_schema"], spec
        both = {"names": [facts["query"], "services/watch"]}
        specs = (await call(node, "services/schema", both))["specs"]
        assert [spec["op_type"] for spec in specs] == ["query", "subscription"], specs
    async with dialled() as unknown_peer:
        seen = await call(unknown_peer, "services/list")
        assert len(seen["operations"]) < len(names), seen
        assert seen["protocol"]["max_frame"] == UNKNOWN_PEER_FRAME_BYTES, seen


async def errors_have_types():
    async with known() as node:
        error = await refused(node, facts["query"], 7)
        assert error["code"] == "INVALID_INPUT" and error["retryable"] is False, error
        assert {"path", "keyword", "message"} <= error["details"][0].keys(), error
        error = await refused(node, "no/such-operation")
        assert error["code"] == "NOT_FOUND", error
        error = await refused(node, "services/watch", {}, auth_token="alk_wrongone_" + "A" * 43)
        assert error["code"] == "UNAUTHENTICATED", error
    async with dialled() as unknown_peer:
        error = await refused(unknown_peer, facts["query"])
        assert error["code"] == "UNAUTHENTICATED", error


async def many_calls_at_once_find_their_answers():
    async with known() as node:
        names = [operation["name"] for operation in (await call(node, "services/list"))["operations"]]
        asked = [names[n % len(names)] for n in range(200)]
        specs = await asyncio.gather(*(call(node, "services/schema", {"name": name}) for name in asked))
        assert [spec["name"] for spec in specs] == asked


async def subscriptions_begin_and_are_given_up():
    async with known() as node:
        async with contextlib.aclosing(node.events("services/watch", {}, window=1)) as events:
            first = await anext(events)
            assert first["registry"] and first["added"] == [], first
        # The connection and the operation still work after the client has cancelled the subscription.
        listed = await call(node, "services/list")
        assert listed["registry"] == first["registry"], listed


async def tokens_identify_an_unknown_client():
    token = facts["token"]
    async with dialled() as unknown_peer:
        as_token = await call(unknown_peer, "services/list", auth_token=token)
        as_unknown = await call(unknown_peer, "services/list")
        assert len(as_token["operations"]) > len(as_unknown["operations"])
        error = await refused(unknown_peer, "session/authenticate", {"token": token[:-1] + "!"})
        assert error["code"] == "UNAUTHENTICATED" and token[:-1] not in json.dumps(error), error
        who = await call(unknown_peer, "session/authenticate", {"token": token})
        assert who == {"id": facts["token_id"], "scopes": facts["token_scopes"]}, who
        assert await call(unknown_peer, "services/list") == {
            **as_token, "protocol": {**as_token["protocol"], "max_frame": 1 << 20, "max_inflight": 256}}
        error = await refused(unknown_peer, "session/authenticate", {"token": token})
        assert error["code"] == "CONFLICT", error


async def what_is_too_long_ends_the_stream():
    for header in [(UNKNOWN_PEER_FRAME_BYTES + 1).to_bytes(4, "big"), bytes(4), b"\xff\xff\xff\xff"]:
        async with dialled() as unknown_peer:
            assert await call(unknown_peer, "services/list")
            waiting = asyncio.create_task(refused(unknown_peer, "services/watch", {}, window=0))
            await asyncio.sleep(0)
            write(unknown_peer, header)
            error = await waiting
            assert error["code"] == "UNAVAILABLE", error
            if is_quic(unknown_peer):
                assert error["message"] == "code 5", error
    async with dialled() as unknown_peer:
        assert await call(unknown_peer, "services/list")


async def a_quic_stream_may_carry_one_request():
    """The client sends FIN after the request, and the node sends FIN after the response."""
    async with known() as node:
        assert is_quic(node)
        ended, received = asyncio.Event(), node.quic_event_received

        def watch(event):
            received(event)
            if getattr(event, "stream_id", None) == 4 and getattr(event, "end_stream", False):
                ended.set()
        node.quic_event_received = watch
        answer = node.waiting["own"] = asyncio.Queue()
        node.send(4, "call.requested", "own", {"operationId": "services/list"})
        node._quic.send_stream_data(4, b"", end_stream=True)
        node.transmit()
        assert (await answer.get())["payload"]["output"]["operations"]
        await ended.wait()


# Tests that need operations made for them.

async def ten_thousand_items_wait_for_a_slow_reader():
    window, count = 16, 10_000
    async with known() as node:
        before, ahead, expected = (await call(node, "demo/state"))["made"], 0, 0
        async with contextlib.aclosing(node.events("demo/count", count, window=window)) as events:
            async for item in events:
                assert item == expected, (item, expected)
                expected += 1
                if expected % 500 == 0:
                    # The reader pauses, and flow control makes the node pause.
                    await asyncio.sleep(0.02)
                    made = (await call(node, "demo/state"))["made"] - before
                    assert made <= min(count, expected + window), (made, expected)
                    ahead = max(ahead, made - expected)
        assert expected == count and ahead > 0, (expected, ahead)


async def what_is_given_up_ends_at_the_node():
    async with known() as node:
        async with contextlib.aclosing(node.events("demo/count", None, window=4)) as events:
            await anext(events)
            assert (await call(node, "demo/state"))["running"] == 1
        await until(node, lambda state: state["running"] == 0)
        waiting = asyncio.create_task(call(node, "demo/hang"))
        await until(node, lambda state: state["running"] == 1)
        waiting.cancel()
        await until(node, lambda state: state["running"] == 0)


async def a_slow_call_delays_no_other():
    async with known() as node:
        slow = asyncio.create_task(call(node, "demo/hang"))
        await until(node, lambda state: state["running"] == 1)
        assert await asyncio.gather(*(call(node, "demo/echo", n) for n in range(50))) == list(range(50))
        assert not slow.done()
        slow.cancel()


async def a_keyed_mutation_runs_once():
    key = {"idempotency_key": "order-" + facts["name"]}
    async with known() as node:
        first = await call(node, "demo/charge", {"cents": 5}, **key)
        assert await call(node, "demo/charge", {"cents": 5}, **key) == first
        error = await refused(node, "demo/charge", {"cents": 6}, **key)
        assert error["code"] == "CONFLICT", error
    # The client opens another connection with the same identity.
    async with known() as node:
        assert await call(node, "demo/charge", {"cents": 5}, **key) == first
        assert await call(node, "demo/charge", {"cents": 5}) == first + 1


async def the_node_calls_back():
    async with known() as node:
        error = await refused(node, "demo/back", 21)
        assert error["code"] == "NOT_FOUND", error
        node.operations["client/double"] = lambda n: n * 2
        answers = await asyncio.gather(*(call(node, "demo/back", n) for n in range(20)))
        assert answers == [n * 2 for n in range(20)], answers


async def errors_of_an_operation_have_their_code():
    async with known() as node:
        error = await refused(node, "demo/full")
        assert (error["code"], error["retryable"]) == ("DISK_FULL", False), error
        assert error["details"] == {"free": 0}, error
        error = await refused(node, "demo/hang", timeout_ms=50)
        assert (error["code"], error["retryable"]) == ("TIMEOUT", True), error
        async with contextlib.aclosing(node.events("services/watch", {}, window=8, idle_ms=50)) as events:
            await anext(events)
            try:
                raise AssertionError(await anext(events))
            except RuntimeError as error:
                assert json.loads(str(error))["code"] == "TIMEOUT", error
    async with dialled(facts["other"]) as peer:
        error = await refused(peer, "demo/state")
        assert error["code"] == "FORBIDDEN", error


async def long_values_arrive_whole():
    async with known() as node:
        for text in ["", "ä€😀\u0000\"\\", "x" * 70_000, "€" * 150_000]:
            assert await call(node, "demo/echo", {"text": [text]}) == {"text": [text]}


async def binary_data_travels_beside_the_json():
    data = bytes(range(256)) * 100
    async with known() as node:
        answer = node.waiting["mixed"] = asyncio.Queue()
        request = {"operationId": "/demo/twice", "input": {"data": {"$bin": [0, len(data)]}}}
        event = json.dumps({"type": "call.requested", "id": "mixed", "payload": request}).encode()
        body = b"\x01" + len(event).to_bytes(4, "big") + event + data
        write(node, len(body).to_bytes(4, "big") + body)
        assert (await answer.get())["payload"]["output"]["data"] == data * 2


async def a_reset_gives_a_call_up():
    """RESET_STREAM and STOP_SENDING cancel the call on a stream that carries one request."""
    async with known() as node:
        assert is_quic(node)
        await call(node, "demo/state")
        node.send(4, "call.requested", "own", {"operationId": "/demo/hang"})
        await until(node, lambda state: state["running"] == 1)
        node._quic.reset_stream(4, 0)
        node._quic.stop_stream(4, 0)
        node.transmit()
        await until(node, lambda state: state["running"] == 0)


async def main():
    for name in sys.argv[2:]:
        await asyncio.wait_for(globals()[name](), HUNG)
        print("ok", name, flush=True)


def loads(body):
    """`json.loads` that also reads mixed frames, and puts their bytes in the place of each `$bin`."""
    if body[:1] != b"\x01":
        return json.loads(body)
    end = 5 + int.from_bytes(body[1:5], "big")
    bytes_of = lambda at, size: body[end + at:end + at + size]
    return json.loads(body[5:end], object_hook=lambda o: bytes_of(*o["$bin"]) if o.keys() == {"$bin"} else o)


client, facts = load(sys.argv[1]), json.load(sys.stdin)
# The clients of the documentation announce no `bin1`, so the node sends them no mixed frame.
client.json = types.SimpleNamespace(loads=loads, dumps=json.dumps)
asyncio.run(main())
