"""Tests of WebSocket sessions with the Python packages `websockets`, and `h2` with `wsproto`.

The arguments are the tests to run; the program prints `ok NAME` for each test that passed. The input is a JSON object
of facts, because every user of the host can read arguments. Facts: `url`; the `token` of an identity with `scopes`;
`query`, an operation that needs a scope; `pid` of the node, whose memory the tests read; `hidden`, whether the node is a
stealth node; `h2_port`, if HTTP/2 has another port.
"""

import contextlib, json, os, socket, ssl, sys, threading, urllib.parse, warnings

import h2.config, h2.connection, h2.events, h2.settings
import websockets.exceptions
from websockets.frames import Opcode
from websockets.sync.client import connect
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, TextMessage

# Some tests keep sessions open after the block in which they began.
warnings.simplefilter("ignore", DeprecationWarning)

FACTS = json.load(sys.stdin)
URL = urllib.parse.urlsplit(FACTS["url"])
SECURE = URL.scheme == "wss"
PAIR = ["alknet.call", "alknet.bearer." + FACTS["token"]]
MIB = 1 << 20
# Slowdown of this machine compared with the machine at rest, as `cargo xtask test` measured it.
SLOWDOWN = float(os.environ.get("ALKNET_TEST_SLOWDOWN", 1))
# Longest wait for one step, in seconds.
WAIT = 60 * SLOWDOWN


def tls(*alpn):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


class Secured:
    """A TLS socket for two threads. The library reads in one thread and writes in another, and only one thread at a
    time may use OpenSSL's object."""

    def __init__(self, raw):
        self.raw, self.using, self.sending = raw, threading.Lock(), threading.Lock()
        self.came, self.goes = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = tls("http/1.1").wrap_bio(self.came, self.goes)
        while not self.done(self.tls.do_handshake):
            self.flush()
            self.feed()
        self.flush()

    def __getattr__(self, name):
        return getattr(self.raw, name)

    @staticmethod
    def done(step):
        try:
            step()
            return True
        except ssl.SSLWantReadError:
            return False

    def flush(self):
        with self.sending:
            with self.using:
                data = self.goes.read()
            if data:
                self.raw.sendall(data)

    def feed(self):
        data = self.raw.recv(65536)
        with self.using:
            self.came.write(data) if data else self.came.write_eof()

    def sendall(self, data):
        with self.using:
            self.tls.write(data)
        try:
            self.flush()
        except OSError:
            # The node sent its reason before it closed the socket. On a busy machine the library's reading thread
            # may not have reached that reason, and the library would close the socket without reading it.
            pass

    def recv(self, _):
        """All decrypted bytes. The rest would stay in OpenSSL's object, where a reader of the socket does not notice
        it."""
        data = bytearray()
        while True:
            try:
                with self.using:
                    while some := self.tls.read(65536):
                        data += some
                return bytes(data)
            except ssl.SSLWantReadError:
                if data:
                    return bytes(data)
            except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
                return bytes(data)
            self.flush()
            self.feed()


def ws(subprotocols=("alknet.call",), **more):
    more.setdefault("compression", "deflate")
    for limit in ("open_timeout", "ping_timeout", "close_timeout"):
        more.setdefault(limit, WAIT)
    if not SECURE:
        return connect(
            FACTS["url"], subprotocols=list(subprotocols), proxy=None, max_size=None, **more
        )
    raw = socket.create_connection((URL.hostname, URL.port))
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
    return connect(
        URL._replace(scheme="ws").geturl(), sock=Secured(raw), subprotocols=list(subprotocols),
        proxy=None, max_size=None, **more
    )


def event(operation, value=None, id="1", size=0):
    payload = {"operationId": "/" + operation, "input": value}
    text = json.dumps({"type": "call.requested", "id": id, "payload": payload})
    if size:
        text = text[:-1] + ',"pad":"' + "x" * (size - len(text) - 9) + '"}'
        assert len(text) == size, (len(text), size)
    return text


def call(session, operation, value=None, id="1", text=False):
    message = event(operation, value, id)
    session.send(message if text else message.encode())
    return json.loads(session.recv(timeout=WAIT))


def code(session, seconds=WAIT):
    try:
        while True:
            session.recv(timeout=seconds)
    except websockets.exceptions.ConnectionClosed as closed:
        assert closed.rcvd is not None, "it ended without a goodbye"
        return closed.rcvd.code


def refused(**more):
    try:
        ws(**more).close()
    except websockets.exceptions.InvalidStatus as error:
        return error.response.status_code, error.response.headers
    raise AssertionError("it was let in")


def answers_in_the_kind_it_was_asked_in():
    with ws(PAIR) as session:
        assert session.subprotocol == "alknet.call"
        assert "Sec-WebSocket-Extensions" not in session.response.headers
        session.send(event("services/list").encode())
        answer = session.recv(timeout=WAIT)
        assert isinstance(answer, bytes) and json.loads(answer)["type"] == "call.responded"
    with ws(PAIR) as session:
        session.send(event("services/list"))
        answer = session.recv(timeout=WAIT)
        assert isinstance(answer, str) and json.loads(answer)["type"] == "call.responded"


def a_header_and_a_pair_and_a_call_say_who_asks():
    bearer = {"Authorization": "Bearer " + FACTS["token"]}
    for session in (ws(PAIR), ws(additional_headers=bearer)):
        with session:
            assert call(session, FACTS["query"])["type"] == "call.responded"
            again = call(session, "session/authenticate", {"token": FACTS["token"]})
            assert again["payload"]["code"] == "CONFLICT", again
    if FACTS.get("hidden"):
        assert refused()[0] == 404
        return
    with ws() as session:
        assert call(session, FACTS["query"])["payload"]["code"] == "UNAUTHENTICATED"
        who = call(session, "session/authenticate", {"token": FACTS["token"]})
        assert sorted(who["payload"]["output"]["scopes"]) == sorted(FACTS["scopes"]), who
        assert call(session, FACTS["query"])["type"] == "call.responded"
    with ws(subprotocols=()) as session:
        assert session.subprotocol is None
        assert call(session, "services/list")["type"] == "call.responded"


def wrong_handshakes_are_refused():
    wrong = FACTS["token"][:-1] + ("A" if FACTS["token"][-1] != "A" else "B")
    status, _ = refused(subprotocols=["alknet.call", "alknet.bearer." + wrong])
    assert status == 401, status
    assert refused(subprotocols=["chat"])[0] == 400
    assert refused(origin="https://elsewhere.example")[0] == 403
    assert refused(origin="null")[0] == 403
    status, headers = refused(additional_headers={"Sec-WebSocket-Version": "8"})
    assert (status, headers["Sec-WebSocket-Version"]) in ((426, "13"), (400, None)), status
    ws(origin="https://" + URL.netloc).close()


def messages_are_bounded_to_the_byte():
    with ws(PAIR) as session:
        session.send(event("services/list", size=MIB).encode())
        assert json.loads(session.recv(timeout=WAIT))["type"] == "call.responded"
        session.send(event("services/list", size=MIB + 1).encode())
        assert code(session) == 1009
    with ws(PAIR) as session:
        try:
            session.send(b"x" * 600_000 for _ in range(2))
        except websockets.exceptions.ConnectionClosed:
            # The node may close the connection before it has received everything. Its close code gives the reason.
            pass
        assert code(session) == 1009
    with ws() as session:
        session.send(event("services/list", size=64 << 10).encode())
        assert json.loads(session.recv(timeout=WAIT))["type"] == "call.responded"
        session.send(event("services/list", size=(64 << 10) + 1).encode())
        assert code(session) == 1009


def bytes_of(session, data):
    try:
        session.socket.sendall(data)
    except OSError:
        # The node may close the connection before it has received everything. Its close code gives the reason.
        pass


def what_is_against_the_rules_ends_with_its_code():
    cases = [
        (b"\x82\x02{}", 1002),  # not masked
        (b"\xc2\x82\0\0\0\0{}", 1002),  # a reserved bit: compressed
        (b"\x83\x80\0\0\0\0", 1002),  # an unassigned opcode
        (b"\x80\x80\0\0\0\0", 1002),  # a continuation without a first frame
        (b"\x09\x80\0\0\0\0", 1002),  # a ping in pieces
        (b"\x82\xff\x7f" + b"\xff" * 7 + b"\0\0\0\0", 1009),  # a length of 2^63 - 1 bytes
        (b"\x82\xff\xff" + b"\xff" * 7 + b"\0\0\0\0", 1002),  # the first bit of a length must be zero
        (b"\x81\x81\0\0\0\0\xff", 1007),  # text that is not UTF-8
        (b"\x82\x80\0\0\0\0", 1002),  # an empty message
        (b"\x82\x85\0\0\0\0hello", 1002),  # not JSON
    ]
    for data, expected in cases:
        with ws(PAIR) as session:
            bytes_of(session, data)
            got = code(session)
            assert got == expected, (data, got, expected)


def memory():
    with open(f"/proc/{FACTS['pid']}/status") as status:
        line = next(line for line in status if line.startswith("VmRSS"))
    return int(line.split()[1]) << 10


def fragment_bombs_and_giants_cost_little():
    before = memory()
    with ws(PAIR) as session:
        try:
            session.send(b"x" for _ in range(5000))
        except websockets.exceptions.ConnectionClosed:
            pass
        assert code(session) == 1009
    with ws() as session:
        try:
            session.send(b"" for _ in range(100_000))
        except websockets.exceptions.ConnectionClosed:
            pass
        assert code(session) == 1009
    # The client sends the head of a message and no payload. The head alone must not cost the node the payload's memory.
    sessions = [ws(PAIR) for _ in range(16)]
    for session in sessions:
        bytes_of(session, b"\x82\xff" + MIB.to_bytes(8, "big") + b"\0\0\0\0")
    with ws(PAIR) as honest:
        assert call(honest, "services/list")["type"] == "call.responded"
    grown = memory() - before
    assert grown < 24 * MIB, f"{grown >> 10} KiB"
    for session in sessions:
        session.socket.close()


def readers_that_never_read_cost_little():
    before = memory()
    deaf = []
    for _ in range(4):
        raw = socket.create_connection((URL.hostname, URL.port))
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw = tls("http/1.1").wrap_socket(raw) if SECURE else raw
        raw.sendall((
            f"GET {URL.path} HTTP/1.1\r\nHost: {URL.netloc}\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            f"Sec-WebSocket-Protocol: {', '.join(PAIR)}\r\n\r\n"
        ).encode())
        assert raw.recv(12) == b"HTTP/1.1 101"
        deaf.append(raw)

    def shout(raw):
        try:
            for n in range(100_000):
                ask = event("services/list", id=str(n)).encode()
                raw.sendall(b"\x82\xfe" + len(ask).to_bytes(2, "big") + b"\0\0\0\0" + ask)
        except OSError:
            pass  # The node closes the connection, or the test shuts the socket down.

    threads = [threading.Thread(target=shout, args=(raw,), daemon=True) for raw in deaf]
    for thread in threads:
        thread.start()
    with ws(PAIR) as honest:
        for n in range(50):
            assert call(honest, "services/list", id=str(n))["type"] == "call.responded"
    grown = memory() - before
    assert grown < 64 * MIB, f"{grown >> 10} KiB"
    # OpenSSL keeps the number of the descriptor. After a close during a write, the next connection may get the same
    # number, and the thread would go on writing into that connection.
    for raw in deaf:
        with contextlib.suppress(OSError):
            raw.shutdown(socket.SHUT_RDWR)
    for thread in threads:
        thread.join(WAIT)
        assert not thread.is_alive(), "it writes to a socket that is shut"
    for raw in deaf:
        raw.close()


def pings_are_answered_and_asked_for():
    with ws(PAIR) as session:
        assert session.ping(b"alive?").wait(WAIT)
        # With each ping the library answers the node's ping, which comes every 20 s.
        assert call(session, "services/list")["type"] == "call.responded"


def a_client_that_answers_no_ping_is_closed():
    with ws(PAIR, ping_interval=None) as session:
        original = session.protocol.recv_frame
        session.protocol.recv_frame = lambda frame: (
            None if frame.opcode is Opcode.PING else original(frame)
        )
        assert code(session, 2 * WAIT) == 4408


def an_unknown_client_that_asks_nothing_is_disconnected():
    with ws() as session:
        assert code(session, 2 * WAIT) == 4408


def a_client_that_loses_its_token_is_closed():
    by_pair, by_call = ws(PAIR), ws()
    call(by_call, "session/authenticate", {"token": FACTS["token"]})
    call(by_pair, FACTS["query"])
    print("revoke", flush=True)
    assert (code(by_pair), code(by_call)) == (4403, 4403)
    assert refused(subprotocols=PAIR)[0] == 401


def a_draining_node_says_so():
    session = ws(PAIR)
    call(session, "services/list")
    print("drain", flush=True)
    seen = code(session)
    assert seen == 1001, seen


class Extended:
    """WebSocket in a stream of HTTP/2 (RFC 8441)."""

    def __init__(self, headers=()):
        sock = socket.create_connection((URL.hostname, FACTS.get("h2_port", URL.port)))
        self.socket = tls("h2").wrap_socket(sock) if SECURE else sock
        config = h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
        self.h2 = h2.connection.H2Connection(config)
        self.h2.initiate_connection()
        self.socket.sendall(self.h2.data_to_send())
        self.wait(h2.events.RemoteSettingsChanged)
        assert self.h2.remote_settings.enable_connect_protocol == 1
        self.stream = self.h2.get_next_available_stream_id()
        self.h2.send_headers(self.stream, [
            (":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "https"),
            (":path", URL.path), (":authority", URL.netloc), ("sec-websocket-version", "13"),
            ("sec-websocket-protocol", ", ".join(PAIR)), *headers,
        ])
        self.headers = dict(self.wait(h2.events.ResponseReceived).headers)
        self.ws = Connection(ConnectionType.CLIENT)

    def wait(self, kind):
        while True:
            self.socket.sendall(self.h2.data_to_send())
            data = self.socket.recv(65536)
            assert data, "the connection ended"
            for got in self.h2.receive_data(data):
                if isinstance(got, h2.events.DataReceived):
                    self.h2.acknowledge_received_data(got.flow_controlled_length, got.stream_id)
                    self.ws.receive_data(got.data)
                if isinstance(got, kind):
                    return got

    def call(self, operation, value=None):
        message = BytesMessage(event(operation, value).encode())
        self.h2.send_data(self.stream, self.ws.send(message))
        whole = b""
        while True:
            for got in self.ws.events():
                assert isinstance(got, (BytesMessage, TextMessage)), got
                whole += got.data
                if got.message_finished:
                    return json.loads(whole)
            self.wait(h2.events.DataReceived)


def http2_carries_it_too():
    session = Extended()
    assert session.headers[":status"] == "200", session.headers
    assert session.headers["sec-websocket-protocol"] == "alknet.call"
    assert session.call(FACTS["query"])["type"] == "call.responded"
    foreign = Extended([("origin", "https://elsewhere.example")])
    assert foreign.headers[":status"] == "403", foreign.headers


for name in sys.argv[1:]:
    globals()[name]()
    print("ok", name, flush=True)
