//! One token, operations, and a client of a session.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use alknet_call::limits::PeerTimeouts;
use alknet_call::{CallOutput, Dispatcher, HandlerKind, OperationSpec, Registration, Registry};
use alknet_core::{
    AuthContext, AuthToken, Carriage, Identity, IdentityKind, IdentityProvider, PeerKey,
    memory_pair,
};
use bytes::BytesMut;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::watch;

use super::super::frame::{BINARY, CLOSE, PING};
use super::super::limits::WsTimeouts;
use super::super::{WsPeer, serve};
use super::{TOKEN, frame, split};

/// Knows one token, as long as it is not taken away or over.
pub(super) struct OneToken {
    pub(super) valid: Mutex<bool>,
    ends_in: Option<Duration>,
    changes: watch::Sender<u64>,
}

impl OneToken {
    pub(super) fn new(ends_in: Option<Duration>) -> Arc<Self> {
        Arc::new(Self {
            valid: Mutex::new(true),
            ends_in,
            changes: watch::Sender::new(0),
        })
    }

    pub(super) fn invalidate(&self) {
        *self.valid.lock().expect("no holder panics") = false;
    }

    pub(super) fn revoke(&self) {
        self.invalidate();
        self.changes.send_modify(|n| *n += 1);
    }
}

impl IdentityProvider for OneToken {
    fn by_key(&self, _key: &PeerKey) -> Option<Arc<Identity>> {
        None
    }

    fn by_token(&self, token: &AuthToken) -> Option<Arc<Identity>> {
        let valid = *self.valid.lock().expect("no holder panics");
        let known = valid && token.expose() == TOKEN;
        known.then(|| {
            Arc::new(Identity {
                id: "somebody".parse().expect("a peer id"),
                // As that of a token bound to a peer.
                kind: IdentityKind::Peer,
                scopes: ["demo"].into_iter().collect(),
                resources: Default::default(),
                generation: 1,
            })
        })
    }

    fn watch(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn token_ends_in(&self, _token: &AuthToken) -> Option<Duration> {
        self.ends_in
    }
}

pub(super) fn dispatcher(tokens: &Arc<OneToken>) -> Arc<Dispatcher> {
    patient_dispatcher(tokens, PeerTimeouts::default())
}

fn patient_dispatcher(tokens: &Arc<OneToken>, patience: PeerTimeouts) -> Arc<Dispatcher> {
    Arc::new(open_dispatcher(tokens).with_patience(patience))
}

/// Of a node on a machine with the least memory.
pub(super) fn small_dispatcher(tokens: &Arc<OneToken>) -> Arc<Dispatcher> {
    Arc::new(open_dispatcher(tokens).with_memory(0))
}

fn open_dispatcher(tokens: &Arc<OneToken>) -> Dispatcher {
    let open = |name: &str, handler| {
        let spec = OperationSpec::query(name, "For tests.");
        Registration::new(spec, handler).open()
    };
    let echo = HandlerKind::once(|input, _| async move { Ok(CallOutput::from(input)) });
    let who = HandlerKind::once(|_, ctx| async move {
        let who = ctx.identity().map(|who| who.id.as_str().to_owned());
        Ok::<_, alknet_call::CallError>(json!(who))
    });
    let back = HandlerKind::once(|input, ctx| async move {
        let answer = ctx.caller().call("ui/notify", input.value()).await?;
        Ok(answer.value().clone())
    });
    let hang =
        HandlerKind::once(|_, _| std::future::pending::<Result<Value, alknet_call::CallError>>());
    let mut secret = OperationSpec::query("demo/secret", "For tests.");
    secret.access_control.required_scopes = vec!["demo".to_owned()];
    let registry = Registry::builder()
        .with(open("demo/echo", echo))
        .with(open("demo/who", who))
        .with(open("demo/back", back))
        .with(open("demo/hang", hang))
        .with(Registration::new(
            secret,
            HandlerKind::once(|_, _| async { Ok::<_, alknet_call::CallError>(json!("secret")) }),
        ))
        .build()
        .expect("correct operations");
    Dispatcher::new(registry).with_identities(Arc::clone(tokens) as _)
}

/// One client and the session it has.
pub(super) struct WsTestClient {
    pub(super) io: DuplexStream,
    buffer: BytesMut,
}

pub(super) fn visitor(token: Option<&str>) -> WsPeer {
    let (_, carrier) = memory_pair(b"http/1.1");
    let auth = AuthContext {
        identity: None,
        key: None,
        alpn: b"http/1.1"[..].into(),
        sni: None,
        remote_addr: None,
        carriage: Carriage::Tcp,
        early_data: false,
    };
    WsPeer {
        carrier,
        auth,
        token: token.map(|token| Arc::new(AuthToken::new(token.to_owned()))),
    }
}

impl WsTestClient {
    pub(super) fn start(tokens: &Arc<OneToken>, token: Option<&str>) -> Self {
        Self::start_with(
            tokens,
            token,
            PeerTimeouts::default(),
            WsTimeouts::default(),
        )
    }

    pub(super) fn start_with(
        tokens: &Arc<OneToken>,
        token: Option<&str>,
        patience: PeerTimeouts,
        pace: WsTimeouts,
    ) -> Self {
        Self::served(patient_dispatcher(tokens, patience), token, pace)
    }

    /// A client of a node that others are clients of.
    pub(super) fn connect_to(node: &Arc<Dispatcher>, token: Option<&str>) -> Self {
        Self::served(Arc::clone(node), token, WsTimeouts::default())
    }

    fn served(dispatcher: Arc<Dispatcher>, token: Option<&str>, pace: WsTimeouts) -> Self {
        let (io, theirs) = duplex(256 << 10);
        tokio::spawn(serve(theirs, visitor(token), dispatcher, pace));
        Self {
            io,
            buffer: BytesMut::new(),
        }
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) {
        self.io.write_all(bytes).await.expect("the node reads");
    }

    pub(super) async fn request(&mut self, id: &str, operation: &str, input: &Value) {
        let event = json!({
            "type": "call.requested", "id": id,
            "payload": { "operationId": operation, "input": input },
        });
        self.send(&frame(BINARY, true, event.to_string().as_bytes()))
            .await;
    }

    /// The next frame but pings.
    pub(super) async fn next(&mut self) -> (u8, Vec<u8>) {
        loop {
            let need = match &self.buffer[..] {
                [_, 126, a, b, ..] => 4 + usize::from(u16::from_be_bytes([*a, *b])),
                [_, 127, len @ ..] if len.len() >= 8 => {
                    let len = len[..8].try_into().expect("eight bytes");
                    10 + u64::from_be_bytes(len) as usize
                }
                [_, short, ..] if *short < 126 => 2 + usize::from(*short),
                _ => usize::MAX,
            };
            if self.buffer.len() >= need {
                let bytes = self.buffer.split_to(need);
                let (opcode, _, payload, _) = split(&bytes);
                if opcode == PING {
                    continue;
                }
                return (opcode, payload.to_vec());
            }
            let read = self.io.read_buf(&mut self.buffer).await.expect("a pipe");
            assert_ne!(read, 0, "it ended without a goodbye");
        }
    }

    pub(super) async fn event(&mut self) -> Value {
        let (opcode, payload) = self.next().await;
        assert!(opcode != CLOSE, "{:?}", String::from_utf8_lossy(&payload));
        serde_json::from_slice(&payload).expect("an event")
    }

    pub(super) async fn output(&mut self, operation: &str, input: &Value) -> Value {
        self.request("1", operation, input).await;
        self.event().await["payload"]["output"].clone()
    }

    pub(super) async fn closed(&mut self) -> u16 {
        let (opcode, payload) = self.next().await;
        assert_eq!(opcode, CLOSE, "{:?}", String::from_utf8_lossy(&payload));
        u16::from_be_bytes([payload[0], payload[1]])
    }
}
