//! HTTP/3 by hand (RFC 9114): clients that do not read answers, or send requests slowly.

use std::time::Duration;

use alknet_core::{Carriage, Connection, RecvStream, SendStream, StreamError};
use alknet_endpoint::{EndpointDialer, Target};
use alknet_tls::NodeKey;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::cli::CliRunner;
use crate::dialer::patient_dialer;
use crate::raw::within;

/// ALPN of HTTP/3.
const H3: &[u8] = b"h3";

/// Bytes that are read at once.
const READ_BYTES: usize = 64 << 10;

/// An HTTP/3 connection with some answers that are not read.
#[derive(Debug)]
pub struct StalledHttp3 {
    connection: Connection,
    // Its connections end when it is dropped.
    _dialer: EndpointDialer,
    _control: SendStream,
    left: Vec<(SendStream, RecvStream)>,
}

impl StalledHttp3 {
    /// Few enough that the connection's window has room for others.
    pub const ANSWERS: usize = 4;

    /// Requests this path [`ANSWERS`](Self::ANSWERS) times, with or without a token.
    ///
    /// # Panics
    /// The node has no connection slot left.
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
        let dialer = patient_dialer(Some(key));
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

    /// Reads another answer: the client is alive, and leaves only the first ones unread.
    ///
    /// # Panics
    /// It is not answered.
    pub async fn is_served(&mut self) {
        let (_send, mut recv) = within(ask(&self.connection, "/healthz", None)).await;
        let mut answer = Vec::new();
        let read = within(recv.read_to_end(&mut answer)).await;
        assert!(read.is_ok() && answer.ends_with(b"ok\n"), "{read:?}");
    }

    /// Checks how the unread answers ended: the node has reset each of them.
    ///
    /// # Panics
    /// One came whole, still comes, or ended with the connection.
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

/// A request for a path, on a separate stream.
async fn ask(connection: &Connection, path: &str, token: Option<&str>) -> (SendStream, RecvStream) {
    let (mut send, recv) = connection.open_bi().await.expect("a stream");
    let asked = send.write_all(&asks(path, token)).await;
    asked.expect("the connection goes on");
    send.finish().expect("it is open");
    (send, recv)
}

/// One request for a path (RFC 9114 section 4.1): a frame of fields from the static table (RFC 9204
/// appendix A) and literals.
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

/// An HTTP/3 client that sends its only request byte by byte, with a pause after each of more than
/// a hundred bytes. Returns when the node has ended its connection.
///
/// # Panics
/// The node does not end it.
pub async fn drip(target: &Target, pause: Duration) {
    let slow = StalledHttp3::connect(target).await;
    let (mut send, _recv) = slow.connection.open_bi().await.expect("a stream");
    let request = asks(&format!("/{}", "x".repeat(120)), None);
    let drips = async {
        for byte in request.chunks(1) {
            // The node may accept no more on this stream.
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

/// Lines of the access log about unread answers of a path over an HTTP version.
///
/// # Panics
/// The node does not answer.
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
