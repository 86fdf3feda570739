//! A peer stops reading a stream of the node while a write to it waits for room.

use std::net::Ipv4Addr;
use std::sync::Arc;

use alknet_core::{
    AlpnSpec, AuthContext, Carriage, Connection, HandlerError, HandlerRegistry, StreamError,
};
use alknet_endpoint::{EndpointLimits, EndpointServer, ServerOptions};
use alknet_tls::NodeKey;
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::support::{EndpointTestIdentities, FnHandler, hung, quinn_connection};

const ALPN: &[u8] = b"alknet/full";

/// The bytes that the client allows on a stream, and on the connection: one stream and a half.
const STREAM_BYTES: u32 = 64 << 10;
const CONNECTION_BYTES: u32 = 96 << 10;

/// The code with which the client stops reading.
const CODE: u32 = 7;

/// Each of three streams has a write that waits: the first one for room of its own, the others for the connection's.
/// The others take the room that the first one gives up before its writer has its turn.
#[tokio::test]
async fn a_write_ends_that_waits_on_a_stopped_stream_of_a_full_connection() {
    let (ended, mut ends) = mpsc::unbounded_channel::<(usize, Result<(), StreamError>)>();
    let handle = move |connection: Connection, _auth: AuthContext| {
        let ended = ended.clone();
        async move {
            for n in 0..3 {
                let (mut send, recv) = connection.open_bi().await.expect("a connection");
                let ended = ended.clone();
                tokio::spawn(async move {
                    let zeros = Bytes::from_static(&[0; 1 << 20]);
                    let _ = ended.send((n, send.write_chunk(zeros).await));
                    drop(recv);
                });
            }
            connection.closed().await;
            Ok::<(), HandlerError>(())
        }
    };
    let spec = AlpnSpec {
        carriage: Carriage::Quic,
        ..AlpnSpec::new(ALPN)
    };
    let mut registry = HandlerRegistry::new();
    let handler = FnHandler(vec![spec], handle);
    registry.register(Arc::new(handler)).expect("register");
    let [key, friend] = [0, 1].map(|_| NodeKey::generate().expect("a key"));
    let peers = EndpointTestIdentities::default();
    peers.add(friend.public(), "friend");
    let options = ServerOptions {
        port: 0,
        limits: EndpointLimits {
            handshake_timeout: hung(),
            ..EndpointLimits::default()
        },
        ..ServerOptions::default()
    };
    let server =
        EndpointServer::bind(options, &key, registry, Arc::new(peers)).expect("a free port");

    let endpoint = quinn::Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).expect("a socket");
    let address = (Ipv4Addr::LOCALHOST, server.port()).into();
    let mut transport = quinn::TransportConfig::default();
    transport
        .stream_receive_window(STREAM_BYTES.into())
        .receive_window(CONNECTION_BYTES.into());
    let connection = quinn_connection(&endpoint, address, (&friend, &key), ALPN, transport);
    let connection = timeout(hung(), connection).await.expect("no hang");
    // Whichever comes first: one stream is full.
    let mut streams = Vec::new();
    for _ in 0..2 {
        let stream = timeout(hung(), connection.accept_bi()).await;
        streams.push(stream.expect("it is opened").expect("a connection"));
    }
    until_full(&connection).await;
    let (_send, recv) = &mut streams[0];
    recv.stop(CODE.into()).expect("it is read");
    let end = timeout(hung(), ends.recv()).await.expect("a write ends");
    assert!(
        matches!(end, Some((0, Err(StreamError::Stopped(code)))) if code == u64::from(CODE)),
        "{end:?}"
    );
}

/// Waits until no more bytes come.
async fn until_full(connection: &quinn::Connection) {
    while connection.stats().frame_rx.data_blocked == 0 {
        tokio::task::yield_now().await;
    }
}
