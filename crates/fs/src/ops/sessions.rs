//! `fs/write/…`: write sessions, for contents of any size.

use alknet_call::{Idempotence, Registration};
use alknet_store::limits::FILE_BYTES_MAX;
use alknet_store::{
    EntryPrecondition, NewWriteSession, StoreError, StoreObject, WriteSessionId, WriteSessionMode,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::addressed::{CommitInput, ConditionInput, mtime_ns};
use super::{FsCall, mutation, once, schema};
use crate::error::FsError;
use crate::limits::CHUNK_BYTES_MAX;
use crate::rights::FsRight;
use crate::service::FsService;

pub(super) fn operations(service: &FsService) -> Vec<Registration> {
    vec![
        open(service),
        chunk(service),
        close(service),
        abort(service),
    ]
}

fn session() -> Value {
    json!({ "type": "string", "minLength": 32, "maxLength": 32,
            "description": "What fs/write/open answered" })
}

const EXAMPLE: &str = "00112233445566778899aabbccddeeff";

fn open(service: &FsService) -> Registration {
    let members = json!({
        "path": schema::address(),
        "mode": { "enum": ["create", "truncate", "modify", "append"], "default": "truncate",
                  "description": "create: nothing may be there; modify: from the present content; append: behind it" },
        "size": { "type": "integer", "minimum": 0, "maximum": FILE_BYTES_MAX,
                  "description": "Bytes that will be written; another number is refused" },
        "file_mode": schema::attribute_members()["mode"].clone(),
        "mtime_ms": schema::attribute_members()["mtime_ms"].clone(),
        "lock_tokens": schema::commit_members()["lock_tokens"].clone(),
    });
    let spec = mutation(
        "fs/write/open",
        "Opens a private version of one file. Readers see the version of before until the session is closed.",
    )
    .with_input(schema::input(
        &["path"],
        schema::joined(&[members, schema::condition_members()]),
        json!({ "path": "docs:/disk.img", "mode": "create", "size": 1_048_576 }),
    ))
    .with_output(schema::output(&["session"], json!({ "session": session() })));
    once(service, spec, run_open)
}

#[derive(Deserialize)]
struct OpenInput {
    path: String,
    mode: Option<String>,
    size: Option<u64>,
    file_mode: Option<u32>,
    mtime_ms: Option<i64>,
}

async fn run_open(call: FsCall) -> Result<Value, FsError> {
    let input: OpenInput = call.parse()?;
    let condition: ConditionInput = call.parse()?;
    let commit: CommitInput = call.parse()?;
    let mode = match input.mode.as_deref() {
        Some(name) => WriteSessionMode::from_name(name),
        None => Some(WriteSessionMode::Truncate),
    };
    let mode = mode.ok_or_else(|| FsError::input("there is no such mode"))?;
    // What can be wrong with the input comes first: a refused call leaves no session.
    let precondition = condition.precondition()?;
    let lock_tokens = commit.tokens()?;
    let address = call.address(FsRight::Write, &input.path)?;
    let target = call.head(&address).await?;
    let actor = call.requester.actor();
    let mut new = NewWriteSession::new(target.branch, address.path, mode, actor);
    new.expected_size = input.size;
    new.precondition = precondition;
    new.attributes.mode = input.file_mode;
    new.attributes.mtime_ns = mtime_ns(input.mtime_ms);
    new.lock_tokens = lock_tokens;
    let opened = call.blocking(move |store| Ok(store.open_session(&new)?));
    let session = opened.await?;
    Ok(json!({ "session": session.to_string() }))
}

fn chunk(service: &FsService) -> Registration {
    let mut spec = mutation(
        "fs/write/chunk",
        "Writes at most 256 KiB at an offset of a session. Many may be under way; they come in any order.",
    )
    .with_input(schema::input(
        &["session", "offset", "bytes"],
        json!({
            "session": session(),
            "offset": { "type": "integer", "minimum": 0, "maximum": FILE_BYTES_MAX },
            "bytes": schema::bytes(),
        }),
        json!({ "session": EXAMPLE, "offset": 0, "bytes": "aGVsbG8K" }),
    ))
    .with_output(schema::output(&[], json!({})));
    // The same bytes at the same place.
    spec.idempotent = Idempotence::Yes;
    once(service, spec, run_chunk)
}

#[derive(Deserialize)]
struct ChunkInput {
    session: String,
    offset: u64,
    bytes: Value,
}

async fn run_chunk(call: FsCall) -> Result<Value, FsError> {
    let input: ChunkInput = call.parse()?;
    let id = session_id(&input.session)?;
    let bytes = call.bytes(&input.bytes)?;
    if bytes.len() > CHUNK_BYTES_MAX {
        return Err(StoreError::TooLarge {
            unit: "bytes in one piece",
            limit: CHUNK_BYTES_MAX as u64,
        }
        .into());
    }
    // The store compares it with the identity that opened the session: the number alone gives no right.
    let actor = call.requester.actor().to_owned();
    let written =
        call.blocking(move |store| Ok(store.sessions().write(id, &actor, input.offset, &bytes)?));
    written.await?;
    Ok(json!({}))
}

fn close(service: &FsService) -> Registration {
    let members = schema::joined(&[json!({ "session": session() }), schema::condition_members()]);
    let spec = mutation(
        "fs/write/close",
        "Makes what was written the content of the file, durable with the answer. The session is over, also after an error.",
    )
    .with_input(schema::input(
        &["session"],
        members,
        json!({ "session": EXAMPLE }),
    ))
    .with_output(schema::output(
        &["hash", "bytes", "seq"],
        json!({ "hash": schema::hash(), "bytes": schema::count("Bytes of the content"),
                "seq": schema::seq() }),
    ));
    once(service, spec, run_close)
}

#[derive(Deserialize)]
struct SessionInput {
    session: String,
}

async fn run_close(call: FsCall) -> Result<Value, FsError> {
    let input: SessionInput = call.parse()?;
    let condition: ConditionInput = call.parse()?;
    let id = session_id(&input.session)?;
    let precondition = condition.is_given().then(|| condition.precondition());
    let precondition: Option<EntryPrecondition> = precondition.transpose()?;
    let requester = call.requester.clone();
    let closed = call.blocking(move |store| {
        let actor = requester.actor();
        // The right may have been taken since the session was opened.
        let bucket = store.sessions().bucket(id, actor)?;
        let bucket = store.read(move |tx| tx.bucket(bucket)).wait()?;
        if let Err(refused) = requester.require(FsRight::Write, &bucket.name) {
            // What was staged would count for an identity that cannot commit it any more.
            store.sessions().abort(id, actor)?;
            return Err(refused);
        }
        Ok(store.sessions().close(id, actor, precondition)?)
    });
    let closed = closed.await?;
    Ok(json!({ "hash": closed.hash.to_string(), "bytes": closed.size, "seq": closed.seq }))
}

fn abort(service: &FsService) -> Registration {
    let spec = mutation(
        "fs/write/abort",
        "Ends a session. The file is as before, and what was staged is freed.",
    )
    .with_input(schema::input(
        &["session"],
        json!({ "session": session() }),
        json!({ "session": EXAMPLE }),
    ))
    .with_output(schema::output(&[], json!({})));
    once(service, spec, run_abort)
}

async fn run_abort(call: FsCall) -> Result<Value, FsError> {
    let input: SessionInput = call.parse()?;
    let id = session_id(&input.session)?;
    let actor = call.requester.actor().to_owned();
    let aborted = call.blocking(move |store| Ok(store.sessions().abort(id, &actor)?));
    aborted.await?;
    Ok(json!({}))
}

/// The name of a session. A text that is no name has the answer of a session that does not exist.
fn session_id(text: &str) -> Result<WriteSessionId, FsError> {
    let unknown = || StoreError::NotFound(StoreObject::Session);
    let mut bytes = [0; 16];
    let digits = text.as_bytes();
    if digits.len() != 2 * bytes.len() {
        return Err(unknown().into());
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let pair = std::str::from_utf8(pair).map_err(|_| unknown())?;
        *byte = u8::from_str_radix(pair, 16).map_err(|_| unknown())?;
    }
    Ok(WriteSessionId::new(bytes))
}
