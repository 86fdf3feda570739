//! HTTP/3 by hand (RFC 9114): clients that leave answers where they are, or take their time to ask.

use std::time::Duration;

use alknet_core::{Carriage, Connection, RecvStream, SendStream, StreamError};
use alknet_endpoint::{EndpointDialer, Target};
use alknet_tls::NodeKey;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::cli::CliRunner;
use crate::raw::within;

/// ALPN of HTTP/3.
const H3: &[u8] = b"h3";

/// Bytes that are read at once.
const READ_BYTES: usize = 64 << 10;

/// A connection of HTTP/3 with some answers that are left where they are.
#[derive(Debug)]
pub struct StalledHttp3 {
    connection: Connection,
    // Where it is dropped its connections end.
    _dialer: EndpointDialer,
    _control: SendStream,
    left: Vec<(SendStream, RecvStream)>,
}

impl StalledHttp3 {
    /// So many that the connection's window has room for others.
    pub const ANSWERS: usize = 4;

    /// Asks for this path [`ANSWERS`](Self::ANSWERS) times, with a token or without one.
    ///
    /// # Panics
    /// The node has no place for it.
    pub async fn open(target: &Target, path: &str, token: Option<&str>) -> Self {
        let mut idle = Self::connect(target).await;
        for _ in 0..Self::ANSWERS {
            let asked = ask(&idle.connection, path, token).await;
            idle.left.push(asked);
        }
        idle
    }

    async fn connect(target: &Target) -> Self {
        let key = NodeKey::generate().expect("the system has entropy");
        let dialer = EndpointDialer::new(Some(key));
        let dialled = dialer.dial_over(Carriage::Quic, target, H3).await;
        let connection = dialled.expect("every client may connect");
        let mut control = connection.open_uni().await.expect("a stream");
        control.write_all(&[0, 4, 0]).await.expect("SETTINGS");
        Self {
            connection,
            _dialer: dialer,
            _control: control,
            left: Vec::new(),
        }
    }

    /// Takes another answer: the client is there, and takes nothing of the first ones alone.
    ///
    /// # Panics
    /// It is not answered.
    pub async fn is_served(&mut self) {
        let (_send, mut recv) = within(ask(&self.connection, "/healthz", None)).await;
        let mut answer = Vec::new();
        let read = within(recv.read_to_end(&mut answer)).await;
        assert!(read.is_ok() && answer.ends_with(b"ok\n"), "{read:?}");
    }

    /// Looks how the answers ended that it left: the node has reset each of them.
    ///
    /// # Panics
    /// One came whole, comes still, or ended with the connection.
    pub async fn was_reset(mut self) {
        for (_, recv) in &mut self.left {
            let ended = loop {
                match within(recv.read_chunk(READ_BYTES)).await {
                    Ok(Some(_)) => {}
                    Ok(None) => panic!("an answer came whole"),
                    Err(error) => break error,
                }
            };
            assert!(matches!(ended, StreamError::Reset(_)), "{ended}");
        }
    }
}

/// A request for a path, on a stream of its own.
async fn ask(connection: &Connection, path: &str, token: Option<&str>) -> (SendStream, RecvStream) {
    let (mut send, recv) = connection.open_bi().await.expect("a stream");
    let asked = send.write_all(&asks(path, token)).await;
    asked.expect("the connection goes on");
    send.finish().expect("it is open");
    (send, recv)
}

/// One request for a path (RFC 9114 section 4.1): a frame of fields by the static table (RFC 9204 appendix A) and
/// literals.
fn asks(path: &str, token: Option<&str>) -> Vec<u8> {
    let mut fields = vec![0, 0, 0xd1, 0xd7];
    let mut literal = |name: &[u8], text: &str| {
        assert!(text.len() < 127, "a length of one byte");
        fields.extend(name);
        fields.push(text.len() as u8);
        fields.extend(text.as_bytes());
    };
    literal(&[0x51], path);
    literal(&[0x50], "localhost");
    if let Some(token) = token {
        literal(&[0x5f, 0x45], &format!("Bearer {token}"));
    }
    // A length of two bytes.
    let mut frame = vec![1, 0x40 | (fields.len() >> 8) as u8, fields.len() as u8];
    frame.extend(fields);
    frame
}

/// A client over HTTP/3 whose one request comes a byte at a time, with a pause after each of more than a hundred. Returns
/// when the node has ended its connection.
///
/// # Panics
/// It does not.
pub async fn drip(target: &Target, pause: Duration) {
    let slow = StalledHttp3::connect(target).await;
    let (mut send, _recv) = slow.connection.open_bi().await.expect("a stream");
    let request = asks(&format!("/{}", "x".repeat(120)), None);
    let drips = async {
        for byte in request.chunks(1) {
            // The node may take no more of this stream.
            let _ = send.write_all(byte).await;
            tokio::time::sleep(pause).await;
        }
        panic!("the node waited for all of a slow request");
    };
    tokio::select! {
        _ = within(slow.connection.closed()) => {}
        () = drips => {}
    }
}

/// Lines of the access log about answers of a path over a version of HTTP that their clients did not take.
///
/// # Panics
/// The node does not say.
#[must_use]
pub fn not_taken(admin: &CliRunner, target: &str, path: &str, alpn: &str) -> usize {
    let log = admin.subscribe(target, "node/log", &json!({ "last": 100_000 }));
    let (status, alpn) = (format!(" path={path} status=499 "), format!(" alpn={alpn}"));
    let is_one = |record: &Value| {
        let text = record["message"].as_str().unwrap_or_default();
        record["target"] == "access" && text.contains(&status) && text.contains(&alpn)
    };
    log.filter(is_one).count()
}
