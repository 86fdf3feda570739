"""Breaks the rules of RFC 9114, and compares what the server does with what the RFC requires. Reads {"token"} from
standard input and prints a line for each rule: {"rule", "wanted", "got", "kept"}.

With the argument "drain" the program opens a stream of events and prints "drain". When the server has closed the
connection, the program prints {"open": the stream, "goaway": [identifiers], "closed": code}.
"""

import asyncio
import json
import sys

from http3_peer import (
    CANCEL_PUSH,
    CONTROL,
    DATA,
    DECODER,
    ENCODER,
    GET,
    GOAWAY,
    GREASE,
    HEADERS,
    MAX_PUSH_ID,
    OF_HTTP2,
    PUSH,
    PUSH_PROMISE,
    SETTINGS,
    changed,
    frame,
    head,
    joined,
    length,
    narrow,
    number,
    section,
)

# Error codes (section 8.1, RFC 9204 section 6).
NO_ERROR = 0x100
STREAM_CREATION = 0x103
CLOSED_CRITICAL_STREAM = 0x104
FRAME_UNEXPECTED = 0x105
FRAME_ERROR = 0x106
ID_ERROR = 0x108
SETTINGS_ERROR = 0x109
MISSING_SETTINGS = 0x10A
REQUEST_INCOMPLETE = 0x10D
MESSAGE_ERROR = 0x10E
DECOMPRESSION_FAILED = 0x200
ENCODER_STREAM = 0x201
DECODER_STREAM = 0x202

CALL = b'{"operation":"/node/info"}'
GIVEN = json.loads(sys.stdin.readline())
POST = (
    (":method", "POST"),
    (":scheme", "https"),
    (":authority", "localhost"),
    (":path", "/call"),
    ("content-type", "application/json"),
    ("authorization", "Bearer " + GIVEN["token"]),
)

RULES = []


def closes(code):
    return [("closed", code)]


def malformed(code=MESSAGE_ERROR):
    """The permitted outcomes of a malformed message. The server resets the stream, closes the connection (section 8)
    or answers with status 400 (section 4.1.2)."""
    return [("reset", code), ("closed", code), ("status", 400)]


SERVED = [("status", 200)]


def rule(name, wanted, *, settings=True):
    """Adds a rule. Its function breaks the rule, and returns the stream whose outcome counts, or None if the
    connection's outcome counts."""

    def add(function):
        RULES.append((name, wanted, settings, function))
        return function

    return add


def request(name, wanted, data, *, end=True):
    rule(name, wanted)(lambda peer: peer.ask(data, end))


def control(name, wanted, *frames, end=False):
    """Adds a rule about further frames on the control stream."""

    def act(peer):
        peer.more(peer.control, b"".join(frames), end)

    rule(name, wanted)(act)


def streams(name, wanted, *each, end=False, settings=True):
    """Adds a rule about further unidirectional streams."""

    def act(peer):
        for data in each:
            peer.uni(data, end)

    rule(name, wanted, settings=settings)(act)


# Section 4.1: the parts of a request.
BODY = frame(DATA, CALL)
TRAILERS = head((("x-a", "b"),))
WHOLE = head(POST) + BODY + TRAILERS
request("4.1 a request", SERVED, head())
request("4.1 a request with a body and trailers", SERVED, WHOLE)
request("4.1 DATA before HEADERS", closes(FRAME_UNEXPECTED), frame(DATA, b"x") + head())
request("4.1 DATA after trailers", closes(FRAME_UNEXPECTED), WHOLE + BODY)
request("4.1 HEADERS after trailers", closes(FRAME_UNEXPECTED), WHOLE + TRAILERS)
request("4.1 no request at all", malformed(REQUEST_INCOMPLETE), b"")

# Section 4.1.2: malformed messages.
for what, size in [("more than", len(CALL) - 1), ("less than", len(CALL) + 1)]:
    fields = (*POST, ("content-length", str(size)))
    request(f"4.1.2 {what} content-length says", malformed(), head(fields) + BODY)

# Section 4.2: fields.
for what, extra in [
    ("a name in upper case", ("X-Upper", "a")),
    ("a name with a space", ("x a", "b")),
    ("an empty name", ("", "b")),
    ("a line break in a value", ("x-a", "b\r\nc: d")),
    ("a zero in a value", ("x-a", "b\0c")),
    ("connection", ("connection", "close")),
    ("keep-alive", ("keep-alive", "timeout=5")),
    ("transfer-encoding", ("transfer-encoding", "chunked")),
    ("upgrade", ("upgrade", "websocket")),
    ("te with anything but trailers", ("te", "gzip")),
]:
    request(f"4.2 {what}", malformed(), head((*GET, extra)))
request("4.2 te: trailers", SERVED, head((*GET, ("te", "trailers"))))
request("4.2.2 a field section that is too long", [("status", 431)], head((*GET, ("x-a", "b" * 40_000))))

# Section 4.3: pseudo-header fields.
for name, value in GET:
    what = name.removeprefix(":")
    request(f"4.3.1 no {what}", malformed(), head(changed(GET, name)))
    request(f"4.3.1 {what} twice", malformed(), head(changed(GET, name, value, value)))
    request(f"4.3.1 an empty {what}", malformed(), head(changed(GET, name, "")))
request("4.3 an unknown one", malformed(), head((*GET, (":extra", "a"))))
request("4.3 one of answers", malformed(), head((*GET, (":status", "200"))))
request("4.3 one behind other fields", malformed(), head((*GET[:3], ("x-a", "b"), GET[3])))
request("4.3 one in trailers", malformed(), head(POST) + BODY + head(((":path", "/"),)))
request("4.3.1 an authority and another host", malformed(), head((*GET, ("host", "other.example"))))
HOST = (*changed(GET, ":authority"), ("host", "localhost"))
request("4.3.1 a host in the place of the authority", SERVED, head(HOST))

# Section 6.2: streams.
SETTLED = number(CONTROL) + frame(SETTINGS)
streams("6.2 an unknown kind of stream", SERVED, number(0x21) + b"anything")
streams("6.2 a stream that ends before its kind", SERVED, b"\x40", end=True)
streams("6.2.1 a second control stream", closes(STREAM_CREATION), SETTLED)
streams("6.2.2 a push stream of a client", closes(STREAM_CREATION), number(PUSH) + number(0))
control("6.2.1 the control stream ends", closes(CLOSED_CRITICAL_STREAM), end=True)


@rule("6.2.1 the control stream is reset", closes(CLOSED_CRITICAL_STREAM))
def _(peer):
    peer._quic.reset_stream(peer.control, 0x100)
    peer.transmit()


# Section 7.1: the form of frames.
request("7.1 HEADERS cut short", closes(FRAME_ERROR), head()[:-3])
request("7.1 DATA cut short", closes(FRAME_ERROR), head(POST) + BODY[:-3])


@rule("7.1 DATA cut short, and the end comes later", closes(FRAME_ERROR))
async def _(peer):
    stream = peer.ask(head(POST) + BODY[:-3], end=False)
    await peer.ping()
    return peer.more(stream, b"", True)


control("7.1 a frame that ends within its number", closes(FRAME_ERROR), frame(GOAWAY, b"\x40"))
control("7.1 a frame that goes on behind its number", closes(FRAME_ERROR), frame(GOAWAY, number(0) + b"x"))

# Section 7.2: which frames may be where.
for name, kind in [("DATA", DATA), ("HEADERS", HEADERS), ("PUSH_PROMISE", PUSH_PROMISE)]:
    control(f"7.2 {name} on the control stream", closes(FRAME_UNEXPECTED), frame(kind, b"\0\0\0"))
for name, wrong in [
    ("CANCEL_PUSH", frame(CANCEL_PUSH, number(0))),
    ("SETTINGS", frame(SETTINGS)),
    ("GOAWAY", frame(GOAWAY, number(0))),
    ("MAX_PUSH_ID", frame(MAX_PUSH_ID, number(0))),
    ("PUSH_PROMISE", frame(PUSH_PROMISE, number(0) + section(GET))),
]:
    request(f"7.2 {name} before a request", closes(FRAME_UNEXPECTED), wrong + head())
    request(f"7.2 {name} in a request", closes(FRAME_UNEXPECTED), head(POST) + wrong + BODY)
for name, code, wrong in [
    ("5.2 GOAWAY with a larger number", ID_ERROR, frame(GOAWAY, number(1)) + frame(GOAWAY, number(2))),
    ("7.2.3 CANCEL_PUSH of nothing", ID_ERROR, frame(CANCEL_PUSH, number(0))),
    ("7.2.4 a second SETTINGS", FRAME_UNEXPECTED, frame(SETTINGS)),
    ("7.2.7 a smaller MAX_PUSH_ID", ID_ERROR, frame(MAX_PUSH_ID, number(2)) + frame(MAX_PUSH_ID, number(1))),
]:
    control(name, closes(code), wrong)
for name, kind in OF_HTTP2.items():
    wrong = frame(kind, b"\0" * 8)
    control(f"7.2.8 {name} on the control stream", closes(FRAME_UNEXPECTED), wrong)
    request(f"7.2.8 {name} in a request", closes(FRAME_UNEXPECTED), head(POST) + wrong + BODY)
control("9 an unknown frame on the control stream", SERVED, frame(GREASE, b"anything"))
UNKNOWN = frame(GREASE, b"a" * 5000)
request("9 unknown frames in a request", SERVED, UNKNOWN + head(POST) + UNKNOWN + BODY + UNKNOWN)

# Section 7.2.4: settings, with which the control stream begins.
for name, wanted, first in [
    ("no SETTINGS first", closes(MISSING_SETTINGS), frame(MAX_PUSH_ID, number(0)) + frame(SETTINGS)),
    ("unknown settings", SERVED, frame(SETTINGS, number(GREASE) + number(7))),
    # The server may ignore this error.
    ("a setting twice", [*closes(SETTINGS_ERROR), *SERVED], frame(SETTINGS, (number(6) + number(9)) * 2)),
    ("SETTINGS cut short", closes(FRAME_ERROR), frame(SETTINGS, number(6))),
]:
    streams(f"7.2.4 {name}", wanted, number(CONTROL) + first, settings=False)
for setting in (2, 3, 4, 5):
    first = frame(SETTINGS, number(setting) + number(1))
    streams(f"7.2.4.1 setting {setting}", closes(SETTINGS_ERROR), number(CONTROL) + first, settings=False)

# RFC 9204: compression. The server has no dynamic table.
for name, code, block in [
    ("2.2.3 a reference to what is in no table", DECOMPRESSION_FAILED, b"\0\0\x80"),
    ("3.1 an absent static entry", DECOMPRESSION_FAILED, b"\0\0" + length(120, 6, 0xC0)),
]:
    request(f"9204 {name}", closes(code), frame(HEADERS, block))
for name, kind, code, wrong in [
    ("3.2.3 a larger table than allowed", ENCODER, ENCODER_STREAM, length(4096, 5, 0x20)),
    ("4.4.3 an increment of nothing", DECODER, DECODER_STREAM, b"\0"),
]:
    streams(f"9204 {name}", closes(code), number(kind) + wrong)
for name, kind in [("encoder", ENCODER), ("decoder", DECODER)]:
    streams(f"9204 4.2 a second {name} stream", closes(STREAM_CREATION), number(kind), number(kind))
    streams(f"9204 4.2 the {name} stream ends", closes(CLOSED_CRITICAL_STREAM), number(kind), end=True)


async def tried(address, settings, act):
    """The outcome of a rule's function: that of the connection if the connection ended, else that of the stream."""
    async with joined(*address) as peer:
        if settings:
            peer.control = peer.uni(SETTLED)
        stream = act(peer)
        if asyncio.iscoroutine(stream):
            stream = await stream
        try:
            if stream is None:
                return await peer.still_serves()
            ended = await peer.until(lambda: peer.outcome(stream))
            # The connection may end after the answer has arrived.
            await peer.still_serves()
            return peer.outcome(stream) or ended
        except TimeoutError:
            return ("nothing", 0)


def shown(ends):
    return " or ".join(f"{kind} {code if kind == 'status' else hex(code)}" for kind, code in ends)


async def let_go(address, create):
    """The outcome for a client that sends no request, and a ping every two seconds."""

    async def pings():
        while True:
            await peer.ping()
            await asyncio.sleep(2)

    async with joined(*address, create) as peer:
        peer.control = peer.uni(SETTLED)
        alive = asyncio.ensure_future(pings())
        try:
            return ("closed", await peer.until(lambda: peer.ended))
        except TimeoutError:
            return ("nothing", 0)
        finally:
            alive.cancel()
            await asyncio.gather(alive, return_exceptions=True)


async def settings_bytes(address):
    """Length in bytes of the server's control stream when the server has sent only SETTINGS on it."""
    async with joined(*address) as peer:
        peer.control = peer.uni(SETTLED)
        return len(await peer.until(peer.said))


def tell(name, wanted, got):
    told = {"rule": name, "wanted": shown(wanted), "got": shown([got]), "kept": got in wanted}
    print(json.dumps(told), flush=True)


async def rules(address):
    # These checks last as long as the server tolerates an idle client, or a shutdown that the client ignores. The
    # other checks run at the same time.
    size = await settings_bytes(address)
    silent = {
        "9000 4.6 a client that permits no stream is let go": narrow(0, size),
        "9000 4.1 a client without room for GOAWAY is let go": narrow(3, size),
    }
    silent = {name: asyncio.ensure_future(let_go(address, create)) for name, create in silent.items()}
    for name, wanted, settings, act in RULES:
        tell(name, wanted, await tried(address, settings, act))
    for name, ended in silent.items():
        tell(name, closes(NO_ERROR), await ended)


async def drained(address):
    fields = (*changed(POST, ":path", "/subscribe"), ("accept", "text/event-stream"))
    body = frame(DATA, b'{"operation":"/node/log","input":{"follow":true}}')
    async with joined(*address) as peer:
        peer.uni(SETTLED)
        stream = peer.ask(head(fields) + body)
        await peer.until(lambda: peer.status(stream))
        print("drain", flush=True)
        closed = await peer.until(lambda: peer.ended)
        print(json.dumps({"open": stream, "goaway": peer.goaways(), "closed": closed}))


def main(host, port, what="rules"):
    work = {"rules": rules, "drain": drained}[what]
    asyncio.run(work((host, port)))


main(*sys.argv[1:])
