//! `fs/notify/lock/…`: locks of entries. An advisory one binds programs that ask for it; an exclusive one binds every writer.

use std::time::Duration;

use alknet_call::{OperationSpec, Registration};
use alknet_store::limits::LOCK_NOTE_BYTES_MAX;
use alknet_store::{EntryLock, LockDepth, LockKind, LockToken, NewLock};
use serde::Deserialize;
use serde_json::{Value, json};

use super::addressed::CommitInput;
use super::consumers::LEASE_DEFAULT_MS;
use super::{FsCall, mutation, once, query, schema};
use crate::error::FsError;
use crate::rights::FsRight;
use crate::service::FsService;

pub(super) fn operations(service: &FsService) -> Vec<Registration> {
    vec![
        once(service, take_spec(), run_take),
        once(service, renew_spec(), run_renew),
        once(service, release_spec(), run_release),
        once(service, show_spec(), run_show),
    ]
}

fn lock_schema() -> Value {
    schema::output(
        &["path", "owner", "depth", "kind", "until_ms"],
        json!({
            "token": { "type": "string", "description": "Only its owner sees it" },
            "path": { "type": "string" }, "owner": schema::actor(), "note": { "type": "string" },
            "depth": { "enum": ["zero", "infinity"] },
            "kind": { "enum": ["advisory", "exclusive"] },
            "until_ms": schema::time(),
            "made_seq": { "type": "integer", "description": "The commit that made an empty file" },
        }),
    )
}

/// A lock, with its token if the caller has taken it.
fn shown_lock(lock: &EntryLock, actor: &str) -> Value {
    let mut shown = json!({
        "path": lock.path.as_str(), "owner": lock.owner, "note": lock.note,
        "depth": match lock.depth {
            LockDepth::Zero => "zero",
            LockDepth::Infinity => "infinity",
        },
        "kind": match lock.kind {
            LockKind::Advisory => "advisory",
            LockKind::Exclusive => "exclusive",
        },
        "until_ms": lock.until_ms,
    });
    // A writer shows the token to change what is locked, so that other callers must not learn it.
    if lock.owner == actor {
        shown["token"] = lock.token.to_string().into();
    }
    shown
}

fn take_spec() -> OperationSpec {
    mutation(
        "fs/notify/lock/take",
        "Takes a lock of a path, which need not exist. An exclusive lock of a free path makes an empty file there.",
    )
    .with_input(schema::input(
        &["path"],
        json!({
            "path": schema::address(), "lease_ms": schema::lease(),
            "depth": { "enum": ["zero", "infinity"], "default": "zero" },
            "kind": { "enum": ["advisory", "exclusive"], "default": "advisory" },
            "note": { "type": "string", "maxLength": LOCK_NOTE_BYTES_MAX },
            "lock_tokens": schema::commit_members()["lock_tokens"].clone(),
        }),
        json!({ "path": "docs:/report.txt", "kind": "exclusive", "lease_ms": 60_000 }),
    ))
    .with_output(lock_schema())
}

#[derive(Deserialize)]
struct EntryLockInput {
    path: String,
    lease_ms: Option<u64>,
    #[serde(default)]
    depth: Option<LockDepth>,
    #[serde(default)]
    kind: Option<LockKind>,
    #[serde(default)]
    note: String,
    token: Option<String>,
}

impl EntryLockInput {
    fn time(&self) -> Duration {
        Duration::from_millis(self.lease_ms.unwrap_or(LEASE_DEFAULT_MS))
    }

    fn token(&self) -> Result<LockToken, FsError> {
        // The schemas ask for the token: a missing one is as wrong as any other.
        Ok(self
            .token
            .as_deref()
            .unwrap_or_default()
            .parse::<LockToken>()?)
    }
}

async fn run_take(call: FsCall) -> Result<Value, FsError> {
    let input: EntryLockInput = call.parse()?;
    // A lock that covers the path already may be one of the caller, which these show.
    let tokens = call.parse::<CommitInput>()?.tokens()?;
    let address = call.address(FsRight::Write, &input.path)?;
    let target = call.head(&address).await?;
    let actor = call.requester.actor().to_owned();
    let mut new = NewLock::advisory(target.branch, address.path, &actor, input.time());
    new.depth = input.depth.unwrap_or(LockDepth::Zero);
    new.kind = input.kind.unwrap_or(LockKind::Advisory);
    new.note = input.note;
    let taken = call.write(target.durability, move |tx| tx.lock_entry(&new, &tokens));
    let taken = taken.await?;
    let mut answer = shown_lock(&taken.lock, &actor);
    if let Some(made) = taken.made {
        answer["made_seq"] = made.seq.into();
    }
    Ok(answer)
}

fn token_spec(name: &str, description: &str, more: Value) -> OperationSpec {
    let own = json!({
        "path": schema::address(), "token": { "type": "string", "maxLength": 64 },
    });
    mutation(name, description).with_input(schema::input(
        &["path", "token"],
        schema::joined(&[own, more]),
        json!({ "path": "docs:/report.txt",
                "token": "urn:uuid:00112233-4455-4677-8899-aabbccddeeff" }),
    ))
}

fn renew_spec() -> OperationSpec {
    let more = json!({ "lease_ms": schema::lease() });
    token_spec(
        "fs/notify/lock/renew",
        "Makes a lock of the caller last on, from now.",
        more,
    )
    .with_output(lock_schema())
}

async fn run_renew(call: FsCall) -> Result<Value, FsError> {
    let input: EntryLockInput = call.parse()?;
    let token = input.token()?;
    let address = call.address(FsRight::Write, &input.path)?;
    let target = call.head(&address).await?;
    let actor = call.requester.actor().to_owned();
    let (owner, time) = (actor.clone(), input.time());
    let renewed = call.write(target.durability, move |tx| {
        tx.renew_lock(target.branch, &address.path, &owner, token, time)
    });
    Ok(shown_lock(&renewed.await?, &actor))
}

fn release_spec() -> OperationSpec {
    token_spec(
        "fs/notify/lock/release",
        "Gives a lock of the caller back.",
        json!({}),
    )
    .with_output(schema::output(&[], json!({})))
}

async fn run_release(call: FsCall) -> Result<Value, FsError> {
    let input: EntryLockInput = call.parse()?;
    let token = input.token()?;
    let address = call.address(FsRight::Write, &input.path)?;
    let target = call.head(&address).await?;
    let actor = call.requester.actor().to_owned();
    let released = call.write(target.durability, move |tx| {
        tx.unlock_entry(target.branch, &address.path, &actor, token)
    });
    released.await?;
    Ok(json!({}))
}

fn show_spec() -> OperationSpec {
    query("fs/notify/lock/show", "Lists the locks that cover a path.")
        .with_input(schema::input(
            &["path"],
            json!({ "path": schema::address() }),
            json!({ "path": "docs:/report.txt" }),
        ))
        .with_output(schema::output(
            &["locks"],
            json!({ "locks": { "type": "array", "items": lock_schema() } }),
        ))
}

async fn run_show(call: FsCall) -> Result<Value, FsError> {
    let input: EntryLockInput = call.parse()?;
    let address = call.address(FsRight::Read, &input.path)?;
    let target = call.head(&address).await?;
    // Rows of locks that have ended may still be there.
    let now_ms = call.lease().await?.db().unix_ms();
    let locks = call.read(move |tx| tx.covering_locks(target.branch, &address.path, now_ms));
    let locks = locks.await?;
    let actor = call.requester.actor();
    let rows: Vec<_> = locks.iter().map(|lock| shown_lock(lock, actor)).collect();
    Ok(json!({ "locks": rows }))
}
