"""A client of HTTP/3 that can send any bytes: it has aioquic's QUIC, and makes the frames itself."""

import asyncio
import os
import ssl

import pylsqpack
from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.buffer import Buffer, encode_uint_var
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ConnectionTerminated, StreamDataReceived, StreamReset

# Deadline in seconds. It is longer than any limit of the server, and a busy machine extends it.
PATIENCE = 60 * float(os.environ.get("ALKNET_TEST_SLOWDOWN", 1))

# Frame types (RFC 9114 section 7.2), and the types of frames that only HTTP/2 has (section 7.2.8).
DATA, HEADERS, CANCEL_PUSH, SETTINGS, PUSH_PROMISE, GOAWAY, MAX_PUSH_ID = 0, 1, 3, 4, 5, 7, 13
OF_HTTP2 = {"PRIORITY": 2, "PING": 6, "WINDOW_UPDATE": 8, "CONTINUATION": 9}
# A reserved frame type, which a server must ignore (section 7.2.8).
GREASE = 0x21
# Types of unidirectional streams (section 6.2, RFC 9204 section 4.2).
CONTROL, PUSH, ENCODER, DECODER = 0, 1, 2, 3

GET = ((":method", "GET"), (":scheme", "https"), (":authority", "localhost"), (":path", "/healthz"))


def number(value):
    return encode_uint_var(value)


def frame(kind, payload=b""):
    return number(kind) + number(len(payload)) + payload


def length(value, bits, flags):
    """An integer of RFC 9204 section 4.1.1."""
    most = (1 << bits) - 1
    if value < most:
        return bytes([flags | value])
    out, value = [flags | most], value - most
    while value > 127:
        out.append(128 | value & 127)
        value >>= 7
    return bytes([*out, value])


def section(fields):
    """A field section without tables (RFC 9204 section 4.5.6)."""
    out = b"\0\0"
    for name, value in fields:
        name, value = name.encode(), value.encode("latin-1")
        out += length(len(name), 3, 0x20) + name + length(len(value), 7, 0) + value
    return out


def frames(data):
    """Type and payload of each complete frame."""
    try:
        while not data.eof():
            kind, size = data.pull_uint_var(), data.pull_uint_var()
            yield kind, data.pull_bytes(size)
    except ValueError:
        return


def head(fields=GET):
    return frame(HEADERS, section(fields))


def changed(fields, name, *values):
    """These fields with other values of the field `name`; without the field if there are no values."""
    out = []
    for known, value in fields:
        out += [(known, new) for new in values] if known == name else [(known, value)]
    return tuple(out)


class Peer(QuicConnectionProtocol):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.ended = None
        self.heard = {}
        self.news = asyncio.Event()

    def quic_event_received(self, event):
        if isinstance(event, ConnectionTerminated):
            # A CONNECTION_CLOSE with a frame type comes from the transport and not from the application.
            self.ended = event.error_code if event.frame_type is None else -1
        elif isinstance(event, (StreamDataReceived, StreamReset)):
            told = self.heard.setdefault(event.stream_id, {"data": b"", "end": False, "reset": None})
            if isinstance(event, StreamReset):
                told["reset"] = event.error_code
            else:
                told["data"] += event.data
                told["end"] |= event.end_stream
        self.news.set()

    def uni(self, data, end=False):
        stream = self._quic.get_next_available_stream_id(is_unidirectional=True)
        return self.more(stream, data, end)

    def ask(self, data, end=True):
        stream = self._quic.get_next_available_stream_id()
        return self.more(stream, data, end)

    def more(self, stream, data, end=False):
        self._quic.send_stream_data(stream, data, end)
        self.transmit()
        return stream

    def status(self, stream):
        """The status of the response on a stream; None until its head has arrived."""
        heard = self.heard.get(stream, {"data": b""})["data"]
        for kind, payload in frames(Buffer(data=heard)):
            if kind == HEADERS:
                _, fields = pylsqpack.Decoder(0, 0).feed_header(stream, payload)
                return int(dict(fields)[b":status"])
        return None

    def said(self):
        """The bytes of the server's control stream; None until the first has arrived."""
        opened = [self.heard[n]["data"] for n in sorted(self.heard) if n % 4 == 3]
        return next((data for data in opened if data[:1] == number(CONTROL)), None)

    def goaways(self):
        """Identifiers of the GOAWAY frames on the server's control stream."""
        data = Buffer(data=self.said()[1:])
        return [Buffer(data=said).pull_uint_var() for kind, said in frames(data) if kind == GOAWAY]

    async def until(self, fact):
        """Waits until `fact()` is not None, and returns its value."""

        async def wait():
            while (found := fact()) is None:
                self.news.clear()
                await self.news.wait()
            return found

        return await asyncio.wait_for(wait(), PATIENCE)

    def outcome(self, stream):
        """How a request ended; None while the client waits for the end."""
        if self.ended is not None:
            return ("closed", self.ended)
        told = self.heard.get(stream)
        if told is None:
            return None
        if told["reset"] is not None:
            return ("reset", told["reset"])
        return ("status", self.status(stream)) if told["end"] else None

    async def still_serves(self):
        """The outcome of two more requests on the connection. There are two, because the first may reach the server
        before the bytes that were sent in front of it."""
        for _ in range(2):
            stream = self.ask(head())
            ended = await self.until(lambda: self.outcome(stream))
            if ended != ("status", 200):
                break
        return ended


def narrow(streams, size):
    """Makes clients that permit the server `streams` unidirectional streams of `size` bytes, and never more."""

    def create(quic, **options):
        limit = quic._local_max_streams_uni
        limit.value = limit.sent = streams
        quic._local_max_stream_data_uni = size
        quic._write_stream_limits = lambda **_: None
        return Peer(quic, **options)

    return create


def joined(host, port, create=Peer):
    settings = QuicConfiguration(is_client=True, alpn_protocols=["h3"])
    settings.verify_mode = ssl.CERT_NONE
    return connect(host, int(port), configuration=settings, create_protocol=create)
