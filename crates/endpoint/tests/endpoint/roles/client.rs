//! Clients, made with the TLS library itself and with iroh's, and the answers that they get.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use alknet_call::{Envelope, EventKind, FrameBody, encode_event};
use bytes::Bytes;
use iroh::EndpointAddr;
use iroh::endpoint::{ConnectOptions, ZeroRttStatus};
use rustls::ClientConfig;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use super::scene::{KEYED, the_token};
use super::{ObservedOutcome, Sends};
use crate::support::hung;

/// The called operation.
const WHOAMI: &str = "/demo/whoami";

/// The protocol that a client visits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Visit {
    Call,
    Keyed,
}

impl Visit {
    pub(super) const fn alpn(self) -> &'static [u8] {
        match self {
            Self::Call => alknet_call::ALPN,
            Self::Keyed => KEYED,
        }
    }
}

/// The carriage of a client's connections, and its destination.
pub(super) enum ClientTransport {
    /// Iroh itself, which keeps its tickets with the endpoint.
    Iroh(iroh::Endpoint, EndpointAddr),
    Quic(u16, Arc<ClientConfig>),
    Tls(u16, Arc<ClientConfig>),
}

pub(super) struct RoleTestClient {
    carrier: ClientTransport,
    visit: Visit,
    full: Arc<AtomicUsize>,
}

impl RoleTestClient {
    /// A client whose `full` handshakes its verifier counts.
    pub(super) fn new(carrier: ClientTransport, visit: Visit, full: Arc<AtomicUsize>) -> Self {
        Self {
            carrier,
            visit,
            full,
        }
    }

    /// Connects, with the ticket of an earlier connection if there is one.
    pub(super) async fn open(&self) -> io::Result<RoleTestConnection> {
        let name = "node.test.invalid";
        let wire = match &self.carrier {
            ClientTransport::Iroh(endpoint, node) => {
                ClientWire::Iroh(self.over_iroh(endpoint, node).await?)
            }
            ClientTransport::Quic(port, config) => {
                let endpoint = quinn::Endpoint::client(([127, 0, 0, 1], 0).into())?;
                let tls = quinn::crypto::rustls::QuicClientConfig::try_from(Arc::clone(config));
                let config = quinn::ClientConfig::new(Arc::new(tls.expect("TLS 1.3")));
                let connecting =
                    endpoint.connect_with(config, ([127, 0, 0, 1], *port).into(), name);
                let connection = connecting.expect("a valid configuration").await?;
                ClientWire::Quic(endpoint, connection)
            }
            ClientTransport::Tls(port, config) => {
                let tcp = TcpStream::connect(("127.0.0.1", *port)).await?;
                let name = name.try_into().expect("a name");
                let connector = tokio_rustls::TlsConnector::from(Arc::clone(config));
                ClientWire::Tls(Box::new(connector.connect(name, tcp).await?))
            }
        };
        Ok(RoleTestConnection {
            wire,
            visit: self.visit,
            authenticated: false,
            requests: 0,
        })
    }

    /// No verifier of the test runs there; early data shows that a session was resumed, which the node's library
    /// takes with a ticket and never without.
    async fn over_iroh(
        &self,
        endpoint: &iroh::Endpoint,
        node: &EndpointAddr,
    ) -> io::Result<iroh::endpoint::Connection> {
        let (node, alpn) = (node.clone(), self.visit.alpn());
        let connecting = endpoint.connect_with_opts(node, alpn, ConnectOptions::default());
        let connection = match connecting.await.map_err(io::Error::other)?.into_0rtt() {
            Err(connecting) => connecting.await.map_err(io::Error::other)?,
            Ok(early) => match early.handshake_completed().await {
                Ok(ZeroRttStatus::Accepted(connection)) => return Ok(connection),
                Ok(ZeroRttStatus::Rejected(connection)) => connection,
                Err(error) => return Err(io::Error::other(error)),
            },
        };
        self.full.fetch_add(1, Ordering::SeqCst);
        Ok(connection)
    }

    /// The number of handshakes in which the server showed its key; a resumed one does not.
    pub(super) fn full_handshakes(&self) -> usize {
        self.full.load(Ordering::SeqCst)
    }

    pub(super) async fn close(self) {
        if let ClientTransport::Iroh(endpoint, _) = self.carrier {
            endpoint.close().await;
        }
    }
}

/// A connection.
pub(super) struct RoleTestConnection {
    wire: ClientWire,
    visit: Visit,
    authenticated: bool,
    requests: usize,
}

enum ClientWire {
    Iroh(iroh::endpoint::Connection),
    Tls(Box<TlsStream<TcpStream>>),
    /// The endpoint carries the connection.
    Quic(
        #[expect(dead_code, reason = "kept alive")] quinn::Endpoint,
        quinn::Connection,
    ),
}

impl RoleTestConnection {
    /// Asks the node for the client's identity.
    pub(super) async fn ask(&mut self, sends: Sends) -> ObservedOutcome {
        match timeout(hung(), self.answer(sends)).await {
            Ok(Ok(got)) => got,
            // A reader does not always get an error: the connection knows the reason.
            Ok(Err(error)) => self.ended_by(Some(error)).await,
            Err(_) => ObservedOutcome::Other("no answer".to_owned()),
        }
    }

    /// Waits until the node ends the connection.
    pub(super) async fn ended(&mut self) -> ObservedOutcome {
        self.ended_by(None).await
    }

    async fn answer(&mut self, sends: Sends) -> io::Result<ObservedOutcome> {
        if self.visit == Visit::Keyed {
            let line = self.exchange(b"?", |got| got.ends_with(b"\n")).await?;
            let name = String::from_utf8_lossy(&line).trim_end().to_owned();
            return Ok(ObservedOutcome::As(name));
        }
        if sends == Sends::Session && !self.authenticated {
            self.authenticated = true;
            let token = json!({ "token": the_token() });
            let got = self.call("/session/authenticate", token, None).await?;
            if !matches!(got, ObservedOutcome::Other(_)) {
                return Ok(got);
            }
        }
        let token = match sends {
            Sends::Nothing | Sends::Session => None,
            Sends::Token => Some(the_token()),
            Sends::Nonsense => Some("alk_tool0001_"),
        };
        self.call(WHOAMI, Value::Null, token).await
    }

    async fn call(
        &mut self,
        operation: &str,
        input: Value,
        token: Option<&str>,
    ) -> io::Result<ObservedOutcome> {
        self.requests += 1;
        let mut payload = json!({ "operationId": operation, "input": input });
        if let Some(token) = token {
            payload["auth_token"] = token.into();
        }
        let id = self.requests.to_string();
        let request = encode_event(EventKind::Requested, &id, &payload.to_string());
        let frame = self.exchange(&request, is_frame).await?;
        Ok(answer_of(frame.slice(4..)))
    }

    /// Sends `bytes` and reads until `is_whole`.
    async fn exchange(
        &mut self,
        bytes: &[u8],
        is_whole: impl Fn(&[u8]) -> bool,
    ) -> io::Result<Bytes> {
        let mut got = Vec::new();
        match &mut self.wire {
            ClientWire::Iroh(connection) => {
                let (mut send, mut recv) = connection.open_bi().await?;
                send.write_all(bytes).await?;
                while !is_whole(&got) {
                    let chunk = recv.read_chunk(usize::MAX).await;
                    let chunk = chunk.map_err(io::Error::other)?;
                    got.extend_from_slice(&chunk.ok_or(io::ErrorKind::UnexpectedEof)?);
                }
            }
            ClientWire::Tls(tls) => {
                tls.write_all(bytes).await?;
                while !is_whole(&got) {
                    if tls.read_buf(&mut got).await? == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
            }
            ClientWire::Quic(_, connection) => {
                let (mut send, mut recv) = connection.open_bi().await?;
                send.write_all(bytes).await?;
                while !is_whole(&got) {
                    let chunk = recv.read_chunk(usize::MAX, true).await;
                    let chunk = chunk.map_err(io::Error::other)?;
                    let chunk = chunk.ok_or(io::ErrorKind::UnexpectedEof)?;
                    got.extend_from_slice(&chunk.bytes);
                }
            }
        }
        Ok(got.into())
    }

    /// How the connection ended, of which `error` was the first sign.
    async fn ended_by(&mut self, error: Option<io::Error>) -> ObservedOutcome {
        match &mut self.wire {
            ClientWire::Iroh(connection) => match timeout(hung(), connection.closed()).await {
                Ok(iroh::endpoint::ConnectionError::ApplicationClosed(end)) => {
                    ObservedOutcome::Closed(Some(end.error_code.into_inner()))
                }
                Ok(iroh::endpoint::ConnectionError::ConnectionClosed(_)) => {
                    ObservedOutcome::Refused
                }
                Ok(other) => ObservedOutcome::Other(other.to_string()),
                Err(_) => ObservedOutcome::Other("stays open".to_owned()),
            },
            ClientWire::Tls(tls) => {
                let end = match error {
                    Some(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
                    Some(error) => Err(error),
                    None => {
                        let mut rest = Vec::new();
                        match timeout(hung(), tls.read_to_end(&mut rest)).await {
                            Ok(end) => end,
                            Err(_) => return ObservedOutcome::Other("stays open".to_owned()),
                        }
                    }
                };
                match end {
                    Ok(_) => ObservedOutcome::Closed(None),
                    Err(_) => ObservedOutcome::Refused,
                }
            }
            ClientWire::Quic(_, connection) => match timeout(hung(), connection.closed()).await {
                Ok(quinn::ConnectionError::ApplicationClosed(end)) => {
                    ObservedOutcome::Closed(Some(end.error_code.into_inner()))
                }
                Ok(quinn::ConnectionError::ConnectionClosed(_)) => ObservedOutcome::Refused,
                Ok(other) => ObservedOutcome::Other(other.to_string()),
                Err(_) => ObservedOutcome::Other("stays open".to_owned()),
            },
        }
    }
}

fn is_frame(got: &[u8]) -> bool {
    got.split_first_chunk::<4>()
        .is_some_and(|(header, rest)| rest.len() >= u32::from_be_bytes(*header) as usize)
}

fn answer_of(body: Bytes) -> ObservedOutcome {
    let body = FrameBody::parse(body).expect("a well-formed frame");
    let event = Envelope::parse(&body.envelope, 32).expect("a well-formed envelope");
    let payload: Value = serde_json::from_str(event.payload).expect("JSON");
    match (event.kind, &payload["output"], payload["code"].as_str()) {
        (EventKind::Responded, Value::String(name), _) => ObservedOutcome::As(name.clone()),
        (EventKind::Responded, other, _) => ObservedOutcome::Other(other.to_string()),
        (_, _, Some("UNAUTHENTICATED")) => ObservedOutcome::UnknownPeer,
        (_, _, code) => ObservedOutcome::Other(format!("{code:?}")),
    }
}
