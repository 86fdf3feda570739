//! `escrow/*`: what a share registry does, as operations.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use alknet_call::{
    CallBody, CallError, Ctx, ErrorCode, ErrorDef, HandlerKind, OperationSpec, Registration,
    RegistryBuilder,
};
use alknet_core::config::ADDRESS_RANGES_MAX;
use alknet_core::{AddressRange, Identities, IdentityKind, IdentityProvider, PeerKey};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::entry::{KeyShare, ShareEntry, ShareId};
use crate::error::EscrowError;
use crate::share_registry::{ShareChange, ShareDeposit, ShareListing, ShareRegistry, ShareRequest};
use crate::vault::EscrowVaultError;

/// The scope of nodes that leave their shares here.
pub const CLIENT_SCOPE: &str = "escrow";
/// The scope of those who look after them.
pub const ADMIN_SCOPE: &str = "escrow:admin";

/// Calls of each operation at once: each may wait for a disk.
const CONCURRENCY: u32 = 8;
/// How long an approval lasts unless said otherwise, and at most, in seconds.
const APPROVAL_S: u64 = 600;
const APPROVAL_S_MAX: u64 = 86_400;
/// Longest name of a vault: its id has 36 characters.
const VAULT_CHARS_MAX: usize = 64;
/// Longest name of a share that a person types.
const NAME_CHARS_MAX: usize = 128;
/// Longest IPv6 address, with an IPv4 address at its end.
const ADDRESS_CHARS_MAX: usize = 45;
/// When a peer that waits for an approval should ask again, in milliseconds.
const PENDING_RETRY_MS: u64 = 5_000;

/// Adds the operations to a registry.
pub fn register(
    builder: &mut RegistryBuilder,
    share_registry: &Arc<ShareRegistry>,
    identities: &Arc<Identities>,
) {
    let on = EscrowContext {
        share_registry: Arc::clone(share_registry),
        identities: Arc::clone(identities),
    };
    builder.add(deposit(on.clone()));
    builder.add(release(on.clone()));
    builder.add(list(on.clone()));
    builder.add(approve(on.clone()));
    builder.add(change(on.clone()));
    builder.add(revoke(on));
}

/// What every operation stands on.
#[derive(Clone)]
struct EscrowContext {
    share_registry: Arc<ShareRegistry>,
    identities: Arc<Identities>,
}

impl EscrowContext {
    /// The peer whose key this connection was made with. A token does not count: a share opens a
    /// machine, and reading a file of tokens must not be enough to get one.
    fn share_request(&self, ctx: &Ctx) -> Result<ShareRequest, CallError> {
        let refused = |what| CallError::new(ErrorCode::Forbidden, what);
        let who = ctx.identity().ok_or_else(|| {
            CallError::new(
                ErrorCode::Unauthenticated,
                "this node knows no peer by this key",
            )
        })?;
        let by_key = ctx.conn().key.filter(|_| who.kind == IdentityKind::Peer);
        // A token replaces the identity of a request and leaves the connection's key: both have to
        // be the same peer.
        let held = by_key.filter(|key| {
            let holder = self.identities.by_key(key);
            holder.is_some_and(|holder| holder.id == who.id)
        });
        let key = held.ok_or_else(|| {
            refused("shares are for keys: connect with yours, and send no auth_token")
        })?;
        if ctx.internal() || ctx.is_forwarded() {
            return Err(refused(
                "the owner of a share asks for it directly, and no operation or node in between",
            ));
        }
        Ok(ShareRequest {
            key,
            peer: who.id.clone(),
            // A dual-stack socket shows IPv4 peers as ::ffff:0:0/96 (RFC 4291, section 2.5.5.2),
            // which no IPv4 range contains.
            address: ctx.conn().remote_addr.map(|addr| addr.ip().to_canonical()),
            now_s: self.identities.now_s(),
            now: Instant::now(),
        })
    }

    /// What people call the peer of an entry, while it is one.
    fn name(&self, entry: &ShareEntry) -> Option<String> {
        let peers = self.identities.entries().peers;
        let mut peers = peers.into_iter();
        let peer = peers.find(|peer| peer.peer_id == entry.peer && peer.enabled)?;
        Some(peer.display_name.unwrap_or_else(|| entry.peer.to_string()))
    }

    fn find_share(&self, text: &str) -> Result<ShareId, EscrowError> {
        self.share_registry.find_id(text, |entry| self.name(entry))
    }

    fn shown(&self, listed: &ShareListing) -> Value {
        let entry = &listed.entry;
        let state = match entry {
            ShareEntry {
                revoked: Some(_), ..
            } => "revoked",
            _ if !listed.waiting.is_empty() && listed.approved.is_none() => "waiting",
            _ => "kept",
        };
        let waits = listed
            .waiting
            .iter()
            .map(|(since, _)| since.as_secs())
            .max();
        let waits_at = listed.waiting.last().and_then(|(_, at)| *at);
        let all: Vec<_> = listed.waiting.iter().filter_map(|(_, at)| *at).collect();
        let released = entry.released.as_ref();
        let revoked = entry.revoked.as_ref();
        json!({
            "id": entry.id,
            "state": state,
            "name": self.name(entry),
            "peer_id": entry.peer,
            "key": entry.key,
            "vault": entry.vault,
            "made": entry.made.and_then(moment),
            "from": entry.from,
            "approve": entry.approve,
            "releases": released.map_or(0, |last| last.count),
            "released": released.and_then(|last| last.time).and_then(moment),
            "released_to": released.and_then(|last| last.address),
            "refusals": listed.refusals,
            "waiting_s": waits,
            "waiting_at": waits_at,
            "waiting_from": all,
            "approved_s": listed.approved.map(|left| left.as_secs()),
            "revoked": revoked.and_then(|end| end.time).and_then(moment),
            "revoked_by": revoked.map(|end| &end.by),
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DepositInput {
    share: KeyShare,
    vault: String,
    #[serde(default)]
    from: Option<Vec<AddressRange>>,
    #[serde(default)]
    approve: bool,
}

fn deposit(on: EscrowContext) -> Registration {
    let spec = OperationSpec::mutation(
        "escrow/deposit",
        "Stores a share of the key of the caller's vault. The same share again changes nothing.",
    )
    .with_input(json!({
        "type": "object",
        "required": ["share", "vault"],
        "additionalProperties": false,
        "properties": {
            "share": { "type": "string", "pattern": "^[0-9a-f]{64}$" },
            "vault": { "type": "string", "minLength": 1, "maxLength": VAULT_CHARS_MAX,
                       "pattern": "^[!-~]+$",
                       "description": "The id of the vault, for people" },
            "from": ranges("From where it may be asked for; from anywhere when empty"),
            "approve": { "type": "boolean", "default": false,
                         "description": "Whether each release needs the approval of an administrator" },
        }
    }))
    .with_output(json!({ "type": "object", "required": ["id"],
                         "properties": { "id": { "type": "string" } } }))
    .with_scope(CLIENT_SCOPE);
    operation(on, limited(spec), |on, ctx, input: DepositInput| {
        let request = on.share_request(ctx)?;
        let deposit = ShareDeposit {
            share: input.share,
            vault: input.vault,
            from: input.from.unwrap_or_default(),
            approve: input.approve,
        };
        Ok(Box::new(move || {
            // One share for each peer: people name a share by its peer.
            let holds = |key: &PeerKey| {
                let holder = on.identities.by_key(key);
                holder.is_some_and(|holder| holder.id == request.peer)
            };
            if on.share_registry.keeps_for_other_key(&request, holds)? {
                return Err(EscrowError::OtherKey);
            }
            let id = on.share_registry.deposit(&request, &deposit)?;
            Ok(json!({ "id": id }))
        }))
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReleaseInput {
    id: ShareId,
}

fn release(on: EscrowContext) -> Registration {
    let spec = OperationSpec::mutation("escrow/release", "Releases the share of the caller.")
        .with_input(json!({
            "type": "object",
            "required": ["id"],
            "additionalProperties": false,
            "properties": { "id": { "type": "string" } }
        }))
        .with_output(json!({ "type": "object", "required": ["share"],
                             "properties": { "share": { "type": "string" } } }))
        .with_scope(CLIENT_SCOPE);
    operation(on, limited(spec), |on, ctx, input: ReleaseInput| {
        let request = on.share_request(ctx)?;
        Ok(Box::new(move || {
            let share = on.share_registry.release(&request, &input.id)?;
            Ok(json!({ "share": share }))
        }))
    })
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct EmptyInput {}

fn list(on: EscrowContext) -> Registration {
    let spec = OperationSpec::query(
        "escrow/list",
        "Lists the shares that this node keeps, without their secrets.",
    )
    .with_input(json!({ "type": ["object", "null"], "additionalProperties": false }))
    .with_output(json!({
        "type": "object",
        "required": ["shares"],
        "properties": { "shares": { "type": "array", "items": {
            "type": "object",
            "required": ["id", "state", "peer_id", "key", "vault"],
            "properties": { "state": { "enum": ["kept", "waiting", "revoked"] } } } } }
    }))
    .with_scope(ADMIN_SCOPE);
    operation(on, limited(spec), |on, _ctx, _: EmptyInput| {
        Ok(Box::new(move || {
            let listed = on.share_registry.list(Instant::now())?;
            let shares: Vec<_> = listed.iter().map(|one| on.shown(one)).collect();
            Ok(json!({ "shares": shares }))
        }))
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ApproveInput {
    share: String,
    #[serde(default)]
    address: Option<IpAddr>,
    #[serde(default = "approval_s")]
    seconds: u64,
}

const fn approval_s() -> u64 {
    APPROVAL_S
}

fn approve(on: EscrowContext) -> Registration {
    let spec = OperationSpec::mutation("escrow/approve", "Approves one release of a share.")
        .with_input(json!({
            "type": "object",
            "required": ["share"],
            "additionalProperties": false,
            "properties": {
                "share": share_schema(),
                "address": { "type": ["string", "null"], "maxLength": ADDRESS_CHARS_MAX,
                             "description": "The address that gets it; the one that waits unless given" },
                "seconds": { "type": "integer", "minimum": 1, "maximum": APPROVAL_S_MAX,
                             "default": APPROVAL_S },
            }
        }))
        .with_output(short_schema())
        .with_scope(ADMIN_SCOPE);
    operation(on, limited(spec), |on, ctx, input: ApproveInput| {
        let by = by(ctx);
        Ok(Box::new(move || {
            let id = on.find_share(&input.share)?;
            let lasts = Duration::from_secs(input.seconds.min(APPROVAL_S_MAX));
            let at = input.address.map(|address| address.to_canonical());
            let (registry, now) = (&on.share_registry, Instant::now());
            let entry = registry.approve(&id, at, lasts, &by, now)?;
            Ok(short(&on, &entry))
        }))
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ChangeInput {
    share: String,
    #[serde(default)]
    from: Option<Vec<AddressRange>>,
    #[serde(default)]
    approve: Option<bool>,
}

fn change(on: EscrowContext) -> Registration {
    let spec = OperationSpec::mutation(
        "escrow/change",
        "Changes the addresses that a share is released to, and whether each release needs an approval.",
    )
    .with_input(json!({
        "type": "object",
        "required": ["share"],
        "additionalProperties": false,
        "properties": {
            "share": share_schema(),
            "from": ranges("All of them from now on; empty for anywhere"),
            "approve": { "type": ["boolean", "null"] },
        }
    }))
    .with_output(short_schema())
    .with_scope(ADMIN_SCOPE);
    operation(on, limited(spec), |on, ctx, input: ChangeInput| {
        let by = by(ctx);
        Ok(Box::new(move || {
            let id = on.find_share(&input.share)?;
            let change = ShareChange {
                from: input.from,
                approve: input.approve,
            };
            let entry = on.share_registry.change(&id, change, &by)?;
            Ok(short(&on, &entry))
        }))
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ShareRevokeInput {
    share: String,
}

fn revoke(on: EscrowContext) -> Registration {
    let spec = OperationSpec::mutation(
        "escrow/revoke",
        "Destroys a share: its vault can no longer open by it, even if a thief has the machine.",
    )
    .with_input(json!({
        "type": "object",
        "required": ["share"],
        "additionalProperties": false,
        "properties": { "share": share_schema() }
    }))
    .with_output(short_schema())
    .with_scope(ADMIN_SCOPE);
    operation(on, limited(spec), |on, ctx, input: ShareRevokeInput| {
        let (by, now_s) = (by(ctx), on.identities.now_s());
        Ok(Box::new(move || {
            let id = on.find_share(&input.share)?;
            let entry = on.share_registry.revoke(&id, &by, now_s)?;
            Ok(short(&on, &entry))
        }))
    })
}

/// What waits for a disk.
type Work = Box<dyn FnOnce() -> Result<Value, EscrowError> + Send>;

/// An operation whose caller is looked at where it was called, and which works on a thread of its own.
fn operation<I>(
    on: EscrowContext,
    spec: OperationSpec,
    prepare: fn(EscrowContext, &Ctx, I) -> Result<Work, CallError>,
) -> Registration
where
    I: for<'de> Deserialize<'de> + Send + 'static,
{
    let handler = HandlerKind::once(move |input: CallBody, ctx: Ctx| {
        let on = on.clone();
        async move {
            // `escrow/list` needs no input, and serde reads no structure from null.
            let input = match input.is_null() {
                true => CallBody::json(&json!({}))?.parse()?,
                false => input.parse()?,
            };
            let work = prepare(on, &ctx, input)?;
            let done = tokio::task::spawn_blocking(work).await;
            let done = done.map_err(|error| CallError::internal(error.to_string()))?;
            done.map_err(|error| refusal(&error))
        }
    });
    Registration::new(spec, handler)
}

fn limited(mut spec: OperationSpec) -> OperationSpec {
    spec.concurrency = Some(CONCURRENCY);
    spec.error_schemas = [PENDING, REVOKED]
        .map(|(code, description, http_status)| ErrorDef {
            code: code.to_owned(),
            description: description.to_owned(),
            schema: json!({ "type": "object" }),
            http_status: Some(http_status),
        })
        .to_vec();
    spec
}

/// Codes of their own.
const PENDING: (&str, &str, u16) = (
    "APPROVAL_PENDING",
    "An administrator has to approve the release; ask again",
    409,
);
const REVOKED: (&str, &str, u16) = ("REVOKED", "The share was taken back for ever", 410);

fn refusal(error: &EscrowError) -> CallError {
    let text = error.to_string();
    let of = |code| CallError::new(code, text.clone());
    match error {
        EscrowError::Address => {
            of(ErrorCode::Forbidden).with_details(json!({ "reason": "address" }))
        }
        EscrowError::Ambiguous
        | EscrowError::Conflict
        | EscrowError::Full
        | EscrowError::OtherKey
        | EscrowError::Several(_) => of(ErrorCode::Conflict),
        EscrowError::Index(_) => of(ErrorCode::Unavailable),
        EscrowError::Pending(_) => {
            CallError::operation(PENDING.0, text).with_retry_after_ms(PENDING_RETRY_MS)
        }
        EscrowError::Rate(wait) => {
            let ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
            of(ErrorCode::Overloaded).with_retry_after_ms(ms)
        }
        EscrowError::Revoked => CallError::operation(REVOKED.0, text),
        EscrowError::Safe(EscrowVaultError::Absent) => of(ErrorCode::Conflict),
        EscrowError::Safe(EscrowVaultError::Failed(_)) => of(ErrorCode::Internal),
        EscrowError::Safe(EscrowVaultError::Locked) => {
            of(ErrorCode::Unavailable).with_details(json!({ "reason": "vault_locked" }))
        }
        EscrowError::Unknown => of(ErrorCode::NotFound),
    }
}

fn ranges(description: &str) -> Value {
    json!({ "type": ["array", "null"], "maxItems": ADDRESS_RANGES_MAX,
            "items": { "type": "string" }, "description": description })
}

fn share_schema() -> Value {
    json!({ "type": "string", "minLength": 1, "maxLength": NAME_CHARS_MAX,
            "description": "The id of the share, or the name of the peer that deposited it" })
}

fn short_schema() -> Value {
    json!({ "type": "object", "required": ["id", "peer_id"] })
}

fn short(on: &EscrowContext, entry: &ShareEntry) -> Value {
    json!({ "id": entry.id, "peer_id": entry.peer, "name": on.name(entry),
            "approve": entry.approve, "from": entry.from })
}

fn by(ctx: &Ctx) -> String {
    let who = ctx.identity();
    who.map_or_else(|| "unknown peer".to_owned(), |who| who.id.to_string())
}

/// RFC 3339.
fn moment(seconds: u64) -> Option<String> {
    let seconds = i64::try_from(seconds).ok()?;
    Timestamp::from_second(seconds)
        .ok()
        .map(|at| at.to_string())
}
