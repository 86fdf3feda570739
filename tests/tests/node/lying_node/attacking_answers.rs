//! The node itself: each text in its answers acts on a terminal, or leads a browser elsewhere.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use alknet_call::{
    CallBody, CallError, CallHandler, Ctx, Dispatcher, ErrorCode, HandlerKind, OperationSpec,
    Registration, Registry,
};
use alknet_core::{
    AlpnSpec, AuthContext, AuthNeed, BoxFuture, Connection, HandlerError, HandlerRegistry,
    Identities, IdentityEntries, PeerKey, ProtocolHandler, SystemClock,
};
use alknet_endpoint::{EndpointServer, ServerOptions};
use alknet_hub::{EnrolToken, JoinCode};
use alknet_tls::NodeKey;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::lying_files::with_files;
use super::{ACTS, NAMES};

/// A protocol in which each request and each answer is a 32-bit length and JSON.
struct ScriptedProtocol {
    alpns: [AlpnSpec; 1],
    /// The answers, one after the other. The last one repeats.
    answers: Vec<Value>,
    requests: AtomicUsize,
}

impl ScriptedProtocol {
    fn to(alpn: &'static [u8], answers: Vec<Value>) -> Arc<Self> {
        Arc::new(Self {
            alpns: [AlpnSpec {
                auth: AuthNeed::Open,
                ..AlpnSpec::new(alpn)
            }],
            answers,
            requests: AtomicUsize::new(0),
        })
    }

    async fn answer(&self, connection: &Connection) -> std::io::Result<()> {
        let (mut send, mut recv) = connection.accept_bi().await?;
        let len = recv.read_u32().await?;
        recv.read_exact(&mut vec![0; len as usize]).await?;
        let n = self.requests.fetch_add(1, Ordering::SeqCst);
        let answer = self.answers[n.min(self.answers.len() - 1)].to_string();
        send.write_u32(answer.len() as u32).await?;
        send.write_all(answer.as_bytes()).await?;
        send.flush().await?;
        send.finish()?;
        connection.closed().await;
        Ok(())
    }
}

impl ProtocolHandler for ScriptedProtocol {
    fn alpns(&self) -> &[AlpnSpec] {
        &self.alpns
    }

    fn handle(
        self: Arc<Self>,
        connection: Connection,
        _: AuthContext,
    ) -> BoxFuture<'static, Result<(), HandlerError>> {
        Box::pin(async move {
            let answered = self.answer(&connection).await;
            answered.map_err(|_| HandlerError::Closed)
        })
    }
}

/// Changes the connection's key.
fn rotates(hub: PeerKey) -> Registration {
    let spec = OperationSpec::query("peer/rotate-key", ACTS);
    let handler = HandlerKind::once(move |input: CallBody, ctx: Ctx| {
        let answer = match input.value()["new_key"].is_string() {
            true => json!({ "peer_id": ACTS, "old_key_ends": ACTS }),
            false => json!({ "peer_id": "edge", "hub": hub, "old_key": ctx.conn().key,
                             "time": 2_000_000_000 }),
        };
        std::future::ready(Ok::<_, CallError>(answer))
    });
    Registration::new(spec, handler)
}

/// Lists one proposal and ends. For three states the list never ends, each in another way.
fn lists(proposal: Value) -> Registration {
    /// Rows of a page.
    const ROWS: u64 = 256;
    let spec = OperationSpec::query("ops/proposals", ACTS);
    let handler = HandlerKind::once(move |input: CallBody, _| {
        let cursor = input.value()["cursor"].as_u64().unwrap_or_default();
        let row = |n: u64| json!({ "id": format!("{n:064x}"), "state": "title", "author": "a" });
        let rows: Vec<_> = match input.value()["state"].as_str() {
            Some("promoted") => (cursor * ROWS..(cursor + 1) * ROWS).map(row).collect(),
            Some("rejected") => vec![row(0)],
            Some("retired") => Vec::new(),
            _ => {
                let all = json!({ "proposals": [proposal] });
                return std::future::ready(Ok::<_, CallError>(all));
            }
        };
        let page = json!({ "proposals": rows, "next": cursor + 1 });
        std::future::ready(Ok::<_, CallError>(page))
    });
    Registration::new(spec, handler)
}

/// Says what a script said, and to those that ask for declarations of operations that one of them is hostile.
fn runs(script: Value) -> Registration {
    let spec = OperationSpec::query("runtime/eval", ACTS);
    let handler = HandlerKind::once(move |input: CallBody, _| {
        let mut said = script.clone();
        if input.value()["source"] == "export default ops.list()" {
            said["value"] = json!([{
                "path": ACTS, "kind": "query", "input": { "title": ACTS }, "output": { "const": ACTS },
                "description": ACTS,
            }]);
        }
        std::future::ready(Ok::<_, CallError>(said))
    });
    Registration::new(spec, handler)
}

/// A node in this process, whose every answer is an attack.
pub(super) struct LyingNode {
    server: EndpointServer,
    key: NodeKey,
}

impl LyingNode {
    /// Its link has this path, and its names are hostile.
    pub(super) fn start(path: &str) -> Self {
        let says = |name: &str, said: Value| {
            let spec = OperationSpec::query(name, ACTS);
            let handler =
                HandlerKind::once(move |_, _| std::future::ready(Ok::<_, CallError>(said.clone())));
            Registration::new(spec, handler)
        };
        let refuses = HandlerKind::once(|_, _| async {
            Err::<Value, _>(CallError::new(ErrorCode::Conflict, ACTS).with_details(json!([ACTS])))
        });
        let finds_mistakes = HandlerKind::once(|_, _| async {
            let error = CallError::new(ErrorCode::InvalidInput, ACTS);
            Err::<Value, _>(error.with_details(json!({ "errors": [ACTS] })))
        });
        let follows = HandlerKind::stream(|_, _| {
            let record = json!({ "time": ACTS, "level": ACTS, "target": ACTS, "message": ACTS });
            futures_util::stream::iter([Ok::<_, CallError>(record)])
        });
        let problem = json!({ "code": ACTS, "text": ACTS, "hint": ACTS });
        let disk = json!({
            "name": ACTS, "kind": ACTS, "model": ACTS, "serial_end": ACTS, "health": ACTS, "failing": [ACTS],
        });
        let slot = json!({ "slot": ACTS, "version": ACTS, "result": ACTS, "detail": ACTS });
        let storage = json!({ "disks": [disk], "slots": [slot] });
        let mut checked = storage.clone();
        checked["stored"] = json!({ "running": ACTS, "files": ACTS, "damaged_files": ACTS });
        checked["problems"] = json!([problem]);
        let info = json!({
            "storage": storage, "name": ACTS, "identity": ACTS, "version": ACTS, "kernel": ACTS, "addresses": [ACTS],
            "listen": { "alpns": [ACTS], "port": 443 }, "data": { "mode": ACTS }, "clock": ACTS,
            "uptime_ms": 1, "problems": [problem],
        });
        let peers = json!({ "peers": [{
            "peer_id": ACTS, "name": ACTS, "key": ACTS, "kind": ACTS, "source": ACTS,
            "display_name": ACTS,
        }] });
        let row = json!({
            "peer_id": ACTS, "kind": ACTS, "source": ACTS, "display_name": ACTS, "keys": [ACTS],
            "key_ends": { ACTS: ACTS }, "scopes": [ACTS], "expires": ACTS, "closed": [ACTS],
            "known": true,
        });
        let shown = json!({
            "generation": ACTS, "source": ACTS, "restart_required": [ACTS], "withheld": [ACTS],
            "document": ACTS, "config": { ACTS: ACTS },
        });
        let script = json!({
            "value": { "said": ACTS }, "shown": ACTS, "console": [{ "level": "log", "text": ACTS }],
        });
        let link = json!({ "path": path, "ticket": "", "expires_in": 60, "names": NAMES });
        let token = json!({
            "key_id": ACTS, "holder": ACTS, "source": ACTS, "scopes": [ACTS], "expires": ACTS,
            "last_used": ACTS, "created_by": ACTS, "note": ACTS,
        });
        let of_hub = json!({
            "peers": [{ "name": ACTS, "state": ACTS, "peer_id": ACTS, "labels": { ACTS: ACTS } }],
            "waiting": [{ "name": ACTS, "addr": ACTS, "fingerprint": ACTS }],
            "invitations": [{ "key_id": ACTS, "left": 1, "role": ACTS, "expires": ACTS }],
        });
        let share = json!({
            "id": ACTS, "name": ACTS, "state": ACTS, "released": ACTS, "releases": 1, "from": [ACTS],
        });
        let file = json!({
            "name": ACTS, "kind": ACTS, "files": 1, "bytes": ACTS, "names": [ACTS], "expires": ACTS,
            "used_by": [ACTS], "counts": ACTS, "warnings": [ACTS], "upload": ACTS,
            "entries": [{ "path": ACTS, "bytes": 1 }],
        });
        let peer = json!({ "peer_id": ACTS, "name": format!("{ACTS}2"), "closed": [ACTS] });
        let invitation = json!({ "join": ACTS, "role": ACTS, "expires": ACTS, "count": 1 });
        let made = json!({ "token": ACTS, "key_id": ACTS, "expires": ACTS, "scopes": [ACTS],
                           "warnings": [{ "id": ACTS, "what": ACTS }] });
        let kept = json!({ "id": ACTS, "name": ACTS, "path": ACTS });
        let proposal = json!({ "id": ACTS, "state": ACTS, "author": ACTS, "name": ACTS });
        let reviewed = json!({
            "proposal": proposal, ACTS: ACTS, "grants": [{ "text": ACTS }],
            "report": { "cases": [{ "name": ACTS, "passed": true, "fuel": 1 }] },
            "versions": [{ "version": 1, "id": ACTS, "generation": 1 }],
            "record": [{ "who": ACTS, "did": ACTS, "note": ACTS }], "difference": ACTS,
        });
        let plan = json!({ "from": ACTS, "to": ACTS, "step": "same", "bytes": 1, "changes": ACTS, "floor": ACTS,
                           "needs_person": ACTS });
        let last = json!({ "version": ACTS, "outcome": "failed", "stage": ACTS, "problems": [ACTS], "reason": ACTS });
        let update = json!({
            "state": "staged", "version": ACTS, "slot": ACTS, "other_version": ACTS, "keys": ACTS, "floor": ACTS,
            "last": last, "plan": plan, "scheduled": ACTS, "gate": [ACTS],
            "not_started": { "version": ACTS, "at": ACTS, "by": ACTS, "reason": ACTS },
            "session": { "offset": 1, "bytes": 2, "source": ACTS },
            "auto": { "mode": ACTS, "next": ACTS, "at": ACTS, "error": ACTS },
        });
        let tried =
            json!({ "time": ACTS, "event": ACTS, "version": ACTS, "by": ACTS, "reason": ACTS });
        let key = NodeKey::generate().expect("a key");
        let registry = with_files(Registry::builder())
            .with(says("update/status", update))
            .with(says("update/log", json!({ "records": [tried] })))
            .with(says("update/confirm", json!({ "confirmed": ACTS })))
            .with(says("update/rollback", json!({ "accepted": ACTS })))
            .with(says("update/cancel", json!({ "cancelled": ACTS })))
            .with(rotates(key.public()))
            .with(says("hub/invite", invitation))
            .with(says("hub/peers/approve", peer.clone()))
            .with(says("hub/peers/label", peer.clone()))
            .with(says("hub/peers/remove", peer))
            .with(says("token/make", made.clone()))
            .with(says("token/revoke", made))
            .with(says("ops/propose", reviewed.clone()))
            .with(says("ops/promote", reviewed.clone()))
            .with(says("ops/rollback", reviewed.clone()))
            .with(lists(proposal))
            .with(says("escrow/approve", kept.clone()))
            .with(says("escrow/change", kept.clone()))
            .with(says("node/poweroff", kept.clone()))
            .with(says("node/reboot", kept.clone()))
            .with(says("escrow/revoke", kept.clone()))
            .with(says("vault/lock", json!({ "state": ACTS, "hard": ACTS })))
            .with(says("token/list", json!({ "tokens": [token] })))
            .with(says("hub/peers", of_hub))
            .with(says("hub/whoami", json!({ "peer_id": null })))
            .with(says("escrow/list", json!({ "shares": [share] })))
            .with(Registration::new(
                OperationSpec::query("config/apply", ACTS),
                finds_mistakes,
            ))
            .with(says(
                "config/list-files",
                json!({ "files": [file.clone()], "bytes_max": ACTS }),
            ))
            .with(says("config/remove-file", file.clone()))
            .with(says("config/store-file", file))
            .with(says("config/show", shown))
            .with(says("peer/add", row.clone()))
            .with(says("peer/set", row.clone()))
            .with(says("peer/remove", row))
            .with(says("tensor/remove", json!({ "id": ACTS, "freed": ACTS })))
            .with(says("tensor/list", json!({ "files": [kept] })))
            .with(says("node/info", info))
            .with(says("node/check-storage", checked))
            .with(says("node/page-ticket", link))
            .with(says("peer/list", peers))
            .with(runs(script))
            .with(says(
                "vault/status",
                json!({ "state": ACTS, "slots": [ACTS], "credentials": [{ "name": ACTS }] }),
            ))
            .with(Registration::new(
                OperationSpec::query("evil/refused", ACTS),
                refuses,
            ))
            .with(Registration::new(
                OperationSpec::subscription("node/log", ACTS),
                follows,
            ))
            .build()
            .expect("every rule is kept");
        let handler = CallHandler::new(Arc::new(Dispatcher::new(registry)));
        let mut handlers = HandlerRegistry::new();
        handlers.register(Arc::new(handler)).expect("the only one");
        let refused = json!({ "error": { "code": ACTS, "message": ACTS, "retryable": false } });
        let hub = json!({ "key": key.public(), "names": [ACTS] });
        let taken = json!({ "peer_id": "edge", "name": ACTS, "hub": hub });
        // As text and as JSON.
        let answers = vec![refused.clone(), refused, taken];
        let enrols = ScriptedProtocol::to(b"alknet/enroll", answers);
        handlers.register(enrols).expect("another");
        let stores = json!({ "ok": false, "code": ACTS, "msg": ACTS });
        let stores = ScriptedProtocol::to(b"alknet/tensor", vec![stores]);
        handlers.register(stores).expect("a third");
        let clock = Arc::new(SystemClock { built_s: 0 });
        let known = Arc::new(Identities::new(IdentityEntries::default(), clock));
        let options = ServerOptions {
            port: 0,
            ..ServerOptions::default()
        };
        let server = EndpointServer::bind(options, &key, handlers, known).expect("a free port");
        Self { server, key }
    }

    pub(super) fn target(&self) -> String {
        format!(
            "{}@{}:{}",
            self.key.public(),
            Ipv4Addr::LOCALHOST,
            self.port()
        )
    }

    pub(super) fn port(&self) -> u16 {
        self.server.port()
    }

    /// The address to reach it as a hub.
    pub(super) fn join(&self) -> String {
        let PeerKey::Ed25519(hub) = self.key.public() else {
            panic!("the key of a node is of this kind");
        };
        let address = format!("{}:{}", Ipv4Addr::LOCALHOST, self.port());
        let code = JoinCode {
            addresses: vec![address.parse().expect("an address")],
            hub,
            token: EnrolToken::generate().expect("the system has entropy"),
            expires: 4_000_000_000,
            role: "worker".parse().expect("a role"),
        };
        code.encode().expect("it is short")
    }
}
