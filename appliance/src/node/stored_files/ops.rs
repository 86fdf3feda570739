//! `config/store-file`, `config/list-files` and `config/remove-file`.

use std::sync::Arc;

use alknet_call::{
    CallBody, CallError, Ctx, ErrorCode, ErrorDef, HandlerKind, OperationSpec, Registration,
};
use alknet_core::PeerId;
use alknet_core::config::{StoredFileKind, StoredFileName};
use bytes::Bytes;
use data_encoding::BASE64;
use serde::Deserialize;
use serde_json::{Value, json};

use super::error::{FileStoreError, QUOTA_EXCEEDED};
use super::store::StoredFileRow;
use super::{FileUsers, StoredFiles};
use crate::node::identity_services::no_identity;
use crate::node::ops::caller;
use crate::node::reload::Reloader;

/// Scope of callers that may change the configuration and the files that it names.
const SCOPE: &str = "admin";
/// Default deadline of one step: a large site is written and synced in one step.
const STEP_TIMEOUT_MS: u32 = 300_000;
/// Maximum number of files of a site in a list. All names of the largest site would not fit into an
/// answer.
const ENTRIES_MAX: usize = 1000;
/// Pattern of names, for the schema.
const NAME_PATTERN: &str = "^(certificate|document|root|site)/[a-z0-9][a-z0-9-]{0,31}$";

/// `config/store-file`
pub(super) fn store(files: &StoredFiles, reloader: &Arc<Reloader>) -> Registration {
    let mut spec = OperationSpec::mutation(
        "config/store-file",
        "Stores a file that the configuration names: its name, then its bytes piece by piece, then commit.",
    )
    .with_input(json!({
        "type": "object", "additionalProperties": false,
        "properties": {
            "name": { "type": "string", "pattern": NAME_PATTERN,
                      "description": "Begins: KIND/NAME. A site comes as a tar archive, a certificate as PEM with \
                                      its key and its issuers, a root as PEM, a document as JSON or YAML" },
            "upload": { "type": "string", "maxLength": 32, "description": "Goes on: what the first step answered" },
            "offset": { "type": "integer", "minimum": 0 },
            "bytes": { "description": "The bytes from the offset on" },
            "commit": { "const": true, "description": "Checks what came, and puts it in the place of the file before" },
        }
    }))
    .with_output(json!({
        "type": "object",
        "properties": {
            "upload": { "type": "string" }, "have": { "type": "integer" },
            "name": { "type": "string" }, "kind": { "type": "string" },
            "files": { "type": "integer" }, "bytes": { "type": "integer" },
            "stored": { "type": ["string", "null"] }, "used_by": { "type": "array" },
            "counts": { "enum": ["at once", "within 5 s", "from the next start"] },
            "warnings": { "type": "array" }, "kept": { "type": "boolean" },
        }
    }))
    .with_scope(SCOPE);
    spec.default_timeout_ms = Some(STEP_TIMEOUT_MS);
    spec.error_schemas.push(ErrorDef {
        code: QUOTA_EXCEEDED.to_owned(),
        description:
            "The file is longer than one of its kind may be, or the store has no room for it."
                .to_owned(),
        schema: json!({}),
        http_status: Some(413),
    });
    let (files, reloader) = (files.clone(), Arc::clone(reloader));
    let handler = HandlerKind::once(move |input: CallBody, ctx: Ctx| {
        let (files, reloader) = (files.clone(), Arc::clone(&reloader));
        async move { store_step(&files, &reloader, &input, &ctx).await }
    });
    Registration::new(spec, handler)
}

/// `config/list-files`
pub(super) fn list(files: &StoredFiles, reloader: &Arc<Reloader>) -> Registration {
    let spec = OperationSpec::query(
        "config/list-files",
        "Lists the stored files that the configuration may name, and the keys that name them.",
    )
    .with_input(json!({
        "type": ["object", "null"], "additionalProperties": false,
        "properties": {
            "name": { "type": "string", "pattern": NAME_PATTERN,
                      "description": "Only this file, and of a site the paths in it" },
        }
    }))
    .with_output(json!({
        "type": "object", "required": ["files", "bytes", "bytes_max"],
        "properties": {
            "files": { "type": "array", "items": { "type": "object",
                "required": ["name", "kind", "files", "bytes", "used_by"] } },
            "bytes": { "type": "integer" }, "bytes_max": { "type": "integer" },
        }
    }))
    .with_scope(SCOPE);
    let (files, reloader) = (files.clone(), Arc::clone(reloader));
    let handler = HandlerKind::once(move |input: CallBody, _ctx: Ctx| {
        let (files, reloader) = (files.clone(), Arc::clone(&reloader));
        async move {
            let input: ListFilesInput = match input.is_null() {
                true => ListFilesInput::default(),
                false => input.parse()?,
            };
            let name = input.name.as_deref().map(parsed).transpose()?;
            let current = reloader.current();
            let listed = blocking(move || {
                let own = files.store()?;
                let rows = match &name {
                    Some(name) => vec![own.row(name)?],
                    None => own.rows()?,
                };
                let mut shown = Vec::with_capacity(rows.len());
                for row in rows {
                    let users = files.users(&row.name, &current.config);
                    let mut value = shown_row(&row, &users);
                    if name.is_some() && row.name.kind() == StoredFileKind::Site {
                        add_entries(&mut value, own.files(&row.name)?);
                    }
                    shown.push(value);
                }
                Ok(json!({ "files": shown, "bytes": own.used(), "bytes_max": own.bytes_max() }))
            });
            let listed = listed.await?;
            Ok::<_, CallError>(listed)
        }
    });
    Registration::new(spec, handler)
}

/// `config/remove-file`
pub(super) fn remove(files: &StoredFiles, reloader: &Arc<Reloader>) -> Registration {
    let spec = OperationSpec::mutation(
        "config/remove-file",
        "Removes a stored file that neither the configuration nor the running node uses.",
    )
    .with_input(json!({
        "type": "object", "required": ["name"], "additionalProperties": false,
        "properties": { "name": { "type": "string", "pattern": NAME_PATTERN } },
    }))
    .with_output(json!({ "type": "object", "properties": { "removed": { "type": "string" } } }))
    .with_scope(SCOPE);
    let (files, reloader) = (files.clone(), Arc::clone(reloader));
    let handler = HandlerKind::once(move |input: CallBody, ctx: Ctx| {
        let (files, reloader) = (files.clone(), Arc::clone(&reloader));
        async move {
            direct(&ctx)?;
            let input: RemoveFileInput = input.parse()?;
            let name = parsed(&input.name)?;
            let current = reloader.current();
            let removed = name.clone();
            blocking(move || {
                let own = files.store()?;
                // Otherwise the configuration would name a missing file at the next start.
                if let Some(by) = files.users(&removed, &current.config).reason() {
                    return Err(FileStoreError::InUse { name: removed, by });
                }
                own.remove(&removed)
            })
            .await?;
            tracing::info!(file = %name, by = caller(&ctx), "config.file removed");
            Ok::<_, CallError>(json!({ "removed": name.to_string() }))
        }
    });
    Registration::new(spec, handler)
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ListFilesInput {
    name: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RemoveFileInput {
    name: String,
}

/// The step that a call of `config/store-file` asks for.
enum StoreStep {
    Begin(StoredFileName),
    Add(String, u64),
    Commit(String),
}

impl StoreStep {
    fn parse(input: &Value) -> Result<Self, CallError> {
        let upload = input["upload"].as_str().map(str::to_owned);
        let has = |key: &str| !input[key].is_null();
        match (input["name"].as_str(), upload, input["offset"].as_u64()) {
            (Some(name), None, None) if !has("bytes") && !has("commit") => {
                Ok(Self::Begin(parsed(name)?))
            }
            (None, Some(upload), Some(offset)) if has("bytes") && !has("commit") => {
                Ok(Self::Add(upload, offset))
            }
            (None, Some(upload), None) if has("commit") && !has("bytes") => {
                Ok(Self::Commit(upload))
            }
            _ => Err(CallError::invalid_input(
                "give name; or upload, offset and bytes; or upload and commit",
            )),
        }
    }
}

async fn store_step(
    files: &StoredFiles,
    reloader: &Reloader,
    input: &CallBody,
    ctx: &Ctx,
) -> Result<Value, CallError> {
    direct(ctx)?;
    // The access rule refuses callers without an identity, so this does not fail.
    let owner = &ctx.identity().ok_or_else(no_identity)?.id;
    let fields = input.try_value()?;
    match StoreStep::parse(fields)? {
        StoreStep::Begin(name) => begin(files, owner, name).await,
        StoreStep::Add(upload, offset) => {
            let piece = bytes(input, &fields["bytes"])?;
            add(files, owner, &upload, (offset, piece)).await
        }
        StoreStep::Commit(upload) => {
            let row = commit(files, owner, &upload).await?;
            tracing::info!(file = %row.name, bytes = row.bytes, by = caller(ctx), "config.file stored");
            let users = files.users(&row.name, &reloader.current().config);
            let mut answer = shown_row(&row, &users);
            answer["kept"] = files.0.are_kept.into();
            Ok(answer)
        }
    }
}

async fn begin(
    files: &StoredFiles,
    owner: &PeerId,
    name: StoredFileName,
) -> Result<Value, CallError> {
    // This check comes before a file is made. `add` checks again, for two calls at a time.
    files.0.uploads.check_slots()?;
    let own = files.clone();
    let upload = blocking(move || own.store()?.begin(name)).await?;
    let upload = files.0.uploads.add(owner, upload)?;
    Ok(json!({ "upload": upload }))
}

async fn add(
    files: &StoredFiles,
    owner: &PeerId,
    name: &str,
    (offset, piece): (u64, Bytes),
) -> Result<Value, CallError> {
    let uploads = &files.0.uploads;
    // The writing thread holds the lock, so that a call that its caller gives up does not leave a
    // piece half written.
    let mut held = uploads.lookup(owner, name)?.lock_owned().await;
    let have = held.as_ref().ok_or(FileStoreError::NoUpload)?.have();
    if offset != have {
        return Err(FileStoreError::Offset { have }.into());
    }
    let written = blocking(move || {
        let upload = held.as_mut().ok_or(FileStoreError::NoUpload)?;
        upload.write(&piece)?;
        Ok(upload.have())
    });
    match written.await {
        Ok(have) => Ok(json!({ "have": have })),
        Err(error) => {
            // An unknown part of the piece may be written.
            uploads.forget(name);
            Err(error.into())
        }
    }
}

async fn commit(
    files: &StoredFiles,
    owner: &PeerId,
    name: &str,
) -> Result<StoredFileRow, FileStoreError> {
    let mut held = files.0.uploads.lookup(owner, name)?.lock_owned().await;
    // The upload ends whether or not the commit succeeds: its content is complete, and more pieces
    // cannot correct it.
    files.0.uploads.forget(name);
    let upload = held.take().ok_or(FileStoreError::NoUpload)?;
    let own = files.clone();
    blocking(move || own.store()?.commit(upload)).await
}

/// Refuses a call that an operation or a script makes for its caller: the stored file outlives the
/// call, and may be the node's certificate.
fn direct(ctx: &Ctx) -> Result<(), CallError> {
    match ctx.internal() {
        false => Ok(()),
        true => Err(CallError::new(
            ErrorCode::Forbidden,
            "an operation may not change stored files for its caller; call this directly",
        )),
    }
}

fn parsed(name: &str) -> Result<StoredFileName, CallError> {
    let name = name.parse::<StoredFileName>();
    name.map_err(|error| CallError::invalid_input(error.to_string()))
}

/// Bytes behind the JSON, or as base64 in it.
fn bytes(input: &CallBody, value: &Value) -> Result<Bytes, CallError> {
    if let Some(bytes) = input.binary(value) {
        return Ok(bytes);
    }
    let text = value.as_str();
    let decoded = text.and_then(|text| BASE64.decode(text.as_bytes()).ok());
    decoded
        .map(Bytes::from)
        .ok_or_else(|| CallError::invalid_input("bytes are {\"$bin\":[offset,length]} or base64"))
}

/// When a stored file of this kind takes effect on a node that uses it.
fn counts(kind: StoredFileKind) -> &'static str {
    match kind {
        StoredFileKind::Site => "at once",
        StoredFileKind::Certificate => "within 5 s",
        _ => "from the next start",
    }
}

fn shown_row(row: &StoredFileRow, users: &FileUsers) -> Value {
    let mut shown = row.facts.clone();
    let kind = row.name.kind();
    let mut put = |key: &str, value: Value| shown.insert(key.to_owned(), value);
    put("name", row.name.to_string().into());
    put("kind", kind.name().into());
    put("files", row.files.into());
    put("bytes", row.bytes.into());
    put("stored", json!(row.stored));
    put("used_by", json!(users.in_force));
    put("counts", counts(kind).into());
    put("warnings", json!(row.warnings));
    Value::Object(shown)
}

/// Adds the files of a site, up to [`ENTRIES_MAX`].
fn add_entries(row: &mut Value, mut files: Vec<(String, u64)>) {
    row["left_out"] = files.len().saturating_sub(ENTRIES_MAX).into();
    files.truncate(ENTRIES_MAX);
    let files = files.into_iter();
    let files = files.map(|(path, bytes)| json!({ "path": path, "bytes": bytes }));
    row["entries"] = files.collect();
}

/// Runs blocking work on a thread where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, FileStoreError> + Send + 'static,
) -> Result<T, FileStoreError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| FileStoreError::io("work on a file", std::io::Error::other(error)))?
}
